"""The data of a job: its task, rows to train and to score on, and what the user is told of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zopeft.errors import InputError, input_error
from zopeft.jobs.build import load_task
from zopeft.jobs.progress import Listener, Progress
from zopeft.reading import read_json
from zopeft.recipe.names import registry
from zopeft.recipe.schema import Recipe

if TYPE_CHECKING:
    from zopeft.tasks import Task
    from zopeft.tasks.counts import Counts
    from zopeft.tasks.streamed import Streaming


@dataclass(frozen=True)
class Tuned:
    """What a folder's own tuning said of its data; rows like them are read in the same way.

    Attributes:
        settings: The recipe's ``data`` section, as it was.
        labels: The options of a classification.
    """

    settings: Mapping[str, Any]
    labels: tuple[str, ...] = ()

    @classmethod
    def of(cls, folder: str | None) -> Tuned | None:
        """Returns what the run record in a folder says; None where there is none."""
        if folder is None:
            return None
        path = Path(folder).expanduser()
        try:
            record = read_json(path / "run.json")
            settings = record["recipe"].get("data") or {}
            labels = tuple((record.get("data") or {}).get("labels") or ())
        except (InputError, LookupError, TypeError, AttributeError):
            return None
        return cls(dict(settings), labels)


def make_task(recipe: Recipe, scored: bool = False, tuned: Tuned | None = None) -> Task:
    """Returns the task that a recipe names, or the one that its own data makes.

    Args:
        recipe: The recipe.
        scored: Whether rows are scored on alone: all of one file, or those of a split.
        tuned: What an earlier tuning said of such data; settings of the recipe go before.

    Raises:
        InputError: There is no such task, or the data cannot be read or tells of no kind.
    """
    wished: Any = recipe.task.loss
    if recipe.objective.chosen in ("answer", "choice"):
        wished = recipe.objective.chosen
    if recipe.task.name is None and not recipe.places:
        do = "give --data PATH for rows of your own, or one of: " + ", ".join(registry("task"))
        raise input_error("--task", "no task given", do=do)
    if not recipe.owns_data:
        task: Task = load_task(recipe.task.name, wished)
        return task
    from zopeft.tasks.kinds.kind import Wishes
    from zopeft.tasks.own import open_data, open_scored
    from zopeft.tasks.own_task import own_task

    section, place = recipe.data, " + ".join(recipe.places)
    how = streaming_of(recipe, scored, tuned)
    names = [f.name for f in fields(Wishes)]
    wishes = Wishes(**{name: getattr(section, name) for name in names})
    before = Wishes()
    columns: Mapping[str, str] = {}
    if tuned is not None:
        known = {name: tuned.settings[name] for name in names if name in tuned.settings}
        before = Wishes(**{**known, "labels": tuned.labels})
        columns = tuned.settings.get("columns") or {}
    held_out = _held_out(recipe, scored, tuned)
    if section.mixture:
        task = _mixed(recipe, scored, wishes, before, columns, how, held_out)
    else:
        data = (
            open_scored(place, section.split, held_out, how)
            if scored
            else open_data(place, section.split, section.validation, held_out, how)
        )
        task = own_task(data, section.kind, section.columns, wishes, columns, before)
    if section.template and not task.own.kind.chats:  # type: ignore[union-attr]
        what = f"goes with conversations, and {place} is {task.own.kind.name}"  # type: ignore[union-attr]
        raise input_error("data.template", what, section.template, "leave it out")
    if wished == "choice" and task.kind != "choice":
        raise input_error("task.loss", f"{task.name} has no choices", "choice", "use answer")
    return task if wished is None else replace(task, loss=wished)


def _held_out(recipe: Recipe, scored: bool, tuned: Tuned | None) -> float:
    """Returns which share of the rows is held out: to score on, what a tuning did not train on."""
    usual, asked = type(recipe.data)().held_out, recipe.data.held_out
    known = None if tuned is None else tuned.settings.get("held_out")
    if not scored or asked != usual or not isinstance(known, float):
        return asked
    return known if 0.0 < known < 1.0 else asked


def streaming_of(recipe: Recipe, scored: bool, tuned: Tuned | None) -> Streaming | None:
    """Returns how a job's rows are streamed; None where they are all read.

    What a tuning with streamed rows has held out is found again as it was drawn.

    Raises:
        InputError: Rows to score on are streamed, and nothing says how many.
    """
    from zopeft.tasks.streamed import SCORED, Streaming

    section, known = recipe.data, {} if tuned is None else tuned.settings
    drawn = bool(known.get("streaming")) and section.split is not None
    if not section.streaming and not (scored and drawn):
        return None
    most = recipe.task.eval_examples
    if scored and section.split is None and most is None:
        do = "give task.eval_examples=N: the first N rows are scored"
        raise input_error("data.streaming", "has no end to score", do=do)
    buffer = section.shuffle_buffer
    if scored and drawn and buffer == type(section)().shuffle_buffer:
        buffer = int(known.get("shuffle_buffer", buffer))
    return Streaming(buffer, recipe.training.seed, most or SCORED)


def _mixed(
    recipe: Recipe,
    scored: bool,
    wishes: Any,
    before: Any,
    columns: Mapping[str, str],
    how: Streaming | None,
    held_out: float,
) -> Task:
    """The task of a mixture; what an earlier tuning said goes where nothing else is asked for."""
    from zopeft.tasks.mixture import mixed_scored, mixed_task

    section = recipe.data
    named: Any = {
        "held_out": held_out,
        "kind": section.kind,
        "columns": section.columns,
        "wishes": wishes,
        "how": how,
    }
    if scored:
        earlier = {"columns_before": columns, "wishes_before": before}
        return mixed_scored(list(section.mixture), section.split, **named, **earlier)
    seed, validation = recipe.training.seed, section.validation
    return mixed_task(section.mixture, section.split, validation, **named, seed=seed)


def take_template(
    recipe: Recipe, task: Task, tokenizer: Any, embedded: bool, listener: Listener
) -> None:
    """Gives the tokenizer the chat template that the recipe names.

    The embedded model has none of its own; turns then stand in a plain one.

    Raises:
        InputError: The template cannot be read.
    """
    from zopeft.tasks.chat import has_template, read_template

    if task.own is None or not task.own.kind.chats:
        return
    name = recipe.data.template
    if name is None and embedded and task.own.turns == "must" and not has_template(tokenizer):
        name = "plain"
        note = "the embedded model has no chat template: turns are put into data.template=plain"
        listener(Progress("load", note=note))
    if name is not None:
        tokenizer.chat_template = read_template(name)


def told(
    recipe: Recipe,
    task: Task,
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    train: Counts | None,
    scored: Counts,
) -> list[str]:
    """Returns the lines that say what a job works on.

    Args:
        recipe: The recipe.
        task: The task.
        tokenizer: The tokenizer, with the template that is used.
        rows: The rows to train on, or to score on where none are.
        train: What the rows to train on come to; None where none are.
        scored: What the rows to score on come to.
    """
    lines = [f"data: {_kind(task, tokenizer)}", f"rows: {_rows(recipe, task, train, scored)}"]
    if task.own is not None and task.own.shares:
        lines.insert(1, f"mixture: {'; '.join(map(str, task.own.shares))}")
    if task.own is not None and task.own.told:
        lines.append(f"note: {task.own.told}")
    lines += _never_generated(task, rows)
    counts = [one for one in (train, scored) if one is not None]
    shown = counts[0]
    share = f"{shown.taught:,} of {shown.tokens:,} {'taught' if train else 'scored'}"
    mean = shown.tokens / max(1, shown.texts)
    longest = f"the longest text has {max(one.longest for one in counts):,}"
    lines.append(f"tokens: {share}; {mean:,.1f} a text, {longest}")
    cut = sum(one.cut for one in counts)
    if cut:
        texts = sum(one.texts for one in counts)
        lines.append(
            f"note: {cut:,} of {texts:,} texts are longer than task.max_length="
            f"{recipe.task.max_length} or the model allows, and are cut"
        )
    return lines


def _never_generated(task: Task, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What to say of answers that go on after the text that ends them."""
    if task.kind != "answer" or not task.stop:
        return []
    taught = [task.example(row).answers[0].removesuffix(task.stop) for row in rows]
    count = sum(task.stop in answer for answer in taught)
    if not count:
        return []
    do = "data.stop=TEXT" if task.own is not None else "`stop: TEXT` (or null) in the task's file"
    what = f"{count:,} of {len(rows):,} answers hold {task.stop!r}, which ends what is generated"
    return [f"note: {what}: the rest of them can't be scored; say {do}"]


