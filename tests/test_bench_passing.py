"""What a bench passes on: the whole method section, as a tuning run does, and each control."""

import dataclasses
import json

import pytest
import torch
from test_bench_runs import cell, finetuner, request_of  # noqa: F401 - fixtures
from test_finetuner_controls import CONTROLS

from zopeft.errors import InputError
from zopeft.finetuner import STATE_FEATURES, FineTuner
from zopeft.finetuner.digest import digest_of
from zopeft.jobs.bench.bench import bench
from zopeft.jobs.bench.body import Bodies
from zopeft.jobs.bench.cells import cells_of
from zopeft.jobs.bench.entry import parse_entry
from zopeft.jobs.bench.making import finetuner_of, make_method
from zopeft.methods import METHODS
from zopeft.optim.options import options_from, options_of
from zopeft.probing.probing import PROBES
from zopeft.recipe.schema import MethodSection, Recipe
from zopeft.report.rows import read_rows

SETTINGS = {
    "eps": 0.02,
    "noise": "low_rank",
    "rank": 7,
    "rows": "frequency",
    "weight_decay": 0.125,
    "clip": 3.5,
    "max_bad_steps": 4,
    "probes": "separate",
    "directions": 3,
    "sides": "one",
    "normalise": True,
}
"""Another value than the default for every setting of the method but its name, rate and file."""
READ = {
    "eps": lambda one: one.eps,
    "noise": lambda one: one.drawn_from.noise,
    "rank": lambda one: one.drawn_from.rank,
    "rows": lambda one: "frequency" if one.drawn_from.shape_print else "none",
    "weight_decay": lambda one: one.weight_decay,
    "clip": lambda one: one.clip.factor,
    "max_bad_steps": lambda one: one.bad.most,
    "probes": lambda one: one.probing.probes,
    "directions": lambda one: one.estimator.directions,
    "sides": lambda one: one.estimator.sides,
    "normalise": lambda one: one.estimator.normalise,
}
"""Where a method has what it was given."""


def test_the_list_here_is_whole():
    otherwise = {"name", "finetuner", "lr", "options"}
    names = {one.name for one in dataclasses.fields(MethodSection)} - otherwise
    assert set(SETTINGS) == set(READ) == names
    usual = MethodSection()
    assert all(getattr(usual, name) != value for name, value in SETTINGS.items())


def overrides():
    return [f"method.{name}={json.dumps(value)}" for name, value in SETTINGS.items()]


def test_every_setting_of_the_method_reaches_every_entry(request_of):  # noqa: F811
    plain, told = (cells_of(request_of(*given))[1][0] for given in ([], overrides()))
    assert plain.digest != told.digest
    body = Bodies().get(told, 1)
    method = make_method(parse_entry("mezo"), body, 1e-3, told.recipe, 1)
    assert {name: read(method) for name, read in READ.items()} == SETTINGS
    assert method.seed == 1
    # A method's own options, too, and none of them reaches another method.
    hizoo = make_method(parse_entry("hizoo smooth=0.5"), body, 1e-3, plain.recipe, 1)
    assert (hizoo.own.smooth, hizoo.options["smooth"], hizoo.own.per) == (0.5, 0.5, "element")
    # An entry's own options go over them.
    own = make_method(parse_entry("mezo rank=2 probes=auto"), body, 1e-3, told.recipe, 1)
    assert (own.drawn_from.rank, own.probing.probes, own.eps) == (2, "auto", SETTINGS["eps"])
    first = make_method(parse_entry("fo_adam"), body, 1e-3, told.recipe, 1)
    assert first.param_groups[0]["weight_decay"] == 0.125 and first.param_groups[0]["eps"] == 1e-8


def test_every_setting_of_the_method_reaches_a_tuning_run(request_of, tmp_path):  # noqa: F811
    from zopeft.jobs.loop import _arguments
    from zopeft.training import ZOTrainer

    told = cells_of(request_of(*overrides()))[1][0]
    body = Bodies().get(told, 1)
    prepared = dataclasses.make_dataclass("Prepared", ["blocks", "method"])(body.blocks, "mezo")
    args = _arguments(told.recipe, tmp_path, prepared)
    args.layout = "padded"  # Nothing here collates a batch to be tried out.
    trainer = ZOTrainer(body.blocks.model, args, train_dataset=body.train, blocks=body.blocks)
    trainer.args.learning_rate = 1e-3
    method = trainer.create_optimizer()
    assert {name: read(method) for name, read in READ.items()} == SETTINGS


