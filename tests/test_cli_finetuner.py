"""Fine-tuners on the command line: imported, shown, and matched with a model's blocks."""

import json
from dataclasses import replace

import pytest
import torch
from test_blocks_families import tiny
from test_finetuner_legacy import networks

from zopeft.blocks import discover
from zopeft.finetuner import FineTuner
from zopeft.methods import METHODS
from zopeft.models import load_model
from zopeft.report.heatmap import Cell, grids, plot_scales

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def pickled(tiny_model, tmp_path_factory):
    """A stand-in for the authors' file, learned on the tiny model."""
    model, _ = load_model(str(tiny_model))
    file = tmp_path_factory.mktemp("released") / "tiny_finetuner.pth"
    torch.save(networks([name for name, _ in model.named_parameters()]), file)
    return file


@pytest.fixture
def finetuner(zopeft_command, pickled, tiny_model, tmp_path):
    zopeft_command.json("import-finetuner", pickled, "--model", tiny_model, "--out", tmp_path / "f")
    return tmp_path / "f"


def test_import(zopeft_command, pickled, tiny_model, tmp_path):
    words = ("import-finetuner", pickled, "--model", tiny_model, "--out", tmp_path / "f")
    found = zopeft_command.json(*words, "--batch-size", 4)
    assert found["checked"]
    assert (found["groups"], found["layers"], found["embed_rows"]) == (21, 2, 60)
    assert found["unserved"] == []
    assert "--overwrite" in zopeft_command.refused(*words)
    code, out, err = zopeft_command(*words, "--overwrite")
    assert code == 0, err
    assert "an embedding counts" in out and "240 rows" in out
    config = json.loads((tmp_path / "f" / "finetuner_config.json").read_text())
    assert (config["normalisation"], config["embed_rows"]) == ("authors", 240)
    card = (tmp_path / "f" / "README.md").read_text()
    assert "240 rows, as in the authors' code" in card
    assert "license" not in card


def test_import_for_an_alias_that_cannot_be_fetched(zopeft_command, pickled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = zopeft_command("import-finetuner", pickled, "--model", "llama-3.2-1b")
    assert code == 0, err
    assert "roles and layers come from the file's names alone" in err
    assert "give a folder that holds its config.json" in err
    config = FineTuner.from_pretrained(tmp_path / "tiny_finetuner").config
    assert config.base_model == "meta-llama/Llama-3.2-1B"
    assert config.architecture == "LlamaForCausalLM"


def test_import_refuses(zopeft_command, pickled, tiny_model, tmp_path):
    def refused(file, model=tiny_model):
        out = tmp_path / "f"
        line = zopeft_command.refused("import-finetuner", file, "--model", model, "--out", out)
        assert not out.exists()
        return line

    torch.save({"model.norm.weight": torch.nn.ReLU()}, tmp_path / "foreign.pth")
    assert "torch.nn.modules.activation.ReLU" in refused(tmp_path / "foreign.pth")
    assert "no such file" in refused(tmp_path / "none.pth")
    assert "did you mean 'llama-3.2-1b'" in refused(pickled, "lama-3.2-1b")
    tiny("opt").config.save_pretrained(tmp_path / "opt")
    assert "another model than OPTForCausalLM" in refused(pickled, tmp_path / "opt")
    assert "no config.json" in refused(pickled, tmp_path)


def test_show(zopeft_command, finetuner, tmp_path):
    code, out, err = zopeft_command("finetuner", "show", finetuner, "--png", tmp_path / "a.png")
    assert code == 0, err
    for text in ("fine-tuner", "training", "tiny_finetuner.pth", "raw scales at loss 1", "proj"):
        assert text in out
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)
    found = zopeft_command.json("finetuner", "show", finetuner, "--loss", 0)
    assert len(found["scales"]) == 21
    assert found["normalisation"] == "authors"


def test_show_statistics(zopeft_command, tmp_path):
    blocks = discover(tiny("llama"))
    made = FineTuner.initial(blocks)
    entry = {"signal": 2.0, "energy": 8.0, "curvature": 0.5, "scale": 1.5}
    made.config.training = {
        "objective": "signal",
        "tasks": ["copa", "sst2"],
        "distance_from_start": 0.25,
        "statistics": {block.key: entry for block in blocks},
    }
    made.save_pretrained(tmp_path / "f")
    code, out, err = zopeft_command("finetuner", "show", tmp_path / "f")
    assert code == 0, err
    for text in ("copa, sst2", "distance from start", "0.25", "signal S", "curvature h", "embed"):
        assert text in out


def test_show_on_a_model(zopeft_command, finetuner, tiny_model):
    found = zopeft_command.json("finetuner", "show", finetuner, "--model", tiny_model)
    assert "21 of 21 blocks matched (21 by name)" in found["note"]
    served = zopeft_command.json("blocks", tiny_model, "--full", "--finetuner", finetuner)
    assert [c["scale"] for c in found["scales"]] == [row["scale"] for row in served["blocks"]]


