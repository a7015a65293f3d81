"""The Trainer's own features go on working when steps are forward passes."""

from __future__ import annotations

import inspect
import logging

import pytest
import torch
import transformers
from training_run import Counting, arguments, digest, tiny_model, trainer, with_lora
from transformers import TrainerCallback

from zopeft.errors import InputError
from zopeft.journal import Journal, rebuild
from zopeft.methods.mezo import MeZO
from zopeft.optim.signal import NOTE
from zopeft.optim.thrifty import ThriftyRate
from zopeft.probing.model_loss import ModelLoss
from zopeft.training import ZOTrainer


def lora(**options):
    return with_lora(tiny_model(), **options)


def logged(made, key):
    return [entry[key] for entry in made.state.log_history if key in entry]


class Events(TrainerCallback):
    def __init__(self):
        self.seen = []

    def __getattribute__(self, name):
        if name.startswith("on_"):
            return lambda *args, **kwargs: self.seen.append(name)
        return super().__getattribute__(name)


def test_training_lowers_the_loss_and_evaluates_it(tmp_path):
    made = trainer(
        tiny_model(),
        tmp_path,
        learning_rate=3e-3,
        max_steps=150,
        logging_steps=25,
        eval_strategy="steps",
        eval_steps=75,
    )
    before = made.evaluate()["eval_loss"]
    output = made.train()
    losses = logged(made, "loss")
    assert len(losses) == 6
    assert losses[-1] < losses[0] - 0.05
    assert logged(made, "eval_loss")[-1] < before - 0.05
    assert output.training_loss == pytest.approx(sum(losses) / 6)
    assert made.method.forward_passes == 300
    assert all(p.grad is None for p in made.model.parameters())
    assert "zero_grad" not in made.model.__dict__


