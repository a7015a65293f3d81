"""What the golden runs have left holds on every machine: addresses, noise, journals, weights.

See `golden_runs` and ``golden/make.py``. A replay runs no forward pass, so nothing of it may
depend on the machine: the digests are exact.
"""

from __future__ import annotations

import importlib.util
import json
import math

import pytest
import torch
from golden_runs import (
    COUNT,
    EARLY,
    FOLDER,
    PLACES,
    RUNS,
    SPACES,
    STEPS,
    Run,
    batch,
    digest,
    kept,
    method_of,
    model_of,
    schedule_of,
)

import zopeft
from zopeft.journal import Journal, codec, frames, rebuild
from zopeft.journal.header import JournalHeader
from zopeft.kernels import choice
from zopeft.noise import FAMILIES, Noise, direction_seed, rounding_words, step_seed
from zopeft.noise.address import LEFT_STREAM, RIGHT_STREAM

GOLDEN = json.loads((FOLDER / "golden.json").read_text())


@pytest.fixture(params=["plain", "numba"])
def backend(request, monkeypatch):
    if request.param == "numba" and importlib.util.find_spec("numba") is None:
        pytest.skip("numba is not installed")
    monkeypatch.setattr(choice, "_numba_works", lambda: request.param == "numba")
    return request.param


def floats(bits):
    """fp32 numbers of eight hex digits each."""
    words = torch.tensor([int(word, 16) for word in bits], dtype=torch.int64)
    return words.to(torch.int32).view(torch.float32)


def same(found, bits):
    expected = floats(bits)
    return torch.equal(found.view(torch.int32), expected.view(torch.int32)) and len(expected) > 0


def test_all_of_it_is_there():
    assert len(RUNS) == 29 and set(GOLDEN["runs"]) == set(RUNS)
    assert {path.stem for path in FOLDER.glob("*.bin")} == set(RUNS)
    assert {run.space for run in RUNS.values()} == set(SPACES)
    assert {run.options.get("noise", "gaussian") for run in RUNS.values()} == {
        *("gaussian", "binomial", "rademacher", "low_rank")
    }
    assert {run.rounding for run in RUNS.values()} == {"nearest", "stochastic", "hashed"}
    for name, run in RUNS.items():
        assert Journal.open(FOLDER / f"{name}.bin").header.rounding == run.rounding
    assert {run.finetuner for run in RUNS.values()} == {"", "networks", "scales", "bend"}
    for space in SPACES:
        assert {run.dtype for run in RUNS.values() if run.space == space} == {"fp32", "bf16"}


@pytest.mark.parametrize(("space", "count"), [("full", 20), ("lora", 8), ("prefix", 4)])
def test_blocks_have_the_addresses_they_always_had(space, count):
    blocks = zopeft.discover(model_of(Run(space, "fp32")))
    assert {block.name: block.address for block in blocks} == GOLDEN["addresses"][space]
    assert len(blocks) == count


def test_steps_and_directions_have_the_seeds_they_always_had():
    assert len(GOLDEN["step_seeds"]) == 4 * 3
    for key, seed in GOLDEN["step_seeds"].items():
        run, step = map(int, key.split())
        assert step_seed(run, step) == seed
    found = [direction_seed(12345, number) for number in range(4)]
    assert found == GOLDEN["direction_seeds"]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_noise_is_what_it_always_was(family):
    assert sorted(GOLDEN["noise"]) == sorted(FAMILIES)
    noise = Noise(family)
    for place, bits in zip(PLACES, GOLDEN["noise"][family], strict=True):
        assert same(noise.at_elements(*place, COUNT), bits)
    for stream, bits in zip((LEFT_STREAM, RIGHT_STREAM), GOLDEN["streams"][family], strict=True):
        found = noise.at_counters(PLACES[1][0], torch.arange(1), 77, stream)
        assert same(found[:4], bits)


def test_words_of_rounding_are_what_they_always_were():
    for place, words in zip(PLACES, GOLDEN["rounding"], strict=True):
        assert rounding_words(*place, COUNT).tolist() == words


@pytest.mark.parametrize("name", RUNS)
def test_a_journal_rebuilds_the_weights_it_always_did(name, backend):
    run, golden = RUNS[name], GOLDEN["runs"][name]
    model = model_of(run)
    assert digest(dict(model.named_parameters())) == golden["start"]
    method = method_of(run, model)
    assert method.engine.kernels.name == backend
    digests = [digest(kept(method))]
    # The plain backend is slow: its first steps will do.
    ends = (EARLY, STEPS) if backend == "numba" else (EARLY,)
    for until in ends:
        assert rebuild(FOLDER / f"{name}.bin", method, until) == until
        digests.append(digest(kept(method)))
    assert digests == [golden["begin"], golden["early"], golden["end"]][: len(digests)]
    assert len(set(digests)) == len(digests) == 1 + len(ends)
    skipped = [step for step in run.bad if step < ends[-1]]
    assert (method.forward_passes, method.skipped) == (0, len(skipped))


