"""Runs with several directions a step: stored, killed, resumed and replayed, bit for bit."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from test_journal_file import HEADER, record, same, written
from test_training_resume import killed
from training_run import Kill, digest, tiny_model, trainer, with_lora

import zopeft
from zopeft.errors import InputError
from zopeft.journal import Journal, JournalHeader, rebuild
from zopeft.methods import METHODS

WAYS = [(count, sides, False) for count in (1, 2, 4) for sides in ("two", "one")]
WAYS.append((4, "one", True))
ZEROTH_ORDER = ["mezo", "zo_finetuner"]
RUNS = [("mezo", *way) for way in WAYS]
RUNS += [("zo_finetuner", *way) for way in WAYS if way[0] != 2]


def settings(name, count, sides, normalise):
    options = {"method": name, "directions": count, "sides": sides, "normalise": normalise}
    if METHODS[name].needs_finetuner:
        blocks = zopeft.discover(with_lora(tiny_model()))
        options["finetuner"] = zopeft.FineTuner.initial(blocks, seed=1)
    return options


def test_every_way_is_there():
    assert len(RUNS) == 7 + 5 and ZEROTH_ORDER == ["mezo", "zo_finetuner"]


@pytest.mark.parametrize(("name", "count", "sides", "normalise"), RUNS)
def test_kill_minus_9_then_resume_or_replay_gives_the_same_bytes(
    tmp_path, name, count, sides, normalise
):
    torch.set_num_threads(1)
    options = {
        **settings(name, count, sides, normalise),
        "learning_rate": "auto",
        "weight_decay": 0.1,
        "save_strategy": "steps",
        "save_steps": 3,
        "max_steps": 7,
        "logging_steps": 7,
    }
    out = tmp_path / "out"
    whole = trainer(with_lora(tiny_model()), tmp_path / "whole", **options)
    whole.train()
    expected = digest(whole.model)
    assert expected != digest(with_lora(tiny_model()))
    again = [Kill(5, "step_end")]
    killed(lambda: trainer(with_lora(tiny_model()), out, callbacks=again, **options).train())
    assert len(Journal.open(out / "journal.bin")) == 5
    resumed = trainer(with_lora(tiny_model(), seed=2), out, **options)
    resumed.train(resume_from_checkpoint=True)
    assert digest(resumed.model) == expected

    records = list(Journal.open(out / "journal.bin").records())
    assert len(records) == 7 and all(len(r.projected_grads) == count for r in records)
    assert all(len(r.losses) == (count if sides == "one" else 2 * count) for r in records)
    looked, wanted = (
        [r.step for r in found if (r.mirror if sides == "one" else r.centre) is not None]
        for found in (records, Journal.open(tmp_path / "whole" / "journal.bin").records())
    )
    assert looked == wanted and looked[0] == 0
    for folder in out.glob("checkpoint-*"):
        shutil.rmtree(folder)
    replayed = trainer(with_lora(tiny_model(), seed=3), out, **options)
    replayed.train(resume_from_checkpoint=True)
    assert digest(replayed.model) == expected and replayed.method.forward_passes == 0


def test_micro_batches_resume_too(tmp_path):
    options = {
        **settings("mezo", 4, "one", False),
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 2,
        "max_steps": 6,
    }
    whole = trainer(with_lora(tiny_model()), tmp_path / "whole", **options)
    whole.train()
    assert whole.method.forward_passes == 6 * 2 * 5
    assert digest(whole.model) != digest(with_lora(tiny_model()))
    out = tmp_path / "out"
    again = [Kill(4, "step_begin")]
    killed(lambda: trainer(with_lora(tiny_model()), out, callbacks=again, **options).train())
    resumed = trainer(with_lora(tiny_model()), out, **options)
    resumed.train(resume_from_checkpoint=True)
    assert digest(resumed.model) == digest(whole.model)
    assert resumed.method.forward_passes == 2 * 2 * 5


def test_other_directions_are_another_run(tmp_path):
    options = settings("mezo", 4, "one", False)
    trainer(with_lora(tiny_model()), tmp_path, max_steps=2, **options).train()
    for change, message in (
        ({"directions": 2}, "directions 2 instead of 4"),
        ({"sides": "two"}, "sides 'two' instead of 'one'"),
        ({"normalise": True}, "normalise True instead of False"),
    ):
        other = trainer(with_lora(tiny_model()), tmp_path, max_steps=3, **{**options, **change})
        with pytest.raises(InputError, match=message) as caught:
            other.train(resume_from_checkpoint=True)
        assert "\n" not in str(caught.value)
    method = zopeft.MeZO(zopeft.discover(with_lora(tiny_model())), lr=1e-3, seed=3)
    with pytest.raises(InputError, match="directions 1 instead of 4, sides 'two' instead of"):
        rebuild(tmp_path / "journal.bin", method)


def test_records_with_looks_come_back_bit_for_bit(tmp_path):
    several = replace(record(0, losses=(1.0, 2.0, 3.0)), projected_grads=(0.1, 0.2, 1 / 3))
    records = [
        several,
        replace(several, step=1, centre=1 / 3),
        replace(several, step=2, centre=1 / 3, mirror=-1e-300),
        replace(several, step=3, losses=(1.0,) * 128, projected_grads=(0.5,) * 64),
        replace(several, step=4, mirror=2.0, skipped=True),
    ]
    found = list(Journal.open(written(tmp_path / "j.bin", records)).records())
    assert len(found) == 5 and all(same(a, b) for a, b in zip(found, records, strict=True))


def test_a_header_from_before_there_were_several_is_of_one_pair():
    fields = json.loads(HEADER.to_bytes())
    for name in ("directions", "sides", "normalise"):
        del fields[name]
    old = JournalHeader.from_bytes(json.dumps(fields).encode(), "j.bin")
    assert old == HEADER
    assert (old.directions, old.sides, old.normalise) == (1, "two", False)
    old.check(HEADER, "j.bin")
