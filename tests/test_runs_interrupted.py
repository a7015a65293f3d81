"""Runs that break off: one line that says what is kept, an honest record, a way to go on."""

import json
import signal

import pytest

from zopeft.errors import RunError
from zopeft.jobs.folder import Folder

SST2 = ("--task", "sst2")
FAST = (*SST2, "--steps", 3, "--batch-size", 2, "--lr", "1e-3")
ADAPTER = "adapter_model.safetensors"


@pytest.fixture
def words(tiny_model, tiny_data, tmp_path):
    return ("tune", tiny_model, *FAST, "--data", tiny_data, "--out", tmp_path / "out")


def interrupting(monkeypatch, place, how="ctrl-c", call=1):
    """Has a function interrupt the command at one of its calls."""
    import importlib

    module, _, name = place.rpartition(".")
    real, calls = getattr(importlib.import_module(module), name), []

    def stop(*args, **kwargs):
        calls.append(1)
        if len(calls) != call:
            return real(*args, **kwargs)
        if how == "ctrl-c":
            raise KeyboardInterrupt
        number = getattr(signal, how)
        assert signal.getsignal(number) not in (signal.SIG_DFL, signal.SIG_IGN)
        signal.raise_signal(number)
        raise AssertionError("the signal did nothing")

    monkeypatch.setattr(place, stop)


STAGES = {
    "loading": ("zopeft.jobs.tune.load_base", 1, None),
    "measuring before": ("zopeft.jobs.tune.measure", 1, "no steps are"),
    "third step": ("zopeft.tasks.task_loss", 5, "2 steps are"),
    "writing": ("zopeft.training.result._save", 1, "3 steps are"),
}
_straight = {}


def straight(zopeft_command, words, folder):
    """Returns the summary and the weights of the run that nobody interrupts, made once."""
    if not _straight:
        summary = zopeft_command.json(*words[:-1], folder)
        _straight.update(metrics=summary["metrics"], weights=(folder / ADAPTER).read_bytes())
    return _straight


@pytest.mark.parametrize("stage", list(STAGES))
def test_an_interrupt_is_told_at_every_stage_and_the_run_goes_on(
    stage, zopeft_command, words, tmp_path, monkeypatch
):
    place, call, kept = STAGES[stage]
    out = tmp_path / "out"
    with monkeypatch.context() as patches:
        interrupting(patches, place, call=call)
        line = zopeft_command.refused(*words, code=1)
    if kept is None:
        assert line == "zopeft: interrupted; nothing was written"
        assert not out.exists()
        return
    goes_on = f"zopeft tune --resume --out {out}"
    assert line == f"zopeft: interrupted; {kept} kept in {out}; go on with: {goes_on}"
    record = json.loads((out / "run.json").read_text())
    assert (record["status"], record["job"]) == ("interrupted", "tune")
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    # Without --resume, the line says what to do.
    again = zopeft_command.refused(*words)
    assert f"a run of zopeft tune that was interrupted, got '{out}'" in again
    assert goes_on in again and "--overwrite" in again
    summary = zopeft_command.json("tune", "--resume", "--out", out)
    assert (summary["status"], summary["steps"]) == ("done", 3)
    assert summary["metrics"]["before"] is not None
    whole = straight(zopeft_command, words, tmp_path / "straight")
    assert summary["metrics"] == whole["metrics"]
    assert (out / ADAPTER).read_bytes() == whole["weights"]


@pytest.mark.parametrize("how", ["SIGTERM", "SIGHUP"])
def test_signals_that_end_a_process_are_told_as_an_interrupt(
    how, zopeft_command, words, tmp_path, monkeypatch
):
    before = signal.getsignal(signal.SIGTERM)
    # Under nohup a hang-up is ignored, and stays so.
    ignored = signal.signal(getattr(signal, how), signal.SIG_DFL)
    interrupting(monkeypatch, "zopeft.jobs.tune.measure", how)
    try:
        line = zopeft_command.refused(*words, code=1)
    finally:
        signal.signal(getattr(signal, how), ignored)
    assert f"interrupted by {how}; no steps are kept in {tmp_path / 'out'}; go on with" in line
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "interrupted"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_that_was_killed_before_its_first_step_starts_again(
    zopeft_command, words, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    with monkeypatch.context() as patches:
        interrupting(patches, "zopeft.jobs.tune.measure")
        zopeft_command.refused(*words, code=1)
    # A kill leaves the record as it was, and what was just being written.
    record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**record, "status": "running"}))
    (out / ".staged-0").write_text("half")
    (out / ".staged-1").mkdir()
    again = zopeft_command.refused(*words)
    assert f"that was killed, got '{out}'; go on with: zopeft tune --resume" in again
    code, _, err = zopeft_command("tune", "--resume", "--out", out)
    assert code == 0
    assert "no step of this run has been kept: it starts from the beginning" in err
    assert json.loads((out / "run.json").read_text())["steps"] == 3
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_a_run_that_is_done_and_kept_no_steps_is_not_made_again(zopeft_command, words, tmp_path):
    zopeft_command.json(*words, "training.journal=false", "training.eval_before=false")
    before = (tmp_path / "out" / ADAPTER).read_bytes()
    line = zopeft_command.refused("tune", "--resume", "--out", tmp_path / "out", "--steps", 5)
    assert "has kept neither a journal nor a checkpoint" in line
    assert (tmp_path / "out" / ADAPTER).read_bytes() == before
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "done"


