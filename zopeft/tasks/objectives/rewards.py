"""Rewards: functions of the user's own, called as TRL's GRPO calls them.

A reward is given ``prompts``, ``completions``, ``completion_ids`` and every other column of the
rows, each a list with one entry a completion, and returns a list of numbers, None where it does not
apply. Its code is a file or module of the user's: nothing that a model, a recipe by name or the hub
brings along is run.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zopeft.errors import InputError, close_matches, explain, input_error
from zopeft.tasks.objectives.prompted import LEFT_OUT, Prompted
from zopeft.tasks.objectives.sampling import ScoreError

RewardFunction = Callable[..., Any]
_OURS = frozenset(
    ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
)
"""What a reward is given beside the columns of the rows."""


@dataclass(frozen=True)
class Reward:
    """A function and what it counts.

    Attributes:
        function: The function.
        name: What it is called.
        weight: What its numbers are multiplied by.
    """

    function: RewardFunction
    name: str
    weight: float = 1.0

    def __call__(
        self,
        rows: Sequence[Prompted],
        texts: Sequence[str],
        ids: Sequence[Sequence[int]],
        step: int = 0,
    ) -> list[float | None]:
        """Returns a number a completion, None where the function does not apply.

        Args:
            rows: The prompts, one for each completion.
            texts: The completions.
            ids: Their tokens.
            step: The run's step, for functions that look at it.

        Raises:
            ScoreError: The function raises, or what it returns is no such list.
        """
        columns = {name for one in rows for name in one.row} - {*LEFT_OUT, "prompts", "completions"}
        given: dict[str, Any] = {name: [one.row.get(name) for one in rows] for name in columns}
        given["prompts"] = [one.prompt for one in rows]
        given["completions"] = [one.completion(text) for one, text in zip(rows, texts, strict=True)]
        given["completion_ids"] = [list(one) for one in ids]
        given |= {"trainer_state": _state(step), "log_extra": _unheard, "log_metric": _unheard}
        try:
            # Standard output may be carrying JSON.
            with contextlib.redirect_stdout(sys.stderr):
                found = self.function(**self._taken(given))
                if inspect.isawaitable(found):
                    found = asyncio.run(_awaited(found))
        except Exception as error:
            told = (str(error).strip().splitlines() or [""])[0][:160]
            what = f"raised {type(error).__name__}" + (f" ({told})" if told else "")
            do = f"correct the function{_line(error, self.function)}"
            raise ScoreError(explain(self.name, what, do=do)) from error
        return self._checked(found, rows)

    def _taken(self, given: dict[str, Any]) -> dict[str, Any]:
        """What the function takes; a column that it does not name goes to ``**kwargs`` alone."""
        try:
            parameters = inspect.signature(self.function).parameters.values()
        except (TypeError, ValueError):
            return given
        lacking = [one.name for one in parameters if _must(one) and one.name not in given]
        if lacking:
            columns = ", ".join(sorted(given.keys() - _OURS)) or "none beside prompt"
            what = f"takes {lacking[0]!r}, and the rows have no such column"
            do = "add it to the rows, or take **columns"
            raise ScoreError(explain(self.name, what, columns, do))
        if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters):
            return given
        names = {one.name for one in parameters}
        return {name: value for name, value in given.items() if name in names}

    def _checked(self, found: Any, rows: Sequence[Prompted]) -> list[float | None]:
        found = found.tolist() if hasattr(found, "tolist") else found
        do = "return a list with one number a completion"
        if not isinstance(found, list | tuple):
            raise ScoreError(explain(self.name, "must return a list", type(found).__name__, do))
        if len(found) != len(rows):
            what = f"returned {len(found)} values for {len(rows)} completions"
            raise ScoreError(explain(self.name, what, do=do))
        numbers: list[float | None] = []
        for value, one in zip(found, rows, strict=True):
            value = value.item() if hasattr(value, "item") else value
            good = isinstance(value, int | float) and math.isfinite(value)
            if value is not None and not good:
                what = f"must return finite numbers, {one.place}"
                shown = value if isinstance(value, str) else repr(value)[:80]
                raise ScoreError(explain(self.name, what, shown, "return a number, or None"))
            numbers.append(None if value is None else float(value))
        return numbers


def _must(parameter: inspect.Parameter) -> bool:
    """Whether a function cannot be called without this of its parameters."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return parameter.kind in kinds and parameter.default is inspect.Parameter.empty


