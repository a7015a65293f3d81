"""Recipes: files, overrides and flags into one checked recipe, all problems at once."""

import json
import re
from dataclasses import fields

import pytest
import yaml

from zopeft.errors import InputError
from zopeft.jobs.bench.bench import entries_of
from zopeft.jobs.bench.cells import Request, cells_of
from zopeft.meta import MetaSettings
from zopeft.meta.options import MetaOptions
from zopeft.meta.stopping import FIRST, RARER
from zopeft.models.source import resolve
from zopeft.recipe.load import check_recipe, load_recipe, recipe_path, shipped_recipes
from zopeft.recipe.meta_schema import MetaSection
from zopeft.recipe.schema import Recipe


def problem(*args, **kwargs):
    with pytest.raises(InputError) as caught:
        load_recipe(*args, **kwargs)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_defaults_of_each_job():
    assert load_recipe("tune").peft.name == "lora"
    assert load_recipe("meta-train").peft.name == "full"
    assert load_recipe("tune").method.name is None
    assert load_recipe("tune").method.lr == "auto"


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_shipped_recipes_are_right(name):
    made = check_recipe(name)
    folder, _, job = name.rpartition("/")
    if folder == "bench":
        assert made[0].job == ("meta-train" if job == "paper-table8" else "bench")
    else:
        assert made[0].job == job
    assert made[0].about
    if job == "tune":
        assert {r.task.name for r in made} == {
            *("sst2", "cb", "copa", "boolq", "wsc", "squad", "drop")
        }
    assert "How to run" in recipe_path(name).read_text()


def test_there_are_recipes_for_seven_models():
    names = [name for name in shipped_recipes() if not name.startswith("bench/")]
    folders = {name.partition("/")[0] for name in names}
    paper = ("llama-3.2-1b", "llama-3.1-8b", "qwen2.5-14b", "opt-30b")
    assert folders == {"embedded", "smollm2-135m", "gemma-3-270m", *paper}
    assert len(names) == 14


@pytest.mark.parametrize(
    ("name", "path"),
    [("smollm2-135m", "HuggingFaceTB/SmolLM2-135M"), ("gemma-3-270m", "google/gemma-3-270m")],
)
def test_one_command_learns_for_a_small_real_model_by_name_or_folder(name, path, tmp_path):
    made = load_recipe("meta-train", name)
    assert resolve(made.model.name).path == path
    assert made.meta.tasks == ("cb", "wsc", "drop") and made.meta.objective == "signal"
    # Below so many steps, of which half are for the subspaces, the rule could stop nothing.
    assert made.meta.stop > 0 and made.meta.steps > 2 * FIRST * RARER
    flags = {"model.name": ("MODEL", str(tmp_path))}
    assert load_recipe("meta-train", name, flags=flags).model.name == str(tmp_path)
    tuned = load_recipe("tune", name)
    assert (tuned.model.name, tuned.method.lr) == (name, "auto")


BENCHES = [
    *("embedded", "local"),
    *(f"paper-table{number}" for number in range(1, 9)),
    *(f"figure{number}" for number in range(2, 7)),
]


def test_there_is_a_bench_for_every_table_and_figure():
    names = [name.partition("/")[2] for name in shipped_recipes() if name.startswith("bench/")]
    assert sorted(names) == sorted(BENCHES)


@pytest.mark.parametrize("name", [name for name in BENCHES if name != "paper-table8"])
def test_every_bench_makes_cells_and_has_a_small_twin(name):
    recipe, cells = cells_of(Request(f"bench/{name}"))
    assert len(cells) == len(recipe.bench.models or [1]) * len(recipe.bench.tasks)
    assert entries_of(recipe)[0].line == "mezo"
    if name.startswith(("paper", "figure")):
        assert {cell.recipe.model.dtype for cell in cells} <= {"bfloat16", "float16"}
    small, few = cells_of(Request(f"bench/{name}", small=True))
    assert {cell.model for cell in few} == {"embedded"}
    assert {cell.recipe.model.dtype for cell in few} == {"auto"}
    assert small.bench.lrs == ()
    assert all(cell.recipe.bench.lrs == () for cell in few)
    assert small.bench.forwards < 1000


def test_a_bench_has_settings_of_single_models():
    _, cells = cells_of(Request("bench/paper-table1"))
    assert len(cells) == 28
    forwards = {cell.model: cell.recipe.bench.forwards for cell in cells}
    assert forwards == {
        **{"llama-3.2-1b": 40000, "llama-3.1-8b": 40000},
        **{"qwen2.5-14b": 20000, "opt-30b": 20000},
    }
    batch = {cell.model: cell.recipe.training.batch_size for cell in cells}
    assert (batch["qwen2.5-14b"], batch["opt-30b"]) == (16, 4)
    assert {len(cell.recipe.bench.lrs) for cell in cells if cell.task == "wsc"} == {4}
    assert {len(cell.recipe.bench.lrs) for cell in cells if cell.task != "wsc"} == {3}


