"""Bad input: one line, what was given, what to do, the right exit code, nothing lost."""

import json
import shutil

import pytest

from zopeft.errors import InputError
from zopeft.jobs.claim import Claim

TUNE = ("tune", "--task", "sst2", "--steps", 2, "--batch-size", 2, "--lr", "1e-3")


@pytest.fixture
def tune(zopeft_command, tiny_model, tiny_data, tmp_path):
    """Refused tuning of the tiny model on the tiny data, with further words."""

    def run(*words, model=tiny_model, data=tiny_data, code=2):
        out = tmp_path / "out"
        words = (*TUNE, model, "--data", data, "--out", out, *words)
        return zopeft_command.refused(*words, code=code)

    return run


def test_unknown_task(zopeft_command, tiny_model):
    line = zopeft_command.refused("tune", tiny_model, "--task", "squat")
    assert "unknown task, got 'squat'; did you mean 'squad'" in line
    assert "--task" in zopeft_command.refused("tune", tiny_model)
    assert "no such" in zopeft_command.refused("tune", "--task", "own.yaml")


def test_unknown_model(zopeft_command):
    line = zopeft_command.refused("tune", "lama-3.2-1b", "--task", "sst2")
    assert "got 'lama-3.2-1b'; did you mean 'llama-3.2-1b'" in line
    assert "no such folder" in zopeft_command.refused("blocks", "./nowhere/at/all")


def test_a_name_that_is_no_utf8_is_refused_before_anything_is_made(
    zopeft_command, tiny_model, tmp_path
):
    folder = tmp_path / "a\udc80b"
    line = zopeft_command.refused(*TUNE, tiny_model, "--out", folder)
    assert "no UTF-8, got" in line and "a\\udc80b" in line
    with pytest.raises(InputError, match="--out: the folder's name is no UTF-8"):
        Claim(folder)
    assert not list(tmp_path.iterdir())


LONG = "long" * 75


@pytest.mark.parametrize(
    "words",
    [
        ("tune", LONG, "--task", "sst2"),
        ("tune", "--task", "sst2", "--data", LONG),
        ("tune", "--task", "sst2", "--out", LONG),
        ("tune", "--recipe", LONG),
        ("tune", "--task", "sst2", "--finetuner", LONG),
        ("eval", "--task", "sst2", "--adapter", LONG),
        ("finetuner", "show", LONG),
    ],
)
def test_a_name_too_long_for_a_file(zopeft_command, words):
    line = zopeft_command.refused(*words)
    assert "a file's name: is too long, got 'longlong" in line
    assert "(300 characters)'; check the arguments for a shorter one" in line
    assert len(line) < 200


def test_unknown_method(tune):
    assert "unknown method, got 'mezzo'; did you mean 'mezo'" in tune("--method", "mezzo")


def test_probes_that_cannot_be_stacked_leave_nothing_behind(tune, tmp_path):
    for words in (("--full",), ("--peft", "bitfit", "method.noise=low_rank")):
        line = tune(*words, "method.probes=stacked")
        assert "stacks probes with --full and method.noise=low_rank alone; use auto" in line
        assert not (tmp_path / "out").exists()


def test_unknown_adapter_type(tune):
    assert "unknown peft type, got 'lorra'; did you mean 'lora'" in tune("--peft", "lorra")


def test_unknown_option_of_the_adapter(tune):
    assert "rang" in tune("peft.options.rang=3")


def test_unknown_recipe_key(tune):
    assert "training.stepz: unknown key; did you mean 'training.steps'" in tune("training.stepz=3")


def test_unknown_recipe(tune):
    assert "did you mean 'embedded'" in tune("--recipe", "embeded")


def test_a_folder_of_recipes_for_other_jobs(zopeft_command):
    line = zopeft_command.refused("eval", "--recipe", "embedded", "--task", "sst2")
    assert "no recipe for zopeft eval in this folder of embedded/meta-train, embedded/tune" in line
    assert "leave it out, or give a file of your own with 'job: eval'" in line
    assert "did you mean" not in line
    line = zopeft_command.refused("recipe", "show", "embedded")
    assert "a folder of recipes, got 'embedded'; name one: embedded/meta-train" in line


