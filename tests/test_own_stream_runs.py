"""Runs on rows that are streamed: killed and gone on with, and what is refused in one line."""

import json

import pytest
import torch
from test_own_data import jsonl
from training_run import digest

import zopeft
from zopeft.errors import InputError
from zopeft.journal import Journal
from zopeft.models import attach, load_model
from zopeft.tasks import stream as streams

ROWS = [{"prompt": f"Say {n}:", "completion": f" film {n}"} for n in range(60)]
SHORT = ("--steps", 4, "--batch-size", 2, "--lr", "1e-3", "data.streaming=true")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jsonl(tmp_path / "a.jsonl", ROWS)
    return tmp_path


@pytest.mark.parametrize("save", [0, 2])
def test_a_run_that_broke_off_goes_on_with_the_same_batches(folder, tiny_model, save):
    """Bit for bit; and of the rows that the steps before had, none is encoded again."""
    torch.set_num_threads(1)
    kept = {"save_strategy": "steps", "save_steps": save} if save else {"save_strategy": "no"}

    def made(out, seen, kind=zopeft.ZOTrainer):
        model, tokenizer = load_model(str(tiny_model))
        model = attach(model, "lora", seed=len(seen))
        data = zopeft.load_data("a.jsonl", tokenizer, streaming=True, shuffle_buffer=8)
        encode = data.train.encode

        def counted(row):
            seen.append(row.place(0))
            return encode(row)

        data.train.encode = counted
        args = zopeft.ZOTrainingArguments(
            output_dir=out,
            learning_rate="auto",
            max_steps=9,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            use_cpu=True,
            **kept,
        )
        return kind(model, args, data.collator, data.train)

    class LeavesError(Exception):
        pass

    class Leaving(zopeft.ZOTrainer):
        def training_step(self, *args, **kwargs):
            if self.method.steps == 5:
                raise LeavesError
            return super().training_step(*args, **kwargs)

    seen = []
    whole = made("whole", seen)
    whole.train()
    with pytest.raises(LeavesError):
        made("out", [], Leaving).train()
    # Other rows at the beginning are another run.
    jsonl(folder / "a.jsonl", ROWS[1:])
    with pytest.raises(InputError, match="stream"):
        made("out", []).train(resume_from_checkpoint=True)
    jsonl(folder / "a.jsonl", ROWS)
    again = []
    resumed = made("out", again)
    resumed.train(resume_from_checkpoint=True)
    assert digest(resumed.model) == digest(whole.model)
    assert len(Journal.open("out/journal.bin")) == 9
    assert again == seen[-4 * 8 :]


def test_from_the_command_line(folder, tiny_model, zopeft_command):
    code, _, err = zopeft_command(
        "tune", tiny_model, "--data", "a.jsonl", *SHORT, "data.shuffle_buffer=20", "--out", "out"
    )
    assert code == 0, err
    line = next(one for one in err.splitlines() if one.startswith("rows: "))
    assert line == (
        "rows: read as they are needed, in an order drawn from 20 held rows (tokens are counted of "
        "the first 18) and 2 to score on, held out by a draw from the first 20 "
        "(--validation FILE: others)"
    )
    run = json.loads((folder / "out" / "run.json").read_text())
    assert (run["train_examples"], run["data"]["train"]["available"]) == (None, None)
    assert "read as they were needed" in (folder / "out" / "README.md").read_text()
    more = ("--steps", 6, "--out", "out", "--resume")
    words = ("tune", tiny_model, "--data", "a.jsonl", *SHORT, "data.shuffle_buffer=20")
    assert zopeft_command.json(*words, *more)["steps"] == 6
    assert "shuffle_buffer 20 -> 21" in zopeft_command.refused(
        *words, "data.shuffle_buffer=21", *more
    )
    # What was held out is scored, though eval says nothing of how the rows were read.
    scored = zopeft_command.json(
        "eval", "--adapter", "out", "--data", "a.jsonl", "--split", "validation"
    )
    assert scored["metrics"]["loss"] == pytest.approx(run["metrics"]["after"]["loss"], rel=0.2)
    assert scored["metrics"]["examples"] == 2
    some = ("eval", "--adapter", "out", "--data", "a.jsonl", "data.streaming=true")
    assert zopeft_command.json(*some, "task.eval_examples=5")["metrics"]["examples"] == 5
    assert "give task.eval_examples=N" in zopeft_command.refused(*some)


