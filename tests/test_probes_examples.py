"""What each example has of a batch's loss: the parts make the whole, however the batch is run."""

from __future__ import annotations

import pytest
import torch
from test_methods_groups import choices, padded
from tiny_families import build

import zopeft
from zopeft.probing.examples import heard, listening
from zopeft.tasks import task_loss
from zopeft.tasks.objectives.accuracy import AccuracyLoss

LAYOUTS = ("padded", "packed")


def told(closure, count=0):
    """Returns the loss, or those of copies, and what was told on the way."""
    with torch.no_grad(), listening() as found:
        losses = closure.stacked(count) if count else closure()
    return losses, found


def alone(model, batch, loss):
    """Returns the loss of each text, run by itself without padding."""
    found = []
    for row in range(len(batch["input_ids"])):
        own = int(batch["attention_mask"][row].sum())
        with torch.no_grad():
            one = {name: value[row : row + 1, :own] for name, value in batch.items()}
            found.append(zopeft.BatchLoss(model, one, loss)())
    return torch.stack(found)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("loss", [None, task_loss], ids=["model", "task"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_texts_have_their_own_losses_and_the_batch_their_mean(family, loss, layout):
    model, batch = build(family), padded()
    closure = zopeft.BatchLoss(model, batch, loss, layout)
    whole, ((losses, weights),) = told(closure)
    assert losses.shape == (1, 5) and weights.unique().numel() > 1
    torch.testing.assert_close((losses * weights).sum(), whole, rtol=1e-5, atol=0)
    torch.testing.assert_close(losses[0], alone(model, batch, loss), rtol=1e-4, atol=1e-5)
    before = model(**batch).loss
    assert torch.equal(before, model(**batch).loss) and not heard()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("loss", [None, task_loss], ids=["model", "task"])
def test_copies_tell_each_for_itself(loss, layout):
    model = build("llama")
    closure = zopeft.BatchLoss(model, padded(), loss, layout)
    _, ((one, _),) = told(closure)
    wholes, found = told(closure, 3)
    losses = torch.cat([losses for losses, _ in found])
    assert losses.shape == (3, 5)
    torch.testing.assert_close(losses, one.expand(3, 5), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close((losses * found[0][1]).sum(1), wholes, rtol=1e-5, atol=0)


@pytest.mark.parametrize("layout", ["padded", "packed", "joined"])
@pytest.mark.parametrize("score", [False, True], ids=["loss", "accuracy"])
def test_choices_tell_example_by_example(layout, score):
    model, batch = choices()
    loss = AccuracyLoss() if score else task_loss
    closure = zopeft.BatchLoss(model, batch, loss, "auto" if layout == "joined" else layout)
    whole, ((losses, weights),) = told(closure)
    assert losses.shape == (1, 5) and torch.allclose(weights, torch.tensor(0.2))
    torch.testing.assert_close(losses.mean(), whole, rtol=1e-5, atol=0)
    if score:
        assert set(losses.flatten().tolist()) <= {0.0, -1.0}
    else:
        assert losses.unique().numel() == 5


def test_a_loss_that_is_no_mean_over_tokens_tells_nothing():
    model, batch = build("llama"), padded()
    whole, found = told(zopeft.BatchLoss(model, batch))
    assert len(found) == 1
    halved, found = told(zopeft.BatchLoss(model, batch | {"num_items_in_batch": 100}))
    assert found == [] and 0.0 < float(halved) < float(whole)


def test_nobody_who_does_not_listen_pays():
    model, batch = build("llama"), padded()
    calls = []
    own = type(model).loss_function.fget(model)
    model.loss_function = lambda *args, **kwargs: calls.append(1) or own(*args, **kwargs)
    with torch.no_grad(), listening(on=False) as found:
        zopeft.BatchLoss(model, batch)()
    assert found == [] and calls == [1] and model.__dict__["_loss_function"] is not own