@pytest.mark.parametrize(
    ("name", "steps", "batch"),
    [
        ("llama-3.2-1b", 20000, 16),
        ("llama-3.1-8b", 20000, 16),
        ("qwen2.5-14b", 10000, 16),
        ("opt-30b", 10000, 4),
    ],
)
def test_paper_settings(name, steps, batch):
    tuned = load_recipe("tune", name)
    assert (tuned.training.steps, tuned.training.batch_size) == (steps, batch)
    assert tuned.method.eps == 1e-3
    meta = load_recipe("meta-train", name).meta
    assert (meta.tasks, meta.hidden, meta.lr_zo, meta.lr_pertnn) == (("copa",), 64, 1e-6, 1e-2)


def test_a_task_and_a_space_pick_their_own_settings():
    plain = load_recipe("tune", "llama-3.2-1b")
    assert (plain.method.lr, plain.method.eps, plain.task.max_length) == (1e-7, 1e-3, 256)
    flags = {"task.name": ("--task", "boolq"), "peft.name": ("--lora", "lora")}
    chosen = load_recipe("tune", "llama-3.2-1b", flags=flags)
    assert (chosen.method.lr, chosen.method.eps, chosen.task.max_length) == ("auto", 1e-2, 1024)
    late = {**flags, "method.lr": ("--lr", "1e-8")}
    assert load_recipe("tune", "llama-3.2-1b", flags=late).method.lr == 1e-8


