"""Library metrics: scikit-learn's, and those of the `evaluate` library, by their names.

Both are optional, and imported when one of their metrics is asked for. `evaluate` has metrics as
code: of the user's own folder, which the name says, or of the hub, which is run where the user
allows it.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from zopeft.errors import InputError, close_matches, input_error
from zopeft.tasks.answers import normalize
from zopeft.tasks.objectives.metrics import METRICS
from zopeft.tasks.objectives.whole import Compare

KEY = "objective.metric"
EVALUATE, SKLEARN = "evaluate:", "sklearn:"
INSTALL = "run `pip install 'zopeft[metrics]'`"
AVERAGES = ("macro", "micro", "weighted")
LESS = "-"
"""Stands in front of a metric of which less is better."""
_TRIED = (["yes", "no", "no", "yes"], [("yes",), ("no",), ("yes",), ("no",)])
"""Answers that a metric is tried on when it is loaded."""


class LibraryMetric:
    """A metric of another library.

    Args:
        name: What it is called.
        function: Compares answers with right ones.
        sign: -1 where less is better.
    """

    def __init__(
        self,
        name: str,
        function: Callable[[Sequence[str], Sequence[Sequence[str]]], Any],
        sign: float,
    ) -> None:
        self.name, self.function, self.sign = name, function, sign

    def __call__(self, given: Sequence[str], accepted: Sequence[Sequence[str]]) -> float:
        """Returns the metric of answers; more is better."""
        with warnings.catch_warnings():
            # Of classes that a batch does not have.
            warnings.simplefilter("ignore")
            return self.sign * float(self.function(given, accepted))


def is_code(name: str | None) -> bool:
    """Whether a metric is code of a folder or the hub, by its name."""
    return bool(name) and str(name).removeprefix(LESS).startswith(EVALUATE)


def code_folder(name: str | None) -> str | None:
    """Returns the user's own folder or file that a metric names; None where it names none."""
    path = str(name).removeprefix(LESS).removeprefix(EVALUATE).partition("#")[0]
    own = path.startswith((".", "/", "~")) or path.endswith(".py")
    return path if is_code(name) and own else None


def unknown_metric(name: str) -> str | None:
    """Returns what is wrong with a metric's name; None where it may be one."""
    bare = name.removeprefix(LESS)
    if name in METRICS or is_code(bare):
        return None
    try:
        _sklearn(bare)
    except InputError as error:
        return str(error).removeprefix(f"{KEY}: ")
    return None


def library_metric(name: str, trust: bool = False) -> Compare:
    """Returns a metric that is none of zopeft's own.

    Args:
        name: A scorer or function of scikit-learn (``f1_macro``, ``matthews_corrcoef``;
            ``sklearn:f1_macro`` where the name is one of zopeft's, too), or ``evaluate:NAME`` with
            the metric's name on the hub or a folder, and ``#KEY`` where it gives several numbers.
            A minus before it: less is better.
        trust: Whether a metric's code from the hub may be run.

    Raises:
        InputError: There is no such metric, its library is not installed, its code is not to be run
            or it does not compare texts.
    """
    bare = name.removeprefix(LESS)
    if is_code(bare):
        from zopeft.tasks.objectives.evaluated import evaluated

        function, less = evaluated(bare.removeprefix(EVALUATE), code_folder(bare) is None, trust)
    else:
        function, less = _sklearn(bare)
    less = less or name.startswith(LESS)
    found = LibraryMetric(LESS + bare if less else bare, function, -1.0 if less else 1.0)
    try:
        found(*_TRIED)
    except InputError:
        raise
    except Exception as error:
        told = (str(error).strip().splitlines() or [""])[0][:200]
        what = f"does not compare texts with texts ({type(error).__name__}: {told})"
        raise input_error(KEY, what, name, _instead(bare)) from error
    return found


def _instead(name: str) -> str:
    base = name.removeprefix(SKLEARN).removesuffix("_score")
    if base in ("f1", "precision", "recall", "jaccard"):
        return f"{base}_macro is for classes by name"
    return "give one of classes or of texts, or a reward of your own"


def _sklearn(name: str) -> tuple[Callable[..., Any], bool]:
    """Returns scikit-learn's function of a scorer's or its own name, and whether less is better."""
    wanted = name.removeprefix(SKLEARN)
    hint = f"metrics of the evaluate library are {EVALUATE}NAME"
    try:
        from sklearn import metrics
    except ImportError:
        if name.startswith(SKLEARN):
            raise input_error(KEY, "scikit-learn is not installed", name, INSTALL) from None
        do = f"{close_matches(name, METRICS)}; for scikit-learn's {INSTALL}; {hint}"
        raise input_error(KEY, "unknown metric", name, do) from None
    base, average = wanted.removeprefix("neg_"), None
    for one in AVERAGES:
        if base.endswith(f"_{one}"):
            base, average = base.removesuffix(f"_{one}"), one
    names = (base, f"{base}_score", f"{base}_loss")
    function = next((f for n in names if (f := getattr(metrics, n, None)) is not None), None)
    known = {*metrics.get_scorer_names(), *(n for n in metrics.__all__ if _compares(metrics, n))}
    listed = wanted in known or (average is not None and base in known)
    if not listed or not callable(function):
        do = close_matches(wanted, {*known, *METRICS})
        do = do if do.startswith("did") else "zopeft list metrics has zopeft's own"
        raise input_error(KEY, "unknown metric", name, f"{do}; {hint}")
    less = function.__name__.endswith(("_loss", "_error"))
    options = {} if average is None else {"average": average}
    return partial(_of_classes, function, options), less


def _compares(metrics: Any, name: str) -> bool:
    """Whether a function of scikit-learn compares two lists of labels."""
    function = getattr(metrics, name)
    try:
        parameters = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return False
    return parameters[:2] in (["y_true", "y_pred"], ["y1", "y2"], ["labels_true", "labels_pred"])


def _of_classes(
    function: Callable[..., Any],
    options: dict[str, Any],
    given: Sequence[str],
    accepted: Sequence[Sequence[str]],
) -> Any:
    """A function of two lists of classes: answers, normalised, and the right ones.

    Where several are right, it is the one that was given, or the first. What is averaged over
    classes is averaged over those of the right answers.
    """
    ours = [normalize(one) for one in given]
    rights = [[normalize(one) for one in some] or [""] for some in accepted]
    right = [one if one in some else some[0] for one, some in zip(ours, rights, strict=True)]
    if options:
        options = {**options, "labels": sorted(set(right))}
    return function(right, ours, **options)
