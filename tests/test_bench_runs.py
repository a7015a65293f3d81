"""Runs of a bench: budgets, pairing, rows, resuming, workers and the command."""

import hashlib
import json
import math
import multiprocessing
import queue
from dataclasses import replace

import pytest
import torch

from zopeft.errors import InputError
from zopeft.jobs.bench import contest, pool
from zopeft.jobs.bench.bench import bench
from zopeft.jobs.bench.body import Bodies, batches
from zopeft.jobs.bench.cells import Request, cells_of
from zopeft.jobs.bench.contest import Contender
from zopeft.jobs.bench.entry import Entry, parse_entry
from zopeft.jobs.bench.making import make_method
from zopeft.jobs.bench.run import Outcome, propose, run
from zopeft.report.rows import read_rows

BUDGET = ("bench.forwards=20", "bench.grid=1", "bench.seeds=2", "training.batch_size=4")
LIMITS = ("task.eval_examples=8", "task.max_length=64", "bench.count_calibration=false")


@pytest.fixture
def request_of(tiny_model, tiny_data):
    """Makes the request of a bench of the tiny model on the tiny data."""

    def make(*overrides, **flags):
        given = {
            "bench.models": ("MODEL", [str(tiny_model)]),
            "bench.tasks": ("--task", "sst2"),
            "task.data": ("--data", str(tiny_data)),
            **{key.replace("__", "."): (key, value) for key, value in flags.items()},
        }
        return Request(None, (*BUDGET, *LIMITS, *overrides), given)

    return make


@pytest.fixture
def cell(request_of):
    return cells_of(request_of())[1][0]


@pytest.fixture(scope="module")
def finetuner(tiny_model, tmp_path_factory):
    """A folder with an untrained fine-tuner of the tiny model."""
    from zopeft.blocks import discover
    from zopeft.finetuner import FineTuner
    from zopeft.models import load_model

    model, _ = load_model(str(tiny_model))
    folder = tmp_path_factory.mktemp("bench") / "finetuner"
    return FineTuner.initial(discover(model, "full"), seed=3).save_pretrained(folder)


def test_rows_of_a_bench_and_resuming(request_of, tmp_path, monkeypatch):
    request = request_of(bench__entries=["mezo clip=1"])
    summary = bench(request, str(tmp_path / "out"))
    rows = read_rows(tmp_path / "out")
    roles = [(r["entry"], r["role"], r["seed"]) for r in rows]
    for entry in ("mezo", "mezo clip=1"):
        assert [r[1:] for r in roles if r[0] == entry] == [
            *(("centre", 0), ("grid", 0), ("fresh", 1), ("fresh", 2), ("auto", 1), ("auto", 2))
        ]
    for one in rows:
        assert one["forwards"] <= 20 + one["calibration"]
        if one["role"] != "centre":
            # A run at lr=auto spends one pass in twenty on a look at the curvature.
            steps = (10,) if one["role"] != "auto" else (9,)
            assert one["steps"] == len(one["curve"]) and one["steps"] in steps
            assert one["curve"][-1][0] in (18, 19, 20)
            assert one["val_loss"] > 0
            assert (one["metric"] is None) == (one["role"] == "grid")
            assert one["calibration"] == 0
    assert summary["runs"] == 10
    assert summary["cells"][0]["standings"][1]["pairs"] == 2
    written = (tmp_path / "out" / "rows.jsonl").read_text()

    def none(*_):
        raise AssertionError("a run was made again")

    monkeypatch.setattr(contest, "run", none)
    monkeypatch.setattr(contest, "propose", none)
    bench(request, str(tmp_path / "out"), resume=True)
    assert (tmp_path / "out" / "rows.jsonl").read_text() == written
    with pytest.raises(InputError, match="other settings"):
        bench(request_of("training.batch_size=8"), str(tmp_path / "out"), resume=True)


def test_a_bench_that_broke_off_goes_on(request_of, tmp_path):
    out = tmp_path / "out"
    bench(request_of("bench.auto=false", "bench.seeds=1"), str(out))
    first = read_rows(out)
    bench(request_of("bench.auto=false", bench__entries=["mezo clip=1"]), str(out), resume=True)
    rows = read_rows(out)
    assert rows[: len(first)] == first
    assert len(rows) == len(first) + 1 + 4


