"""A run that was killed and resumed has the weights of one that was not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_run import Counting, Kill, digest, tiny_model, trainer, with_lora

from zopeft.errors import InputError, RunError
from zopeft.journal import Journal
from zopeft.journal.frames import Frame, scan
from zopeft.training import newest_checkpoint
from zopeft.training.checkpoints import SEAL, read_seal

SCRIPT = Path(__file__).with_name("training_run.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def run(out, *flags, killed=False, **options):
    """Trains in a process of its own."""
    command = [sys.executable, str(SCRIPT), str(out), *flags, "--options", json.dumps(options)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    expected = -signal.SIGKILL if killed else 0
    assert done.returncode == expected, done.stderr
    result = Path(out, "result-0.json")
    return None if killed else json.loads(result.read_text())


def lora(**options):
    return with_lora(tiny_model(), **options)


def uninterrupted(out, make=lora, **options):
    torch.set_num_threads(1)
    whole = trainer(make(), out, **options)
    start = digest(whole.model)
    whole.train()
    assert digest(whole.model) != start
    return digest(whole.model)


def torn(folder):
    """Leaves of a checkpoint what a process leaves that is killed while it saves one."""
    (folder / SEAL).unlink()
    weights = next(p for p in folder.iterdir() if p.suffix == ".safetensors")
    os.truncate(weights, weights.stat().st_size // 2)


def killed(work):
    """Does some work in a forked process that must die of kill -9 while at it."""
    child = os.fork()
    if child == 0:
        signal.alarm(120)
        try:
            torch.set_num_threads(1)
            work()
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.parametrize("space", ["lora", "full-bf16"])
@pytest.mark.parametrize(("event", "step"), [("step_end", 8), ("step_begin", 5)])
def test_kill_minus_9_then_resume_gives_the_same_bytes(tmp_path, space, event, step):
    def make(seed):
        return lora(seed=seed) if space == "lora" else tiny_model(torch.bfloat16)

    options = {"learning_rate": 1e-2, "save_strategy": "steps", "save_steps": 3, "max_steps": 11}
    expected = uninterrupted(tmp_path / "whole", lambda: make(1), **options)
    out = tmp_path / "out"
    killed(lambda: trainer(make(1), out, callbacks=[Kill(step, event)], **options).train())
    assert len(Journal.open(out / "journal.bin")) == step
    # The adapter of the second process starts from other random numbers.
    resumed = trainer(make(2), out, **options)
    resumed.train(resume_from_checkpoint=True)
    assert digest(resumed.model) == expected
    assert resumed.state.global_step == len(Journal.open(out / "journal.bin")) == 11


@pytest.mark.parametrize("make", [lora, lambda seed=0: tiny_model(torch.bfloat16)])
def test_a_killed_run_without_a_checkpoint_resumes_from_the_journal(tmp_path, make):
    options = {"learning_rate": "auto", "warmup_steps": 3, "lr_scheduler_type": "linear"}
    whole = trainer(make(), tmp_path / "whole", **options)
    whole.train()
    assert digest(whole.model) != digest(make())
    out = tmp_path / "out"
    killed(lambda: trainer(make(), out, callbacks=[Kill(7, "step_begin")], **options).train())
    assert newest_checkpoint(out) is None
    resumed = trainer(make(seed=5), out, **options)
    resumed.train(resume_from_checkpoint=True)
    assert digest(resumed.model) == digest(whole.model)
    # Two probes a step; the one look that so short a run takes was at its first.
    assert resumed.method.forward_passes == 2 * 5
    rates = [r.lr for r in Journal.open(out / "journal.bin").records()]
    assert rates == [r.lr for r in Journal.open(tmp_path / "whole" / "journal.bin").records()]
    assert len(set(rates)) > 6


@pytest.mark.slow
@pytest.mark.parametrize("space", ["lora", "full-bf16"])
def test_kill_and_resume_in_processes_of_their_own(tmp_path, space):
    options = {"learning_rate": 1e-2, "save_strategy": "steps", "save_steps": 5}
    flags = ("--space", space)
    expected = run(tmp_path / "whole", *flags, **options)
    run(tmp_path / "out", *flags, "--kill-step", "8", killed=True, **options)
    result = run(tmp_path / "out", *flags, "--resume", "--adapter-seed", "5", **options)
    assert result["digest"] == expected["digest"]
    assert (result["steps"], result["forward_passes"]) == (12, 2 * 9)


def broken_off(out, step=8, make=lora, **options):
    """A run in this process that is left after some steps, without a word."""

    class LeftError(Exception):
        pass

    def leave(*args, **kwargs):
        raise LeftError

    made = trainer(make(), out, **options)
    start, append = digest(made.model), made.recording.append

    def append_and_leave(record):
        append(record)
        if made.method.steps == step:
            leave()

    made.recording.append = append_and_leave
    with pytest.raises(LeftError):
        made.train()
    assert digest(made.model) != start
    return made


def bf16_lora(seed=1):
    """An adapter in 16 bits: its fp32 masters are not in its own weights."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    return get_peft_model(tiny_model(torch.bfloat16), config, autocast_adapter_dtype=False)