def record_of(task: Task, counts: Mapping[str, Counts]) -> dict[str, Any]:
    """Returns what a run's record says of its data: kind, labels and counts a split."""
    found: dict[str, Any] = {split: one.to_dict() for split, one in counts.items()}
    if task.own is not None:
        found |= {"kind": task.own.kind.name, "labels": list(task.own.labels)}
        if task.own.data.train.streams is not None and "train" in found:
            found["train"] |= {"available": None, "streamed": True}
        if task.own.shares:
            found["mixture"] = [asdict(share) for share in task.own.shares]
    return found


def _kind(task: Task, tokenizer: Any) -> str:
    """What the rows are, and how they become text."""
    from zopeft.tasks.chat import has_template
    from zopeft.tasks.kinds import KINDS

    if task.own is None:
        return task.name
    kind, name = task.own.kind, task.own.data.name
    kinds = list(dict.fromkeys(share.kind for share in task.own.shares)) or [kind.name]
    line = f"{name}: {KINDS.about(kinds[0])} (data.kind={kinds[0]})"
    if len(kinds) > 1:
        line = f"{name}: {', '.join(kinds)}"
    if task.own.labels:
        line += f" {', '.join(task.own.labels[:8])}"
        line += ", ..." if len(task.own.labels) > 8 else ""
    if task.own.turns != "no":
        line += ", in the chat template" if has_template(tokenizer) else ", without a chat template"
    return f"{line}; scored by {task.metric}"


def _rows(recipe: Recipe, task: Task, train: Counts | None, scored: Counts) -> str:
    """How many rows, where the scored ones come from, and which caps there are."""
    caps = []
    for one, key in ((train, "train_examples"), (scored, "eval_examples")):
        if one is not None and one.rows < one.available:
            caps.append(f"task.{key}={getattr(recipe.task, key)}")
    where = f", {task.own.data.told}" if task.own is not None else ""
    streams = None if task.own is None or train is None else task.own.data.train.streams
    parts = [] if train is None else [f"{_of(train)} to train"]
    if train is not None and streams is not None:
        parts = [f"{streams.told} (tokens are counted of the first {train.rows:,})"]
    parts.append(f"{_of(scored)} to score on{where}")
    cap = f"; {', '.join(caps)}, null takes all" if caps else ""
    return " and ".join(parts) + cap


def _of(counts: Counts) -> str:
    if counts.rows < counts.available:
        return f"{counts.rows:,} of {counts.available:,}"
    return f"{counts.rows:,}"
