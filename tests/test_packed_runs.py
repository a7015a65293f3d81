"""Runs over packed batches: what is chosen, what the journal holds, and resuming bit for bit."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from test_packed_families import COLLATE, choices, model_of
from test_training_resume import killed
from training_run import Kill, arguments, digest

from zopeft.errors import InputError
from zopeft.journal import Journal
from zopeft.tasks import task_loss
from zopeft.tasks.encoding import Encoded
from zopeft.training import ZOTrainer

STEPS = 8


class Examples(torch.utils.data.Dataset):
    """Twelve examples with two options each; as "answer", of the first one alone."""

    def __init__(self, answer=False):
        made = choices() * 2
        self.rows = [Encoded(e.prompts[:1], e.options[:1]) for e in made] if answer else made

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def trainer(out, family="llama", space="lora", loss=task_loss, callbacks=(), **options):
    options = {"learning_rate": 1e-2, "max_steps": STEPS, "logging_steps": 50, **options}
    return ZOTrainer(
        model_of(family, space),
        arguments(out, **options),
        COLLATE,
        Examples(answer=loss is None),
        loss_function=loss,
        callbacks=list(callbacks),
    )


def losses(out):
    return [record.losses for record in Journal.open(out / "journal.bin").records()]


def layout_of(out):
    return Journal.open(out / "journal.bin").header.settings.get("layout")


def forget_layout(out):
    """Makes a journal what an earlier version has written: without a word on layouts."""
    path = out / "journal.bin"
    old = Journal.open(path)
    settings = {k: v for k, v in old.header.settings.items() if k != "layout"}
    header, records = replace(old.header, settings=settings), list(old.records())
    path.unlink()
    new = Journal.create(path, header)
    for record in records:
        new.append(record)
    new.close()


@pytest.mark.parametrize(
    ("space", "loss", "way"),
    [("lora", task_loss, "joined"), ("full", task_loss, "joined"), ("lora", None, "packed")],
)
def test_a_packed_run_goes_as_the_padded_one(tmp_path, space, loss, way):
    found = []
    for layout in ("auto", "padded"):
        options = {"learning_rate": 1e-4 if space == "full" else 1e-2, "layout": layout}
        run = trainer(tmp_path / layout, space=space, loss=loss, **options)
        run.train()
        assert run.layout.way == layout_of(tmp_path / layout)
        found.append(run.layout.way)
    assert found == [way, "padded"]
    packed, padded = (torch.tensor(losses(tmp_path / layout)) for layout in ("auto", "padded"))
    assert not torch.equal(packed, padded)
    torch.testing.assert_close(packed, padded, rtol=1e-4, atol=0)


@pytest.mark.parametrize(("space", "checkpoints"), [("lora", True), ("full", False)])
def test_a_packed_run_that_was_killed_goes_on_bit_for_bit(tmp_path, space, checkpoints):
    options = {"space": space, "learning_rate": "auto"}
    if checkpoints:
        options |= {"save_strategy": "steps", "save_steps": 3}
    torch.set_num_threads(1)
    whole = trainer(tmp_path / "whole", **options)
    whole.train()
    out = tmp_path / "out"
    killed(lambda: trainer(out, callbacks=[Kill(5, "step_end")], **options).train())
    resumed = trainer(out, **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.layout.way == whole.layout.way == "joined"
    assert digest(resumed.model) == digest(whole.model)
    assert losses(out) == losses(tmp_path / "whole")


def test_a_checkpoint_alone_knows_the_layout(tmp_path):
    options = {"journal": False, "save_strategy": "steps", "save_steps": 4}
    ends = {}
    for layout in ("packed", "padded"):
        whole = trainer(tmp_path / layout, layout=layout, **options)
        whole.train()
        ends[layout] = digest(whole.model)
        resumed = trainer(tmp_path / layout, **options)
        resumed.train(str(tmp_path / layout / "checkpoint-4"))
        assert resumed.method.probing.layout == ("joined" if layout == "packed" else "padded")
        assert digest(resumed.model) == ends[layout]
    assert len(set(ends.values())) == 2


def test_a_run_of_an_earlier_version_goes_on_padded(tmp_path):
    torch.set_num_threads(1)
    trainer(tmp_path / "whole", layout="padded").train()
    out = tmp_path / "out"
    trainer(out, layout="padded", max_steps=5).train()
    forget_layout(out)
    assert layout_of(out) is None
    resumed = trainer(out)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.layout.way == "padded"
    assert losses(out) == losses(tmp_path / "whole")


def test_another_layout_is_another_run(tmp_path):
    trainer(tmp_path, max_steps=2).train()
    with pytest.raises(InputError, match="layout 'padded' instead of 'joined'"):
        trainer(tmp_path, layout="padded").train(resume_from_checkpoint=True)


def test_what_cannot_be_packed_is_told_once(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "zopeft"):
        run = trainer(tmp_path / "lfm2", family="lfm2", max_steps=2)
        run.train()
        told = [one.message for one in caplog.records if one.name.startswith("zopeft")]
        assert run.layout.way == layout_of(tmp_path / "lfm2") == "padded"
        assert len(told) == 1 and told[0].startswith("batches are padded: shared rows change")
        caplog.clear()
        own = trainer(tmp_path / "own", loss=lambda model, batch: task_loss(model, batch))
        own.train()
        assert own.layout.way == "padded" and not caplog.records
    with pytest.raises(InputError, match="layout: cannot be packed: the loss function does not"):
        trainer(tmp_path / "p", loss=lambda model, batch: None, layout="packed").train()
    with pytest.raises(InputError, match="layout: unknown way of laying out batches, got 'tight'"):
        arguments(tmp_path, layout="tight")


def evaluated(out, layout):
    """The loss of a short run's evaluation, and how many rows it took."""
    run, rows = trainer(out, layout=layout, max_steps=1, learning_rate=0.0), []
    run.train()
    run.model.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    return run.evaluate(Examples())["eval_loss"], sum(rows)


def test_what_is_evaluated_is_packed_like_what_is_trained(tmp_path):
    packed, padded = (evaluated(tmp_path / layout, layout) for layout in ("auto", "padded"))
    assert packed[0] == pytest.approx(padded[0], rel=1e-5)
    assert packed[1] < padded[1]