def test_input_that_is_wrong_leaves_the_record_of_a_run_that_was_to_go_on(
    zopeft_command, words, tmp_path, monkeypatch
):
    zopeft_command.json(*words, "training.eval_before=false")
    before = json.loads((tmp_path / "out" / "run.json").read_text())
    journal = (tmp_path / "out" / "journal.bin").read_bytes()
    (tmp_path / "out" / "journal.bin").write_bytes(b"no journal")
    line = zopeft_command.refused("tune", "--resume", "--out", tmp_path / "out", "--steps", 5)
    assert "is not a journal" in line
    assert json.loads((tmp_path / "out" / "run.json").read_text()) == before
    (tmp_path / "out" / "journal.bin").write_bytes(journal)
    assert zopeft_command.json("tune", "--resume", "--out", tmp_path / "out", "--steps", 5)


@pytest.mark.parametrize(
    ("words", "place", "told"),
    [
        (("eval", *SST2, "--out", "OUT"), "zopeft.jobs.served.load_base", "nothing was"),
        (("meta-train", *SST2, "--out", "OUT"), "zopeft.jobs.meta_train.load_base", "nothing"),
        (("demo", "--out", "OUT"), "zopeft.jobs.demo.meta_train", "no result; to start again"),
        (("bench", *SST2, "--out", "OUT"), "zopeft.jobs.bench.bench.hold_all", "no runs are kept"),
        (("blocks",), "zopeft.jobs.build.load_base", "interrupted"),
        (("estimate",), "zopeft.jobs.estimate.estimate", "interrupted"),
        (("list", "tasks"), "zopeft.cli.output.rows_table", "interrupted"),
        (("recipe", "show", "embedded/tune"), "zopeft.recipe.load.recipe_path", "interrupted"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)  # fmt: skip
def test_every_command_tells_an_interrupt(
    words, place, told, zopeft_command, tmp_path, monkeypatch
):
    interrupting(monkeypatch, place)
    words = [tmp_path / "out" if word == "OUT" else word for word in words]
    line = zopeft_command.refused(*words, code=1)
    assert line.startswith("zopeft: interrupted")
    assert told in line


def test_an_interrupt_before_the_job_is_told(zopeft_command, monkeypatch):
    # Typer keeps it to itself: there is no context of the job yet.
    interrupting(monkeypatch, "zopeft.cli.options.split_words")
    assert zopeft_command.refused("tune", code=1) == "zopeft: interrupted"


def test_a_run_that_breaks_says_so_in_its_record(tmp_path):
    with pytest.raises(ZeroDivisionError), Folder(tmp_path / "out", "x") as folder:
        folder.begin({"job": "tune"})
        raise ZeroDivisionError
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "failed"


def test_an_overwrite_that_was_killed_can_be_repeated(tmp_path, monkeypatch):
    out = tmp_path / "out"
    (out / "checkpoint-1").mkdir(parents=True)
    (out / "run.json").write_text("{}")
    with monkeypatch.context() as patches, Folder(out, "x", overwrite=True) as folder:
        patches.setattr("zopeft.jobs.folder.staged", None)
        with pytest.raises(TypeError):
            folder.begin({"job": "tune"})
    assert sorted(path.name for path in out.iterdir()) == [".replaced", "run.json"]
    with Folder(out, "x", overwrite=True) as folder:
        folder.begin({"job": "tune"})


def test_an_old_result_is_there_until_the_run_that_replaces_it_begins(tmp_path):
    out = tmp_path / "out"
    (out / "checkpoint-1").mkdir(parents=True)
    for name in (ADAPTER, "checkpoint-1/a.json"):
        (out / name).write_text("old")
    (out / "run.json").write_text('{"status": "done"}')
    # Killed before the first step, twice.
    for _ in range(2):
        with Folder(out, "x", overwrite=True) as folder:
            folder.begin({"job": "tune"})
            (out / "metrics.jsonl").write_text("new")
        assert (out / ".replaced" / ADAPTER).read_text() == "old"
        assert (out / ".replaced" / "checkpoint-1" / "a.json").read_text() == "old"
        assert not (out / ADAPTER).exists()
    with Folder(out, "x", overwrite=True) as folder:
        folder.begin({"job": "tune"})
        folder.write({"metrics": {}})
    assert sorted(path.name for path in out.iterdir()) == ["run.json"]


def test_an_old_result_is_put_back_where_the_record_cannot_be_written(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / ADAPTER).write_text("old")
    (out / "run.json").write_text('{"status": "done"}')

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zopeft.jobs.folder.staged", full)
    with pytest.raises(RunError, match="No space left"), Folder(out, "x", overwrite=True) as folder:
        folder.begin({"job": "tune"})
    assert sorted(path.name for path in out.iterdir()) == [ADAPTER, "run.json"]
