"""Several processes learn a fine-tuner together: that of one process, or a line says why not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rank_cases import played, played_once

import zopeft

SCALES = {"capacity": "scales"}
LEARNED = [
    {"name": "subspaces", "steps": 16, "batch_size": 5, "rank": 2, "momentum": 0.5},
    {"name": "few-rows", "steps": 12, "batch_size": 2, "policy": "state", "windows": 2,
     "reset_every": 6, **SCALES},
    {"name": "paper", "steps": 6, "batch_size": 5, "objective": "paper", "lr_pertnn": 1.0,
     "lr_zo": 1e-3, "mask": 0.05},
    {"name": "stops", "steps": 60, "batch_size": 3, "stop": 1.0, "tasks": ["drop"], **SCALES},
]  # fmt: skip
SHORT = {"steps": 6, "batch_size": 2, "tasks": ["cb"], **SCALES}
TRAIN = (
    *("meta-train", "embedded", "--task", "drop", "--lora", "--steps", "4", "--batch-size", "3"),
    *("task.train_examples=12",),
)


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What the processes of all groups said."""
    return played_once(tmp_path_factory, "ranks-meta", all_said)


def all_said(folder):
    def wrong(*names):
        return [{"name": name, "wrong": name, **SHORT} for name in names]

    groups = [
        {"name": "one", "count": 1, "runs": LEARNED},
        {"name": "two", "count": 2, "runs": [
            *LEARNED, *wrong("rows", "settings", "drift")]},
        {"name": "three", "count": 3, "runs": [*LEARNED[:2], *wrong("kill")]},
        {"name": "cli", "count": 2, "words": [*TRAIN, "--out", "cli", "--json"]},
        {"name": "cli-refused", "count": 2, "words": [*TRAIN, "--out", "cli"]},
    ]  # fmt: skip
    for group in groups:
        group["runs"] = [{"meta": True, **case} for case in group.get("runs", [])]
        if "words" in group:
            del group["runs"]
    return played(folder, groups)


def close(found, wanted):
    """Whether a fine-tuner is another one but for the rounding of sums in fp32."""
    training, other = found.config.training, wanted.config.training
    assert found.distance(wanted)["total"] < 1e-4
    assert set(found.bases) == set(wanted.bases)
    for index, basis in found.bases.items():
        for side in ("left", "right"):
            one, two = (getattr(b, side).double() for b in (basis, wanted.bases[index]))
            # Bases are kept in bf16.
            projected = two @ torch.linalg.pinv(two) @ one
            assert float((one - projected).norm() / one.norm()) < 0.02
    for name, own in other.get("statistics", {}).items():
        mine = training["statistics"][name]
        for key, size in (("signal", "energy"), ("energy", "energy"), ("curvature", "curvature")):
            assert abs(mine[key] - own[key]) < 1e-3 * own[size], (name, key)
    for key in ("steps_made", "tasks", "resets"):
        assert training[key] == other[key]
    for key in ("loss_first", "loss_last"):
        assert training[key] == pytest.approx(other[key], rel=1e-4)


@pytest.mark.parametrize(
    ("group", "case"),
    [
        *(("two", case["name"]) for case in LEARNED),
        *(("three", case["name"]) for case in LEARNED[:2]),
    ],
)
def test_ranks_learn_what_one_process_learns(said, group, case):
    (alone,) = [one["runs"][case] for one in said["one"]]
    every = [one["runs"][case] for one in said[group]]
    assert len({one["digest"] for one in every}) == len({one["mask"] for one in every}) == 1
    wanted = zopeft.FineTuner.from_pretrained(alone["place"])
    for one in every:
        assert one["restored"] and one["sent"] > 0
        assert one["losses"] == every[0]["losses"]
        assert one["losses"] == pytest.approx(alone["losses"], rel=1e-3)
        close(zopeft.FineTuner.from_pretrained(one["place"]), wanted)
    assert alone["sent"] == 0


def test_a_meta_training_that_stops_has_left_steps_out(said):
    (alone,) = [one["runs"]["stops"] for one in said["one"]]
    assert 24 < len(alone["losses"]) < 60


def test_a_mask_is_nearly_that_of_one_process(said):
    one, two = (
        zopeft.FineTuner.from_pretrained(said[group][0]["runs"]["paper"]["place"]).mask
        for group in ("one", "two")
    )
    same = sum(
        len(set(places.tolist()) & set(two.places[name].tolist()))
        for name, places in one.places.items()
    )
    assert one.count == two.count and same >= 0.99 * one.count


def test_a_meta_step_sends_its_gradients_and_little_else(said):
    for one in (one["runs"]["paper"] for one in said["two"]):
        # Each of six steps has two backward passes, and a batch of the mask has one.
        gradients = 18 * 4 * one["numbers"]
        assert gradients < one["sent"] < gradients + 18 * 200


@pytest.mark.parametrize(
    ("wrong", "kind", "line"),
    [
        ("rows", "InputError", "another number of examples than rank 0 (24), got '23'"),
        ("settings", "InputError", "another lr_model than rank 0 (0.05), got '0.1'"),
        ("drift", "RunError", "holds other weights than rank 0 ("),
    ],
)
def test_what_is_wrong_with_a_rank_is_told(said, wrong, kind, line):
    first = said["two"][0]["runs"][wrong]
    assert first["error"].startswith("ranks: rank 1 ") and line in first["error"]
    assert "--resume" not in first["error"]
    assert (first["kind"], first["steps"] == 0) == (kind, kind == "InputError")


def test_a_rank_that_is_killed_is_named(said):
    assert [one["code"] for one in said["three"]] == [0, -9, 0]
    for rank in (0, 2):
        left = said["three"][rank]["runs"]["kill"]
        assert left["kind"] == "LostError" and "rank 1 is gone" in left["error"]


def test_a_command_of_two_ranks_is_one_command(said):
    found = said["cli"]
    assert [one["code"] for one in found] == [0, 0]
    assert (found[1]["out"], found[1]["err"]) == ("", "")
    assert found[0]["out"].count("\n") == 1
    summary = json.loads(found[0]["out"])
    assert (summary["ranks"], summary["steps"], summary["status"]) == (2, 4, "done")
    assert "ranks: 2 share out the rows of a batch; a backward pass has each" in found[0]["err"]
    place = Path(said["two"][0]["runs"]["paper"]["place"]).with_name("cli")
    assert zopeft.FineTuner.from_pretrained(place).config.training["steps_made"] == 4


def test_an_error_is_told_once(said):
    found = said["cli-refused"]
    assert [one["code"] for one in found] == [2, 2]
    lines = [x for one in found for x in one["err"].splitlines() if x.startswith("zopeft: ")]
    assert len(lines) == 1 and "--out: the folder holds files, got 'cli'" in lines[0]
