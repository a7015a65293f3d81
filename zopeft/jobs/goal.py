"""The goal of a job: the loss function that its objective comes to, its batches and its scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zopeft.errors import InputError, input_error
from zopeft.recipe.schema import Recipe

if TYPE_CHECKING:
    from zopeft.tasks import Task, TaskDataset
    from zopeft.tasks.objectives.scored import ScoreLoss

REHEARSED = 2
"""Rows whose completions are generated and scored before a run begins."""


@dataclass
class Goal:
    """What is optimised.

    Attributes:
        loss: The loss function of batches.
        train: The examples to train on.
        collate: Makes batches of them.
        score: What the score is called; "" where it is a loss that is minimised.
        told: A line that says what it is; "" for a task's own loss.
        generates: The loss again, where it generates; else None.
        prompts: Makes a data set of prompts of rows, where it generates.
        feed: Makes batches of rows to measure, where a metric of the options is no task's own.
    """

    loss: Any
    train: Any
    collate: Any
    score: str = ""
    told: str = ""
    generates: ScoreLoss | None = None
    prompts: Callable[[Sequence[Any]], Any] | None = None
    feed: Callable[[Sequence[Any]], Any] | None = None

    def rehearse(self, model: Any) -> None:
        """Has a few completions generated and scored, so that a faulty score is told at once.

        Raises:
            InputError: They have no score, or the anchor does not fit the model.
        """
        from zopeft.tasks.objectives.sampling import ScoreError

        loss = self.generates
        if loss is None:
            return
        if loss.anchor is not None:
            loss.anchor.check(model)
        training = model.training
        model.eval()
        try:
            some = getattr(self.train, "head", self.train)
            loss.scores(model, [some[n] for n in range(min(REHEARSED, len(some)))])
        except ScoreError as error:
            raise InputError(str(error)) from error
        finally:
            model.train(training)

    def measured(self, model: Any, rows: Sequence[Any], batch_size: int) -> dict[str, float]:
        """Returns the score of rows under its name; nothing where it is a loss.

        Raises:
            RunError: A completion has no score.
        """
        from zopeft.errors import RunError
        from zopeft.jobs.together import sharing
        from zopeft.tasks.objectives.sampling import ScoreError

        if self.feed is not None:
            given = (model, self.feed(rows), batch_size, sharing(model))
            training = model.training
            model.eval()
            try:
                return {self.score: self.loss.measured(*given)}
            except ScoreError as error:
                raise RunError(str(error)) from error
            finally:
                model.train(training)
        if self.generates is None or self.prompts is None:
            return {}
        data = self.prompts(rows)
        order = sorted(range(len(data)), key=lambda n: -len(data[n].ids))
        training, step = model.training, self.generates.step
        model.eval()
        # The random numbers of no step of a run: validation is the same at every time.
        self.generates.begin(-1)
        parts = [
            [data[n] for n in order[first : first + batch_size]]
            for first in range(0, len(order), batch_size)
        ]
        try:
            return {self.score: self.generates.score_of(model, parts, sharing(model))}
        except ScoreError as error:
            raise RunError(str(error)) from error
        finally:
            self.generates.begin(step)
            model.train(training)


def make_goal(
    recipe: Recipe,
    task: Task,
    tokenizer: Any,
    train: TaskDataset,
    rows: Any,
    model: Any,
    adapter: str | None = None,
) -> Goal:
    """Returns what a recipe's objective comes to.

    Args:
        recipe: The recipe.
        task: Its task.
        tokenizer: The tokenizer, with the template that is used.
        train: The rows to train on, encoded for the task's loss.
        rows: The same rows.
        model: The model, with its adapter.
        adapter: The adapter's folder, where it was loaded from one.

    Raises:
        InputError: The objective does not fit the task, or its functions cannot be loaded.
    """
    from zopeft.tasks import Collator, TaskDataset, task_loss
    from zopeft.tasks.evaluation import fit_length
    from zopeft.tasks.objectives.library import code_folder
    from zopeft.tasks.objectives.objective import metric_of
    from zopeft.tasks.stream import as_needed
    from zopeft.tasks.table import table_rows

    section, known = recipe.objective, table_rows(model)
    length = fit_length(model, recipe.task.max_length)

    def encoded(some: Any, loss: str | None = None) -> TaskDataset:
        return TaskDataset(task, some, tokenizer, length, loss, known)

    own = code_folder(section.metric)
    code = [*section.rewards, *([] if own is None else [own])]
    _own_code(code, [recipe.model.name, adapter])
    if not section.scores:
        if task.kind == "prompt":
            do = "give --reward FILE.py:FUNCTION, or rows with answers"
            raise input_error(task.name, "rows of prompts alone have nothing to teach", do=do)
        return Goal(task_loss, as_needed(train, rows, encoded), Collator(tokenizer, known))
    if section.chosen == "metric":
        metric = metric_of(task, section.metric)
        if task.kind == "choice":
            from zopeft.tasks.feed import Feed
            from zopeft.tasks.objectives.accuracy import AccuracyLoss
            from zopeft.tasks.objectives.library import library_metric
            from zopeft.tasks.objectives.metrics import METRICS
            from zopeft.tasks.objectives.whole import WholeScore

            _refuse_generating(recipe, task)
            data = as_needed(encoded(rows, "choice"), rows, lambda one: encoded(one, "choice"))
            told = f"objective: {metric} of the option with the highest score"
            collate = Collator(tokenizer, known)
            if metric in METRICS:
                return Goal(AccuracyLoss(), data, collate, metric, told)
            score = WholeScore(library_metric(metric, section.trust_remote_code))

            def feed(some: Any) -> Feed:
                layout = recipe.training.layout
                return Feed(model, tokenizer, task, some, length, "choice", layout)

            named = score.compare.name
            return Goal(AccuracyLoss(score), data, collate, named, told, feed=feed)
        return _generating(recipe, task, tokenizer, train, rows, (length, known), metric)
    return _generating(recipe, task, tokenizer, train, rows, (length, known), "reward")


def _generating(
    recipe: Recipe,
    task: Task,
    tokenizer: Any,
    train: TaskDataset,
    rows: Any,
    bounds: tuple[int, int | None],
    name: str,
) -> Goal:
    from zopeft.tasks.objectives.anchor import Anchor
    from zopeft.tasks.objectives.objective import metric_score
    from zopeft.tasks.objectives.prompted import PromptCollator, PromptDataset
    from zopeft.tasks.objectives.rewards import load_rewards
    from zopeft.tasks.objectives.sampling import Sampling
    from zopeft.tasks.objectives.scored import Generated, ScoreLoss
    from zopeft.tasks.own_encoding import last_tokens
    from zopeft.tasks.stream import as_needed

    if task.kind == "text" and task.own is not None and task.own.kind.name == "text":
        do = "give rows with a prompt"
        raise input_error("--objective", "running text has no prompt to continue", name, do)
    section, (length, known) = recipe.objective, bounds
    most = section.max_new_tokens or (task.max_new_tokens if task.max_new_tokens > 1 else 128)
    if most >= length:
        what = f"leaves no room for a prompt in task.max_length={length}"
        raise input_error("objective.max_new_tokens", what, most, "lower it")
    sampling = Sampling(section.temperature, section.top_k, section.top_p)
    ends = () if task.kind == "prompt" else tuple(last_tokens(tokenizer, train.encoded))
    how = Generated(most, task.stop, sampling, section.samples, ends, recipe.training.seed)
    scores: Any
    if section.chosen == "reward":
        scores = load_rewards(section.rewards, section.weights)
    else:
        scores = metric_score(name, section.trust_remote_code)
        name = getattr(getattr(scores, "compare", None), "name", name)
    anchor = Anchor(section.anchor) if section.anchor else None
    loss = ScoreLoss(tokenizer, scores, how, anchor, section.chosen == "metric", section.shaping)

    def prompts(some: Any) -> Any:
        return PromptDataset(task, some, tokenizer, length, most, known)

    collate = PromptCollator(tokenizer, known)
    data = as_needed(prompts(rows), rows, prompts)
    return Goal(loss, data, collate, name, _told(recipe, name, most), loss, prompts)


def _told(recipe: Recipe, name: str, most: int) -> str:
    """Returns the line on what is optimised."""
    section = recipe.objective
    what = ", ".join(section.rewards) if section.chosen == "reward" else name
    words = [f"objective: {what} of"]
    if section.temperature:
        times = f"{section.samples} completions" if section.samples > 1 else "a completion"
        words.append(f"{times} a prompt, sampled at temperature {section.temperature:g},")
    else:
        words.append("greedy completions,")
    words.append(f"at most {most} new tokens")
    if section.anchor:
        words.append(f"; less {section.anchor:g} times the divergence from the base")
    return " ".join(words).replace(" ;", ";")


def _refuse_generating(recipe: Recipe, task: Task) -> None:
    """Refuses settings of completions where options are compared."""
    section = recipe.objective
    usual = type(section)()
    for key in ("samples", "temperature", "top_p", "max_new_tokens", "anchor", "shaping"):
        if getattr(section, key) != getattr(usual, key):
            what = f"{task.name} compares options and generates nothing"
            raise input_error(f"objective.{key}", what, getattr(section, key), "leave it out")


def _own_code(code: Sequence[str], folders: Sequence[str | None]) -> None:
    """Refuses the code of a reward or metric that a model's or an adapter's folder brings along.

    Raises:
        InputError: A file of it lies in one of the folders.
    """
    for folder in (Path(one).expanduser() for one in folders if one is not None):
        for name in code if folder.is_dir() else ():
            file = Path(name.rpartition(":")[0] or name).expanduser()
            inside = file.resolve().is_relative_to(folder.resolve())
            if inside and (file.suffix == ".py" or file.is_dir()):
                do = "read it, and put a copy of it elsewhere"
                flag = "--reward" if ":" in name else "objective.metric"
                raise input_error(flag, "code in the model's folder is not run", name, do)