def test_a_reward_of_prompts_that_are_streamed(folder, tiny_model, zopeft_command):
    (folder / "mine.py").write_text(
        "def brief(completions, n, **columns):\n"
        "    assert len(n) == len(completions)\n"
        "    return [1.0 / (1 + len(text)) for text in completions]\n"
    )
    jsonl(folder / "p.jsonl", [{"prompt": f"Say {n}", "n": n} for n in range(30)])
    found = zopeft_command.json(
        *("tune", tiny_model, "--data", "p.jsonl", "--reward", "mine.py:brief", *SHORT),
        *("objective.max_new_tokens=4", "data.shuffle_buffer=6", "--out", "out"),
    )
    assert found["steps"] == 4


def test_classes_are_those_of_the_first_rows(folder, tiny_model, zopeft_command):
    rows = [{"text": f"film {n}", "label": ("bad", "good")[n % 2]} for n in range(40)]
    jsonl(folder / "l.jsonl", [*rows, {"text": "film", "label": "odd"}])
    words = ("tune", tiny_model, "--data", "l.jsonl", *SHORT, "task.loss=choice")
    words = (*words, "data.shuffle_buffer=10")
    assert zopeft_command.json(*words, "--out", "one")["steps"] == 4
    line = zopeft_command.refused(*words, "--steps", 40, "--out", "two")
    assert "l.jsonl, line 41: column 'label'" in line
    assert "--resume" in line
    # The steps before it are kept.
    kept = len(Journal.open(folder / "two" / "journal.bin"))
    assert 10 < kept < 21
    assert (folder / "two" / "adapter_model.safetensors").is_file()
    jsonl(folder / "l.jsonl", [*rows, {"text": "film", "label": "good"}])
    again = zopeft_command.json(*words, "--steps", 40, "--out", "two", "--resume")
    assert again["steps"] == 40


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ("tune", "--data", "a.jsonl", *SHORT, "task.train_examples=10"),
            "task.train_examples: draws from all rows",
        ),
        (
            ("tune", "--data", "a.jsonl", "data.shuffle_buffer=7"),
            "data.shuffle_buffer: goes with data.streaming=true, got 7; leave it out",
        ),
        (("tune", "--task", "sst2", *SHORT), "data.streaming: goes with own data"),
        (
            ("tune", "--data", "a.jsonl", "--data", "a2.jsonl=0.5", *SHORT),
            "need a weight each",
        ),
        (
            ("tune", "--data", "a.jsonl", *SHORT, "data.shuffle_buffer=1"),
            "too few rows to hold any out",
        ),
        (
            ("bench", "--task", "sst2", "--method", "mezo", "data.streaming=true"),
            "data.streaming: goes with zopeft tune and eval, not bench; leave it out",
        ),
        (
            ("meta-train", "--task", "sst2", "data.system=x"),
            "data.system: goes with zopeft tune and eval, not meta-train; leave it out",
        ),
    ],
)
def test_what_cannot_be_streamed_is_refused(folder, zopeft_command, words, told):
    jsonl(folder / "a2.jsonl", ROWS)
    assert told in zopeft_command.refused(*words, "--out", "out")
    assert not (folder / "out").exists()


def test_rows_are_seen_again_where_a_file_is_short(folder, tiny_model, zopeft_command, monkeypatch):
    jsonl(folder / "b.jsonl", ROWS[:6])
    places = []
    encode = streams.TaskStream.__init__

    def init(self, parts, head, one):
        encode(self, parts, head, lambda row: places.append(row.place(0)) or one(row))

    monkeypatch.setattr(streams.TaskStream, "__init__", init)
    found = zopeft_command.json(
        *("tune", tiny_model, "--data", "b.jsonl", *SHORT, "--steps", 5, "--out", "out")
    )
    assert found["steps"] == 5
    assert len(set(places)) == 5