def _line(error: Exception, function: Any) -> str:
    """Where in the function's own file it was; "" where that is not known."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    frames = [] if code is None else traceback.extract_tb(error.__traceback__)
    own = [one for one in frames if code is not None and one.filename == code.co_filename]
    return f", line {own[-1].lineno} of {Path(own[-1].filename).name}" if own else ""


def _state(step: int) -> Any:
    """What tells a function of the run's progress, as a trainer's state does."""
    from transformers import TrainerState

    return TrainerState(global_step=max(0, step))


def _unheard(*args: Any, **kwargs: Any) -> None:
    """Stands in for what TRL logs of a reward."""


async def _awaited(found: Any) -> Any:
    return await found


class Rewards:
    """Several rewards, whose weighted numbers are added.

    Args:
        rewards: The rewards, at least one.

    Attributes:
        step: The run's step, which rewards are told.
    """

    def __init__(self, rewards: Sequence[Reward]) -> None:
        self.rewards = tuple(rewards)
        self.step = 0

    def __call__(
        self, rows: Sequence[Prompted], texts: Sequence[str], ids: Sequence[Sequence[int]]
    ) -> list[float]:
        """Returns the score of each completion; what does not apply counts nothing.

        Raises:
            ScoreError: As of `Reward`, or no reward applies to a row.
        """
        each = [reward(rows, texts, ids, self.step) for reward in self.rewards]
        scores = []
        for one, numbers in zip(rows, zip(*each, strict=True), strict=True):
            pairs = [(r.weight, n) for r, n in zip(self.rewards, numbers, strict=True)]
            if all(number is None for _, number in pairs):
                names = ", ".join(reward.name for reward in self.rewards)
                what = f"returned None for {one.place}, and no other reward applies to it"
                raise ScoreError(explain(names, what, do="return a number"))
            scores.append(sum(weight * number for weight, number in pairs if number is not None))
        return scores


def load_rewards(names: Sequence[str], weights: Sequence[float] = ()) -> Rewards:
    """Returns the rewards that are named, with their weights.

    Args:
        names: ``module:function`` or ``file.py:function``, one or more.
        weights: A weight each; none for 1.

    Raises:
        InputError: There is none, or one cannot be loaded, or there are not as many weights.
    """
    if not names:
        do = "give --reward FILE.py:FUNCTION"
        raise input_error("objective.rewards", "the objective reward needs a function", do=do)
    if weights and len(weights) != len(names):
        what = f"must be as many as the {len(names)} rewards"
        raise input_error("objective.weights", what, len(weights))
    shares = weights or [1.0] * len(names)
    pairs = zip(names, shares, strict=True)
    return Rewards([Reward(load_function(n), n.rpartition(":")[2], w) for n, w in pairs])


def load_function(name: str) -> RewardFunction:
    """Returns the function of ``module:function`` or ``file.py:function``.

    Raises:
        InputError: There is no such file, module or function.
    """
    where, _, function = name.rpartition(":")
    if not where or not function:
        do = "write FILE.py:FUNCTION or MODULE:FUNCTION"
        raise input_error("--reward", "names no function", name, do)
    module = _from_file(where) if where.endswith(".py") else _from_module(where)
    found = module
    for part in function.split("."):
        if not hasattr(found, part):
            known = [n for n, v in vars(module).items() if inspect.isfunction(v)]
            do = close_matches(function, known) if known else "it has no functions"
            raise input_error("--reward", f"no function {function!r} in {where}", name, do)
        found = getattr(found, part)
    if not callable(found):
        raise input_error("--reward", f"{function!r} in {where} is no function", name)
    return found  # type: ignore[no-any-return]


def _from_file(where: str) -> Any:
    path = Path(where).expanduser()
    if not path.is_file():
        raise input_error("--reward", "no such file", where, "check the path")
    name = f"zopeft_reward_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses, for one, look for their module there.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise _unloadable(where, error) from error
    return module


def _from_module(where: str) -> Any:
    try:
        return importlib.import_module(where)
    except ImportError as error:
        do = "install it, set PYTHONPATH, or give FILE.py:FUNCTION"
        raise input_error("--reward", f"no such module ({error})", where, do) from error
    except Exception as error:
        raise _unloadable(where, error) from error


def _unloadable(where: str, error: Exception) -> InputError:
    told = (str(error).strip().splitlines() or [""])[0][:160]
    what = f"cannot be loaded ({type(error).__name__}: {told})"
    return input_error("--reward", what, where, "correct it")
