"""How scales move, on the command line: with the loss, and along a run."""

import math

import numpy as np
import pytest
import torch
from test_meta_state import moving
from training_run import tiny_model, with_lora

import zopeft
from zopeft.finetuner import FineTuner
from zopeft.journal import Journal
from zopeft.journal.header import header_of

PNG = b"\x89PNG\r\n\x1a\n"


def windows():
    """Windows of a run whose change falls twice as fast as its loss."""
    return [
        {"task": "copa", "run": 0, "loss": 3.0 * s, "log_loss": math.log(3.0 * s)}
        | {"loss_share": math.log(s), "change": 2 * math.log(s), "bend": 0.0}
        for s in (1.0, 0.6, 0.1)
    ]


@pytest.fixture
def saved(tmp_path):
    found = moving(zopeft.discover(tiny_model()), ("loss_share", "change"))
    found.config.training = {"objective": "signal", "windows": windows()}
    found.save_pretrained(tmp_path / "f")
    return tmp_path / "f"


def test_show_says_how_scales_move_with_the_loss(zopeft_command, saved):
    code, out, err = zopeft_command("finetuner", "show", saved)
    assert code == 0, err
    for text in ("loss 100%", "loss 50%", "loss 20%", "q_proj", "moves a fixed scale"):
        assert text in out
    rows = zopeft_command.json("finetuner", "show", saved)["along_the_loss"]
    found = FineTuner.from_pretrained(saved)
    groups = [i for i, g in enumerate(found.config.groups) if g.role == "q_proj"]
    mine = next(row for row in rows if row["role"] == "q_proj")["scales"]
    # Shares at a window, and between two of them.
    for share in (1.0, 0.5, 0.2):
        log = math.log(share)
        x = torch.tensor([[log, 2 * log]]).expand(len(groups), 2)
        raw = found.nets(x, torch.tensor(groups)).log().mean().exp()
        assert mine[f"loss {share:.0%}"] == pytest.approx(float(raw.detach()), rel=1e-4)
    assert len({round(scale, 4) for scale in mine.values()}) == 3


def test_scales_that_stay_are_not_shown_to_move(zopeft_command, tmp_path):
    FineTuner.initial(zopeft.discover(tiny_model())).save_pretrained(tmp_path / "f")
    assert zopeft_command.json("finetuner", "show", tmp_path / "f")["along_the_loss"] is None


def run_of(folder, method, closure, steps=7):
    journal = Journal.create(folder / "journal.bin", header_of(method))
    used = []
    for _ in range(steps):
        method.step(closure)
        journal.append(method.last_record)
        used.append(method.last_record.scales)
    journal.close()
    return used


def test_show_along_a_run(zopeft_command, saved, tmp_path):
    model = with_lora(tiny_model())
    blocks = zopeft.discover(model)
    ids = torch.arange(1, 9)[None]

    def closure():
        return model(input_ids=ids, labels=ids).loss

    method = zopeft.ZOFineTuner(blocks, FineTuner.from_pretrained(saved), lr=1e-2)
    used = run_of(tmp_path, method, closure)
    words = ("finetuner", "show", saved, "--run", tmp_path)
    found = zopeft_command.json(*words, "--png", tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)
    assert found["steps"] == 7
    roles = {row["role"]: row["scales"] for row in found["roles"]}
    assert set(roles) == {f"{p} lora_{m}" for p in ("q_proj", "v_proj") for m in "AB"}
    places = [i for i, b in enumerate(blocks) if b.role == "lora_A" and b.base_role == "q_proj"]
    assert len(places) == 2
    assert list(roles["q_proj lora_A"]) == ["step 1", "step 3", "step 4", "step 5", "step 7"]
    mean = float(np.exp(np.log(used[6][places]).mean()))
    assert roles["q_proj lora_A"]["step 7"] == pytest.approx(mean, rel=1e-5)
    code, out, err = zopeft_command(*words)
    assert code == 0, err
    assert "step 7" in out and "lora_B" in out


def test_a_run_without_learned_scales_is_refused(zopeft_command, saved, tmp_path):
    model = tiny_model()
    ids = torch.arange(1, 9)[None]
    (tmp_path / "run").mkdir()
    method = zopeft.MeZO(zopeft.discover(model), lr=1e-4)
    run_of(tmp_path / "run", method, lambda: model(input_ids=ids, labels=ids).loss, steps=1)
    words = ("finetuner", "show", saved, "--run")
    assert "no learned scales" in zopeft_command.refused(*words, tmp_path / "run")
    assert "no such journal" in zopeft_command.refused(*words, tmp_path / "none")
