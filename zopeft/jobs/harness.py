"""The job of ``zopeft eval --harness``: lm-evaluation-harness on a model with its adapter."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from zopeft.errors import close_matches, input_error
from zopeft.jobs.build import model_label
from zopeft.jobs.progress import Listener, Progress, ignore
from zopeft.jobs.served import load_served
from zopeft.recipe.schema import Recipe
from zopeft.report.summary import hardware, peak_bytes, versions


def harness(
    recipe: Recipe,
    tasks: Sequence[str],
    adapter: str | None = None,
    examples: int | None = None,
    listener: Listener = ignore,
) -> dict[str, Any]:
    """Runs tasks of lm-evaluation-harness on a model.

    Args:
        recipe: Its model, batch size and quantisation.
        tasks: Names that lm-eval knows, or YAML files, as ``zopeft data export`` writes them.
        adapter: A PEFT adapter's folder or hub id. Without a model in the recipe, the base
            model that the adapter names is loaded.
        examples: The first so many rows of each task; None takes all.
        listener: Called with reports.

    Returns:
        The summary; ``metrics`` holds each task's scores by lm-eval's names.

    Raises:
        InputError: lm-eval is not installed, knows no such task, or can't have its data.
    """
    started = time.monotonic()
    if find_spec("lm_eval") is None:
        do = "pip install 'zopeft[harness]'"
        raise input_error("--harness", "lm-evaluation-harness is not installed", do=do)
    names, manager = _tasks(tasks)
    model, tokenizer, source = load_served(recipe, adapter, listener)
    listener(Progress("harness", note=f"lm-evaluation-harness: {', '.join(names)}"))
    results = _run(model, tokenizer, names, manager, recipe.training.eval_batch_size, examples)
    return {
        "job": "eval",
        "model": model_label(source),
        "adapter": adapter,
        "harness": names,
        "metrics": {name: _named(one) for name, one in results.items()},
        "seconds": round(time.monotonic() - started, 3),
        "peak_bytes": peak_bytes(),
        "versions": {**versions(), "lm_eval": _version()},
        "hardware": hardware(),
        "recipe": recipe.to_dict(),
    }


def _tasks(wanted: Sequence[str]) -> tuple[list[str], Any]:
    """Returns the names of tasks, and lm-eval's manager, which knows the folders of the files."""
    from lm_eval.tasks import TaskManager

    from zopeft.models.quiet import quiet

    files = [Path(one).expanduser() for one in wanted if one.endswith((".yaml", ".yml"))]
    for file in files:
        if not file.is_file():
            raise input_error("--harness", "no such file", str(file))
    with quiet():
        places = [str(folder) for folder in dict.fromkeys(file.parent for file in files)]
        manager = TaskManager(include_path=places or None)
    names = [Path(one).stem if one.endswith((".yaml", ".yml")) else one for one in wanted]
    known = set(manager.all_tasks)
    for name in names:
        if name not in known:
            do = close_matches(name, known) if len(name) > 2 else ""
            raise input_error("--harness", "lm-eval knows no such task", name, do)
    return names, manager


def _run(
    model: Any, tokenizer: Any, names: list[str], manager: Any, batch: int, examples: int | None
) -> Mapping[str, Mapping[str, Any]]:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    from zopeft.models.quiet import quiet

    class Served(HFLM):  # type: ignore[misc]
        """lm-eval's model, whose logits are those of the text's own places."""

        def _model_call(self, inps: Any, *args: Any, **kwargs: Any) -> Any:
            # Trained prompts stand before the text, and have logits, too.
            return super()._model_call(inps, *args, **kwargs)[:, -inps.shape[1] :]

    with quiet():
        served = Served(pretrained=model, tokenizer=tokenizer, batch_size=batch)
        try:
            found = simple_evaluate(
                served,
                tasks=names,
                limit=examples,
                task_manager=manager,
                bootstrap_iters=0,
                log_samples=False,
                verbosity="ERROR",
            )
        except OSError as error:
            why = (str(error).splitlines() or [type(error).__name__])[0][:160]
            raise input_error(
                "--harness", f"its data can't be had ({why})", ",".join(names)
            ) from error
    results: Mapping[str, Mapping[str, Any]] = found["results"]
    return results


def _named(scores: Mapping[str, Any]) -> dict[str, float]:
    """Returns a task's scores; ``acc,none`` is ``acc``, other filters keep their name."""
    found = {}
    for key, value in scores.items():
        name, _, kind = key.partition(",")
        if isinstance(value, int | float) and not name.endswith("_stderr"):
            found[name if kind in ("", "none") else f"{name} ({kind})"] = float(value)
    return found


def _version() -> str:
    from importlib.metadata import version

    return version("lm_eval")