def test_options_are_taken_by_name_whoever_wrote_the_method():
    class Own(METHODS["mezo"]):
        def __init__(self, blocks, keep=0.5, rank=2, **options):
            super().__init__(blocks, rank=rank, **options)

    assert options_of(Own)["keep"] == 0.5 and options_of(Own)["rank"] == 2
    section = dataclasses.make_dataclass(
        "Own", [("keep", float, 0.25)], bases=(MethodSection,), frozen=True
    )()
    assert options_from(Own, section)["keep"] == 0.25
    assert set(options_from(METHODS["fo_adam"], section)) == {"weight_decay"}
    assert "lr" not in options_from(Own, section) and "name" not in options_from(Own, section)
    assert PROBES[0] == Recipe().method.probes


def test_rows_that_were_made_without_a_setting_are_not_those_made_with_it(request_of):  # noqa: F811
    """Their digest held rank and probes all along, which no run was told of."""
    usual = cells_of(request_of())[1][0]
    assert usual.digest == cells_of(request_of("method.rank=4", "method.probes=auto"))[1][0].digest
    for override in ("method.rank=8", "method.probes=separate", "method.rows=none"):
        now = cells_of(request_of(override))[1][0]
        assert now.digest not in (usual.digest, digest_of_before(now))


def digest_of_before(one):
    import hashlib

    plain = one.recipe.to_dict()
    for name in ("directions", "sides", "normalise"):
        del plain["method"][name]
    told = {section: plain[section] for section in ("model", "peft", "task", "method")}
    told["batch_size"] = plain["training"]["batch_size"]
    told["budget"] = [plain["bench"][key] for key in ("forwards", "count_calibration")]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]


def test_rows_none_is_honoured_whatever_the_fine_tuner_was_learned_with(
    cell,  # noqa: F811
    request_of,  # noqa: F811
    tmp_path,
):
    body = Bodies().get(cell, 1)
    folder = FineTuner.initial(body.blocks, rows="frequency").save_pretrained(tmp_path / "f")
    entry = parse_entry(f"finetuner {folder}")
    assert make_method(entry, body, 1e-3, cell.recipe, 1).engine.shapes
    none = cells_of(request_of("method.rows=none"))[1][0]
    assert not make_method(entry, body, 1e-3, none.recipe, 1).engine.shapes


@pytest.mark.parametrize("control", ["", *CONTROLS])
def test_controls_of_state_dependent_scales_make_finite_steps(cell, control, tmp_path):  # noqa: F811
    body = Bodies().get(cell, 1)
    capacity = {"capacity": "subspace", "rank": 2} if control == "random" else {}
    made = FineTuner.initial(body.blocks, output="bounded", features=STATE_FEATURES, **capacity)
    if capacity:
        match = made.match(body.blocks)
        shape = body.blocks[1].shape
        made.set_bases(match, {1: tuple(torch.eye(size, 2) for size in shape)})
    folder = made.save_pretrained(tmp_path / "f")
    entry = parse_entry(f"finetuner {folder} {control}")
    found = finetuner_of(entry)
    assert found.config.output == "bounded" and found.config.features == STATE_FEATURES
    method = make_method(entry, body, 1e-3, cell.recipe, 1)
    scales = method._scales()
    assert bool(scales.isfinite().all()) and float(scales.square().mean()) > 0.1


def test_another_fine_tuner_in_the_same_folder_is_another_entry(
    request_of,  # noqa: F811
    finetuner,  # noqa: F811
    tmp_path,
):
    made = FineTuner.from_pretrained(finetuner)
    folder = made.save_pretrained(tmp_path / "f")
    budget = ("bench.auto=false", "bench.seeds=1", "bench.forwards=4", "bench.metric=false")
    request = request_of(*budget, bench__finetuners=[str(folder)])
    bench(request, str(tmp_path / "out"))
    rows = read_rows(tmp_path / "out")
    told = {row["content"] for row in rows if row["finetuner"]}
    assert told == {digest_of(made)} and {r["content"] for r in rows if not r["finetuner"]} == {""}
    bench(request, str(tmp_path / "out"), resume=True)
    made.config.normalise = False
    made.save_pretrained(folder, overwrite=True)
    with pytest.raises(InputError, match="are of another fine-tuner than stands now in"):
        bench(request, str(tmp_path / "out"), resume=True)
    assert read_rows(tmp_path / "out") == rows
