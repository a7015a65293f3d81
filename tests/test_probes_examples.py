"""What each example has of a batch's loss: the parts make the whole, however the batch is run."""

from __future__ import annotations

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from test_methods_groups import choices, padded
from tiny_families import build
from transformers import LlamaForQuestionAnswering

import zopeft
from zopeft.probing.closure import loss_of
from zopeft.probing.examples import hearing, listening, tell
from zopeft.tasks import task_loss
from zopeft.tasks.objectives.accuracy import AccuracyLoss

LAYOUTS = ("padded", "packed")


def told(closure, count=0):
    """Returns the loss, or those of copies, and what was told on the way."""
    with torch.no_grad(), listening() as heard:
        losses = closure.stacked(count) if count else loss_of(closure)
    if count:
        return losses, heard.parts
    return losses, heard.of(1)


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
    whole, found = told(closure)
    losses, weights = found.losses, found.weights
    assert losses.shape == (1, 5) and weights.unique().numel() > 1
    torch.testing.assert_close((losses * weights).sum(), whole, rtol=1e-5, atol=0)
    torch.testing.assert_close(losses[0], alone(model, batch, loss), rtol=1e-4, atol=1e-5)
    before = model(**batch).loss
    assert torch.equal(before, model(**batch).loss) and hearing() is None


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("loss", [None, task_loss], ids=["model", "task"])
def test_copies_tell_each_for_itself(loss, layout):
    model = build("llama")
    closure = zopeft.BatchLoss(model, padded(), loss, layout)
    one = told(closure)[1].losses
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
    whole, found = told(closure)
    losses, weights = found.losses, found.weights
    assert losses.shape == (1, 5) and torch.allclose(weights, torch.tensor(0.2))
    torch.testing.assert_close(losses.mean(), whole, rtol=1e-5, atol=0)
    if score:
        assert set(losses.flatten().tolist()) <= {0.0, -1.0}
    else:
        assert losses.unique().numel() == 5


OTHER = {
    "more than the mean": lambda own: lambda: own() + 0.3,
    "a part of it": lambda own: lambda: 0.25 * own(),
    "two batches": lambda own: lambda: (own() + own()) / 2,
    "nothing": lambda own: lambda: torch.tensor(3.0),
}


@pytest.mark.parametrize("loss", [None, task_loss], ids=["model", "task"])
@pytest.mark.parametrize("way", OTHER)
def test_a_loss_that_is_not_what_was_told_is_not_believed(way, loss):
    own = zopeft.BatchLoss(build("llama"), padded(), loss)
    assert told(own)[1] is not None and told(OTHER[way](own))[1] is None


def test_a_loss_that_is_no_mean_over_tokens_is_found_out():
    model, batch = build("llama"), padded()
    whole, found = told(zopeft.BatchLoss(model, batch))
    assert found is not None
    halved, found = told(zopeft.BatchLoss(model, batch | {"num_items_in_batch": 100}))
    assert found is None and 0.0 < float(halved) < float(whole)


def test_a_forward_that_came_to_nothing_leaves_nothing_behind():
    own = zopeft.BatchLoss(build("llama"), padded())

    def broken():
        own()
        raise RuntimeError("no loss")

    with torch.no_grad(), listening() as heard:
        with pytest.raises(RuntimeError, match="no loss"):
            loss_of(broken)
        loss_of(own)
        assert heard.of(1) is not None and heard.of(2) is None
        loss_of(own)
        assert heard.of(1) is None and heard.of(2).losses.shape == (2, 5)


def embeds(model, batch):
    return {"inputs_embeds": model.get_input_embeddings()(batch["input_ids"])} | {
        name: value for name, value in batch.items() if name != "input_ids"
    }


def test_models_and_batches_of_another_kind_are_left_alone():
    model, batch = build("llama"), padded()
    want = float(told(zopeft.BatchLoss(model, batch))[0])
    with torch.no_grad():
        found = told(zopeft.BatchLoss(model, embeds(model, batch)))
    assert found[1] is None and float(found[0]) == pytest.approx(want, rel=1e-5)
    answers = LlamaForQuestionAnswering(model.config).eval()
    ids = batch["input_ids"] % model.config.vocab_size
    at = {"start_positions": ids[:, 0] % 4, "end_positions": ids[:, 1] % 4}
    loss, parts = told(zopeft.BatchLoss(answers, {"input_ids": ids, **at}))
    assert parts is None and float(loss) > 0.0

    class Own(type(model)):
        def loss_function(self, logits, labels, **_):
            return logits.float().logsumexp(-1).mean()

    own = Own(model.config).eval()
    loss, parts = told(zopeft.BatchLoss(own, batch))
    assert parts is None and float(loss) > 0.0


def test_a_compiled_model_is_not_compiled_again_for_it():
    model, graphs = build("llama"), []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    model.compile(backend=backend)
    closure = zopeft.BatchLoss(model, padded())
    with torch.no_grad():
        loss_of(closure)
        before = len(graphs)
        assert told(closure)[1] is None
    assert before > 0 and len(graphs) == before


@pytest.mark.parametrize("loss", [None, task_loss], ids=["model", "task"])
def test_virtual_tokens_before_the_texts_are_no_part_of_them(loss):
    model = get_peft_model(
        build("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    )
    batch = padded()
    _, found = told(zopeft.BatchLoss(model.eval(), batch, loss))
    assert found is not None and found.losses.shape == (1, 5)
    torch.testing.assert_close(found.losses[0], alone(model, batch, loss), rtol=1e-4, atol=1e-5)


def test_nobody_who_does_not_listen_pays():
    model, batch = build("llama"), padded()
    made = []
    with torch.no_grad(), listening(on=False) as heard:
        zopeft.BatchLoss(model, batch)()
        tell(lambda: made.append(1))
    assert heard.parts == [] and heard.forwards == [] and made == []
    assert "_loss_function" not in model.__dict__
