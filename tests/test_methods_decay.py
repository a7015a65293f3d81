"""Weight decay to where a run began: an option of every method that decays."""

from __future__ import annotations

import pytest
import torch
from field import FIELD, extras
from test_methods import equal, weights
from test_methods_contracts import SMALL, Quadratic

import zopeft
from zopeft.errors import InputError
from zopeft.journal.codec import decode, encode
from zopeft.methods import METHODS
from zopeft.optim.state import ANCHOR

DECAYING = [name for name in FIELD if METHODS[name].decays]
LR, DECAY = 0.01, 20.0


def make(name, model, **options):
    blocks = zopeft.discover(model)
    options = {"lr": LR, "eps": 1e-2, "seed": 1, **SMALL.get(name, {}), **options}
    options = {**extras(name, blocks), **options}
    return METHODS[name](blocks, **options)


def anchored(name, model, **options):
    return make(name, model, **{"weight_decay": DECAY, "decay_to": "start", **options})


def test_the_field_is_there():
    assert len(DECAYING) >= 34


@pytest.mark.parametrize("kind", ["start", "start_sign"])
@pytest.mark.parametrize("carrier", ["flat", "modules"])
@pytest.mark.parametrize("name", DECAYING)
def test_a_step_is_the_plain_one_and_a_draw_to_the_start(name, carrier, kind):
    model = Quadratic()
    start, method = weights(model), anchored(name, model, decay_to=kind, carrier=carrier)
    method.step(model.loss)
    before = weights(model)
    assert not equal(before, start)
    twin = Quadratic()
    twin.load_state_dict(model.state_dict())
    plain, state = make(name, twin, carrier=carrier), method.state_dict()
    state["zopeft"]["kept"].pop(ANCHOR)
    plain.load_state_dict(state)
    for group in plain.param_groups:
        group["weight_decay"] = 0.0
    method.step(model.loss)
    plain.step(twin.loss)
    for new, alone, old, first in zip(weights(model), weights(twin), before, start, strict=True):
        draw = (old - first).sign() if kind == "start_sign" else old - first
        expected = alone - (LR * DECAY * draw if new.ndim > 1 else 0.0)
        torch.testing.assert_close(new, expected, rtol=1e-5, atol=2e-6)
        assert new.ndim == 1 or not torch.allclose(new, alone, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("carrier", ["flat", "modules"])
def test_a_journal_and_a_state_go_on_bit_for_bit(carrier, dtype, tmp_path):
    model, twin = Quadratic().to(dtype), Quadratic().to(dtype)
    options = {"carrier": carrier, "weight_decay": 5.0}
    method, replayed = anchored("mezo", model, **options), anchored("mezo", twin, **options)
    start, record = weights(model), None
    for _ in range(3):
        method.step(model.loss)
        record = decode(encode(method.last_record, record), record)
        replayed.replay(record)
        assert equal(weights(model), weights(twin))
    assert not equal(weights(model), start)
    torch.save((method.state_dict(), model.state_dict()), tmp_path / "state")
    state, values = torch.load(tmp_path / "state", weights_only=True)
    other = Quadratic().to(dtype)
    other.load_state_dict(values)
    resumed = anchored("mezo", other, **options)
    resumed.load_state_dict(state)
    assert equal([resumed.kept[ANCHOR][n].to(dtype) for n in range(len(start))], start)
    for own, its in ((method, model), (resumed, other)):
        own.step(its.loss)
    assert equal(weights(model), weights(other))


def test_what_a_run_holds_is_counted():
    model = Quadratic().to(torch.bfloat16)
    method = anchored("mezo", model, carrier="modules")
    method.step(model.loss)
    held = sum(each.nbytes for each in method.kept[ANCHOR].made())
    counted = type(method).state_on(method.blocks, {"decay_to": "start"}).bytes()
    assert counted == held == 2 * method.blocks.numel
    assert type(method).state_on(method.blocks, {}).bytes() == 0


def test_a_learning_rate_of_zero_changes_no_bit():
    model = Quadratic().to(torch.bfloat16)
    method = anchored("mezo", model, carrier="modules")
    method.step(model.loss)
    before = weights(model)
    for group in method.param_groups:
        group["lr"] = 0.0
    method.step(model.loss)
    assert equal(weights(model), before)


def test_what_is_wrong_is_told_in_a_line():
    with pytest.raises(InputError, match="MeZO decay_to: needs a weight_decay above 0, got 'start"):
        make("mezo", Quadratic(), decay_to="start")
    with pytest.raises(InputError, match="MeZOSVRG weight_decay: must be 0"):
        anchored("mezo_svrg", Quadratic())
