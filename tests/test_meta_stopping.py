"""One forward for both gradients of a meta-step, and when there have been enough of them."""

import math

import pytest
import torch
from test_meta import batches, bits, draw, loss_of, tiny
from torch import nn

import zopeft
from zopeft.finetuner import FineTuner
from zopeft.meta import MetaSettings
from zopeft.meta.signal_trainer import SignalTrainer
from zopeft.meta.stopping import FIRST, JUDGES, Captured, Checks, Settled
from zopeft.tasks import task_loss
from zopeft.tasks.one_forward import one_forward
from zopeft.tasks.sampling import draw_labels


def text():
    ids = torch.arange(1, 25).view(3, 8)
    labels = ids.clone()
    labels[:, :5] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def gradients(model, loss, **options):
    found = torch.autograd.grad(loss, list(model.parameters()), **options)
    return [gradient.clone() for gradient in found]


def test_drawn_and_true_labels_need_one_forward_and_have_the_same_gradients():
    model, batch, calls = tiny(), text(), []
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    drawn, count = draw_labels(model, batch, 7)
    apart = gradients(model, task_loss(model, batch)), gradients(model, task_loss(model, drawn))
    assert len(calls) == 3 and not all(map(torch.equal, *apart))
    with one_forward():
        loss = task_loss(model, batch)
        again, found = draw_labels(model, batch, 7)
        other = task_loss(model, again)
    assert len(calls) == 4 and found == count
    assert torch.equal(again["labels"], drawn["labels"])
    for own, wanted in zip(gradients(model, other, retain_graph=True), apart[1], strict=True):
        torch.testing.assert_close(own, wanted)
    for own, wanted in zip(gradients(model, loss), apart[0], strict=True):
        torch.testing.assert_close(own, wanted)
    task_loss(model, batch)
    assert len(calls) == 5


def test_other_texts_or_places_are_run_anew():
    model, batch, calls = tiny(), text(), []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    fewer = {**batch, "labels": batch["labels"].clone()}
    fewer["labels"][:, :7] = -100
    with one_forward():
        losses = [task_loss(model, one) for one in (batch, fewer, text(), batch)]
    assert len(calls) == 4 and losses[0] != losses[1]


class Matrix(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(6, 5, bias=False)


def test_captured_is_the_share_of_energy_inside_the_bases():
    generator = torch.Generator().manual_seed(0)
    blocks = zopeft.discover(Matrix())
    left = torch.linalg.qr(torch.randn(5, 2, generator=generator))[0]
    right = torch.linalg.qr(torch.randn(6, 3, generator=generator))[0]
    judge = Captured(blocks, {0: (left.double(), right.double())})
    inside = whole = 0.0
    for weight in (0.0, 1.0, 0.5, 2.0, 1.0):
        gradient = torch.randn(5, 6, generator=generator)
        judge.begin(weight)
        judge.take(blocks[0].parameter, [0], gradient)
        inside += weight * float((left.t() @ gradient @ right).square().sum())
        whole += weight * float(gradient.square().sum())
    assert judge.left == 0 and JUDGES == 4
    assert judge.share == pytest.approx(inside / whole, rel=1e-5)
    assert 0.0 < judge.share < 1.0


def test_checks_grow_rarer():
    checks = Checks()
    due = [step for step in range(1, 100) if checks.due(step)]
    assert due == [FIRST, 36, 54, 81]


def test_scales_have_settled_once_neither_they_nor_their_gain_move():
    settled, scales = Settled(0.05), torch.tensor([1.0, 2.0, 0.5])
    assert not settled.check(scales, 0.5)
    assert not settled.check(scales, 0.6)
    assert not settled.check(scales * 2.0, 0.61)
    assert not settled.check(scales * 2.0, math.nan)
    assert not settled.check(scales * 2.0, 0.61)
    assert settled.check(scales * 2.1, 0.62)


@pytest.mark.parametrize("capacity", ["scales", "subspace"])
def test_meta_training_stops_when_more_steps_gain_nothing(capacity):
    """One batch again and again: after a check or two there is nothing more to see."""

    def made(stop):
        model = tiny()
        blocks, start = zopeft.discover(model), bits(model)
        settings = MetaSettings.of(
            steps=200, stop=stop, lr_model=0.0, capacity=capacity, token_rows="none", rank=2
        )
        finetuner = FineTuner.initial(blocks, capacity=capacity, rank=2)
        stream = iter(batches())
        one = next(stream)
        trainer = SignalTrainer(
            model, iter(lambda: one, None), loss_of, draw, settings, blocks, finetuner
        )
        seen = []
        trainer.train(lambda step, total, figures: seen.append((step, total)))
        assert all(torch.equal(start[name], now) for name, now in bits(model).items())
        assert seen[-1] == (len(seen), 200)
        return len(seen)

    assert made(0.0) == 200
    assert FIRST < made(0.5) < 150


def test_a_disk_that_fails_at_the_end_is_no_bad_input(
    zopeft_command, tiny_model, tiny_data, tmp_path, monkeypatch
):
    def broken(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("zopeft.finetuner.storage.staged", broken)
    words = ("meta-train", tiny_model, "--task", "sst2", "--data", tiny_data, "--steps", 2)
    line = zopeft_command.refused(*words, "--batch-size", 2, "--out", tmp_path / "out", code=1)
    assert "cannot be written (Input/output error)" in line
