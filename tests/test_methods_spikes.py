"""One broken batch: its step is clipped and counted, and says nothing of those to come."""

import copy
import math

import pytest
import torch
from test_methods_thrifty import ESTIMATORS

import zopeft
from zopeft.journal import Journal
from zopeft.optim import clipping
from zopeft.optim.clipping import DECAY, ENTERS, KNOWN, SPIKE, RunningClip, tamed

BROKEN = 60
"""The step that has the broken batch."""


def begun(**options):
    """A linear model that is far from what it is to learn, and its method."""
    torch.manual_seed(1)
    model = torch.nn.Linear(30, 8, bias=False)
    options = {"lr": "auto", "eps": 1e-3, "seed": 5, **options}
    return model, zopeft.MeZO(zopeft.discover(model), **options)


def made(model, method, steps, spikes):
    """Makes steps, each on a batch of its own; returns their rates."""
    wanted, rates = torch.full((8, 30), 0.3), []
    for _ in range(steps):
        at = method.steps
        inputs = torch.randn(16, 30, generator=torch.Generator().manual_seed(at))
        factor = spikes.get(at, 1.0)

        def loss(inputs=inputs, factor=factor):
            return factor * (model(inputs) - inputs @ wanted.T).square().mean()

        with torch.no_grad():
            method.step(loss)
        rates.append(method.last_record.lr[0])
    return rates


@pytest.mark.parametrize("way", ESTIMATORS)
@pytest.mark.parametrize("spike", [1e3, 1e6])
def test_the_rate_after_a_broken_batch_is_that_of_a_run_without(way, spike):
    plain, broken = begun(**ESTIMATORS[way]), begun(**ESTIMATORS[way])
    usual = made(*plain, BROKEN + 40, {})
    found = made(*broken, BROKEN + 40, {BROKEN: spike})
    assert found[:BROKEN] == usual[:BROKEN]
    assert min(f / u for f, u in zip(found[BROKEN + 1 :], usual[BROKEN + 1 :], strict=True)) > 0.5
    assert broken[1].clip.spikes == broken[1].estimator.directions
    assert plain[1].clip.spikes == 0


def test_a_spike_moves_the_weights_no_further_than_clipping_lets_it():
    model, method = begun()
    made(model, method, BROKEN, {})
    usual = math.sqrt(method.clip._square / (1 - DECAY**method.clip._count))
    before = model.weight.detach().clone()
    made(model, method, 1, {BROKEN: 1e6})
    assert abs(method.last_record.projected_grads[0]) == pytest.approx(2 * usual)
    moved = float((model.weight.detach() - before).norm())
    assert moved == pytest.approx(method.last_record.lr[0] * 2 * usual * math.sqrt(240.0), rel=0.2)


def test_gradients_that_have_grown_for_good_are_soon_the_usual_ones():
    clip = RunningClip(2.0)
    for _ in range(100):
        clip.note(1.0)
    for _ in range(60):
        clip.note(-1e3)
    assert clip.clipped(-1e3) == -1e3
    assert 20 < clip.spikes < 35
    counted = clip.spikes
    clip.note(1e3)
    assert clip.spikes == counted


def test_a_spike_enters_with_its_sign_and_at_most_so_much():
    assert tamed(SPIKE, 1.0) == SPIKE and tamed(-SPIKE, 1.0) == -SPIKE
    assert tamed(1.01 * SPIKE, 1.0) == ENTERS and tamed(-1e9, 2.0) == -2 * ENTERS
    assert tamed(1e9, 0.0) == 1e9


def test_the_first_gradients_are_all_believed():
    clip = RunningClip(2.0)
    clip.note(1e-9)
    for _ in range(KNOWN - 1):
        clip.note(1.0)
    assert clip.spikes == 0 and clip.clipped(1.0) == 1.0


def test_a_run_with_a_spike_goes_on_from_a_checkpoint_with_the_same_bits():
    whole = begun()
    made(*whole, BROKEN + 30, {BROKEN: 1e4})
    first = begun()
    made(*first, BROKEN + 2, {BROKEN: 1e4})
    state = copy.deepcopy((first[0].state_dict(), first[1].state_dict()))
    model, method = begun()
    model.load_state_dict(state[0])
    method.load_state_dict(state[1])
    made(model, method, 28, {})
    assert torch.equal(model.weight, whole[0].weight)
    assert method.clip.spikes == whole[1].clip.spikes == 1


def test_a_checkpoint_from_before_goes_on_without():
    model, method = begun(lr=1e-4, clip=2.0)
    made(model, method, BROKEN, {})
    state = method.state_dict()
    assert state["zopeft"]["clip"].pop("spikes") == 0
    method.load_state_dict(state)
    made(model, method, 1, {BROKEN: 1e6})
    assert method.clip.spikes == 0 and "spikes" not in method.state_dict()["zopeft"]["clip"]
    assert method.clip._square > 1e6


def test_without_clipping_a_spike_slows_the_rate_as_before():
    usual = made(*begun(clip=0.0), BROKEN + 2, {})
    found = made(*begun(clip=0.0), BROKEN + 2, {BROKEN: 1e4})
    assert found[BROKEN] < 1e-2 * usual[BROKEN]


def test_a_journal_keeps_whether_spikes_are_told(zopeft_command, tiny_model, tiny_data, tmp_path):
    """And the summary has their number."""
    words = (tiny_model, "--task", "sst2", "--data", tiny_data, "--lora", "--batch-size", 2)
    words = (*words, "--lr", "1e-4", "method.clip=2", "--out", tmp_path / "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clipping, "SPIKE", 1e-6)
        summary = zopeft_command.json("tune", *words, "--steps", KNOWN + 3)
    assert summary["spikes"] == 3
    assert Journal.open(tmp_path / "out" / "journal.bin").header.settings["taming"] is True
