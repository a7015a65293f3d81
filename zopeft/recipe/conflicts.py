"""What is wrong between settings that are each right on their own."""

from __future__ import annotations

from dataclasses import fields

from zopeft.errors import explain
from zopeft.optim.estimator import REMEDY, conflict
from zopeft.recipe.data_schema import DataSection
from zopeft.recipe.executor_schema import ExecutorSection
from zopeft.recipe.objective_schema import ObjectiveSection
from zopeft.recipe.schema import BARE, FULL, SCALES, Recipe

LEAVE = "leave it out"


def conflicts(recipe: Recipe) -> list[str]:
    """Returns what is wrong between settings that are each right on their own."""
    model, found = recipe.model, []
    if model.load_in_8bit and model.load_in_4bit:
        found.append("--load-in-8bit: cannot be combined with --load-in-4bit; choose one")
    quantised = model.load_in_8bit or model.load_in_4bit
    if quantised and recipe.peft.name == FULL and recipe.job != "eval":
        found.append(
            "--load-in-8bit/4bit: quantised weights cannot be trained in full; "
            "use --lora, --prefix or --peft NAME (scales: the quantisation scales themselves)"
        )
    if not model.load_in_4bit and (model.double_quant or model.quant_type != "nf4"):
        found.append(
            "model.quant_type, model.double_quant: they shape 4-bit weights; add --load-in-4bit"
        )
    if model.double_quant and recipe.peft.name == SCALES:
        found.append(
            "model.double_quant: quantised scales cannot be tuned; leave it out, or use --lora"
        )
    if recipe.peft.name in BARE and recipe.peft.options:
        found.append(
            f"peft.options: {recipe.peft.name} tuning takes none; remove them or choose a PEFT type"
        )
    found += _of_own_data(recipe)
    found += _of_objective(recipe)
    found += _of_training(recipe)
    found += _of_executor(recipe)
    method, meta = recipe.method, recipe.meta
    problem = conflict(method.directions, method.sides, method.normalise)
    if problem:
        found.append(explain("method.normalise", problem, do=REMEDY))
    low_rank = recipe.peft.name == FULL and method.noise == "low_rank"
    if method.probes == "stacked" and recipe.peft.name in BARE and not low_rank:
        found.append(
            f"method.probes: {recipe.peft.name} tuning stacks probes with --full and "
            "method.noise=low_rank alone; use auto"
        )
    if meta.objective == "paper" and (meta.capacity == "subspace" or meta.rows == "frequency"):
        found.append(
            "--capacity subspace, meta.rows frequency: the paper's objective learns neither; "
            "add --objective signal"
        )
    if meta.capacity == "subspace" and meta.sharing != "block":
        found.append(f"--sharing {meta.sharing}: a subspace belongs to one block; leave it out")
    if meta.capacity == "subspace" and meta.policy != "constant":
        found.append(
            f"--policy {meta.policy}: a subspace has constant scales; leave it out, or "
            "--capacity subspace"
        )
    if recipe.peft.name == SCALES and recipe.job == "meta-train":
        found.append("--peft scales: meta-train needs gradients; use --full or --lora")
    return found


def _of_executor(recipe: Recipe) -> list[str]:
    """Returns what a server of adapters cannot do."""
    section, usual, found = recipe.executor, ExecutorSection(), []
    if section.name == "here":
        named = [
            f.name for f in fields(usual) if getattr(section, f.name) != getattr(usual, f.name)
        ]
        do = "add executor.name=vllm"
        return [explain(f"executor.{name}", "goes with a server", do=do) for name in named]
    if recipe.job != "tune":
        found.append(explain("executor", f"goes with zopeft tune, not {recipe.job}"))
    if recipe.peft.name in BARE:
        do = "use --lora, or leave the executor out"
        found.append(explain("executor.name", "vllm serves LoRA adapters alone", do=do))
    if recipe.objective.scores:
        do = "use --objective answer, or leave the executor out"
        found.append(explain("executor.name", "vllm scores texts, and generates none", do=do))
    return found