def test_directions_that_do_not_go_together(tune):
    assert "method.directions: must be at most 64, got 65" in tune("method.directions=65")
    assert "method.sides: must be one of two, one, got 'both'" in tune("method.sides=both")
    line = "method.normalise: divides by the spread of several one-sided directions; take sides"
    assert line in tune("method.normalise=true", "method.directions=4")
    assert line in tune("method.normalise=true", "method.sides=one")


def test_several_problems_on_one_line(tune):
    line = tune("--method", "mezzo", "--eps", "-1", "training.stepz=3")
    assert "3 problems: (1)" in line


def test_missing_weights(tune, tiny_model, tmp_path):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / "model.safetensors").unlink()
    assert str(model) in tune(model=model)


def test_corrupt_weights(tune, tiny_model, tmp_path):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert "model.safetensors" in tune(model=model)


def test_model_folder_without_config(tune, tmp_path):
    (tmp_path / "model").mkdir()
    assert "config.json" in tune(model=tmp_path / "model")


def test_empty_data(tune, tmp_path):
    data = tmp_path / "data"
    assert "no such folder" in tune(data=data)
    data.mkdir()
    assert "no data files" in tune(data=data)
    for split in ("train", "validation"):
        (data / f"{split}.jsonl").write_text("")
    assert "no rows" in tune(data=data)


def test_wrong_columns(tune, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "validation"):
        (data / f"{split}.jsonl").write_text('{"text": "fine", "label": 1}\n')
    line = tune(data=data)
    assert "'sentence'" in line
    assert "text, label" in line


def test_wrong_label(tune, tiny_data, tmp_path):
    data = shutil.copytree(tiny_data, tmp_path / "data")
    (data / "train.jsonl").write_text('{"sentence": "fine", "label": 7}\n')
    line = tune(data=data)
    assert "train.jsonl" in line
    assert "7" in line


def test_missing_split(tune, tiny_data, tmp_path):
    data = shutil.copytree(tiny_data, tmp_path / "data")
    (data / "validation.jsonl").unlink()
    assert "validation" in tune(data=data)


def test_hub_out_of_reach(zopeft_command):
    line = zopeft_command.refused("meta-train", "llama-3.2-1b", "--task", "copa")
    assert "can't be reached" in line
    assert "folder" in line
    assert "login" in line or "log in" in line


def test_fine_tuner_and_method_go_together(tune, tmp_path):
    assert "needs a fine-tuner" in tune("--method", "zo_finetuner")
    assert "uses none" in tune("--method", "mezo", "--finetuner", tmp_path)


def test_missing_fine_tuner(tune, tmp_path):
    assert "nothing" in tune("--finetuner", tmp_path / "nothing")


def test_one_space_at_a_time(tune):
    assert "one space at a time" in tune("--lora", "--full")


def test_quantised_full_tuning(tune):
    assert "cannot be trained in full" in tune("--full", "--load-in-8bit")


