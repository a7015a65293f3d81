"""What was learned counts: far from the start, and of no use to other blocks."""

import pytest

from zopeft.bench.body import Bodies
from zopeft.bench.cells import Request, cells_of
from zopeft.bench.entry import Entry
from zopeft.bench.run import run
from zopeft.blocks import discover
from zopeft.embedded import MODEL_DIR
from zopeft.finetuner import FineTuner
from zopeft.models import load_model

FARTHER = 0.1
"""Relative distance from the networks' start; the paper's own objective moves them by 1e-5 to
1e-3."""
SEEDS = (0, 1)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A fine-tuner of the embedded model, learned on two tasks that are not tuned on here."""
    from zopeft.cli.main import main

    folder = tmp_path_factory.mktemp("learned") / "finetuner"
    words = ["meta-train", "--task", "cb", "--task", "wsc", "--steps", "60"]
    words += ["--capacity", "subspace", "meta.rule=signal", "meta.rows=frequency"]
    assert main([*words, "--out", str(folder)]) == 0
    return folder


def test_training_moves_the_networks_and_finds_directions(learned):
    finetuner = FineTuner.from_pretrained(learned)
    moved = finetuner.config.training["distance_from_start"]
    assert moved > FARTHER
    blocks = discover(load_model(str(MODEL_DIR))[0], "full")
    start = FineTuner.initial(blocks, hidden=finetuner.config.hidden, seed=0)
    assert finetuner.distance(start)["total"] == pytest.approx(moved, rel=1e-4)
    assert len(finetuner.bases) == 28


def test_shuffling_costs_loss_on_another_task(learned):
    """100 steps of COPA, lr="auto", the same batches: the learned entry ends lower."""
    flags = {"bench.tasks": ("--task", ["copa"]), "bench.forwards": ("--forwards", 200)}
    (cell,) = cells_of(Request(None, ["bench.models=[embedded]", "bench.metric=false"], flags))[1]
    bodies = Bodies()

    def ends(entry):
        return [run(entry, bodies.get(cell, s), "auto", cell.recipe, s).tail for s in SEEDS]

    own = ends(Entry("zo_finetuner", str(learned)))
    others = ends(Entry("zo_finetuner", str(learned), "shuffled"))
    assert sum(own) < 0.92 * sum(others)
    assert all(mine < other for mine, other in zip(own, others, strict=True))