def test_blocks_shows_the_scales_of_the_first_step(zopeft_command, finetuner, tiny_model):
    words = ("blocks", tiny_model, "--full", "--finetuner", finetuner, "--loss", 0)
    rows = zopeft_command.json(*words)["blocks"]
    model, _ = load_model(str(tiny_model))
    learned = FineTuner.from_pretrained(finetuner)
    method = METHODS["zo_finetuner"](discover(model), finetuner=learned, lr=1e-6)
    tokens = torch.arange(8)[None]
    method.step(lambda: model(input_ids=tokens, labels=tokens).loss)
    used = torch.tensor(method.last_record.scales)
    assert torch.allclose(torch.tensor([row["scale"] for row in rows]), used, rtol=1e-5)


@pytest.mark.parametrize("space", [["--lora"], ["--prefix"], ["--peft", "ia3"]])
def test_blocks_of_adapters(space, zopeft_command, finetuner, tiny_model, tmp_path):
    words = ("blocks", tiny_model, *space, "--finetuner", finetuner)
    found = zopeft_command.json(*words, "--png", tmp_path / "b.png")
    assert (tmp_path / "b.png").read_bytes().startswith(PNG)
    rows = found["blocks"]
    assert {row["how"] for row in rows} == {"name"}
    assert all(row["group"].startswith("model.layers.") for row in rows)
    power = sum(row["numel"] * row["scale"] ** 2 for row in rows)
    assert power == pytest.approx(sum(row["numel"] for row in rows), rel=1e-4)
    code, out, err = zopeft_command(*words)
    assert code == 0, err
    assert found["report"] in " ".join(out.split())


def test_blocks_refuses(zopeft_command, finetuner, tiny_model, tmp_path):
    def refused(*words):
        return zopeft_command.refused("blocks", tiny_model, *words)

    assert "give --finetuner" in refused("--png", tmp_path / "a.png")
    assert ".png file" in refused("--finetuner", finetuner, "--png", tmp_path / "a.jpg")
    missing = tmp_path / "none" / "a.png"
    assert "no such folder" in refused("--finetuner", finetuner, "--png", missing)
    assert "no such folder" in refused("--finetuner", tmp_path / "none")
    trained = refused("--lora", "peft.options.inference_mode=true")
    assert "no trainable parameter" in trained
    assert "target_modules" in refused("--lora", "peft.options.target_modules=[nowhere]")


def test_a_fine_tuner_of_another_architecture(zopeft_command, tiny_model, tmp_path):
    """GPT-2 shares some roles with Llama; with none shared, it is refused."""
    foreign = FineTuner.initial(discover(tiny("gpt2")))
    foreign.save_pretrained(tmp_path / "some")
    words = ("blocks", tiny_model, "--full", "--finetuner")
    report = zopeft_command.json(*words, tmp_path / "some")["report"]
    assert "blocks matched" in report
    assert "at the neutral scale 1:" in report and "q_proj" in report
    assert "learned on GPT2LMHeadModel, used on LlamaForCausalLM" in report
    foreign.config.groups = [
        replace(group, role="qkv_proj", base_role="qkv_proj") for group in foreign.config.groups
    ]
    foreign.save_pretrained(tmp_path / "none")
    line = zopeft_command.refused(*words, tmp_path / "none")
    assert "none of its groups matches" in line
    assert "0 of 21 blocks matched" in line and "it serves qkv_proj" in line


def test_the_grid_of_a_heatmap(tmp_path):
    cells = [
        Cell(0, "q", 2.0),
        Cell(0, "q", 8.0),
        Cell(2, "q", 0.0),
        Cell(2, "k", 1.0, served=False),
        Cell(None, "embed", 100.0),
    ]
    inside, outside = grids(cells)
    assert (inside.rows, inside.columns) == (["0", "2"], ["q", "k"])
    assert inside.scales[0, 0] == pytest.approx(4.0)
    assert inside.scales[1, 0] == 0.0
    assert not inside.served[1, 1]
    assert (outside.rows, outside.columns) == ([""], ["embed"])
    for raw in (False, True):
        file = plot_scales(cells, tmp_path / "a.png", "title", "a note " * 40, raw=raw)
        assert file.read_bytes().startswith(PNG)
    assert plot_scales([Cell(None, "embed", 0.0)], tmp_path / "b.png", "nothing above 0").is_file()


def test_what_looks_like_markup_is_shown_as_it_is(capsys):
    from rich.console import Console

    from zopeft.cli.output import facts_table, rows_table

    console = Console(width=60)
    console.print(rows_table("of [/x]", ["[a]"], [["[ours]"], [1]]))
    console.print(facts_table("[b]", {"[c]": "[/d]"}))
    shown = capsys.readouterr().out
    for text in ("of [/x]", "[a]", "[ours]", "[b]", "[c]", "[/d]"):
        assert text in shown