def prefix(seed=1):
    from peft import PrefixTuningConfig, get_peft_model

    torch.manual_seed(seed)
    config = PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    return get_peft_model(tiny_model(), config)


@pytest.mark.parametrize("make", [bf16_lora, prefix, lambda seed=0: tiny_model()])
def test_other_spaces_resume_from_checkpoint_and_from_journal(tmp_path, make):
    options = {"save_strategy": "steps", "save_steps": 5, "learning_rate": 1e-2}
    expected = uninterrupted(tmp_path / "whole", make, **options)
    out = tmp_path / "out"
    broken_off(out, 8, make, **options)
    resumed = trainer(make(seed=0), out, **options)
    resumed.train(resume_from_checkpoint=True)
    assert digest(resumed.model) == expected
    for left in out.glob("checkpoint-*"):
        shutil.rmtree(left)
    replayed = trainer(make(seed=0), out, **options)
    replayed.train(resume_from_checkpoint=True)
    assert digest(replayed.model) == expected
    assert replayed.method.forward_passes == 0


def test_a_torn_checkpoint_is_passed_over(tmp_path, caplog):
    options = {"save_strategy": "steps", "save_steps": 3}
    expected = uninterrupted(tmp_path / "whole", **options)
    out = tmp_path / "out"
    broken_off(out, 8, **options)
    torn(out / "checkpoint-6")
    assert newest_checkpoint(out) == out / "checkpoint-3"
    assert "checkpoint-6: ignored, the checkpoint is not whole" in caplog.text
    resumed = trainer(lora(seed=9), out, **options)
    resumed.train(resume_from_checkpoint=True)
    assert digest(resumed.model) == expected
    assert read_seal(out / "checkpoint-6")["step"] == 6
    torn(out / "checkpoint-6")
    with pytest.raises(InputError, match="not whole"):
        trainer(lora(), out, **options).train(str(out / "checkpoint-6"))


def test_a_torn_record_is_made_again(tmp_path):
    expected = uninterrupted(tmp_path / "whole")
    out = tmp_path / "out"
    broken_off(out)
    last = [f.offset for f in scan(out / "journal.bin") if isinstance(f, Frame)][-1]
    os.truncate(out / "journal.bin", last + 20)
    resumed = trainer(lora(), out)
    resumed.train(resume_from_checkpoint=True)
    assert digest(resumed.model) == expected
    assert resumed.method.forward_passes == 2 * 5


def test_accumulated_micro_batches_resume_too(tmp_path):
    options = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    expected = uninterrupted(tmp_path / "whole", **options)
    broken_off(tmp_path / "out", 7, **options)
    resumed = trainer(lora(), tmp_path / "out", **options)
    resumed.train(resume_from_checkpoint=True)
    assert digest(resumed.model) == expected
    assert resumed.method.forward_passes == 2 * 2 * 5


