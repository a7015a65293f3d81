"""A model as it is used: a base, or a base with the adapter of a folder on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zopeft import hub
from zopeft.errors import InputError, input_error
from zopeft.jobs.build import EMBEDDED_NOTE, load_base
from zopeft.jobs.progress import Listener
from zopeft.reading import is_there, read_json
from zopeft.recipe.schema import Recipe

if TYPE_CHECKING:
    from zopeft.models import ModelSource


TEMPLATE = "chat_template.jinja"
"""The file of a chat template in a folder that transformers saved."""


def base_of(adapter: str) -> str | None:
    """Returns the base model that an adapter names, where it can still be found.

    Args:
        adapter: A PEFT adapter's folder.

    Returns:
        A folder or hub id; None for the embedded model, and where nothing is named.
    """
    try:
        told = read_json(Path(adapter) / "adapter_config.json")
        base = told.get("base_model_name_or_path")
    except (InputError, AttributeError):
        return None
    if not isinstance(base, str) or not base:
        return None
    from zopeft.models import resolve

    embedded = resolve(None)
    if base == embedded.path or (not is_there(Path(base)) and "/zopeft/embedded/" in base):
        return None
    return base


def is_adapter(name: str) -> bool:
    """Tells whether a folder, or a repository of the hub, holds a PEFT adapter.

    Args:
        name: A folder or a hub id; an id that cannot be looked up is none.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return (path / "adapter_config.json").is_file()
    if not hub.is_repository(name) or path.exists() or not hub.reachable():
        return False
    from huggingface_hub import file_exists

    return bool(file_exists(name, "adapter_config.json"))


def load_served(
    recipe: Recipe, adapter: str | None, listener: Listener
) -> tuple[Any, Any, ModelSource]:
    """Returns the recipe's model with the adapter on it, its tokenizer and its source.

    Args:
        recipe: Its model; without one, the adapter's own base is taken.
        adapter: A PEFT adapter's folder or hub id; None for the bare model.
        listener: Called with reports.

    Raises:
        InputError: The model or the adapter cannot be used, or a forward pass would ask for
            ``task_ids``.
    """
    note = EMBEDDED_NOTE
    if adapter is not None and recipe.model.name is None:
        recipe = replace(recipe, model=replace(recipe.model, name=base_of(adapter)))
        note = f"loading the embedded model with {adapter}"
    model, tokenizer, source = load_base(recipe, listener, note)
    if adapter is not None:
        from zopeft.models.adapters import load_adapter, needs_task_ids
        from zopeft.tasks.chat import read_template

        model = load_adapter(model, adapter)
        template = Path(adapter).expanduser() / TEMPLATE
        if template.is_file():
            # What it was tuned in; the base may have another, or none.
            tokenizer.chat_template = read_template(str(template))
        if needs_task_ids(model):
            what = "a prompt of several tasks asks for task_ids, which no task here has"
            raise input_error("--adapter", what, adapter, "use it from Python")
    return model, tokenizer, source