def test_later_sources_win(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("training: {steps: 7, seed: 3, batch_size: 2}\n")
    made = load_recipe(
        "tune",
        str(file),
        ["training.seed=4", "training.batch_size=5"],
        {"training.batch_size": ("--batch-size", "6")},
    )
    section = made.training
    assert (section.steps, section.seed, section.batch_size) == (7, 4, 6)


def test_numbers_as_yaml_reads_them():
    made = load_recipe("tune", None, ["method.eps=1e-3", "training.steps=1e3", "method.lr=auto"])
    assert made.method.eps == 1e-3
    assert made.training.steps == 1000
    assert isinstance(made.training.steps, int)
    assert made.method.lr == "auto"


def test_lists_of_numbers():
    made = load_recipe("bench", None, ["bench.lrs=[1e-7, 1.0e-6, 1]"])
    assert made.bench.lrs == (1e-7, 1e-6, 1.0)
    assert load_recipe("bench", None, ["bench.lrs=1e-3"]).bench.lrs == (1e-3,)
    assert "must be a list of numbers" in problem("bench", None, ["bench.lrs=[1, x]"])
    assert "bench.lrs: must be more than 0, got -1" in problem("bench", None, ["bench.lrs=[1, -1]"])


def test_meta_trainings_settings_are_declared_once():
    both = {f.name for f in fields(MetaSection)} & {f.name for f in fields(MetaSettings)}
    assert both == {f.name for f in fields(MetaOptions)} and len(both) >= 20
    for words, wrong in (
        ("meta.features=[mean]", "must be one of depth, loss_share"),
        ("meta.momentum=1.5", "must be at most 0.999, got 1.5"),
        ("meta.rows=rare", "must be one of auto, none, frequency"),
    ):
        assert wrong in problem("meta-train", None, [words])


def test_a_small_twin_is_laid_over_the_task(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(
        "tasks: {sst2: {task: {max_length: 9}}}\n"
        "models: {gpt2: {training: {batch_size: 3}}}\n"
        "small: {task: {max_length: 8}}\n"
    )
    flags = {"task.name": ("--task", "sst2"), "model.name": ("MODEL", "gpt2")}
    made = load_recipe("bench", str(file), flags=flags)
    assert (made.task.max_length, made.training.batch_size) == (9, 3)
    assert load_recipe("bench", str(file), flags=flags, small=True).task.max_length == 8
    late = load_recipe("bench", str(file), ["task.max_length=10"], flags, small=True)
    assert late.task.max_length == 10
    file.write_text("small: {task: {max_lenth: 8}}\n")
    with pytest.raises(InputError, match=r"did you mean 'task\.max_length'"):
        check_recipe(str(file), "bench")
    file.write_text("models: {gpt3: {}}\n")
    assert "unknown model" in problem("bench", str(file))


def test_options_of_the_adapter_are_merged(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("peft: {name: lora, options: {r: 4, lora_alpha: 8}}\n")
    made = load_recipe("tune", str(file), ["peft.options.r=2"])
    assert made.peft.options == {"r": 2, "lora_alpha": 8}


def test_all_problems_at_once():
    flags = {
        "training.steps": ("--steps", "x"),
        "method.lr": ("--lr", "-1"),
        "task.name": ("--task", "squat"),
        "peft.name": ("--peft", "lorra"),
    }
    line = problem(
        "tune", None, ["training.stepz=4", "metod.eps=1", "method.noise=gaussean"], flags
    )
    assert line.startswith("7 problems: (1)")
    for part in (
        "training.stepz: unknown key; did you mean 'training.steps'",
        "metod.eps: unknown key; did you mean 'method.eps'",
        "method.noise: unknown noise",
        "did you mean 'gaussian'?",
        "--steps: must be a whole number, got 'x'",
        "--lr: must be at least 0, got -1",
        "--task: unknown task, got 'squat'; did you mean 'squad'?",
        "--peft: unknown peft type, got 'lorra'; did you mean 'lora'",
    ):
        assert part in line


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("traning: {steps: 3}", "unknown key, got 'traning'; did you mean 'training'?"),
        ("training: {stepz: 3}", "training.stepz: unknown key; did you mean 'training.steps'"),
        ("training: 3", "training: must hold keys, got '3'"),
        ("training: {steps: 0}", "training.steps: must be at least 1, got 0"),
        ("training: {steps: yes}", "training.steps: must be a whole number"),
        ("method: {eps: 0}", "method.eps: must be more than 0"),
        ("method: {lr: .nan}", "method.lr: must be a number or auto"),
        ("model: {dtype: float61}", "model.dtype: must be one of auto, float32"),
        ("training: {eval_before: 3}", "eval_before: must be true or false"),
        ("peft: {options: 3}", "peft.options: must be a mapping"),
        ("[1, 2]", "a recipe must be a mapping of sections, got 'list'"),
        ("a: [1", "not valid YAML on line"),
        ("job: meta-train", "is a recipe for meta-train; not for zopeft tune"),
        ("tasks: {squad: 3}", "tasks.squad: must hold sections"),
        ("spaces: 3", "spaces: must map names to settings"),
        ("spaces: {lorra: {}}", "did you mean 'lora'"),
        ("tasks: {squad: {training: {stepz: 1}}}", "did you mean 'training.steps'"),
    ],
)
def test_what_is_wrong_in_a_file(tmp_path, text, told):
    file = tmp_path / "own.yaml"
    file.write_text(text + "\n")
    assert told in problem("tune", str(file), flags={"task.name": ("--task", "squad")})


def test_conflicts():
    both = ["model.load_in_8bit=true", "model.load_in_4bit=true"]
    assert "cannot be combined" in problem("tune", None, both)
    full = ["model.load_in_4bit=true", "peft.name=full"]
    assert "cannot be trained in full" in problem("tune", None, full)
    assert "takes none" in problem("tune", None, ["peft.name=full", "peft.options.r=3"])


def test_unknown_recipes_and_files(tmp_path):
    assert "did you mean 'embedded'" in problem("tune", "embeded")
    assert "no such file" in problem("tune", str(tmp_path / "none.yaml"))


def test_a_resolved_recipe_is_a_recipe(tmp_path):
    made = load_recipe("tune", "embedded", ["training.steps=12", "peft.options.r=2"])
    plain = made.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert load_recipe("tune", stored=plain) == made
    file = tmp_path / "again.yaml"
    file.write_text(yaml.safe_dump(plain))
    again = load_recipe("tune", str(file))
    assert again == made
    assert isinstance(again, Recipe)


def test_a_method_that_serves_one_space_alone_trains_it_where_nothing_is_said():
    assert load_recipe("tune", overrides=["method.name=qzo"]).peft.name == "scales"
    assert load_recipe("tune", overrides=["method.name=hizoo", "method.lr=1"]).peft.name == "lora"
    line = problem("tune", overrides=["method.name=qzo", "peft.name=full"])
    assert line == "--method: qzo cannot serve full; choose another method or other weights"


@pytest.mark.parametrize("name", ["a.b", "eps2 1.0e-3", "smooth"])
def test_an_unknown_option_of_a_method_is_named_with_its_file(name, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"job: tune\ntask: {{name: sst2}}\nmethod: {{name: mezo, '{name}': 1}}\n")
    with pytest.raises(InputError, match=f"mine.yaml: method.{re.escape(name)}: unknown key"):
        load_recipe("tune", str(path))
