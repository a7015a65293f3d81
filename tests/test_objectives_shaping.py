"""Scores that are noisy, or flat in places: shaping, and a step that makes them differ."""

import pytest
import rewards as own
import torch
from rewards import PROMPTS as ROWS
from safetensors.torch import load_file

import zopeft
from zopeft.optim.differing import PAIRS, find_eps
from zopeft.tasks.objectives.shaping import by_rows, centred_ranks

ADAPTER = "adapter_model.safetensors"


def test_ranks_and_rows_by_hand():
    ranks = centred_ranks(torch.tensor([3.0, -1.0, 3.0, 100.0]))
    assert ranks.tolist() == pytest.approx([0.0, -0.5, 0.0, 0.5])
    assert centred_ranks(torch.tensor([-9.0, -8.0])).tolist() == [-0.5, 0.5]
    assert centred_ranks(torch.tensor([2.0])).tolist() == [0.0]
    # Two probes, three prompts of which one does not differ, two completions of each.
    scores = [[1, 3, 0, 0, 5, 5], [0, 0, 10, 30, 5, 5]]
    # Means 2 and 0, 0 and 20, 5 and 5: from -1 to 1 in opposite directions, and nothing.
    assert by_rows(scores, 2).tolist() == [0.0, 0.0]
    assert by_rows([row[:2] for row in scores], 2).tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("shaping", ["ranks", "rows"])
@pytest.mark.parametrize("directions", [1, 3])
def test_shaped_steps_are_the_same_apart_and_stacked(tiny_tuned, shaping, directions):
    model, tokenizer = tiny_tuned
    objective = zopeft.Objective(
        tokenizer, own.length, max_new_tokens=6, temperature=1.0, samples=2, shaping=shaping
    )
    found = []
    for probes in ("separate", "stacked"):
        objective._steps = 0
        given = {"lr": 0.0, "eps": 2.0, "probes": probes, "directions": directions}
        optimizer = zopeft.MeZO(zopeft.discover(model), **given)
        optimizer.step(objective.closure(model, ROWS))
        record = optimizer.last_record
        scores = record.notes["scores"]
        assert scores.shape == (2 * directions,) and len(set(scores.tolist())) > 1
        assert record.seen == pytest.approx(-scores.mean())
        bound = 0.5 if shaping == "ranks" else 2.0
        assert sum(record.losses) == pytest.approx(0.0, abs=1e-6)
        assert max(map(abs, record.losses)) <= bound
        if shaping == "ranks":
            ranks = centred_ranks(-torch.from_numpy(scores))
            assert record.losses == pytest.approx(ranks.tolist())
        found.append((record.losses, scores.tolist()))
    assert found[0] == found[1]


def test_eps_is_widened_until_probes_differ():
    class Steps(torch.nn.Module):
        """A score that is flat up to so far from the start."""

        def __init__(self, reach):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(100))
            self.reach = reach

        def loss(self):
            moved = self.weight.norm() / 10.0
            return torch.sign(self.weight.sum()) * (moved > self.reach)

    for reach, factor in ((0.0005, 1), (0.003, 4), (1.0, 1)):
        model = Steps(reach)
        method = zopeft.MeZO(zopeft.discover(model), lr=0.0, eps=1e-3)
        told = []
        found = find_eps(method, model.loss, told.append)
        assert told[0] == f"eps: trying 0.001: do the scores of {PAIRS} pairs of probes differ?"
        looks = found.forward_passes // (2 * PAIRS)
        tried = [line.rpartition(" ")[2] for line in told[1:]]
        assert tried == ["0.002", "0.004", "0.008", "0.016"][: looks - 1]
        assert found.eps == factor * 1e-3 and method.eps == 1e-3
        assert (model.weight == 0).all()
        if reach < 1.0:
            assert found.share >= 0.5 and f"of {PAIRS} pairs of probes differ" in found.line
        else:
            assert found.share == 0.0 and found.forward_passes == 5 * 2 * PAIRS
            assert "up to 0.016: nothing can be learned from it" in found.line


@pytest.mark.parametrize("journal", [True, False])
def test_a_chosen_eps_and_shaped_losses_resume_bit_for_bit(
    zopeft_command,
    tiny_model,
    prompts,
    tmp_path,
    journal,
):
    reward = ("--reward", f"{own.__file__}:length")
    words = ("tune", tiny_model, "--data", prompts, *reward, "--lr", "1e-3", "--batch-size", 2)
    words += ("objective.max_new_tokens=4", "objective.shaping=rows", "training.save_steps=3")
    words += (f"training.journal={journal}", "training.eval_before=false")
    code, _, told = zopeft_command(*words, "--steps", 5, "--out", tmp_path / "whole")
    assert code == 0 and "eps: 0." in told and "pairs of probes differ" in told
    # Before the first look: what generates takes its time.
    assert told.index("eps: trying 0.01: do the scores of 4 pairs") < told.index("eps: 0.")
    out = tmp_path / "parts"
    began = zopeft_command.json(*words, "--steps", 3, "--out", out)
    went_on = zopeft_command.json("tune", "--resume", "--out", out, "--steps", 5, *reward)
    assert began["eps"] == went_on["eps"]
    assert began["eps"]["forward_passes"] >= 8
    mine, whole = (load_file(folder / ADAPTER) for folder in (out, tmp_path / "whole"))
    assert all(torch.equal(mine[name], whole[name]) for name in whole)


def test_lr_auto_takes_shorter_steps_on_a_score(tiny_tuned):
    model, tokenizer = tiny_tuned
    objective = zopeft.Objective(tokenizer, own.length, max_new_tokens=3, temperature=1.0)
    on_score = zopeft.MeZO(zopeft.discover(model), lr="auto", eps=0.5)
    on_score.step(objective.closure(model, ROWS))
    ids = torch.tensor([[1, 5, 6, 7]])
    on_loss = zopeft.MeZO(zopeft.discover(model), lr="auto", eps=0.5)
    on_loss.step(zopeft.BatchLoss(model, {"input_ids": ids, "labels": ids}))
    reaches = [one.rate.start["reach"] for one in (on_score, on_loss)]
    assert reaches == [0.25 * 0.5, 0.5]
    # A step along u goes no further, in multiples of u.
    record = on_score.last_record
    assert abs(record.lr[0] * record.projected_grads[0]) <= 0.125 * (1 + 1e-6)
