"""A journal's header knows every option that a step depends on, whoever wrote the method."""

import json

import pytest
import torch
from test_methods import Quadratic, equal, weights

import zopeft
from zopeft.errors import InputError
from zopeft.journal import Journal, rebuild
from zopeft.journal.header import JournalHeader, header_of
from zopeft.methods.mezo import MeZO
from zopeft.optim.declared import settings_of
from zopeft.optim.options import options_of
from zopeft.optim.zeroth_order import ZerothOrder


class Sparse(MeZO):
    """A third party's method: some blocks stay where they are."""

    def __init__(self, blocks, keep=0.5, table=None, chosen=(), **options):
        super().__init__(blocks, **options)
        self.keep = keep

    def _scales(self):
        count = len(self.blocks)
        return (torch.arange(count) < self.keep * count).float()


class Sparser(Sparse):
    """A later version of it, with one more option."""

    def __init__(self, blocks, *args, floor=0.0, **options):
        super().__init__(blocks, *args, **options)


def made(kind=Sparse, *args, **options):
    return kind(zopeft.discover(Quadratic()), *args, **{"lr": 1e-2, "eps": 1e-3, **options})


def header(optimizer):
    return JournalHeader.from_bytes(header_of(optimizer).to_bytes(), "j.bin")


@pytest.mark.parametrize(
    ("mine", "other", "told"),
    [
        ({"keep": 0.5}, {"keep": 0.25}, "keep 0.25 instead of 0.5"),
        ({}, {"keep": 0.25}, "keep 0.25 instead of 0.5"),
        ({"table": torch.ones(2)}, {"table": torch.zeros(2)}, "table 'torch.float32"),
        ({"table": {"q": 1}}, {"table": {"q": 2}}, "table {'q': 2} instead of {'q': 1}"),
        ({"chosen": ("a",)}, {"chosen": ("a", "b")}, "chosen ['a', 'b'] instead of ['a']"),
        ({"weight_decay": 0.1}, {}, "weight_decay 0.0 instead of 0.1"),
        ({"eps": 1e-3}, {"eps": 1e-2}, "eps 0.01 instead of 0.001"),
        ({"clip": 2.0}, {}, "clip 0.0 instead of 2.0"),
        ({"directions": 2}, {}, "directions 1 instead of 2"),
        ({"seed": 2}, {}, "seed 0 instead of 2"),
    ],
)
def test_another_option_is_another_run(mine, other, told):
    before = header(made(**mine))
    before.check(header_of(made(**mine)), "j.bin")
    with pytest.raises(InputError, match="belongs to another run") as caught:
        before.check(header_of(made(**other)), "j.bin")
    assert told in str(caught.value) and str(caught.value).count(told.split()[0] + " ") == 1


@pytest.mark.parametrize(
    "options",
    [{"lr": 1e-5}, {"carrier": "modules"}, {"max_bad_steps": 3}, {"probes": "separate"}],
)
def test_what_changes_no_step_may_differ(options):
    header(made()).check(header_of(made(**options)), "j.bin")


def test_positional_options_and_defaults_are_told_alike():
    assert header(made(Sparse, 0.25)).options["keep"] == 0.25
    assert header(made(Sparse, keep=0.25)).options == header(made(Sparse, 0.25)).options
    assert header(made()).options["keep"] == 0.5
    told = header(made(Sparser, 0.25)).options
    assert told["*"] == [0.25] and told["floor"] == 0.0


def test_every_option_of_a_method_is_in_the_header_or_said_to_be_aside():
    """What a step depends on cannot be forgotten: an option is compared unless it is named here."""
    fields = set(json.loads(header_of(made(MeZO)).to_bytes())) - {"options"}
    options = set(header(made(MeZO)).options)
    known = set(options_of(ZerothOrder))
    assert known - fields - options == {"lr", "max_bad_steps", "carrier", "probes"}
    shared = {setting.name for setting in settings_of(MeZO.Options)}
    assert options == {"eps", "clip", "weight_decay", *shared} and "layers" in shared


def test_an_option_that_came_later_has_its_default_in_older_journals():
    before = header(made(Sparse, keep=0.25))
    old = JournalHeader(**{**vars(before), "method": "Sparser"})
    old.check(header_of(made(Sparser, keep=0.25)), "j.bin")
    with pytest.raises(InputError, match=r"floor 0\.5 instead of 0\.0"):
        old.check(header_of(made(Sparser, keep=0.25, floor=0.5)), "j.bin")


def test_a_header_of_before_there_were_options_is_read_and_compared_as_it_was():
    told = json.loads(header_of(made(keep=0.25)).to_bytes())
    assert "usual" not in told and told.pop("options")["keep"] == 0.25
    old = JournalHeader.from_bytes(json.dumps(told).encode(), "j.bin")
    assert old.options is None
    old.check(header_of(made(keep=0.5, weight_decay=0.1)), "j.bin")
    with pytest.raises(InputError, match="seed 1 instead of 0"):
        old.check(header_of(made(seed=1)), "j.bin")


def journal_of(path, **options):
    """A run of four steps in a journal; returns its weights."""
    model = Quadratic()
    method = Sparse(zopeft.discover(model), **{"lr": 1e-2, "eps": 1e-3, **options})
    start = weights(model)
    with Journal.create(path, header_of(method)) as journal:
        for _ in range(4):
            method.step(model.loss)
            journal.append(method.last_record)
    assert not equal(weights(model), start)
    return weights(model)


def test_a_run_is_rebuilt_with_its_own_options_and_no_others(tmp_path):
    after = journal_of(tmp_path / "j.bin", keep=0.25, weight_decay=0.1)
    model = Quadratic()
    options = {"lr": 0.0, "keep": 0.25, "weight_decay": 0.1}
    # The records hold rate, eps and clipped gradients.
    rebuild(tmp_path / "j.bin", Sparse(zopeft.discover(model), eps=1e-1, clip=3.0, **options))
    assert equal(weights(model), after)
    for other in ({"keep": 0.5}, {"weight_decay": 0.2}):
        model = Quadratic()
        start = weights(model)
        method = Sparse(zopeft.discover(model), **{**options, **other})
        with pytest.raises(InputError, match="belongs to another run"):
            rebuild(tmp_path / "j.bin", method)
        assert equal(weights(model), start)


def test_a_record_with_another_decay_is_refused_whatever_the_header_says():
    model = Quadratic()
    method = MeZO(zopeft.discover(model), lr=1e-2, eps=1e-3, weight_decay=0.1)
    method.step(model.loss)
    other = Quadratic()
    start = weights(other)
    with pytest.raises(InputError, match=r"weight decay 0\.1, not with, got 0\.2"):
        MeZO(zopeft.discover(other), lr=1e-2, eps=1e-3, weight_decay=0.2).replay(method.last_record)
    assert equal(weights(other), start)
