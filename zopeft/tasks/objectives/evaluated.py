"""Metrics of the `evaluate` library: code of a folder of one's own, or of the hub."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from zopeft import hub
from zopeft.errors import input_error
from zopeft.tasks.places import no_bars

KEY = "objective.metric"
LESS_IS_BETTER = ("wer", "cer", "ter", "character", "mae", "mse", "mape", "smape", "perplexity")
"""Metrics of the library of which less is better, which no metric says of itself."""


def evaluated(
    name: str, remote: bool, trust: bool
) -> tuple[Callable[[Sequence[str], Sequence[Sequence[str]]], Any], bool]:
    """Returns a metric's function, and whether less of it is better.

    Args:
        name: The metric's name on the hub, or its folder or file; ``#KEY`` chooses one of its
            numbers.
        remote: Whether it is of the hub.
        trust: Whether code of the hub may be run.

    Raises:
        InputError: The library is not installed, the metric cannot be had, or is not to be run.
    """
    path, _, key = name.partition("#")
    if remote and not trust:
        do = "read it, and allow it with objective.trust_remote_code=true; or give a folder"
        raise input_error(KEY, "is code on the hub, which is not run unasked", path, do)
    try:
        import evaluate
    except ImportError:
        do = "run `pip install 'zopeft[metrics]'`"
        raise input_error(KEY, "the evaluate library is not installed", name, do) from None
    module = _module(evaluate, path, remote)
    takes = _Takes.of(module)

    def value(given: Sequence[str], accepted: Sequence[Sequence[str]]) -> Any:
        found = module.compute(**takes.shaped(given, accepted))
        return _number(found, name, key)

    return value, Path(path).stem in LESS_IS_BETTER


def _module(evaluate: Any, path: str, remote: bool) -> Any:
    offline = remote and not hub.reachable()
    if not remote:
        place = Path(path).expanduser()
        if not place.exists():
            raise input_error(KEY, "no such folder or file", path, "check the path")
        path = str(place)
    try:
        import datasets

        with hub.cache_only(offline), no_bars(datasets):
            return evaluate.load(path, keep_in_memory=True)
    except ImportError as error:
        # A metric tells of the packages that it needs.
        told = " ".join(str(error).split())[:200]
        raise input_error(KEY, f"needs more than is installed ({told})", path) from error
    except Exception as error:
        told = (str(error).splitlines() or [type(error).__name__])[0][:160]
        if offline:
            what = "the hub can't be reached, and the metric was not downloaded before"
            raise input_error(KEY, what, path, "give a folder with its code") from error
        what = f"cannot be loaded ({type(error).__name__}: {told})"
        raise input_error(KEY, what, path, "check the name") from error


class _Takes:
    """The form in which a metric takes answers.

    Args:
        several: Whether it takes all answers that are right, or one.
        numbers: Whether it takes classes by number.
    """

    def __init__(self, several: bool, numbers: bool) -> None:
        self.several, self.numbers = several, numbers

    @classmethod
    def of(cls, module: Any) -> _Takes:
        """Returns the form that a metric says it takes; where it takes several, the fullest."""
        forms = module.features if isinstance(module.features, list) else [module.features]
        forms = [dict(one) for one in forms]
        lists = [one for one in forms if not hasattr(one.get("references"), "dtype")]
        form = (lists or forms)[0]
        kind = str(getattr(form.get("predictions"), "dtype", "string"))
        return cls(bool(lists), kind.startswith(("int", "float")))

    def shaped(self, given: Sequence[str], accepted: Sequence[Sequence[str]]) -> dict[str, Any]:
        """Returns answers as the metric takes them."""
        if self.several:
            return {"predictions": list(given), "references": [list(one) for one in accepted]}
        right = [one if one in some else some[0] for one, some in zip(given, accepted, strict=True)]
        if self.numbers:
            numbers = {name: n for n, name in enumerate(sorted({*right, *given}))}
            given, right = [numbers[one] for one in given], [numbers[one] for one in right]  # type: ignore[misc]
        return {"predictions": list(given), "references": right}


def _number(found: Any, name: str, key: str) -> Any:
    """The number of a metric's mapping that is asked for, or the only one there is."""
    numbers = {k: v for k, v in dict(found).items() if _is_number(v)}
    bare = Path(name.partition("#")[0]).stem
    wanted = key or (bare if bare in numbers else "")
    if not wanted and len(numbers) == 1:
        wanted = next(iter(numbers))
    if wanted not in numbers:
        keys = ", ".join(f"#{one}" for one in numbers)
        raise input_error(KEY, "gives several numbers", name, f"add one of {keys}")
    return numbers[wanted]


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, str | bool) and float(value) is not None
    except (TypeError, ValueError):
        return False