def test_controls_run(request_of, finetuner, tmp_path):
    request = request_of("bench.auto=false", "bench.seeds=1", bench__finetuners=[str(finetuner)])
    bench(request, str(tmp_path / "out"))
    fresh = [r for r in read_rows(tmp_path / "out") if r["role"] == "fresh"]
    assert [(r["method"], r["control"]) for r in fresh] == [
        *(("mezo", "scale 1"), ("zo_finetuner", "")),
        *(("zo_finetuner", "shuffled"), ("zo_finetuner", "untrained")),
    ]
    assert len({tuple(map(tuple, r["curve"])) for r in fresh}) == 4


def test_no_rates_to_try_leaves_runs_at_auto_of_controls_too(request_of, finetuner, tmp_path):
    with pytest.raises(InputError, match=r"bench.auto: of no learning rates to try, .* got False"):
        cells_of(request_of("bench.grid=0", "bench.auto=false"))
    request = request_of("bench.grid=0", bench__finetuners=[str(finetuner)])
    told = []
    summary = bench(request, str(tmp_path / "out"), listener=lambda one: told.append(one.note))
    rows = read_rows(tmp_path / "out")
    controls = ("scale 1", "", "shuffled", "untrained")
    assert [(r["control"], r["role"], r["seed"]) for r in rows] == [
        (control, "auto", seed) for control in controls for seed in (1, 2)
    ]
    assert all(row["metric"] is not None for row in rows)
    assert (summary["runs"], summary["pictures"]) == (8, ["curves.png"])
    assert "each: lr auto on 2 seeds" in told
    assert "passes: about 160 planned: 8 runs of 20" in told
    mezo, learned = summary["cells"][0]["standings"][:2]
    assert (mezo["pairs"], learned["pairs"], learned["lr"]) == (2, 2, None)
    # Rates that are given are tried, whatever the grid.
    recipe = cells_of(request_of("bench.grid=0", "bench.lrs=[1e-3]", "bench.auto=false"))[0]
    assert recipe.bench.searches


def test_what_is_left_is_counted_by_what_is_asked_for_now(request_of, tmp_path):
    out, told = tmp_path / "out", []

    def run(*overrides, **flags):
        made = len(read_rows(out)) if out.exists() else 0
        told.clear()
        request = request_of("bench.forwards=12", *overrides, **flags)
        bench(request, str(out), resume=made > 0, listener=lambda one: told.append(one.note or ""))
        (plan,) = (line for line in told if line.startswith("passes: "))
        return plan.partition("planned: ")[2], len(read_rows(out)) - made

    assert run("bench.grid=0") == ("2 runs of 12", 2)
    # With a grid of one rate and the best on both seeds; those at lr=auto are there.
    plan, made = run("bench.grid=1")
    assert (plan, made) == ("3 runs of 12, and 1 rate to begin a grid with", 4)
    assert run("bench.grid=0", "bench.seeds=3") == ("1 run of 12", 1)
    assert run("bench.grid=0", "bench.seeds=3") == ("0 runs of 12", 0)
    # Another seed has a grid of its own.
    seed = ("training.seed=7", "bench.grid=1", "bench.seeds=1", "bench.auto=false")
    assert run(*seed) == ("2 runs of 12, and 1 rate to begin a grid with", 3)


def test_random_directions_need_a_subspace_which_is_seen_before_the_first_run(
    request_of, finetuner, tmp_path
):
    request = request_of(bench__entries=[f"finetuner {finetuner} random"])
    with pytest.raises(InputError, match="holds no subspace"):
        bench(request, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "passes"),
    [("mezo directions=3", 6), ("mezo directions=4 sides=one normalise=true", 5)],
)
def test_entries_with_several_directions_pay_for_all_of_their_forwards(cell, line, passes):
    entry = parse_entry(line)
    assert parse_entry(entry.line) == entry
    found = run(entry, Bodies().get(cell, 1), 1e-4, cell.recipe, 1)
    assert (found.steps, found.forwards) == (20 // passes, 20 // passes * passes)
    with pytest.raises(InputError, match="sides: must be 'two' or 'one', got 'three'"):
        run(parse_entry("mezo sides=three"), Bodies().get(cell, 1), 1e-4, cell.recipe, 1)


def test_directions_of_the_recipe_are_those_of_all_entries_and_of_other_rows(request_of):
    plain = cells_of(request_of())[1][0]
    several = cells_of(request_of("method.directions=3"))[1][0]
    assert plain.digest == _digest_of_before(plain) != several.digest
    body = Bodies().get(several, 1)
    for line, count in (("mezo", 3), ("mezo directions=2", 2)):
        method = make_method(parse_entry(line), body, 1e-4, several.recipe, 1)
        assert method.estimator.directions == count


def _digest_of_before(cell):
    """What a cell's digest was when there was one way to probe."""
    plain = cell.recipe.to_dict()
    for name in ("directions", "sides", "normalise"):
        del plain["method"][name]
    told = {section: plain[section] for section in ("model", "peft", "task", "method")}
    told["batch_size"] = plain["training"]["batch_size"]
    told["budget"] = [plain["bench"][key] for key in ("forwards", "count_calibration")]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]


