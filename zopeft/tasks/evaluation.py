"""Evaluation: a model's score on the rows of a task."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zopeft.blocks.packing import keep_unpacked
from zopeft.errors import input_error
from zopeft.ranks import ALONE, Ranks
from zopeft.tasks.answers import exact_match, f1
from zopeft.tasks.dataset import TaskDataset, place_of
from zopeft.tasks.dealing import dealt
from zopeft.tasks.feed import Feed
from zopeft.tasks.generation import generate, rows_together
from zopeft.tasks.loss import answer_losses, option_scores, option_sums
from zopeft.tasks.own_encoding import encode_openings, last_tokens
from zopeft.tasks.scores import OptionScores, choice_scores
from zopeft.tasks.table import check_ids, table_rows
from zopeft.tasks.task import AnyExample, Example, Task

Progress = Callable[[int, int], None]
Scored = dict[int, tuple[float, float]]
Batch = tuple[list[int], list[Any], Mapping[str, Any]]


def evaluate(
    model: Any,
    tokenizer: Any,
    task: Task,
    rows: Sequence[Mapping[str, Any]],
    batch_size: int = 16,
    max_length: int = 2048,
    max_examples: int | None = None,
    progress: Progress | None = None,
    layout: str = "auto",
    ranks: Ranks = ALONE,
    encoded: TaskDataset | None = None,
) -> dict[str, Any]:
    """Scores the model: accuracy by comparing options, F1 and exact match of answers, perplexity.

    The result does not depend on `batch_size`: the loss is weighted by tokens ("answer")
    or by examples ("choice") over all rows, not over batches.

    Args:
        model: A causal language model; it is in eval mode meanwhile.
        tokenizer: Its tokenizer.
        task: The task.
        rows: Rows in the hub's columns.
        batch_size: Examples in one forward; the options of each come on top.
        max_length: Most tokens of a text; lowered to what the model can read.
        max_examples: Take the first so many rows; None takes all.
        progress: Called with (examples done, examples in all) after each batch.
        layout: "packed" has the texts of a batch share rows, and options their prompt, so that
            nothing is computed twice; "padded" gives each text a row; "auto" packs where the
            model gives the same loss both ways.
        ranks: The processes that share the batches out; all of them are told the scores.
        encoded: What `check_rows` made of these rows, where they are scored again and again; None
            encodes them.

    Returns:
        What `zopeft.tasks.scores.choice_scores` tells of options, ``accuracy`` first; or ``f1`` and
        ``exact_match``, 0 to 1; or ``perplexity``. And ``loss`` and ``examples``.

    Raises:
        InputError: No rows, or a row that can't be encoded.
    """
    if max_examples is not None and max_examples < len(rows):
        rows, encoded = rows[:max_examples], None
    if not rows:
        raise input_error(task.name, "no rows to evaluate")
    keep_unpacked(model)
    length = fit_length(model, max_length)
    training = model.training
    model.eval()
    report = progress or (lambda done, total: None)
    try:
        if task.kind == "prompt":
            # What its completions are worth, a reward of the user's tells.
            result: dict[str, float] = {}
        elif task.kind == "choice":
            feed = Feed(model, tokenizer, task, rows, length, "choice", layout, encoded)
            texts = [_options(task.example(row)) for row in rows]
            result = _choices(model, task, feed, texts, batch_size, report, ranks)
        else:
            feed = Feed(model, tokenizer, task, rows, length, layout=layout, encoded=encoded)
            if task.kind == "answer":
                given = (feed, batch_size, length, report, ranks)
                result = _answers(model, tokenizer, task, rows, *given)
            else:
                result = _texts(model, feed, batch_size, report, ranks)
    finally:
        model.train(training)
    return {**result, "examples": len(rows)}


def mean_loss(
    model: Any,
    tokenizer: Any,
    task: Task,
    rows: Sequence[Mapping[str, Any]],
    batch_size: int = 16,
    max_length: int = 2048,
    layout: str = "auto",
) -> float:
    """Returns the ``loss`` of `evaluate` alone: one forward a row, nothing is generated.

    Args:
        model: A causal language model; it is in eval mode meanwhile.
        tokenizer: Its tokenizer.
        task: The task.
        rows: Rows in the hub's columns.
        batch_size: Examples in one forward.
        max_length: Most tokens of a text; lowered to what the model can read.
        layout: As of `evaluate`.

    Raises:
        InputError: No rows, or a row that can't be encoded.
    """
    if not rows:
        raise input_error(task.name, "no rows to evaluate")
    keep_unpacked(model)
    training = model.training
    total, weight = 0.0, 0
    model.eval()
    try:
        length = fit_length(model, max_length)
        feed = Feed(model, tokenizer, task, rows, length, layout=layout)
        for _, _, batch in feed.batches(batch_size):
            with torch.inference_mode():
                if task.loss == "choice":
                    scores = option_scores(model, batch).double()
                    right = scores.gather(1, batch["option_label"][:, None])[:, 0]
                    losses = scores.logsumexp(-1) - right
                else:
                    losses = answer_losses(model, batch)[0].double()
            total += float(losses.sum())
            weight += losses.numel()
    finally:
        model.train(training)
    return total / weight


def check_rows(
    model: Any, tokenizer: Any, task: Task, rows: Sequence[Mapping[str, Any]], max_length: int
) -> TaskDataset:
    """Returns rows as `evaluate` encodes them; refuses those that it would refuse.

    Raises:
        InputError: A row that can't be encoded, or tokens that the model does not have.
    """
    loss = "choice" if task.kind == "choice" else None
    length = fit_length(model, max_length)
    return TaskDataset(task, rows, tokenizer, length, loss, table_rows(model))


def fit_length(model: Any, max_length: int) -> int:
    """Returns `max_length`, lowered to the places that the model has for text.

    Args:
        model: A model; the virtual tokens of prefix and prompt tuning take places too.
        max_length: What is asked for.
    """
    config = model.config.get_text_config()
    places = getattr(config, "max_position_embeddings", None) or max_length
    adapter = getattr(model, "active_peft_config", None)
    virtual = getattr(adapter, "num_virtual_tokens", None) or 0
    return max(1, min(max_length, places - virtual))


def _choices(
    model: Any,
    task: Task,
    feed: Feed,
    texts: Sequence[tuple[str, ...]],
    batch_size: int,
    report: Progress,
    ranks: Ranks,
) -> dict[str, Any]:
    shape = len(feed.data), max(len(one.options) for one in feed.data)
    sums = torch.full(shape, -math.inf, dtype=torch.float64)
    tokens = torch.zeros(shape, dtype=torch.float64)
    right = torch.tensor([one.label or 0 for one in feed.data])
    done = _Done(len(feed.data), ranks, report)

    def find(one: Batch, last: bool) -> tuple[list[int], Tensor, Tensor]:
        chosen, _, batch = one
        with torch.inference_mode():
            found, counts = option_sums(model, batch)
        done.add(len(chosen))
        return chosen, found.double().cpu(), counts.double().cpu()

    for chosen, own, counts in dealt(ranks, feed.batches(batch_size), find):
        width = own.shape[1]
        sums[chosen, :width] = own
        tokens[chosen, :width] = counts
    scores = OptionScores(sums, tokens, texts, right)
    taught = right[:, None]
    if task.loss == "choice":
        means = scores.by_token
        loss = float((means.logsumexp(-1) - means.gather(1, taught)[:, 0]).mean())
    else:
        loss = -float(sums.gather(1, taught).sum() / tokens.gather(1, taught).sum())
    return {**choice_scores(scores), "loss": loss}


def _options(example: AnyExample) -> tuple[str, ...]:
    """Returns an example's options as text, without the spaces around them."""
    choices = example.choices if isinstance(example, Example) else None
    return tuple(choice.strip() for choice in choices or ())