def test_an_existing_folder_is_kept(tune, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    assert "--overwrite" in tune()
    assert "not a result of zopeft" in tune("--overwrite")
    assert (out / "precious.txt").read_text() == "mine"
    assert len(list(out.iterdir())) == 1


def test_overwrite_waits_for_good_input(tune, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "run.json").write_text("{}\n")
    (out / "adapter_model.safetensors").write_text("old")
    tune("--overwrite", data=tmp_path / "nowhere")
    tune("--overwrite", "--method", "mezzo")
    tune("--overwrite", model="./nowhere/model")
    assert (out / "adapter_model.safetensors").read_text() == "old"


def test_overwrite_spares_what_the_run_reads(zopeft_command, tiny_data, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "run.json").write_text("{}\n")
    data = shutil.copytree(tiny_data, folder / "data")
    words = (*TUNE, "--data", data, "--out", folder, "--overwrite")
    assert "read by this run" in zopeft_command.refused(*words)
    assert (data / "train.jsonl").exists()


def test_out_is_a_file(tune, tmp_path):
    (tmp_path / "out").write_text("file")
    assert "is a file" in tune()


def test_nothing_to_resume(tune, zopeft_command, tmp_path):
    assert "no run in this folder" in tune("--resume")
    assert "--out" in zopeft_command.refused("tune", "--task", "sst2", "--resume")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("tunne",), "Did you mean 'tune'"),
        (("tune", "--stepz", "3"), "--stepz"),
        (("tune", "--steps"), "requires an argument"),
        (("tune", "a", "b"), "one model at a time"),
        (("list", "metods"), "did you mean 'methods'"),
        (("recipe", "show", "nope"), "unknown recipe"),
        (("recipe", "check", "nope.yaml"), "no such file"),
        (("eval",), "no task given"),
        (("meta-train",), "no task given"),
    ],
)
def test_wrong_usage(zopeft_command, words, told):
    assert told in zopeft_command.refused(*words)


def test_adapter_for_another_model(zopeft_command, tiny_model, tiny_data, tmp_path):
    out = tmp_path / "out"
    words = (*TUNE, tiny_model, "--data", tiny_data, "--out", out, "training.eval_before=false")
    zopeft_command.json(*words)
    told = zopeft_command.refused("blocks", out)
    assert str(out) in told
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_model)
    from zopeft.embedded import MODEL_DIR

    line = zopeft_command.refused("eval", MODEL_DIR, "--adapter", out, "--task", "sst2")
    assert "--adapter" in line
    assert str(tiny_model) in line
    (out / "adapter_model.safetensors").write_bytes(b"nonsense")
    line = zopeft_command.refused("eval", tiny_model, "--adapter", out, "--task", "sst2")
    assert "adapter_model.safetensors" in line


class Losses:
    """The task's loss, not finite from one call on for some calls.

    Args:
        first: The first bad call.
        bad: Number of bad calls.
    """

    def __init__(self, first, bad):
        from zopeft.tasks import task_loss

        self.real, self.first, self.bad, self.calls = task_loss, first, bad, 0

    def __call__(self, model, batch):
        self.calls += 1
        loss = self.real(model, batch)
        spoilt = self.first <= self.calls < self.first + self.bad
        return loss * float("nan") if spoilt else loss


def test_a_step_without_a_finite_loss_is_skipped(
    zopeft_command, tiny_model, tiny_data, tmp_path, monkeypatch
):
    monkeypatch.setattr("zopeft.tasks.task_loss", Losses(3, 2), raising=False)
    words = (*TUNE, tiny_model, "--data", tiny_data, "--out", tmp_path / "out", "--steps", 4)
    summary = zopeft_command.json(*words, "training.eval_before=false")
    assert (summary["steps"], summary["skipped"]) == (4, 1)
    assert summary["loss_last"] == summary["loss_last"]


def test_a_run_of_bad_losses_stops(zopeft_command, tiny_model, tiny_data, tmp_path, monkeypatch):
    good = (*TUNE, tiny_model, "--data", tiny_data, "training.eval_before=false")
    zopeft_command.json(*good, "--out", tmp_path / "good")
    monkeypatch.setattr("zopeft.tasks.task_loss", Losses(5, 1000), raising=False)
    out = tmp_path / "out"
    words = (*good, "--out", out, "--steps", 50, "method.max_bad_steps=3")
    line = zopeft_command.refused(*words, code=1)
    assert "not finite for 3 steps in a row" in line
    assert json.loads((out / "run.json").read_text())["status"] == "failed"
    # The two good steps are those of the run that ended there.
    name = "adapter_model.safetensors"
    assert (out / name).read_bytes() == (tmp_path / "good" / name).read_bytes()


def test_debug_shows_the_traceback(zopeft_command):
    from zopeft.errors import InputError

    with pytest.raises(InputError):
        zopeft_command("tune", "--task", "squat", "--debug")
