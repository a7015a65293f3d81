"""Base and journal give the weights, bit for bit."""

from __future__ import annotations

import pytest
import torch
from training_run import Counting, digest, tiny_model, with_lora

from zopeft.blocks import discover
from zopeft.errors import InputError
from zopeft.journal import (
    Journal,
    fingerprint,
    header_of,
    load_start,
    rebuild,
    save_start,
)
from zopeft.methods.mezo import MeZO

SPACES = {
    "lora": lambda seed=1: with_lora(tiny_model(), seed=seed),
    "full": lambda seed=0: tiny_model(seed=seed),
    "full-bf16": lambda seed=0: tiny_model(torch.bfloat16, seed=seed),
}
ROWS = Counting().rows


def optimizer(model, **options):
    return MeZO(discover(model), **{"lr": 1e-2, "seed": 5, "weight_decay": 0.1, **options})


def recorded(model, path, steps=6, bad=(), **options):
    """A plain loop with a journal; losses of the steps in `bad` are not finite."""
    opt = optimizer(model, **options)
    adapter = opt.blocks.space == "adapter"
    if adapter:
        save_start(opt.blocks, path.with_name("start.safetensors"))
    start = "start.safetensors" if adapter else None
    header = header_of(opt, start=start, fingerprint=fingerprint(opt.blocks))
    digests = [digest(model)]
    with Journal.create(path, header) as journal:
        for step in range(steps):
            rows = ROWS[step : step + 2]
            factor = float("nan") if step in bad else 1.0
            opt.step(lambda f=factor, r=rows: f * model(input_ids=r, labels=r).loss)
            journal.append(opt.last_record)
            digests.append(digest(model))
    assert len(set(digests)) == 1 + steps - len(bad)
    return digests


@pytest.mark.parametrize("space", SPACES)
def test_rebuilt_weights_are_the_same_bytes(tmp_path, space):
    digests = recorded(SPACES[space](), tmp_path / "j.bin")
    assert len(set(digests)) == 7
    for until in (None, 4, 0):
        # An adapter may start from any numbers: its start is beside the journal.
        model = SPACES[space](seed=3) if space == "lora" else SPACES[space]()
        opt = optimizer(model)
        steps = rebuild(tmp_path / "j.bin", opt, until)
        assert steps == opt.steps == (6 if until is None else until)
        assert digest(model) == digests[steps]
    assert rebuild(tmp_path / "j.bin", opt) == 6
    assert digest(model) == digests[6]


def test_skipped_steps_are_skipped_again(tmp_path):
    digests = recorded(SPACES["lora"](), tmp_path / "j.bin", bad=(2, 3))
    assert digests[2] == digests[3] == digests[4]
    model = SPACES["lora"](seed=2)
    opt = optimizer(model, max_bad_steps=2)
    rebuild(tmp_path / "j.bin", opt)
    assert digest(model) == digests[6]
    assert (opt.skipped, opt.bad.most) == (2, 2)


def test_a_rebuilt_run_goes_on_as_the_first(tmp_path):
    digests = recorded(SPACES["lora"](), tmp_path / "j.bin")
    model = SPACES["lora"](seed=2)
    opt = optimizer(model)
    rebuild(tmp_path / "j.bin", opt, until=4)
    for step in (4, 5):
        rows = ROWS[step : step + 2]
        opt.step(lambda r=rows: model(input_ids=r, labels=r).loss)
    assert digest(model) == digests[6]


def test_what_does_not_belong_together_is_refused(tmp_path):
    path = tmp_path / "j.bin"
    recorded(SPACES["full"](), path)
    for model, options, message in (
        (SPACES["full"](seed=9), {}, "starts from other weights"),
        (SPACES["full"](), {"seed": 6}, "seed 6 instead of 5"),
        (SPACES["full"](), {"noise": "rademacher"}, "noise 'rademacher'"),
        (SPACES["lora"](), {}, "space 'adapter' instead of 'full'"),
    ):
        before = digest(model)
        with pytest.raises(InputError, match=message) as caught:
            rebuild(path, optimizer(model, **options))
        assert "\n" not in str(caught.value)
        assert digest(model) == before
    with pytest.raises(InputError, match="holds steps 0 to 5, not 0 to 6"):
        rebuild(path, optimizer(SPACES["full"]()), until=7)


def test_start_weights_are_checked(tmp_path):
    model = SPACES["lora"]()
    blocks, path = discover(model), tmp_path / "start.safetensors"
    with pytest.raises(InputError, match="start weights are missing"):
        load_start(blocks, path)
    save_start(blocks, path)
    with pytest.raises(InputError, match="those of other blocks"):
        load_start(discover(SPACES["full"]()), path)
    other = SPACES["lora"](seed=7)
    load_start(discover(other), path)
    assert digest(other) == digest(model)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match="start weights are damaged"):
        load_start(blocks, path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_fingerprint_tells_weights_apart(dtype):
    model = tiny_model(dtype)
    blocks = discover(model)
    first = fingerprint(blocks)
    assert first == fingerprint(discover(tiny_model(dtype)))
    weight = blocks[3].parameter
    with torch.no_grad():
        flat = weight.view(-1)
        flat[[0, 1]] = flat[[1, 0]]
    assert fingerprint(blocks) != first
    with torch.no_grad():
        flat[[0, 1]] = flat[[1, 0]]
    assert fingerprint(blocks) == first