def _answers(
    model: Any,
    tokenizer: Any,
    task: Task,
    rows: Sequence[Mapping[str, Any]],
    feed: Feed,
    batch_size: int,
    length: int,
    report: Progress,
    ranks: Ranks,
) -> dict[str, float]:
    examples = [task.example(row) for row in rows]
    room = max(1, length - task.max_new_tokens)
    place = place_of(task, rows)
    prompts = encode_openings(tokenizer, examples, room, place)
    ends = last_tokens(tokenizer, feed.data)
    check_ids(tokenizer, prompts, table_rows(model), place)
    done = _Done(len(rows), ranks, report)
    together = rows_together(model, max(map(len, prompts)) + task.max_new_tokens, batch_size)
    waiting: list[int] = []

    def find(one: Batch, last: bool) -> tuple[list[int], float, int, Scored]:
        chosen, _, batch = one
        with torch.inference_mode():
            losses, _ = answer_losses(model, batch)
        waiting.extend(chosen)
        scores: Scored = {}
        if len(waiting) + batch_size > together or last:
            given = (task.max_new_tokens, task.stop, ends)
            found = generate(model, tokenizer, [prompts[i] for i in waiting], *given)
            for index, answer in zip(waiting, found, strict=True):
                right = examples[index].answers
                scores[index] = f1(answer, right), exact_match(answer, right)
            done.add(len(waiting))
            waiting.clear()
        return chosen, float(losses.double().sum()), losses.numel(), scores

    loss = tokens = total_f1 = total_match = 0.0
    every = dealt(ranks, feed.batches(batch_size), find)
    scored = {index: one for *_, scores in every for index, one in scores.items()}
    for chosen, own, count, _ in every:
        loss += own
        tokens += count
        for index in chosen:
            total_f1 += scored[index][0]
            total_match += scored[index][1]
    match = total_match / len(rows)
    scores = {"f1": total_f1 / len(rows), "exact_match": match}
    if task.metric == "accuracy":
        scores = {"accuracy": match}
    return {**scores, "loss": loss / tokens}


def _texts(
    model: Any, feed: Feed, batch_size: int, report: Progress, ranks: Ranks
) -> dict[str, float]:
    done = _Done(len(feed.data), ranks, report)

    def find(one: Batch, last: bool) -> tuple[float, int]:
        chosen, _, batch = one
        with torch.inference_mode():
            losses, _ = answer_losses(model, batch)
        done.add(len(chosen))
        return float(losses.double().sum()), losses.numel()

    loss = tokens = 0.0
    for own, count in dealt(ranks, feed.batches(batch_size), find):
        loss += own
        tokens += count
    mean = loss / tokens
    # Beyond what a float can hold it is infinite.
    return {"perplexity": math.exp(mean) if mean < 700 else math.inf, "loss": mean}


class _Done:
    """Counts examples, those that other processes do meanwhile with them."""

    def __init__(self, most: int, ranks: Ranks, report: Progress) -> None:
        self.most, self.ranks, self.report, self.own = most, ranks, report, 0

    def add(self, count: int) -> None:
        self.own += count
        self.report(min(self.most, self.own * self.ranks.count), self.most)