def told(value):
    """A field of a golden record, as a record of today has it."""
    if isinstance(value, str):
        return float.fromhex(value)
    return tuple(map(told, value)) if isinstance(value, list) else value


@pytest.mark.parametrize("name", RUNS)
def test_a_journal_is_read_and_written_as_it_always_was(name, tmp_path):
    journal = Journal.open(FOLDER / f"{name}.bin")
    records = list(journal.records())
    assert [record.step for record in records] == list(range(STEPS))
    for step, expected in GOLDEN["runs"][name]["records"].items():
        found = vars(records[int(step)])
        # Later records may say more, but not of these.
        assert expected.keys() <= found.keys()
        assert not any(found[field] for field in found.keys() - expected.keys())
        for field, value in expected.items():
            if field in ("scales", "memory") and value is not None:
                assert same(torch.tensor(found[field]), value)
            elif field == "unread" and value is not None:
                assert found[field].tolist() == value
            else:
                assert repr(found[field]) == repr(told(value)), field
    header, *steps = [frame.payload for frame in frames.scan(journal.path)]
    before = None
    for payload, record in zip(steps, records, strict=True):
        assert codec.encode(record, before) == payload
        before = record
    # Later headers may say more, but nothing else.
    again = json.loads(JournalHeader.from_bytes(header, name).to_bytes())
    assert json.loads(header).items() <= again.items()
    whole = tmp_path / "j.bin"
    with Journal.create(whole, JournalHeader.from_bytes(header, name)) as written:
        for record in records:
            written.append(record)
    tail = len(b"".join(frames.pack(payload) for payload in steps))
    assert whole.read_bytes()[-tail:] == journal.path.read_bytes()[-tail:]


class Told:
    """A closure that gives a step's recorded losses, in the order that they were taken in."""

    def __init__(self, model, one_sided):
        self.model, self.one_sided, self.losses = model, one_sided, []

    def begin(self, record):
        assert not self.losses
        centre = [] if record.centre is None else [record.centre]
        mirror = [] if record.mirror is None else [record.mirror]
        self.losses = [*centre, *record.losses, *mirror]

    def __call__(self):
        if self.model is not None:
            # Forwards tell the engine once who reads the weights; what they give is not looked at.
            self.model(**batch(0))
        return torch.tensor(self.losses.pop(0), dtype=torch.float64)


@pytest.mark.parametrize("name", RUNS)
def test_the_same_losses_make_the_same_steps(name):
    """The estimator, clipping, the running rate and the networks, without a chaotic run."""
    run, golden = RUNS[name], GOLDEN["runs"][name]
    model = model_of(run)
    method, journal = method_of(run, model), Journal.open(FOLDER / f"{name}.bin")
    if method.auto:
        method.begin_rate(journal.header.rate, journal.header.learning_rate)
    schedule = schedule_of(run, method)
    closure = Told(model, method.estimator.one_sided)
    moved = 0
    for record in journal.records():
        closure.begin(record)
        method.step(closure)
        schedule.step()
        found, closure.model = method.last_record, None
        assert not closure.losses
        assert (found.step, found.seed, found.skipped) == (record.step, record.seed, record.skipped)
        assert found.projected_grads == pytest.approx(record.projected_grads, rel=1e-9, abs=1e-12)
        assert found.lr == pytest.approx(record.lr, rel=1e-9, abs=1e-15)
        assert found.decay == record.decay
        for mine, its in ((found.scales, record.scales), (found.memory, record.memory)):
            assert (mine is None) == (its is None)
            if mine is not None:
                # Sums and tangents in fp32, which round as the machine does.
                torch.testing.assert_close(
                    torch.tensor(mine), torch.tensor(its), rtol=1e-4, atol=1e-6
                )
        moved += any(map(bool, record.projected_grads))
    assert moved >= STEPS // 2
    if run.options["lr"] != "auto" and not run.options.get("clip") and not run.finetuner:
        assert digest(kept(method)) == golden["end"]
    else:
        assert digest(kept(method)) != golden["begin"]


def test_runs_look_skip_and_change_their_rate_as_their_names_say():
    records = {name: list(Journal.open(FOLDER / f"{name}.bin").records()) for name in RUNS}
    assert [r.step for r in records["full-fp32-auto"] if r.centre is not None] == [
        *range(0, STEPS, 5)
    ]
    assert [r.step for r in records["lora-fp32-auto-one"] if r.mirror is not None] == [
        *range(0, STEPS, 5)
    ]
    assert all(r.centre is not None for r in records["full-fp32-bend"])
    assert [r.step for r in records["full-fp32-falling"] if r.skipped] == [7, 8]
    assert math.isnan(records["full-fp32-falling"][7].losses[0])
    for name in ("full-fp32-falling", "full-fp32-auto", "full-fp32-auto-fzoo"):
        assert len({r.lr for r in records[name]}) > 3
    for name, run in RUNS.items():
        assert all((r.scales is not None) == bool(run.finetuner) for r in records[name])
        assert all(
            len(r.projected_grads) == run.options.get("directions", 1) for r in records[name]
        )
    assert len({r.scales.tobytes() for r in records["full-fp32-networks"]}) > 3
