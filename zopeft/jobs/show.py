"""The job of ``zopeft data show``: what a model is given of rows, and what of it is taught."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from zopeft import hub
from zopeft.errors import input_error
from zopeft.jobs.build import load_rows, model_label, on_embedded
from zopeft.jobs.data import make_task, record_of, take_template, told
from zopeft.jobs.progress import Listener, ignore
from zopeft.recipe.schema import Recipe

if TYPE_CHECKING:
    from zopeft.models import ModelSource
    from zopeft.tasks import TaskDataset
    from zopeft.tasks.encoding import Encoded


def show(recipe: Recipe, examples: int = 3, listener: Listener = ignore) -> dict[str, Any]:
    """Encodes the rows of a run, as ``zopeft tune`` would, with the model's tokenizer alone.

    Args:
        recipe: The recipe of the run.
        examples: How many of the training rows to show, from the first.
        listener: Called with reports.

    Returns:
        ``data`` with the counts of each split, ``lines`` that a run would say, and
        ``examples``: for each its ``place``, its ``pieces`` (a text and whether it is taught),
        ``ids`` and ``taught``, and the ``options`` of a classification.

    Raises:
        InputError: The data, the task or the tokenizer cannot be used.
    """
    from zopeft.tasks import TaskDataset
    from zopeft.tasks.counts import Counts
    from zopeft.tasks.evaluation import fit_length

    if examples < 0:
        raise input_error("--examples", "must be at least 0", examples)
    task = make_task(recipe)
    source, tokenizer, config = _tokenizer(recipe)
    embedded = on_embedded(source)
    take_template(recipe, task, tokenizer, embedded, listener)
    length = fit_length(SimpleNamespace(config=config), recipe.task.max_length)
    found: dict[str, tuple[TaskDataset, Any]] = {}
    for split in ("train", "validation"):
        rows = load_rows(recipe, task, split, embedded)
        found[split] = TaskDataset(task, rows, tokenizer, length), rows
    counts = {split: Counts.of(*pair) for split, pair in found.items()}
    data, rows = found["train"]
    return {
        "job": "data show",
        "model": model_label(source),
        "task": task.name,
        "max_length": length,
        "data": record_of(task, counts),
        "lines": told(recipe, task, tokenizer, rows, *counts.values()),
        "examples": [
            _example(tokenizer, one, rows.place(owner))
            for one, owner in zip(data.encoded[:examples], data.owners, strict=False)
        ],
    }


def _tokenizer(recipe: Recipe) -> tuple[ModelSource, Any, Any]:
    """The recipe's model as a source, its tokenizer and its configuration."""
    from transformers import AutoConfig

    from zopeft.models import resolve
    from zopeft.models.loading import load_tokenizer
    from zopeft.models.quiet import quiet

    source = resolve(recipe.model.name)
    offline = not source.local and not hub.reachable()
    with quiet(), hub.cache_only(offline):
        tokenizer = load_tokenizer(source, offline)
        try:
            config = AutoConfig.from_pretrained(source.path, **source.files)
        except Exception as error:
            why = (str(error).splitlines() or [type(error).__name__])[0][:120]
            raise input_error(source.label, f"no usable configuration there ({why})") from error
    return source, tokenizer, config


def _example(tokenizer: Any, one: Encoded, place: str) -> dict[str, Any]:
    from zopeft.tasks.counts import shown_text

    ids, marks = shown_text(one)
    options = one.options if one.label is not None else ()
    return {
        "place": place,
        "tokens": len(ids),
        "tokens_taught": sum(marks),
        "tokens_cut": one.cut,
        "pieces": pieces(tokenizer, ids, marks),
        "options": [tokenizer.decode(option) for option in options],
        "ids": list(ids),
        "taught": [bool(mark) for mark in marks],
    }


def pieces(tokenizer: Any, ids: Sequence[int], marks: Sequence[bool]) -> list[dict[str, Any]]:
    """Returns the text of tokens in parts that are taught or not.

    Args:
        tokenizer: A Hugging Face tokenizer.
        ids: Token ids [T].
        marks: Which of them are taught [T].

    Returns:
        Dicts with ``text`` and ``taught``; the texts together are the whole text.
    """

    def text(end: int) -> str:
        decoded: str = tokenizer.decode(list(ids[:end]), clean_up_tokenization_spaces=False)
        return decoded

    borders = [k for k in range(1, len(ids)) if marks[k] != marks[k - 1]]
    found, before = [], 0
    for first, end in zip([0, *borders], [*borders, len(ids)], strict=True):
        whole = text(end)
        # A character of several tokens may be cut by a border: it goes with the later part.
        size = len(whole) if end == len(ids) else len(whole.rstrip("\ufffd"))
        found.append({"text": whole[before:size], "taught": bool(marks[first])})
        before = size
    return found
