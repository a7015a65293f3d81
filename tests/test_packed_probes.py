"""Probes of packed batches: the losses of padded ones, apart and in one forward."""

from __future__ import annotations

import pytest
import torch
from test_packed_families import COLLATE, answers, choices, model_of

import zopeft
from zopeft.tasks import task_loss

CASES = [
    ("lora", "gaussian", "separate"),
    ("lora", "gaussian", "stacked"),
    ("prefix", "gaussian", "separate"),
    ("prefix", "gaussian", "stacked"),
    ("full", "gaussian", "separate"),
    ("full", "low_rank", "separate"),
    ("full", "low_rank", "stacked"),
]


def probed(space, noise, probes, layout, examples=choices, family="gemma3"):
    """The losses of a step's probes, and how many rows each forward had."""
    model, rows = model_of(family, space), []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    method = zopeft.MeZO(
        zopeft.discover(model), lr=1e-3, eps=0.05, seed=5, noise=noise, probes=probes
    )
    closure = zopeft.BatchLoss(model, COLLATE(examples()), task_loss, layout=layout)
    rows.clear()
    method.estimate(closure)
    return torch.tensor(method._pending.losses()), rows


@pytest.mark.parametrize(("space", "noise", "probes"), CASES)
def test_probes_see_the_same_losses(space, noise, probes):
    for examples in (choices, answers):
        padded, before = probed(space, noise, "separate", "padded", examples)
        packed, rows = probed(space, noise, probes, "packed", examples)
        assert abs(padded[0] - padded[1]) > 1e-3
        torch.testing.assert_close(packed, padded, rtol=1e-5, atol=0)
        assert len(rows) == (1 if probes == "stacked" else 2)
        assert sum(rows) < sum(before)


def test_the_rule_of_stacking_counts_packed_tokens():
    model = model_of("llama", "lora")
    batch = COLLATE(choices() * 2)
    method = zopeft.MeZO(zopeft.discover(model), lr=1e-3)
    method.probing.most_tokens = zopeft.BatchLoss(model, batch, task_loss, layout="packed").tokens
    assert method.probing.stacks(zopeft.BatchLoss(model, batch, task_loss, layout="packed"))
    assert not method.probing.stacks(zopeft.BatchLoss(model, batch, task_loss))


def test_models_own_losses_are_probed_packed_and_stacked():
    model, found = model_of("llama", "lora"), []
    for probes, layout in (("separate", "padded"), ("stacked", "packed")):
        method = zopeft.MeZO(zopeft.discover(model), lr=1e-3, eps=0.3, seed=5, probes=probes)
        method.estimate(zopeft.BatchLoss(model, COLLATE(answers()), layout=layout))
        found.append(torch.tensor(method._pending.losses()))
        assert method.forward_passes == 2
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=0)
