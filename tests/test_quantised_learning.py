"""A trained model that is quantised on disk learns a real task, by LoRA and by its scales."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_runs import Runner

from zopeft.models import load_model

pytestmark = pytest.mark.slow
pytest.importorskip("bitsandbytes")

SHARED = Path(__file__).parents[2] / "shared"
STORIES = SHARED / "models" / "stories260K"
SST2 = SHARED / "data" / "sst2"
STEPS = 100


@pytest.mark.skipif(not STORIES.is_dir() or not SST2.is_dir(), reason="no ../shared here")
def test_a_quantised_base_learns_at_least_half_as_much(capsys, tmp_path):
    run, quantised = Runner(capsys), tmp_path / "8bit"
    model, tokenizer = load_model(str(STORIES), load_in_8bit=True)
    model.save_pretrained(quantised)
    tokenizer.save_pretrained(quantised)

    def cut(base, space, *words):
        words += ("--steps", STEPS, "--batch-size", 8, "--seed", 0)
        words += ("--task", "sst2", "--data", SST2, "task.eval_examples=100")
        found = run.json("tune", base, *words, "--out", tmp_path / f"{base.name}-{space}")
        return found["metrics"]["before"]["loss"] - found["metrics"]["after"]["loss"]

    lora = cut(STORIES, "lora", "--lora")
    full = cut(STORIES, "full", "--full")
    assert min(lora, full) > 0.1
    assert cut(quantised, "lora", "--lora") >= 0.5 * lora
    assert cut(quantised, "scales", "--peft", "scales") >= 0.5 * full
