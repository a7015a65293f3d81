"""Parts of a batch add up to it: losses, drawn labels and gradients; no process is started."""

from __future__ import annotations

import pytest
import torch
from test_meta import tiny
from torch import nn

import zopeft
from zopeft.blocks.shards import refuse_sharded
from zopeft.errors import InputError
from zopeft.meta import summing
from zopeft.meta.parts import Parting, part_labels, part_loss, share_of
from zopeft.meta.sensitivity import sensitive_mask
from zopeft.meta.summing import backward, bytes_sent
from zopeft.ranks import Ranks
from zopeft.tasks import Collator, task_loss
from zopeft.tasks.encoding import Encoded
from zopeft.tasks.loss import counted
from zopeft.tasks.sampling import draw_labels

ANSWERS = [
    Encoded(((5, 6, 7),), ((8, 9),)),
    Encoded(((3,),), ((4,),)),
    Encoded(((11, 12),), ((13, 14, 15, 16),)),
    Encoded(((1, 2, 3, 4),), ((5,),), taught=(False,)),
    Encoded(((30, 31),), ((32, 33, 34),)),
]
CHOICES = [
    Encoded(((5, 6, 7), (5, 6, 7)), ((8,), (9,)), 0),
    Encoded(((3,), (3,), (3,)), ((4, 5), (6, 7, 8), (9,)), 2),
    Encoded(((11, 12), (11, 12)), ((13, 14), (15,)), 1),
]


class Padless:
    pad_token_id = eos_token_id = 0


collate = Collator(Padless())