def test_the_start_is_put_back(cell):
    bodies, results = Bodies(), []
    for _ in range(2):
        body = bodies.get(cell, 1)
        start = [block.parameter.detach().clone() for block in body.blocks]
        results.append((start, run(Entry(), body, 1e-2, cell.recipe, 1).losses))
    (one, losses), (other, again) = results
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert losses == again
    changed = [not torch.equal(a, b.parameter) for a, b in zip(one, body.blocks, strict=True)]
    assert any(changed)


def test_an_adapter_starts_from_its_seed(request_of):
    (cell,) = cells_of(request_of(bench__spaces="lora"))[1]
    bodies = Bodies()
    starts = {}
    for seed in (1, 2, 1):
        body = bodies.get(cell, seed)
        start = torch.cat([block.parameter.detach().flatten() for block in body.blocks])
        assert torch.equal(starts.setdefault(seed, start), start)
        run(Entry(), body, 1e-2, cell.recipe, seed)
    assert not torch.equal(starts[1], starts[2])


def test_all_entries_see_the_same_batches(cell):
    body = Bodies().get(cell, 1)
    feeds = [batches(body, 4, 1), batches(body, 4, 1), batches(body, 4, 2)]
    one, other, third = ([next(feed)["input_ids"].tolist() for _ in range(6)] for feed in feeds)
    assert one == other
    assert one != third
    epoch = [tuple(row) for batch in one[:4] for row in batch]
    assert len(epoch) == 16


def test_the_budget_counts_what_a_method_costs(cell):
    body = Bodies().get(cell, 0)
    out = run(parse_entry("fo_sgd"), body, 1e-3, cell.recipe, 0)
    assert (out.steps, out.forwards, out.spent[:2]) == (6, 18, [3, 6])
    bench = replace(cell.recipe.bench, count_calibration=True, forwards=200)
    recipe = replace(cell.recipe, bench=bench)
    out = run(Entry(), Bodies().get(cell, 0), "auto", recipe, 0)
    assert 198 <= out.forwards <= 200 and out.calibration == 0
    # One pass in twenty looks at the curvature, the first step's among them.
    assert out.forwards - 2 * out.steps == pytest.approx(0.05 * 200, abs=1)
    assert out.spent[0] == 3


def test_a_run_that_ends_far_above_its_start_has_diverged():
    def outcome(*losses):
        return Outcome(1e-3, "given", losses=list(losses))

    assert outcome(0.2, 3.0, 7.3, 7.3).risen and outcome(2.0, math.nan).risen
    assert outcome(0.2, *[7.3] * 400).risen
    assert not outcome(0.2, 7.0, 1.1).risen and not outcome(2.0, 1.0).risen


def test_rows_by_token_frequency(cell):
    body = Bodies().get(cell, 0)
    method = make_method(parse_entry("mezo rows=frequency"), body, 1e-3, cell.recipe, 0)
    assert [type(shape).__name__ for shape in method.engine.shapes.values()] == ["Rows"]
    assert not make_method(Entry(), body, 1e-3, cell.recipe, 0).engine.shapes


def test_a_look_ahead_is_the_centre_of_the_grid(cell):
    proposed = propose(Entry(), Bodies().get(cell, 0), cell.recipe, 0)
    assert proposed.lr > 0 and proposed.calibration == 11
    out = run(Entry(), Bodies().get(cell, 0), "auto", cell.recipe, 0)
    assert out.lr == pytest.approx(proposed.lr, rel=0.9)
    assert propose(parse_entry("fo_adam"), Bodies().get(cell, 0), cell.recipe, 0).lr == 1e-3


