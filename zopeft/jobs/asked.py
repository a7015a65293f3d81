"""Who a run asks for its losses, by the recipe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zopeft.errors import input_error
from zopeft.recipe.schema import Recipe


def executor_of(recipe: Recipe) -> Callable[[Any], Any] | None:
    """Returns what makes a method's executor; None for forward passes in this process.

    Args:
        recipe: Names it.

    Raises:
        InputError: What is optimised is no loss of tokens, or gradients are asked for.
    """
    section = recipe.executor
    if section.name == "here":
        return None
    if recipe.objective.scores:
        do = "use --objective answer, or leave the executor out"
        what = "scores labelled tokens, and generates nothing"
        raise input_error("executor vllm", what, recipe.objective.chosen, do)

    def made(method: Any) -> Any:
        from zopeft.executors import VLLM

        if method.order:
            do = "choose a method without gradients"
            raise input_error("executor vllm", "gives losses alone", type(method).__name__, do)
        where = (section.url, section.model, section.folder, section.adapters, section.timeout)
        return VLLM(method.engine, *where)

    return made