def test_resumed_logs_are_those_of_the_uninterrupted_run(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 5, "logging_steps": 2, "max_steps": 9}
    whole = trainer(lora(), tmp_path / "whole", **options)
    whole.train()
    broken_off(tmp_path / "out", 8, **options)
    resumed = trainer(lora(), tmp_path / "out", **options)
    resumed.train(resume_from_checkpoint=True)

    def kept(made, key):
        return [(e["step"], e[key]) for e in made.state.log_history if key in e]

    assert len(kept(whole, "grad_norm")) == 4
    assert kept(resumed, "grad_norm") == kept(whole, "grad_norm")
    # The Trainer's own running sum begins anew at a checkpoint: step 5 is lost from it.
    pairs = zip(kept(resumed, "loss"), kept(whole, "loss"), strict=True)
    assert [a == b for a, b in pairs] == [True, True, False, True]


def test_a_finished_run_makes_no_further_step(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 6}
    expected = uninterrupted(tmp_path / "out", **options)
    for epochs in ({}, {"max_steps": -1, "num_train_epochs": 2}):
        resumed = trainer(lora(seed=4), tmp_path / "out", **options, **epochs)
        output = resumed.train(resume_from_checkpoint=True)
        assert output.global_step == resumed.state.global_step == resumed.method.steps == 12
        assert digest(resumed.model) == expected
    assert len(Journal.open(tmp_path / "out" / "journal.bin")) == 12


def test_a_finished_run_can_be_made_longer(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 6}
    expected = uninterrupted(tmp_path / "whole", max_steps=15, **options)
    uninterrupted(tmp_path / "out", **options)
    longer = trainer(lora(), tmp_path / "out", max_steps=15, **options)
    longer.train(resume_from_checkpoint=True)
    assert digest(longer.model) == expected


def test_nothing_to_resume_and_other_settings_are_refused(tmp_path):
    with pytest.raises(InputError, match="neither a whole checkpoint nor a journal"):
        trainer(lora(), tmp_path / "none").train(resume_from_checkpoint=True)
    with pytest.raises(InputError, match="no such checkpoint"):
        trainer(lora(), tmp_path / "none").train(str(tmp_path / "checkpoint-9"))
    out = tmp_path / "out"
    broken_off(out, 3)
    before = (out / "journal.bin").read_bytes()
    for options, message in (
        ({"seed": 4}, "seed 4 instead of 3"),
        ({"learning_rate": 0.5}, "learning_rate 0.5 instead of 0.001"),
        ({"per_device_train_batch_size": 2}, "per_device_train_batch_size 2 instead of 4"),
        ({"noise": "binomial"}, "noise 'binomial' instead of 'gaussian'"),
    ):
        with pytest.raises(InputError, match=message):
            trainer(lora(), out, **options).train(resume_from_checkpoint=True)
    with pytest.raises(InputError, match="those of other blocks"):
        trainer(tiny_model(), out).train(resume_from_checkpoint=True)
    assert (out / "journal.bin").read_bytes() == before


def test_full_weights_of_another_model_are_refused(tmp_path):
    broken_off(tmp_path, 3, tiny_model)
    with pytest.raises(InputError, match="starts from other weights"):
        trainer(tiny_model(seed=8), tmp_path).train(resume_from_checkpoint=True)