def test_a_run_that_diverges_is_recorded(request_of, tmp_path):
    overrides = ("bench.lrs=[1e45]", "bench.auto=false", "bench.seeds=1", "method.max_bad_steps=2")
    summary = bench(request_of(*overrides), str(tmp_path / "out"))
    rows = [r for r in read_rows(tmp_path / "out") if r["role"] != "centre"]
    assert len(rows) == 2
    assert all(r["diverged"] and r["train_loss"] is None for r in rows)
    assert summary["cells"][0]["standings"][0]["diverged"] == 1
    assert "inf (1/1 diverged)" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_make_the_same_rows(request_of, tmp_path, monkeypatch, start):
    # Workers are spawned; forked ones need not import everything again.
    context = multiprocessing.get_context(start)
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: context)
    words = ("bench.auto=false", "bench.seeds=1")
    request = request_of(*words, bench__entries=["mezo clip=1"])
    bench(request, str(tmp_path / "one"))
    more = replace(request, overrides=(*request.overrides, "bench.workers=2"))
    bench(more, str(tmp_path / "two"))
    found = [
        {r["key"]: (r["lr"], r["train_loss"], r["val_loss"]) for r in read_rows(tmp_path / name)}
        for name in ("one", "two")
    ]
    assert len(found[0]) == 6
    assert found[0] == found[1]


def test_a_worker_tells_what_is_wrong(cell):
    told = []
    for entry in (parse_entry("mezo eps=-1"), Entry("nonsense")):
        todo, heard = queue.Queue(), queue.Queue()
        todo.put(Contender(cell, entry))
        pool._work(todo, heard, {})
        lines = [heard.get() for _ in range(heard.qsize())]
        assert [kind for kind, _ in lines[:-1]] == ["note"] * 3, "the cell's model and rows"
        told.append(lines[-1])
    assert told[0][0] == "input"
    assert "eps: out of range" in told[0][1]
    assert told[1][0] in ("input", "error")


def test_models_tasks_and_spaces_are_crossed(tmp_path):
    for name in ("sst2", "copa"):
        (tmp_path / name).mkdir()
    words = ("bench.models=[embedded, llama-3.2-1b]", "bench.tasks=[sst2, copa]")
    request = Request(None, (*words, "bench.spaces=[full, lora]", f"task.data={tmp_path}"))
    _, cells = cells_of(request)
    assert len({(c.model, c.task, c.space) for c in cells}) == len(cells) == 8
    assert len({c.digest for c in cells}) == 8
    assert {c.recipe.task.data for c in cells} == {str(tmp_path / "sst2"), str(tmp_path / "copa")}
    assert {c.recipe.model.name for c in cells} == {None, "llama-3.2-1b"}


def test_the_command(zopeft_command, tiny_model, tiny_data, tmp_path):
    words = (tiny_model, "--task", "sst2", "--data", tiny_data, *BUDGET, *LIMITS)
    words = ("bench", *words, "--seeds", 1, "--out", tmp_path / "out", "bench.auto=false")
    summary = zopeft_command.json(*words)
    assert (summary["job"], summary["runs"]) == ("bench", 2)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (record["status"], record["entries"]) == ("done", ["mezo"])
    code, out, _ = zopeft_command("bench", "--report", tmp_path / "out")
    assert code == 0
    assert "sst2, full: 20 forward passes" in " ".join(out.split())
    assert "holds files" in zopeft_command.refused(*words)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--task", "squat"), "unknown task, got 'squat'; did you mean 'squad'"),
        ((), "--task: no task given"),
        (("--task", "sst2", "--method", "mezzo"), "unknown method, got 'mezzo'"),
        (("--task", "sst2", "--method", "zo_finetuner"), "needs a fine-tuner"),
        (("--task", "sst2", "--finetuner", "nowhere"), "nowhere"),
        (("--task", "sst2", "--space", "lorra"), "did you mean 'lora'"),
        (("--task", "sst2", "--forwards", "1"), "--forwards: must be at least 4"),
        (("--task", "sst2", "lama-3.2-1b"), "did you mean 'llama-3.2-1b'"),
        (("--task", "sst2", "embedded", "embedded"), "twice"),
        (("--task", "sst2", "--small"), "no small twin"),
        (("--report", "nowhere"), "no rows.jsonl"),
        (("--report", "nowhere", "--task", "sst2", "llama"), "no further words"),
        (("--task", "sst2", "--resume"), "needs the run's folder"),
        (("bench.lrs=[1, x]",), "must be a list of numbers"),
    ],
)
def test_bad_input(zopeft_command, tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    assert told in zopeft_command.refused("bench", *words)
    assert list(tmp_path.iterdir()) == []