def _of_objective(recipe: Recipe) -> list[str]:
    """Returns what is wrong between an objective and the rest."""
    section, found = recipe.objective, []
    usual, name = ObjectiveSection(), section.chosen
    if recipe.job not in ("tune", "eval"):
        if section != usual:
            found.append(explain("objective", f"goes with zopeft tune and eval, not {recipe.job}"))
        return found
    if section.rewards and name != "reward":
        found.append(explain("objective.rewards", "go with --objective reward", name))
    if name == "reward" and not section.rewards:
        do = "give --reward FILE.py:FUNCTION"
        found.append(explain("--objective", "reward needs a function", do=do))
    if section.metric is not None and name != "metric":
        found.append(explain("objective.metric", "goes with --objective metric", section.metric))
    if section.trust_remote_code and not str(section.metric).lstrip("-").startswith("evaluate:"):
        what = "goes with objective.metric=evaluate:NAME"
        found.append(explain("objective.trust_remote_code", what, section.metric, LEAVE))
    if section.weights and len(section.weights) != len(section.rewards):
        what = f"must be as many as the {len(section.rewards)} rewards"
        found.append(explain("objective.weights", what, len(section.weights)))
    if not section.scores:
        if name is not None and recipe.task.loss not in (None, name):
            what = f"is {name}, and task.loss another; leave one out"
            found.append(explain("--objective", what, recipe.task.loss))
        found += [
            explain(f"objective.{f.name}", "goes with --objective metric or reward")
            for f in fields(usual)
            if f.name not in ("name", "metric", "rewards", "weights", "trust_remote_code")
            and getattr(section, f.name) != getattr(usual, f.name)
        ]
        return found
    if section.samples > 1 and not section.temperature:
        do = "give objective.temperature=1"
        what = "greedy completions of one prompt are all the same"
        found.append(explain("objective.samples", what, section.samples, do))
    if section.shaping != "none" and recipe.method.lr == "auto" and recipe.job == "tune":
        do = "give a number: eps * eps / 2 takes steps of a quarter of eps"
        what = f"has no rule for auto with objective.shaping={section.shaping}"
        found.append(explain("--lr", what, do=do))
    return found


def _of_own_data(recipe: Recipe) -> list[str]:
    """Returns settings of own data that stand beside a task's name, or beside another."""
    if recipe.data.mixture and recipe.task.data is not None:
        return [explain("data.mixture", "and task.data name the data; leave one out")]
    usual = DataSection()
    if recipe.job not in ("tune", "eval"):
        return [
            explain(f"data.{f.name}", f"goes with zopeft tune and eval, not {recipe.job}", do=LEAVE)
            for f in fields(usual)
            if f.name != "split" and getattr(recipe.data, f.name) != getattr(usual, f.name)
        ]
    if recipe.owns_data:
        return _of_streaming(recipe)
    names = [f.name for f in fields(usual) if f.name != "split"]
    return [
        f"data.{name}: goes with own data, --data without --task; leave it out"
        for name in names
        if getattr(recipe.data, name) != getattr(usual, name)
    ]


def _of_streaming(recipe: Recipe) -> list[str]:
    """Returns settings that make no sense with rows that are streamed, or only with them."""
    data, task, found = recipe.data, recipe.task, []
    if not data.streaming:
        if data.shuffle_buffer != DataSection().shuffle_buffer:
            what = "goes with data.streaming=true"
            found.append(explain("data.shuffle_buffer", what, data.shuffle_buffer, LEAVE))
        return found
    if task.train_examples is not None and recipe.job == "tune":
        what = "draws from all rows, and with data.streaming=true nobody knows them all"
        found.append(explain("task.train_examples", what, task.train_examples, LEAVE))
    return found


def _of_training(recipe: Recipe) -> list[str]:
    """Returns what is wrong between settings of the steps."""
    training, found = recipe.training, []
    if (training.keep_best or training.patience) and not training.eval_steps:
        found.append(
            "--keep-best, --patience: go by evaluations during the run; add --eval-every N"
        )
    if training.best_by != "loss" and not (training.keep_best or training.patience):
        found.append("--best-by: goes with --keep-best or --patience; add one of them")
    if training.warmup and training.warmup >= training.steps and recipe.job == "tune":
        found.append(explain("--warmup", "takes all of the steps", training.warmup, "lower it"))
    return found
