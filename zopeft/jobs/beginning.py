"""What a tuning run says of itself before its first step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zopeft.optim.defaults import default_eps
from zopeft.optim.estimator import Estimator
from zopeft.optim.thrifty import looks_until

if TYPE_CHECKING:
    from zopeft.blocks import Blocks
    from zopeft.jobs.prepared import Prepared
    from zopeft.models import ModelSource
    from zopeft.probing.trial import Choice
    from zopeft.recipe.schema import Recipe


def begin_lines(recipe: Recipe, prepared: Prepared, done: int = 0) -> list[str]:
    """Returns the lines: model, what is trained, method, passes planned.

    Args:
        recipe: The run's settings.
        prepared: Its objects.
        done: Steps that have been made before; 0 for a new run.
    """
    each = forwards_of(recipe, prepared.method)
    lines = model_lines(recipe, prepared.blocks, prepared.source)
    lines += [prepared.goal.told] if prepared.goal.told else []
    return [*lines, _method(recipe, prepared, each), _planned(recipe, each, done)]


def model_lines(recipe: Recipe, blocks: Blocks, source: ModelSource) -> list[str]:
    """Returns the lines on the model and on what of it is trained.

    Args:
        recipe: The run's settings.
        blocks: What is trained.
        source: Where the model came from.
    """
    return [_model(recipe, blocks, source), _trained(recipe, blocks)]


def _model(recipe: Recipe, blocks: Blocks, source: ModelSource) -> str:
    from zopeft.jobs.build import model_label

    model: Any = blocks.model
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    floats = [p for p in model.parameters() if p.is_floating_point()]
    facts = [type(base).__name__, *sorted({str(p.dtype).removeprefix("torch.") for p in floats})]
    facts += ["8-bit"] if recipe.model.load_in_8bit else []
    facts += ["4-bit"] if recipe.model.load_in_4bit else []
    facts += sorted({p.device.type for p in model.parameters()})
    return f"model: {model_label(source)} ({', '.join(facts)})"


def _trained(recipe: Recipe, blocks: Blocks) -> str:
    own, every = sum(blocks.numels), sum(p.numel() for p in blocks.model.parameters())
    # The numbers of a quantised model are packed, and not to be counted so.
    packed = recipe.model.load_in_4bit or recipe.model.load_in_8bit or own > every
    share = "" if packed else f", {100.0 * own / every:.3g} % of the model's {every:,}"
    word = "block" if len(blocks) == 1 else "blocks"
    return f"trained: {recipe.peft.name}, {len(blocks):,} {word}, {own:,} parameters{share}"


def forwards_of(recipe: Recipe, name: str) -> int | None:
    """Returns the forward passes of a step and batch; None with gradients."""
    from zopeft.methods import METHODS

    kind, section = METHODS[name], recipe.method
    if kind.order:
        return None
    estimator = Estimator(section.directions, section.sides, section.normalise)
    return int(kind.forwards_on(estimator, section.options))


def _method(recipe: Recipe, prepared: Prepared, each: int | None) -> str:
    section = recipe.method
    words = [prepared.method]
    words += [f"fine-tuner {section.finetuner}"] if section.finetuner else []
    passes = "1 forward pass" if each == 1 else f"{each} forward passes"
    words += ["a forward and a backward pass a step" if each is None else f"{passes} a step"]
    words += [f"lr {section.lr if isinstance(section.lr, str) else format(section.lr, 'g')}"]
    if each is not None:
        eps = _eps(prepared) if section.eps is None else section.eps
        wider = recipe.objective.scores and section.eps is None
        words += [f"eps {eps:g}" + (" or wider" if wider else "")]
    return "method: " + ", ".join(words)


def _eps(prepared: Prepared) -> float:
    """Returns the finite-difference step of a run that is given none."""
    from zopeft.methods.zo_finetuner import own_eps

    if prepared.finetuner is None:
        return default_eps(prepared.blocks)
    return own_eps(prepared.blocks, prepared.finetuner)


def _planned(recipe: Recipe, each: int | None, done: int) -> str:
    """Returns how many forward passes a run is about to make, and for what."""
    parts = passes_of(recipe, each, done)
    words = [f"{max(0, recipe.training.steps - done):,} steps of {_batches(recipe, each)}"]
    if "measuring" in parts:
        words.append(f"{parts['measuring']:,} to measure the learning rate on the way")
    gone = f" (after {done:,} that are kept)" if done else ""
    return f"passes: about {sum(parts.values()):,} planned: {', '.join(words)}{gone}"


def _batches(recipe: Recipe, each: int | None) -> int:
    return (each or 1) * recipe.training.accumulation


def passes_of(recipe: Recipe, each: int | None, done: int = 0) -> dict[str, int]:
    """Returns the forward passes of a run by what they are for.

    Args:
        recipe: The run's settings.
        each: Forward passes of a step and batch; None with gradients.
        done: Steps that have been made before.
    """
    steps = recipe.training.steps
    parts = {"steps": max(0, steps - done) * _batches(recipe, each)}
    if recipe.method.lr == "auto" and each is not None:
        before = looks_until(done, steps, each) if done else 0
        looks = max(0, looks_until(steps, steps, each) - before) if steps > done else 0
        parts["measuring"] = looks * recipe.training.accumulation
    return parts


def layout_line(recipe: Recipe, layout: Choice) -> str:
    """Returns the line on a run's batches.

    Args:
        recipe: Its settings.
        layout: How its batches are laid out.
    """
    training = recipe.training
    times = f"{training.accumulation} times " if training.accumulation > 1 else ""
    ways = {
        "joined": "packed: texts share rows and what they begin with",
        "packed": "packed: texts share rows",
        "padded": "padded: a row for each text",
    }
    if recipe.objective.scores and layout.way == "padded":
        return f"batches: {times}{training.batch_size} prompts a step"
    reason = f" ({layout.reason})" if layout.reason else ""
    return f"batches: {times}{training.batch_size} examples a step, {ways[layout.way]}{reason}"