def test_a_journal_is_not_started_over_unasked(tmp_path):
    broken_off(tmp_path, 7, save_strategy="steps", save_steps=6)
    with pytest.raises(InputError, match="holds the journal of a run"):
        trainer(lora(), tmp_path).train()
    assert len(Journal.open(tmp_path / "journal.bin")) == 7
    broken_off(tmp_path, 2, overwrite=True)
    assert len(Journal.open(tmp_path / "journal.bin")) == 2
    # The first run's checkpoint does not belong to the second one.
    resumed = trainer(lora(), tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.method.forward_passes == 2 * 10


def test_a_checkpoint_alone_is_enough(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 5}
    expected = uninterrupted(tmp_path / "whole", **options)
    out = tmp_path / "out"
    broken_off(out, 8, **options)
    (out / "journal.bin").unlink()
    broken_off_again = trainer(lora(), out, **options)
    broken_off_again.train(resume_from_checkpoint=True)
    assert digest(broken_off_again.model) == expected
    journal = Journal.open(out / "journal.bin")
    assert (journal.first_step, journal.next_step) == (5, 12)
    shutil.rmtree(out / "checkpoint-12")
    again = trainer(lora(), out, **options)
    again.train(resume_from_checkpoint=True)
    assert digest(again.model) == expected
    for left in out.glob("checkpoint-*"):
        shutil.rmtree(left)
    with pytest.raises(InputError, match="begins at step 5, and no checkpoint reaches it"):
        trainer(lora(), out, **options).train(resume_from_checkpoint=True)


def test_a_journal_with_a_gap_is_refused(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 6}
    uninterrupted(tmp_path, **options)
    with Journal.open(tmp_path / "journal.bin", writable=True) as journal:
        journal.truncate(4)
    with pytest.raises(InputError, match="step 6 is due"):
        trainer(lora(), tmp_path, max_steps=14, **options).train(str(tmp_path / "checkpoint-6"))


class Failing:
    """A loss that is not finite from some call on."""

    def __init__(self, good, bad=10**9):
        self.calls, self.good, self.bad = 0, good, bad

    def __call__(self, model, batch):
        self.calls += 1
        loss = model(**batch).loss
        return loss * float("nan") if self.good < self.calls <= self.good + self.bad else loss


def test_a_few_bad_losses_are_skipped_and_counted(tmp_path):
    made = trainer(lora(), tmp_path, loss_function=Failing(6, 4), logging_steps=1)
    made.train()
    assert digest(made.model) != digest(lora())
    assert (made.method.skipped, made.method.steps) == (2, 12)
    skipped = [r.step for r in Journal.open(tmp_path / "journal.bin").records() if r.skipped]
    assert skipped == [3, 4]
    losses = [e["loss"] for e in made.state.log_history if "loss" in e]
    assert len(losses) == 12
    assert all(loss == loss for loss in losses)


def test_after_a_run_of_bad_losses_the_last_good_state_is_saved(tmp_path):
    made = trainer(lora(), tmp_path, loss_function=Failing(10), max_bad_steps=3)
    with pytest.raises(RunError, match="not finite for 3 steps in a row"):
        made.train()
    good = digest(made.model)
    assert good != digest(lora())
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-8"
    assert len(Journal.open(tmp_path / "journal.bin")) == 8
    from peft import PeftModel

    loaded = PeftModel.from_pretrained(tiny_model(), tmp_path / "checkpoint-8")
    assert digest(loaded) == good
    resumed = trainer(lora(seed=6), tmp_path, loss_function=Failing(10**9), max_bad_steps=3)
    resumed.train(resume_from_checkpoint=True)
    assert (resumed.state.global_step, resumed.method.skipped) == (12, 3)


def test_a_broken_evaluation_leaves_a_journal_to_resume_from(tmp_path):
    expected = uninterrupted(tmp_path / "whole", eval_strategy="steps", eval_steps=5)

    def broken(model, batch):
        if len(batch["input_ids"]) == 8:
            raise ZeroDivisionError
        return model(**batch).loss

    options = {"eval_strategy": "steps", "eval_steps": 5, "eval_dataset": Counting(8)}
    out = tmp_path / "out"
    with pytest.raises(ZeroDivisionError):
        trainer(lora(), out, loss_function=broken, **options).train()
    assert len(Journal.open(out / "journal.bin")) == 5
    resumed = trainer(lora(), out, **options)
    resumed.train(resume_from_checkpoint=True)
    assert digest(resumed.model) == expected