def parts_of(examples, count):
    return [Parting(collate, Ranks(number, count))(examples) for number in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("examples", [ANSWERS, CHOICES])
def test_parts_add_up_to_the_batch(examples, count):
    model, whole = tiny(), collate(examples)
    parts = parts_of(examples, count)
    assert sum(part.counts for part in parts) == counted(whole) == parts[0].whole
    loss = sum(part_loss(model, part) for part in parts)
    torch.testing.assert_close(loss, task_loss(model, whole))
    held = [share_of(len(examples), Ranks(number, count)) for number in range(count)]
    assert [first for first, _ in held[1:]] == [end for _, end in held[:-1]]
    sizes = [end - first for first, end in held]
    assert sum(sizes) == len(examples) and max(sizes) - min(sizes) <= 1


def test_a_rank_without_rows_runs_one_that_counts_for_nothing():
    model = tiny()
    parts = parts_of(ANSWERS[3:], 5)
    assert [part.counts for part in parts] == [0, 0, 0, 0, 3]
    # The first of the two examples teaches nothing: its mean would be none.
    assert all(part.first == 1 and part_loss(model, part).item() == 0.0 for part in parts[:4])
    nothing = parts_of(ANSWERS[3:4], 2)
    assert all(part_loss(model, part).isnan() for part in nothing)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("examples", [ANSWERS, CHOICES])
def test_a_part_is_drawn_the_labels_that_one_process_draws(examples, count):
    model, whole = tiny(), collate(examples)
    seen = set()
    for seed in range(12):
        drawn, number = draw_labels(model, whole, seed)
        mine, numbers = [], []
        for part in parts_of(examples, count):
            found, told = part_labels(model, part, seed)
            numbers.append(told)
            if "option_label" in whole:
                mine += found.batch["option_label"].tolist()
            else:
                mine += found.batch["labels"][part.batch["labels"] != -100].tolist()
        own = drawn["option_label"] if "option_label" in whole else drawn["labels"]
        wanted = own if "option_label" in whole else own[whole["labels"] != -100]
        assert mine == wanted.tolist() and numbers == [number] * count
        seen.add(tuple(mine))
    assert len(seen) > 4


def test_labels_are_drawn_as_often_as_the_model_says():
    model = tiny()
    batch = collate(ANSWERS[:1])
    with torch.no_grad():
        chances = model(input_ids=batch["input_ids"]).logits[0, 2].softmax(-1)
    drawn = [int(draw_labels(model, batch, seed)[0]["labels"][0, 3]) for seed in range(2000)]
    found = torch.bincount(torch.tensor(drawn), minlength=len(chances)) / len(drawn)
    spread = (chances * (1 - chances) / len(drawn)).sqrt()
    assert float(((found - chances).abs() - 4.5 * spread).max()) < 1e-3
    assert len(set(drawn)) > 20


def test_what_has_no_chance_is_not_drawn_and_no_number_is_no_error(monkeypatch):
    wanted = torch.full((1, 61), float("-inf"))
    wanted[0, [7, 20]] = torch.tensor([0.0, -20.0])
    batch = collate(ANSWERS[1:2])
    where = "zopeft.tasks.sampling.narrow_logits"
    monkeypatch.setattr(where, lambda *_: wanted)
    drawn = {int(draw_labels(None, batch, seed)[0]["labels"][0, 1]) for seed in range(300)}
    assert drawn == {7}
    monkeypatch.setattr(where, lambda *_: wanted * torch.nan)
    assert int(draw_labels(None, batch, 1)[0]["labels"][0, 1]) < 61


class Heard(Ranks):
    """One of several ranks, which is told what the others have sent."""

    def __init__(self, number, count, others=()):
        super().__init__(number, count)
        self.others, self.said = list(others), []

    def summed(self, mine):
        for other in self.others:
            mine += other.said[len(self.said)]
        self.said.append(mine.clone())
        return mine


def summed(model, losses, consumer):
    """Has ranks run their backward passes, one after the other; the last one hears them all."""
    blocks = zopeft.discover(model)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    before = []
    for number, loss in enumerate(losses):
        ranks = Heard(number, len(losses), before[-1:])
        given = consumer if number == len(losses) - 1 else (lambda *_: None)
        found = backward(blocks, given, loss, ranks)
        before.append(ranks)
    return found, before


def kept(into):
    def consumer(parameter, indices, gradient):
        assert indices and id(parameter) not in into
        into[id(parameter)] = gradient.clone()

    return consumer


@pytest.mark.parametrize("bucket", [1 << 23, 300, 7])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_gradients_of_parts_add_up_to_the_batchs(count, bucket, monkeypatch):
    monkeypatch.setattr(summing, "BUCKET", bucket)
    model, found = tiny(), {}
    parts = parts_of(ANSWERS, count)
    losses = [lambda part=part: part_loss(model, part) for part in parts]
    loss, ranks = summed(model, losses, kept(found))
    whole = task_loss(model, collate(ANSWERS))
    assert loss == pytest.approx(whole.item(), rel=1e-6)
    whole.backward()
    assert len(found) == len(list(model.parameters()))
    for parameter in model.parameters():
        size = float(parameter.grad.abs().max())
        torch.testing.assert_close(
            found[id(parameter)], parameter.grad, rtol=1e-4, atol=1e-6 * size
        )
    largest = max(parameter.numel() for parameter in model.parameters())
    several = len({one.numel() for one in ranks[0].said}) > 1
    assert several is (bucket < 1 << 23) and (bucket > largest or len(ranks[0].said) > 20)


class Two(nn.Module):
    """A layer that all losses use, one that some do, and one that none does."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.some, self.every, self.never = (nn.Linear(4, 3, dtype=dtype) for _ in range(3))

    def forward(self, x):
        return self.every(x).sum()


def test_a_gradient_that_some_ranks_have_is_summed_and_one_that_none_has_is_not_handed_on():
    model, found = Two(), {}
    x, y = torch.arange(8.0).view(2, 4), torch.ones(1, 4)
    losses = [lambda: model.every(x).sum(), lambda: (model.every(y) + 2 * model.some(y)).sum()]
    loss, _ = summed(model, losses, kept(found))
    whole = losses[0]() + losses[1]()
    whole.backward()
    assert loss == pytest.approx(whole.item())
    names = {name for name, p in model.named_parameters() if id(p) in found}
    assert names == {"every.weight", "every.bias", "some.weight", "some.bias"}
    for parameter in (*model.every.parameters(), *model.some.parameters()):
        torch.testing.assert_close(found[id(parameter)], parameter.grad)


def test_gradients_of_16_bits_are_added_up_in_32():
    model, found = Two(torch.bfloat16), {}
    # 256 + 1 + 1 = 258, and 256 in each sum of 16 bits.
    sizes = (256.0, 1.0, 1.0)
    losses = [lambda s=s: model.every.bias[0].float() * s for s in sizes]
    summed(model, losses, kept(found))
    bias = found[id(model.every.bias)]
    assert bias.dtype == torch.bfloat16 and bias.tolist() == [258.0, 0.0, 0.0]


def test_a_mask_of_parts_is_that_of_the_batches():
    model = tiny()
    blocks = zopeft.discover(model)
    wanted = sensitive_mask(model, [collate(ANSWERS)], 0.05, task_loss, blocks)
    before, found = [], None
    for number, part in enumerate(parts_of(ANSWERS, 2)):
        before.append(Heard(number, 2, before[-1:]))
        found = sensitive_mask(model, [part], 0.05, part_loss, blocks, before[-1])
    same = sum(
        len(set(places.tolist()) & set(found.places[name].tolist()))
        for name, places in wanted.places.items()
    )
    assert found.count == wanted.count and same >= 0.99 * wanted.count


def test_what_a_backward_pass_sends_is_all_but_one_part_of_the_weights_twice():
    blocks = zopeft.discover(Two(torch.bfloat16))
    assert bytes_sent(blocks, 2) == 3 * 15 * 4 and bytes_sent(blocks, 3) == 3 * 15 * 4 * 4 // 3


def test_a_model_that_processes_hold_together_is_refused(monkeypatch):
    monkeypatch.setattr("zopeft.blocks.shards.is_sharded", lambda _: True)
    with pytest.raises(InputError, match=r"^meta_train: needs all of the model in each process"):
        refuse_sharded(Two(), "meta_train")
