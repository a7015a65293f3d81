"""Who a run asks for its losses, by the recipe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zopeft.errors import input_error
from zopeft.recipe.schema import Recipe


def check_executor(recipe: Recipe) -> None:
    """Asks whether a server answers, before anything is loaded or written.

    Args:
        recipe: Names it.

    Raises:
        InputError: None does, or it does not serve what it should.
    """
    if recipe.executor.name == "vllm":
        from zopeft.executors import VLLMServer

        VLLMServer(recipe.executor.url, recipe.executor.model, recipe.executor.timeout)


def executor_of(recipe: Recipe) -> Callable[[Any], Any] | None:
    """Returns what makes a method's executor; None for forward passes in this process.

    Args:
        recipe: Names it.
    """
    section = recipe.executor
    if section.name == "here":
        return None

    def made(method: Any) -> Any:
        from zopeft.executors import VLLM

        if method.order:
            do = "choose a method without gradients"
            raise input_error("executor vllm", "gives losses alone", type(method).__name__, do)
        where = (section.url, section.model, section.folder, section.adapters, section.timeout)
        return VLLM(method.engine, *where)

    return made
