"""A trainer with lr=auto: what callbacks read, and what a run may not be resumed with."""

import pytest
import torch
from training_run import digest, tiny_model, trainer
from transformers import TrainerCallback

import zopeft
from zopeft.errors import InputError
from zopeft.finetuner import FineTuner
from zopeft.finetuner.digest import digest_of
from zopeft.journal import Journal
from zopeft.methods.mezo import MeZO
from zopeft.training import identity

STEPS = 12
AUTO = {"learning_rate": "auto", "logging_steps": 1}


class Reader(TrainerCallback):
    """Reads the rate wherever a callback can, and breaks off after some steps."""

    def __init__(self, last=None):
        self.seen, self.logged, self.last = {}, [], last

    def read(self, event, optimizer):
        self.seen.setdefault(event, []).append(optimizer.param_groups[0]["lr"])

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.read("before", optimizer)

    def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.read("after", optimizer)

    def on_step_end(self, args, state, control, optimizer=None, lr_scheduler=None, **kwargs):
        self.read("end", optimizer)
        assert lr_scheduler.get_last_lr()[0] == self.seen["end"][-1]
        control.should_training_stop = state.global_step == self.last

    def on_log(self, args, state, control, optimizer=None, logs=None, **kwargs):
        if "learning_rate" in logs:
            self.read("log", optimizer)
            self.logged.append(logs["learning_rate"])


def rates_of(folder):
    return [record.lr[0] for record in Journal.open(folder / "journal.bin").records()]


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_callbacks_read_the_rate_of_the_step_also_of_a_resumed_run(tmp_path, schedule):
    options = {**AUTO, "lr_scheduler_type": schedule}
    whole = Reader()
    made = trainer(tiny_model(), tmp_path / "a", callbacks=[whole], **options)
    made.train()
    rates = rates_of(tmp_path / "a")
    assert len(set(rates)) > 3 and len(rates) == STEPS
    for event in ("before", "after"):
        assert whole.seen[event] == rates
    assert whole.logged == rates
    # After the scheduler's step: what it made of the rate; nothing, where it is constant.
    fall = [1.0 if schedule == "constant" else (11 - t) / (12 - t) for t in range(STEPS)]
    told = [rate * part for rate, part in zip(rates, fall, strict=True)]
    for event in ("end", "log"):
        assert whole.seen[event] == pytest.approx(told, rel=1e-12)
    first, second = Reader(last=6), Reader()
    saved = {**options, "save_strategy": "steps", "save_steps": 4}
    trainer(tiny_model(), tmp_path / "b", callbacks=[first], **saved).train()
    again = trainer(tiny_model(), tmp_path / "b", callbacks=[second], **saved)
    again.train(resume_from_checkpoint=True)
    assert digest(again.model) == digest(made.model)
    assert rates_of(tmp_path / "b") == rates
    for event in ("before", "after", "end"):
        assert whole.seen[event][:6] == first.seen[event]
        assert (
            second.seen[event]
            and whole.seen[event][-len(second.seen[event]) :] == (second.seen[event])
        )


def test_an_optimizer_of_ones_own_has_its_rate_settled_before_the_schedule(tmp_path):
    model, reader = tiny_model(), Reader()
    method = MeZO(zopeft.discover(model), lr="auto", seed=3)
    made = trainer(model, tmp_path, optimizers=(method, None), callbacks=[reader], **AUTO)
    made.train()
    twin = trainer(tiny_model(), tmp_path / "twin", **AUTO)
    twin.train()
    assert rates_of(tmp_path) == rates_of(tmp_path / "twin") == reader.seen["before"]
    assert digest(made.model) == digest(twin.model)


def with_finetuner(folder, finetuner, last=None, **options):
    callbacks = [] if last is None else [Reader(last)]
    return trainer(
        tiny_model(),
        folder,
        method="zo_finetuner",
        finetuner=finetuner,
        callbacks=callbacks,
        **options,
    )


@pytest.mark.parametrize("field", ["normalise", "normalisation"])
def test_a_fine_tuner_with_another_configuration_is_another_one(tmp_path, field):
    finetuner = FineTuner.initial(zopeft.discover(tiny_model()), seed=1)
    with_finetuner(tmp_path, finetuner, last=4).train()
    before = (tmp_path / "journal.bin").read_bytes()
    other = finetuner.copy()
    setattr(other.config, field, {"normalise": False, "normalisation": "authors"}[field])
    with pytest.raises(InputError, match=r"finetuner 'v2_\w+' instead of 'v2_\w+'") as caught:
        with_finetuner(tmp_path, other).train(resume_from_checkpoint=True)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "journal.bin").read_bytes() == before
    with_finetuner(tmp_path, finetuner).train(resume_from_checkpoint=True)
    assert len(rates_of(tmp_path)) == STEPS


def test_a_journal_with_the_digest_of_before_is_gone_on_with(tmp_path, monkeypatch):
    finetuner = FineTuner.initial(zopeft.discover(tiny_model()), seed=1)
    with monkeypatch.context() as old:
        old.setattr(identity, "digest_like", lambda found, _: digest_of(found, 1))
        with_finetuner(tmp_path, finetuner, last=4).train()
    told = Journal.open(tmp_path / "journal.bin").header.settings["finetuner"]
    assert told == digest_of(finetuner, 1) and not told.startswith("v")
    other = FineTuner.initial(zopeft.discover(tiny_model()), seed=2)
    with pytest.raises(InputError, match=rf"finetuner '\w+' instead of '{told}'"):
        with_finetuner(tmp_path, other).train(resume_from_checkpoint=True)
    with_finetuner(tmp_path, finetuner).train(resume_from_checkpoint=True)
    assert len(rates_of(tmp_path)) == STEPS


class Own(MeZO):
    """A third party's method with an option."""

    def __init__(self, blocks, keep=0.5, **options):
        super().__init__(blocks, **options)
        self.keep = keep

    def _scales(self):
        return torch.linspace(self.keep, 1.0, len(self.blocks))


def test_a_method_of_ones_own_is_resumed_with_its_own_options(tmp_path):
    def run(last=None, **options):
        model = tiny_model()
        method = Own(zopeft.discover(model), lr=1e-3, seed=3, **options)
        given = {"optimizers": (method, None), "callbacks": [Reader(last)]}
        return trainer(model, tmp_path, **given)

    run(last=4, keep=0.25).train()
    for other, told in (({}, "keep 0.5 instead of 0.25"), ({"keep": 0.25, "clip": 1.0}, "clip")):
        with pytest.raises(InputError, match=told):
            run(**other).train(resume_from_checkpoint=True)
    run(keep=0.25).train(resume_from_checkpoint=True)
    assert len(rates_of(tmp_path)) == STEPS
