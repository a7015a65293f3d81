"""The commands, end to end, on a tiny model: what comes out, and where."""

import json
import os
import signal
import subprocess
import sys

import pytest
from safetensors.torch import load_file
from test_training_resume import killed

from zopeft.journal import Journal

QUICK = ("--batch-size", 2, "--lr", "1e-3")


@pytest.fixture
def base(tiny_model, tiny_data):
    return (tiny_model, "--task", "sst2", "--data", tiny_data)


@pytest.mark.parametrize(
    ("space", "space_name"),
    [((), "lora"), (("--prefix",), "prefix"), (("--full",), "full"), (("--peft", "ia3"), "ia3")],
)
def test_tune_then_eval(zopeft_command, base, tiny_model, tmp_path, space, space_name):
    out = tmp_path / "out"
    summary = zopeft_command.json("tune", *base, *QUICK, *space, "--steps", 3, "--out", out)
    assert summary["out"] == str(out)
    assert summary["peft"] == space_name
    assert (summary["steps"], summary["skipped"]) == (3, 0)
    assert summary["forward_passes"] == 6
    assert summary["seconds"] > 0
    assert summary["loss_first"] > 0
    assert summary["loss_last"] > 0
    assert set(summary["metrics"]) == {"before", "after"}
    assert summary["lr"] == 1e-3
    assert summary["lr_reason"] == "given"
    assert summary["peak_bytes"] > 1e7
    assert summary["versions"]["torch"]
    assert summary["recipe"]["training"]["steps"] == 3
    assert json.loads((out / "run.json").read_text()) == summary
    assert (out / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert (out / "journal.bin").stat().st_size > 0
    words = (out, *base[1:]) if space_name == "full" else (*base, "--adapter", out)
    scored = zopeft_command.json("eval", *words)
    found, wanted = scored["metrics"], summary["metrics"]["after"]
    assert found.keys() == wanted.keys()
    # Some of them are shares by label.
    assert all(found[name] == pytest.approx(wanted[name]) for name in wanted)


def test_the_adapter_is_a_normal_one(zopeft_command, base, tiny_model, tmp_path):
    out = tmp_path / "out"
    zopeft_command.json("tune", *base, *QUICK, "--steps", 2, "--out", out, "peft.options.r=2")
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    loaded = PeftModel.from_pretrained(model, str(out))
    moved = [p for n, p in loaded.named_parameters() if "lora_B" in n and p.abs().max() > 0]
    assert len(moved) == 4
    assert loaded.peft_config["default"].r == 2
    assert AutoTokenizer.from_pretrained(out)("a film")["input_ids"]
    # Without a model, eval takes the base that the adapter names.
    scored = zopeft_command.json("eval", *base[1:], "--adapter", out)
    assert scored["model"] == str(tiny_model)


@pytest.mark.parametrize(
    ("words", "told", "passes"),
    [
        (("method.directions=3",), "mezo, 3 directions a step", 18),
        (("method.sides=one",), "mezo, one-sided", 6),
        (
            ("method.directions=3", "method.sides=one", "method.normalise=true"),
            "mezo, 3 directions a step, one-sided, normalised",
            12,
        ),
    ],
)
def test_several_directions_are_told_and_resumed(
    zopeft_command, base, tmp_path, words, told, passes
):
    from zopeft.cli.summary import tune_table

    out = ("--out", tmp_path / "out")
    summary = zopeft_command.json("tune", *base, *QUICK, "--steps", 3, *out, *words)
    assert summary["forward_passes"] == passes
    assert told in [str(cell) for column in tune_table(summary).columns for cell in column.cells]
    again = ("--steps", 4, "--resume", *out)
    other = zopeft_command.refused("tune", *base, *QUICK, *again, "method.directions=5")
    assert "method.directions" in other and "-> 5" in other
    resumed = zopeft_command.json("tune", *base, *QUICK, *again)
    assert (resumed["steps"], resumed["recipe"]["method"]) == (4, summary["recipe"]["method"])


def test_auto_learning_rate_is_told(zopeft_command, base, tmp_path):
    words = ("--steps", 1, "--batch-size", 2, "--out", tmp_path / "out")
    summary = zopeft_command.json("tune", *base, *words, "training.eval_before=false")
    assert summary["lr"] > 0
    assert "given" not in summary["lr_reason"]
    assert summary["metrics"]["before"] is None


@pytest.mark.parametrize("method", ["fo_sgd", "fo_adam"])
def test_first_order_baselines(zopeft_command, base, tmp_path, method):
    words = ("--method", method, "--steps", 3, "--out", tmp_path / "out")
    summary = zopeft_command.json("tune", *base, *QUICK, *words)
    assert (summary["method"], summary["steps"]) == (method, 3)
    assert summary["forward_passes"] == 3
    assert summary["loss_last"] > 0


def test_meta_train_then_tune_and_resume(zopeft_command, base, tmp_path):
    learned = tmp_path / "finetuner"
    words = ("--steps", 3, "--batch-size", 2, "--out", learned, "--hidden", 4)
    meta = zopeft_command.json("meta-train", *base, *words)
    assert (meta["steps"], meta["tasks"], meta["peft"]) == (3, ["sst2"], "full")
    assert meta["groups"] > 10
    assert {"finetuner_config.json", "finetuner.safetensors", "README.md", "loss.png"} <= {
        path.name for path in learned.iterdir()
    }
    out = tmp_path / "out"
    words = (*QUICK, "--finetuner", learned, "--out", out, "training.eval_before=false")
    summary = zopeft_command.json("tune", *base, *words, "--steps", 2)
    assert summary["method"] == "zo_finetuner"
    longer = zopeft_command.json("tune", "--resume", "--out", out, "--steps", 4)
    straight = tmp_path / "straight"
    words = (*words[:-2], straight, words[-1])
    zopeft_command.json("tune", *base, *words, "--steps", 4)
    assert longer["steps"] == 4
    name = "adapter_model.safetensors"
    assert (out / name).read_bytes() == (straight / name).read_bytes()
    # B begins at zero.
    assert all(bool(w.any()) for key, w in load_file(out / name).items() if "lora_B" in key)
    line = zopeft_command.refused("tune", "--resume", "--out", out, "--seed", 5)
    assert "training.seed 0 -> 5" in line


def test_meta_train_settings_reach_the_artifact(zopeft_command, base, tmp_path):
    out = tmp_path / "finetuner"
    words = ("--steps", 2, "--batch-size", 2, "--out", out, "--lora", "--hidden", 3)
    words += ("--sharing", "layer", "--no-normalise", "--lr", "1e-5", "--lr-pertnn", "0.5")
    meta = zopeft_command.json("meta-train", *base, *words)
    assert meta["peft"] == "lora"
    config = json.loads((out / "finetuner_config.json").read_text())
    assert (config["hidden"], config["sharing"], config["normalise"]) == (3, "layer", False)
    settings = config["training"]["settings"]
    assert (settings["lr_zo"], settings["lr_pertnn"]) == (1e-5, 0.5)


def test_a_subspace_is_learned_then_tuned_with_and_resumed(zopeft_command, base, tmp_path):
    learned, out = tmp_path / "finetuner", tmp_path / "out"
    words = ("--capacity", "subspace", "--rank", 3, "--steps", 8, "--batch-size", 2)
    words = (*words, "meta.rows=frequency", "meta.rule=none", "--out", learned)
    wrong = zopeft_command.refused("meta-train", *base, *words, "--objective", "paper")
    assert "add --objective signal" in wrong
    meta = zopeft_command.json("meta-train", *base, *words)
    assert "in a learned subspace, 1 with rows by token frequency" in meta["shapes"]
    config = json.loads((learned / "finetuner_config.json").read_text())
    assert (config["capacity"], config["rank"], config["rows"]) == ("subspace", 3, "frequency")
    file = learned / "finetuner.safetensors"
    assert 0 <= file.stat().st_size - meta["file_bytes"] < 20_000
    code, shown, err = zopeft_command("finetuner", "show", learned)
    assert code == 0, err
    assert "of rank 3 at most" in shown and "by token frequency" in shown and "MB" in shown
    words = (*QUICK, "--full", "--finetuner", learned, "--out", out, "training.eval_before=false")
    summary = zopeft_command.json("tune", *base, *words, "--steps", 2)
    assert summary["shapes"] == meta["shapes"]
    zopeft_command.json("tune", "--resume", "--out", out, "--steps", 4)
    straight = tmp_path / "straight"
    words = ("--full", "--finetuner", learned, "--out", straight, "training.eval_before=false")
    zopeft_command.json("tune", *base, *QUICK, *words, "--steps", 4)
    name = "model.safetensors"
    assert (out / name).read_bytes() == (straight / name).read_bytes()


def test_mezo_by_token_frequency(zopeft_command, base, tmp_path):
    words = ("--full", "--out", tmp_path / "out", "training.eval_before=false", "--steps", 2)
    words = ("tune", *base, *QUICK, *words)
    summary = zopeft_command.json(*words, "method.rows=frequency")
    assert (summary["method"], summary["shapes"]) == ("mezo", "1 with rows by token frequency")
    lora = ("tune", *base, *QUICK, "--lora", "--out", tmp_path / "lora", "--steps", 2)
    line = zopeft_command.refused(*lora, "method.rows=frequency", "training.eval_before=false")
    assert "no table of token embeddings is trained" in line


def test_meta_train_scales_that_move_with_the_state(zopeft_command, base, tmp_path):
    out = tmp_path / "finetuner"
    words = ("--steps", 8, "--batch-size", 2, "--out", out, "--objective", "signal")
    words += ("--policy", "state", "--sharing", "role", "--reset-every", 4)
    words += ("meta.windows=2", "meta.features=[loss_share,change]")
    zopeft_command.json("meta-train", *base, *words)
    config = json.loads((out / "finetuner_config.json").read_text())
    assert (config["output"], config["sharing"]) == ("bounded", "role")
    assert config["features"] == ["loss_share", "change"]
    assert [w["run"] for w in config["training"]["windows"]] == [0, 0, 1, 1]
    assert config["training"]["policy"]["kept"] in (True, False)
    wrong = zopeft_command.refused(
        "meta-train", *base, "--policy", "state", "--objective", "paper", "--overwrite"
    )
    assert "state needs the signal objective" in wrong


def test_killed_and_resumed(zopeft_command, base, tmp_path, monkeypatch):
    words = ("tune", *base, *QUICK, "--steps", 12, "training.eval_before=false")
    straight, out = tmp_path / "straight", tmp_path / "out"
    zopeft_command.json(*words, "--out", straight)
    append = Journal.append

    def killed_after_a_while(journal, record):
        append(journal, record)
        if record.step == 7:
            os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", killed_after_a_while)
        killed(lambda: zopeft_command(*words, "--out", out))
    assert not (out / "adapter_model.safetensors").exists()
    assert json.loads((out / "run.json").read_text())["status"] == "running"
    summary = zopeft_command.json("tune", "--resume", "--out", out)
    assert summary["steps"] == 12
    assert 0 < summary["forward_passes"] < 24
    name = "adapter_model.safetensors"
    assert (out / name).read_bytes() == (straight / name).read_bytes()
    # B begins at zero.
    assert all(bool(w.any()) for key, w in load_file(out / name).items() if "lora_B" in key)


def test_overwrite_replaces_an_earlier_result(zopeft_command, base, tmp_path):
    out = tmp_path / "out"
    words = ("tune", *base, *QUICK, "--out", out, "training.eval_before=false")
    zopeft_command.json(*words, "--steps", 3)
    assert zopeft_command.json(*words, "--steps", 2, "--overwrite")["steps"] == 2


def test_default_folder_counts_up(zopeft_command, base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("tune", *base, *QUICK, "--steps", 1, "training.eval_before=false")
    assert zopeft_command.json(*words)["out"] == "runs/sst2-lora-mezo-1"
    assert zopeft_command.json(*words)["out"] == "runs/sst2-lora-mezo-2"


def test_tables_for_people(zopeft_command, base, tmp_path):
    words = ("tune", *base, *QUICK, "--steps", 1, "--out", tmp_path / "out")
    code, out, err = zopeft_command(*words)
    assert code == 0
    assert "accuracy" in out
    assert "->" in out
    assert "evaluate after" in err


def test_the_embedded_model_says_so(zopeft_command):
    code, out, err = zopeft_command("blocks", "--lora", "--json")
    assert code == 0
    assert "embedded model" in err
    found = json.loads(out)
    assert found["space"] == "adapter"
    assert {block["role"] for block in found["blocks"]} == {"lora_A", "lora_B"}


def test_blocks_in_full(zopeft_command, tiny_model):
    found = zopeft_command.json("blocks", tiny_model)
    assert found["space"] == "full"
    roles = {block["role"] for block in found["blocks"]}
    assert {"embed", "q_proj", "down_proj"} <= roles
    code, out, _ = zopeft_command("blocks", tiny_model)
    assert code == 0
    assert "q_proj" in out


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("methods", "zo_finetuner"),
        ("tasks", "squad"),
        ("models", "llama-3.2-1b"),
        ("peft", "lora"),
        ("recipes", "embedded/tune"),
    ],
)
def test_lists(zopeft_command, kind, name):
    rows = zopeft_command.json("list", kind)
    found = {row["name"]: row["about"] for row in rows}
    assert found[name]
    code, out, _ = zopeft_command("list", kind)
    assert code == 0
    assert name in out


def test_recipe_commands(zopeft_command, tmp_path):
    rows = zopeft_command.json("recipe", "check")
    assert len(rows) == 29
    assert all(row["ok"] for row in rows)
    code, out, _ = zopeft_command("recipe", "show", "embedded/tune")
    assert code == 0
    assert out.startswith("#")
    assert zopeft_command.json("recipe", "show", "opt-30b/tune")["training"]["batch_size"] == 4
    copy = tmp_path / "own.yaml"
    zopeft_command.json("recipe", "copy", "embedded/tune", copy)
    assert copy.read_text() == out
    assert "exists" in zopeft_command.refused("recipe", "copy", "embedded/tune", copy)
    assert zopeft_command.json("recipe", "check", copy)[0]["ok"]


def test_version(zopeft_command):
    code, out, _ = zopeft_command("--version")
    assert (code, out) == (0, "zopeft 0.1.0\n")
    words = [sys.executable, "-m", "zopeft", "--version"]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == out
