"""Several processes make one run: what they share out, what they send, and what goes wrong."""

from __future__ import annotations

import json
import os
import threading

import pytest
import torch
from rank_cases import played, played_once
from training_run import Counting, tiny_model, trainer

import zopeft
from zopeft.cli.main import main
from zopeft.engine import Direction
from zopeft.engine.vector import HERE
from zopeft.errors import InputError, RunError
from zopeft.methods.mezo import MeZO
from zopeft.optim.looks import Aside, Tangent, Watched, is_point
from zopeft.probing.groups import Group
from zopeft.ranks import Ranks, losing
from zopeft.training.grid import Grid, dealt, grid_of
from zopeft.training.likeness import check_likeness
from zopeft.training.parallel import Parallel, check_weights
from zopeft.training.settling import share_out

AUTO = {"learning_rate": "auto"}
PROBES = {"parallel": "probes", "directions": 2}
SHARED = [
    {"name": "pairs", **PROBES, **AUTO},
    {"name": "examples", **PROBES, **AUTO, "method_options": {"share": "examples"}},
    {"name": "one-sided", "parallel": "probes", "sides": "one", "directions": 3},
    {"name": "activations", "parallel": "probes", "method": "agzo", "full": True, "max_steps": 4},
    {"name": "groups", "parallel": "probes", "method": "grzo", "full": True, "max_steps": 4,
     "method_options": {"groups": 2}},
    {"name": "both", **PROBES, "parallel": "both"},
    {"name": "saved", **PROBES, "save_strategy": "steps", "save_steps": 4},
]  # fmt: skip
ROWS = [
    {"name": "rows", "per_device_train_batch_size": 2, "save_strategy": "steps", "save_steps": 5},
    {"name": "rows-activations", "method": "agzo", "full": True, "max_steps": 4},
]
WRONG = [
    {"name": wrong, **PROBES, "wrong": wrong, "fingerprint_steps": 2}
    for wrong in ("data", "model", "dtype", "start", "drift")
]
LOST = {"save_strategy": "steps", "save_steps": 3}
TUNE = (
    *("tune", "embedded", "--data", "rows.jsonl", "--steps", "4", "--batch-size", "2"),
    *("--lr", "1e-4", "--parallel", "probes", "method.directions=2"),
)


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What the processes of all groups said; played once, however many workers ask."""
    return played_once(tmp_path_factory, "ranks", all_said)


def all_said(folder):
    rows = [{"text": f"The {w} was {m}.", "label": m} for w in "abcdefgh" for m in ("good", "bad")]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    one = [{**case, "name": f"one-{case['name']}"} for case in SHARED]
    few = {"name": "few", "parallel": "probes", "max_steps": 2}
    killed = {"name": "killed", **PROBES, **LOST}
    groups = [
        {"name": "two", "count": 2, "runs": [
            *SHARED, *ROWS, *WRONG, {"name": "traffic", **PROBES, "wrong": "traffic"},
            {"name": "hung", **PROBES, "wrong": "hang", "ddp_timeout": 6}]},
        {"name": "three", "count": 3, "runs": [
            {**SHARED[0], "name": "three-pairs"}, few,
            {"name": "three-both", "parallel": "both", "max_steps": 2},
            {**killed, "wrong": "kill"}]},
        {"name": "one", "count": 1, "runs": [
            *one, {**killed, "resume": True}, {**ROWS[0], "resume": True, "max_steps": 14}]},
        {"name": "cli-one", "count": 1, "words": [*TUNE, "--out", "cli-one", "--json"]},
        {"name": "cli", "count": 2, "words": [*TUNE, "--out", "cli", "--json", "--resume-auto"]},
        {"name": "cli-refused", "count": 2, "words": [*TUNE, "--out", "cli"]},
        {"name": "cli-unseen", "count": 2, "apart": True, "words": [
            *TUNE[:3], str(folder / "rows.jsonl"), *TUNE[4:], "--out", "here"]},
    ]  # fmt: skip
    return played(folder, groups)


def probes(*steps):
    return [Direction(7).at(step) if step else HERE for step in steps]


@pytest.mark.parametrize(
    ("asked", "columns", "shares"),
    [
        (probes(1.0, -1.0, 1.0), 2, [[0, 2], [1]]),
        ([Aside(HERE), *probes(1.0, -1.0)], 2, [[0, 2], [1]]),
        (probes(1.0), 3, [[0], [], []]),
        ([Watched(object()), *probes(1.0, -1.0)], 2, [[0, 1], [0, 2]]),
        ([HERE, Tangent(Direction(7))], 2, [[0, 1], [0, 1]]),
        ([Group(Direction(7), s, n, 2) for s in (1.0, -1.0) for n in (0, 1)], 2, [[0, 1], [2, 3]]),
    ],
)
def test_probes_are_dealt_out_in_turn_and_what_belongs_together_is_kept(asked, columns, shares):
    assert dealt(asked, columns) == shares


@pytest.mark.parametrize(
    ("given", "rows", "columns", "said"),
    [
        (("rows", 4, 2), 4, 1, ""),
        (("probes", 4, 8), 1, 4, ""),
        (("probes", 4, 2), 4, 1, "4 ranks for the 2 probes"),
        (("probes", 4, 2, 1), 1, 4, "2 have nothing to do"),
        (("probes", 2, 2, 4), 2, 1, "come from 2 ranks from now on, not from 4"),
        (("both", 8, 2), 4, 2, ""),
        (("both", 8, 16), 1, 8, ""),
        (("both", 3, 2), 3, 1, ""),
        (("rows", 2, 2, 3), 2, 1, "come from 2 ranks from now on, not from 3"),
    ],
)
def test_the_grid_of_ranks(given, rows, columns, said):
    found = grid_of(*given)
    assert (found.rows, found.columns) == (rows, columns)
    assert said in found.line and bool(said) == bool(found.line)
    assert found.told.startswith(f"ranks: {rows * columns}, ") and found.told.endswith(found.line)


@pytest.mark.parametrize(("rank", "heard"), [("0", True), ("1", False)])
def test_other_commands_are_done_by_the_first_one_alone(monkeypatch, capsys, rank, heard):
    for name, value in (("RANK", rank), ("WORLD_SIZE", "2"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    assert main(["list", "noises"]) == 0
    assert bool(capsys.readouterr().out) is heard
    assert ("WORLD_SIZE" in os.environ) is not heard


class Two(Ranks):
    """Two processes, of which the second says something else."""

    def __init__(self, other):
        super().__init__(0, 2)
        self.other = other

    def everyone(self, value):
        return [value, self.other(value)]


def likeness_of(other):
    model = tiny_model()
    check_likeness(Two(other), model, zopeft.discover(model), Counting())


def test_versions_are_compared_first():
    likeness_of(dict)
    line = r"^ranks: rank 1 has another torch than rank 0 \(2.*\), got '2.0'; give all"
    with pytest.raises(InputError, match=line):
        likeness_of(lambda facts: {**facts, "torch": "2.0", "data": "other"})
    with pytest.raises(InputError, match=r"another number of examples than rank 0 \(24\), got '7'"):
        likeness_of(lambda facts: {**facts, "number of examples": "7"})


def test_a_process_whose_weights_are_others_is_named_of_many():
    class Three(Ranks):
        def compared(self, mine):
            return torch.stack([mine, mine, mine + 1])

    model = tiny_model()
    line = r"^ranks: rank 2 \([0-9a-f]{16}\) holds other weights than rank 0 \(.* after step 7"
    with pytest.raises(RunError, match=line):
        check_weights(Three(0, 3), zopeft.discover(model), "after step 7")


class Quiet:
    """A store in which nothing is ever said, and in which nobody may wait."""

    def clone(self):
        return self

    def check(self, keys):
        return False

    def wait(self, *keys):
        raise AssertionError("held up in the store")


def test_whoever_listens_for_lost_processes_has_ended_before_python_does(monkeypatch):
    # Held up in the store, its thread aborts the process, when the first one is gone a bit earlier.
    endings = []
    monkeypatch.setattr(losing, "store", Quiet)
    monkeypatch.setattr(losing.atexit, "register", endings.append)
    before = set(threading.enumerate())
    losing.watch(Ranks(1, 2))
    (listening,) = set(threading.enumerate()) - before
    assert listening.is_alive()
    (end,) = endings
    end()
    assert not listening.is_alive()


def test_scores_of_single_rows_are_for_one_process(tmp_path):
    class ByRows:
        shaping = "rows"

        def __call__(self, model, batch):
            return model(**batch).loss

    made = trainer(tiny_model(), tmp_path, loss_function=ByRows())
    made.ranks = Two(dict)
    with pytest.raises(InputError, match="shaping: compares the scores of single rows"):
        share_out(made, MeZO(zopeft.discover(made.model)))


def runs(said, group, name):
    return [one["runs"][name] for one in said[group]]


@pytest.mark.parametrize("case", [case["name"] for case in SHARED])
def test_shared_out_probes_make_the_steps_that_one_process_makes(said, case):
    alone = said["one"][0]["runs"][f"one-{case}"]
    for one in runs(said, "two", case):
        known = ("digest", "lr", "steps", "passes")
        assert [one[name] for name in known] == [alone[name] for name in known]
        assert (one["grid"], one["line"]) == ([1, 2], "")


def test_three_ranks_make_them_too(said):
    alone = said["one"][0]["runs"]["one-pairs"]
    for one in runs(said, "three", "three-pairs"):
        assert (one["digest"], one["grid"]) == (alone["digest"], [1, 3])


def test_a_grid_shares_out_rows_where_ranks_are_left(said):
    found = runs(said, "three", "three-both")
    assert {one["digest"] for one in found} == {found[0]["digest"]}
    assert [one["grid"] for one in found] == [[3, 1]] * 3


def test_more_ranks_than_probes_share_out_rows_and_say_so(said):
    for one in runs(said, "three", "few"):
        assert one["grid"] == [3, 1]
        assert one["line"].startswith("3 ranks for the 2 probes of a step: rows of the batch")


def test_rows_are_those_of_one_batch_and_what_is_seen_beside_them_is_agreed_on(said):
    rows = runs(said, "two", "rows")
    assert rows[0]["digest"] == rows[1]["digest"]
    seen = runs(said, "two", "rows-activations")
    assert seen[0]["digest"] == seen[1]["digest"]


def test_losses_of_rows_are_averaged_and_those_of_columns_put_side_by_side():
    asked = Parallel.__new__(Parallel)
    # Two batches, three probes dealt out to two columns: losses, and passes at the end.
    asked.grid = Grid(2, 2)
    every = torch.tensor([[1.0, 3.0, 2], [2.0, torch.nan, 1], [5.0, 7.0, 2], [6.0, torch.nan, 1]])
    found = asked._put_together(every, [[0, 2], [1]], 3)
    assert found.tolist() == [3.0, 4.0, 5.0, 3.0]


def test_what_asks_for_a_loss_at_a_point():
    point = (Direction(1), 0.1)
    assert all(is_point(one) for one in (point, Aside(point), Watched(None)))
    assert not is_point(Watched(object())) and not is_point(Tangent(Direction(1)))


def test_what_is_sent_is_the_losses(said):
    for one in runs(said, "two", "traffic"):
        steps = one["steps"] - 2
        # In and out, and one number for the forward passes: of 4 bytes each.
        assert 0 < one["counted"] <= steps * (4 * one["probes"] * 2 + 8)
        assert one["counted"] / steps / one["probes"] <= 64


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ("data", "rank 1 has another data than rank 0 ("),
        ("model", "rank 1 has another model than rank 0 ("),
        ("dtype", "rank 1 has another dtype than rank 0 (float32), got 'bfloat16'"),
        ("start", "rank 1 has another start of the trained weights than rank 0 ("),
    ],
)
def test_ranks_that_are_not_alike_are_named_before_the_first_step(said, wrong, line):
    for one in runs(said, "two", wrong):
        assert line in one["error"]
        assert one["kind"] == "InputError"


def test_a_rank_whose_weights_drift_is_named(said):
    for one in runs(said, "two", "drift"):
        assert one["error"].startswith("ranks: rank 1 (") and "after step 4" in one["error"]


def test_a_rank_that_is_killed_is_named_and_another_number_of_them_goes_on(said):
    assert [one["code"] for one in said["three"]] == [0, -9, 0]
    for rank in (0, 2):
        left = said["three"][rank]["runs"]["killed"]
        assert left["kind"] == "LostError" and "rank 1 is gone" in left["error"]
    alone, (again,) = said["one"][0]["runs"]["one-saved"], runs(said, "one", "killed")
    assert (again["digest"], again["steps"]) == (alone["digest"], 12)
    # Of the steps that were made before, those of the checkpoint are counted, the others free.
    assert again["passes"] < alone["passes"]


def test_a_rank_that_hangs_is_named(said):
    error = said["two"][0]["runs"]["hung"]["error"]
    assert error.startswith("ranks: rank 1 has not answered for 6 s")


def test_a_run_of_shared_rows_goes_on_alone(said):
    (one,) = runs(said, "one", "rows")
    assert one["steps"] == 14


def test_a_command_of_two_ranks_is_one_command(said):
    alone, found = json.loads(said["cli-one"][0]["out"]), said["cli"]
    assert [one["code"] for one in found] == [0, 0]
    assert (found[1]["out"], found[1]["err"]) == ("", "")
    assert found[0]["out"].count("\n") == 1
    summary = json.loads(found[0]["out"])
    assert summary["ranks"] == 2
    assert "ranks: 2, 2 share out the probes of a batch" in found[0]["err"]
    known = ("metrics", "loss_first", "loss_last", "forward_passes", "lr")
    assert [summary.get(name) for name in known] == [alone.get(name) for name in known]
    assert summary["metrics"]["after"]["loss"] > 0


@pytest.mark.parametrize(
    ("group", "line"),
    [
        ("cli-refused", "--out: the folder holds files, got 'cli'"),
        ("cli-unseen", "--out: rank 1 does not see the folder of rank 0, got 'here'"),
    ],
)
def test_an_error_is_told_once(said, group, line):
    found = said[group]
    assert [one["code"] for one in found] == [2, 2]
    lines = [x for one in found for x in one["err"].splitlines() if x.startswith("zopeft: ")]
    assert len(lines) == 1 and line in lines[0]
    assert all(one["out"] == "" for one in found)
