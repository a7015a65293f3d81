"""What can be known before a run: dry runs, the keys of recipes, defaults and groups in help."""

from dataclasses import fields

import pytest

from zopeft.methods import METHODS
from zopeft.optim.declared import settings_of
from zopeft.recipe.keys import attributes, recipe_keys
from zopeft.recipe.schema import SECTIONS, TrainingSection

QUICK = ("--batch-size", 2, "--steps", 3)


@pytest.fixture
def base(tiny_model, tiny_data):
    return (tiny_model, "--task", "sst2", "--data", tiny_data, *QUICK)


def test_a_dry_run_tells_everything_and_leaves_nothing(zopeft_command, base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("tune", *base, "--lr", "1e-3", "--accumulate", 2)
    code, shown, err = zopeft_command(*words, "--dry-run")
    assert code == 0 and list(tmp_path.iterdir()) == []
    told = [line.partition(":")[0] for line in err.splitlines()]
    assert {"data", "rows", "tokens", "model", "trained", "method", "passes"} <= set(told)
    assert "would run" in shown and "runs/sst2-lora-mezo-1" in shown
    plan = zopeft_command.json(*words, "--dry-run")
    assert plan["dry_run"] and plan["forward_passes"] == {"steps": 12}
    made = zopeft_command.json(*words)
    assert made["forward_passes"] == 12 and made["out"] == plan["out"]
    more = ("tune", "--resume", "--out", made["out"], "--steps", 5, "--dry-run")
    before = {path.name: path.read_bytes() for path in (tmp_path / made["out"]).iterdir()}
    assert zopeft_command.json(*more)["forward_passes"] == {"steps": 8}
    assert {p.name: p.read_bytes() for p in (tmp_path / made["out"]).iterdir()} == before


def test_the_passes_of_a_rate_that_is_measured_are_planned(zopeft_command, base, tmp_path):
    words = ("tune", *base, "--out", tmp_path / "out", "training.eval_before=false")
    plan = zopeft_command.json(*words, "--dry-run")["forward_passes"]
    made = zopeft_command.json(*words)["forward_passes"]
    assert made == sum(plan.values()) and plan == {"steps": 6, "measuring": 1}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--full", "method.rows=frequency", "--load-in-4bit"), "cannot be trained in full"),
        (("--method", "hizoo"), "auto"),
        (("--lora", "method.rows=frequency"), "no table of token embeddings"),
        (("method.noise=low_rank", "--peft", "ia3", "method.probes=stacked"), "stack"),
    ],
)
def test_a_dry_run_refuses_what_a_run_would_refuse(zopeft_command, base, tmp_path, words, told):
    out = tmp_path / "out"
    line = zopeft_command.refused("tune", *base, *words, "--dry-run", "--out", out)
    assert told in line and not out.exists()


def test_a_dry_run_of_meta_training(zopeft_command, base, tmp_path):
    out = tmp_path / "out"
    plan = zopeft_command.json("meta-train", *base, "--dry-run", "--out", out)
    assert plan["dry_run"] and plan["steps"] == 3 and not out.exists()


def test_every_key_of_a_recipe_is_told(zopeft_command):
    found = zopeft_command.json("recipe", "keys")
    names = [one["key"] for one in found]
    wanted = [f"{name}.{each.name}" for name, cls in SECTIONS.items() for each in fields(cls)]
    assert len(wanted) > 80 and set(wanted) <= set(names)
    assert [one for one in found if not (one["about"] and one["type"])] == []
    training = {one["key"]: one for one in zopeft_command.json("recipe", "keys", "training")}
    steps = training["training.steps"]
    assert (steps["default"], steps["range"], steps["type"]) == (1000, ">= 1", "a whole number")
    assert training["training.report_to"]["type"] == "none or tensorboard or wandb or trackio"
    assert len(training) == len(fields(TrainingSection))
    own = [one.about for one in recipe_keys("method") if ": " in one.about]
    declared = [o for kind in METHODS.values() if not kind.order for o in settings_of(kind.Options)]
    assert len(declared) > 40 and len(own) >= len(declared)
    code, shown, _ = zopeft_command("recipe", "keys", "method")
    assert code == 0 and "zopeft list methods" in shown and "hizoo: " in shown
    line = zopeft_command.refused("recipe", "keys", "trainin")
    assert line == "zopeft: SECTION: no such section, got 'trainin'; did you mean 'training'?"


def test_what_a_docstring_says_of_attributes_over_several_lines():
    class Told:
        """One.

        Attributes:
            first: What it is,
                and more.
            second: Another.

        Raises:
            third: Not one.
        """

    assert attributes(Told) == {"first": "What it is, and more.", "second": "Another."}


def test_help_has_defaults_in_groups(zopeft_command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    code, shown, _ = zopeft_command("tune", "--help")
    assert code == 0
    for group in ("Data", "What is trained", "Method", "Steps", "Along the way", "The run"):
        assert f" {group} " in shown
    assert "[default: (1000)]" in shown and "[default: (constant)]" in shown
    _, learned, _ = zopeft_command("meta-train", "--help")
    assert "[default: (100)]" in learned and "[default: (1000)]" not in learned
    _, first, _ = zopeft_command("--help")
    assert "--install-completion" in first