def test_every_callback_is_called_and_the_projected_gradient_logged(tmp_path):
    events = Events()
    made = trainer(lora(), tmp_path, callbacks=[events], save_strategy="steps", save_steps=6)
    made.train()
    for name in ("on_step_begin", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end"):
        assert events.seen.count(name) == 12
    assert (events.seen.count("on_save"), events.seen.count("on_log")) == (2, 4)
    gradients = logged(made, "grad_norm")
    records = list(Journal.open(tmp_path / "journal.bin").records())
    assert gradients == [abs(records[s].projected_grads[0]) for s in (3, 7, 11)]
    assert len(logged(made, "steps_per_second")) == 3
    means = [sum(sum(r.losses) / 2 for r in records[s : s + 4]) / 4 for s in (0, 4, 8)]
    assert logged(made, "loss") == pytest.approx(means, rel=1e-6)


def test_the_loop_is_that_of_the_plain_optimizer(tmp_path):
    model = tiny_model()
    made = trainer(model, tmp_path, noise="binomial", weight_decay=0.1)
    batches = []
    made.loss_function = lambda m, batch: batches.append(batch) or m(**batch).loss
    made.train()
    assert len(batches) == 24
    plain = tiny_model()
    from zopeft.blocks import discover

    opt = MeZO(discover(plain), lr=1e-3, weight_decay=0.1, noise="binomial", seed=3)
    for batch in batches[::2]:
        opt.step(lambda b=batch: plain(**b).loss)
    assert digest(plain) == digest(model) != digest(tiny_model())


def test_a_journal_rebuilds_what_was_trained(tmp_path):
    made = trainer(lora(), tmp_path, lr_scheduler_type="cosine", warmup_steps=2)
    made.train()
    model = lora(seed=8)
    from zopeft.blocks import discover

    rebuild(tmp_path / "journal.bin", MeZO(discover(model), lr=0.0, seed=3))
    assert digest(model) == digest(made.model) != digest(lora())
    rates = [r.lr[0] for r in Journal.open(tmp_path / "journal.bin").records()]
    assert rates[:3] == [0.0, 5e-4, 1e-3]
    assert rates[-1] < 1e-4
    assert logged(made, "learning_rate")[-1] == rates[-1]


def test_clipping_reaches_the_method_and_the_journal(tmp_path):
    free, clipped = (trainer(tiny_model(), tmp_path / str(clip), clip=clip) for clip in (0.0, 0.1))
    for one in (free, clipped):
        one.train()
    assert clipped.method.clip.factor == 0.1
    used = [r.projected_grads[0] for r in Journal.open(tmp_path / "0.1/journal.bin").records()]
    raw = [r.projected_grads[0] for r in Journal.open(tmp_path / "0.0/journal.bin").records()]
    assert used[0] == raw[0]
    assert len({digest(free.model), digest(clipped.model), digest(tiny_model())}) == 3
    assert max(map(abs, used[1:])) < max(map(abs, raw[1:]))


def test_accumulated_micro_batches_are_one_batch(tmp_path):
    one = trainer(lora(), tmp_path / "one", max_steps=6)
    one.train()
    two = trainer(
        lora(),
        tmp_path / "two",
        max_steps=6,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
    )
    two.train()
    assert digest(two.model) != digest(lora())
    assert two.method.steps == 6
    assert two.method.forward_passes == 24
    assert logged(two, "loss") == pytest.approx(logged(one, "loss"), rel=1e-5)
    records = [list(Journal.open(tmp_path / n / "journal.bin").records()) for n in ("one", "two")]
    assert len(records[0]) == len(records[1]) == 6
    for a, b in zip(*records, strict=True):
        assert a.losses == pytest.approx(b.losses, rel=1e-5)


def test_dropout_is_off_in_probes(tmp_path):
    plain = trainer(lora(), tmp_path / "plain")
    plain.train()
    model = with_lora(tiny_model(dropout=0.5), dropout=0.5)
    dropping = trainer(model.train(), tmp_path / "dropping")
    dropping.train()
    assert digest(model) == digest(plain.model) != digest(lora())


def test_lr_auto_is_settled_from_the_first_batch_before_the_schedule(tmp_path):
    seen, share = [], {"share": "examples"}

    def loss(model, batch):
        seen.append(batch["input_ids"])
        # It tells the losses of examples, as the trainer's own does.
        return ModelLoss()(model, batch)

    made = trainer(
        lora(),
        tmp_path,
        learning_rate="auto",
        method_options=share,
        loss_function=loss,
        lr_scheduler_type="linear",
        logging_steps=1,
    )
    made.train()
    assert len(seen) == made.method.forward_passes == 24 + 1
    journal = Journal.open(tmp_path / "journal.bin")
    assert all(NOTE in record.notes for record in journal.records())
    rate, records = journal.header.learning_rate, list(journal.records())
    assert rate > 0 and journal.header.rate["steps"] == 12
    assert logged(made, "learning_rate") == pytest.approx([r.lr[0] for r in records])
    # The schedule goes on top of what the run asks for.
    running = ThriftyRate(**journal.header.rate)
    for step, record in enumerate(records):
        factor = running.factor_of(record)
        assert record.lr[0] == pytest.approx(rate * factor * (12 - step) / 12)
        assert (record.centre is not None) == running.due() == (step == 0)
        running.note(record)
    again = trainer(
        lora(),
        tmp_path / "again",
        seed=3,
        learning_rate="auto",
        method_options=share,
        lr_scheduler_type="linear",
    )
    again.train()
    assert digest(again.model) == digest(made.model) != digest(lora())


@pytest.mark.parametrize(
    ("options", "passes"),
    [({}, 2), ({"directions": 3}, 6), ({"directions": 3, "sides": "one"}, 4)],
)
def test_operations_are_two_a_weight_token_and_forward_pass(tmp_path, options, passes):
    made = trainer(lora(), tmp_path, max_steps=3, **options)
    made.train()
    weights, tokens = sum(p.numel() for p in made.model.parameters()), 4 * 8
    assert made.method.forward_passes == 3 * passes
    assert made.state.total_flos == 3 * passes * 2 * weights * tokens > 0


def test_the_best_model_is_loaded_at_the_end(tmp_path):
    made = trainer(
        lora(),
        tmp_path,
        learning_rate=1.0,
        eval_strategy="steps",
        eval_steps=3,
        save_strategy="steps",
        save_steps=3,
        save_total_limit=1,
        load_best_model_at_end=True,
    )
    made.train()
    best = made.state.best_metric
    assert best == min(logged(made, "eval_loss")) < max(logged(made, "eval_loss"))
    assert made.evaluate()["eval_loss"] == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("make", [lora, lambda: tiny_model(torch.bfloat16)])
def test_autocast_to_bf16(tmp_path, make):
    made = trainer(make(), tmp_path, bf16=True, eval_strategy="steps", eval_steps=6)
    made.train()
    plain = trainer(make(), tmp_path / "plain")
    plain.train()
    assert digest(make()) not in (digest(made.model), digest(plain.model))
    assert logged(made, "loss") == pytest.approx(logged(plain, "loss"), rel=0.01)


@pytest.mark.parametrize("method", ["fo_sgd", "fo_adam"])
def test_first_order_baselines_take_the_usual_path(tmp_path, method):
    made = trainer(
        lora(),
        tmp_path,
        method=method,
        learning_rate=0.1 if method == "fo_sgd" else 1e-2,
        max_grad_norm=1.0,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=2,
        save_strategy="steps",
        save_steps=6,
    )
    made.train()
    losses = logged(made, "loss")
    assert losses[-1] < losses[0] - 0.005
    assert len(logged(made, "grad_norm")) == 3
    assert not (tmp_path / "journal.bin").exists()
    again = trainer(lora(seed=9), tmp_path, method=method)
    again.train(resume_from_checkpoint=True)
    assert digest(again.model) == digest(made.model)


def test_the_fine_tuner_drives_the_trainer(tmp_path):
    from zopeft.blocks import discover
    from zopeft.finetuner import FineTuner

    model = lora()
    finetuner = FineTuner.initial(discover(model), seed=2)
    options = {"method": "zo_finetuner", "save_strategy": "steps", "save_steps": 5}
    made = trainer(model, tmp_path / "a", finetuner=finetuner, **options)
    made.train()
    assert made.method.needs_finetuner
    finetuner.save_pretrained(tmp_path / "finetuner")
    loaded = trainer(lora(), tmp_path / "b", finetuner=str(tmp_path / "finetuner"), **options)
    loaded.train()
    assert digest(loaded.model) == digest(made.model) != digest(lora())
    for cut in ("checkpoint-12", "checkpoint-10"):
        for part in sorted((tmp_path / "b" / cut).iterdir()):
            part.unlink()
    resumed = trainer(lora(), tmp_path / "b", finetuner=finetuner, **options)
    resumed.train(resume_from_checkpoint=True)
    assert digest(resumed.model) == digest(made.model)
    other = FineTuner.initial(discover(lora()), seed=3)
    with pytest.raises(InputError, match=r"finetuner '\w+' instead of"):
        trainer(lora(), tmp_path / "b", finetuner=other, max_steps=20, **options).train(True)
    with pytest.raises(InputError, match="needs a fine-tuner"):
        trainer(lora(), tmp_path / "c", method="zo_finetuner").train()


def test_a_run_without_a_journal_and_a_second_one_from_where_the_first_ended(tmp_path):
    made = trainer(lora(), tmp_path, journal=False)
    made.train()
    first = digest(made.model)
    made.train()
    assert made.method.steps == 12
    assert digest(made.model) != first
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bar", [True, False])
def test_it_prints_as_transformers_does(tmp_path, capsys, caplog, bar):
    with caplog.at_level(logging.INFO, logger="zopeft.training"):
        trainer(lora(), tmp_path, **({} if bar else {"disable_tqdm": True})).train()
    out, err = capsys.readouterr()
    assert [line[:8] for line in out.splitlines() if "grad_norm" in line] == ["{'loss':"] * 3
    assert ("12/12" in err) is bar
    assert "step 4: {'loss'" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "mezzo"}, "unknown method, got 'mezzo'; did you mean 'mezo'"),
        ({"learning_rate": "fast"}, "must be a number or 'auto', got 'fast'"),
        ({"learning_rate": -1.0}, "must be a number >= 0 or 'auto', got -1.0"),
        ({"max_bad_steps": 0}, "max_bad_steps: must be at least 1, got 0"),
        ({"journal_sync_steps": 0}, "journal_sync_steps: must be at least 1, got 0"),
        ({"fp16": True}, "fp16: has no meaning .* dtype=torch.float16"),
        ({"gradient_checkpointing": True}, "gradient_checkpointing: has no meaning"),
        ({"activation_checkpointing": True}, "activation_checkpointing: has no meaning"),
        ({"max_grad_norm": 1.0}, "max_grad_norm: has no meaning"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor: has no meaning"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size: has no meaning"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(tmp_path, options, message):
    with pytest.raises(InputError, match=message) as caught:
        arguments(tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_what_a_trainer_cannot_do_is_refused(tmp_path):
    with pytest.raises(InputError, match="takes a ZOTrainingArguments"):
        ZOTrainer(lora(), transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True))
    with pytest.raises(InputError, match="needs logits"):
        trainer(
            lora(), tmp_path, loss_function=lambda m, b: m(**b).loss, compute_metrics=lambda p: {}
        )
    made = trainer(lora(), tmp_path, eps=-1.0)
    with pytest.raises(InputError, match="eps: out of range"):
        made.train()
    made = trainer(lora(), tmp_path, learning_rate="auto")
    for none in (Counting(0), None, []):
        made.train_dataset = none
        with pytest.raises(InputError, match="train_dataset: is empty"):
            made.train()


def test_the_parts_of_the_trainer_that_are_overridden_are_still_there():
    source = inspect.getsource(transformers.Trainer)
    for name in (
        "_get_grad_norm",
        "_save_checkpoint",
        "_load_best_model",
        "_load_from_checkpoint",
        "_load_optimizer_and_scheduler",
        "set_initial_training_values",
        "create_accelerator_and_postprocess",
        "floating_point_ops",
    ):
        assert f"def {name}(" in source
        assert f"self.{name}(" in source
    assert "self.current_gradient_accumulation_steps" in source
    parameters = inspect.signature(transformers.Trainer.training_step).parameters
    assert list(parameters) == ["self", "model", "inputs", "num_items_in_batch"]
