"""Catalog: the tasks by name, and tasks from YAML files."""

from __future__ import annotations

from pathlib import Path

from zopeft.errors import close_matches, input_error
from zopeft.registry import Registry
from zopeft.tasks.task import Task

TASKS = Registry(
    "task",
    {
        "sst2": "zopeft.tasks.sst2:TASK",
        "cb": "zopeft.tasks.cb:TASK",
        "copa": "zopeft.tasks.copa:TASK",
        "boolq": "zopeft.tasks.boolq:TASK",
        "wsc": "zopeft.tasks.wsc:TASK",
        "squad": "zopeft.tasks.squad:TASK",
        "drop": "zopeft.tasks.drop:TASK",
    },
    about={
        "sst2": "sentiment of a film review, 2 classes, accuracy",
        "cb": "does the premise entail the hypothesis, 3 classes, accuracy",
        "copa": "the likelier cause or effect of two, accuracy",
        "boolq": "a yes-or-no question on a passage, accuracy",
        "wsc": "does the pronoun refer to the noun, 2 classes, accuracy",
        "squad": "a question on a passage, answered in its words, F1",
        "drop": "a question that needs counting or arithmetic, F1",
    },
)
"""Task name to `Task`."""


def load_task(name: str | Path) -> Task:
    """Returns a task by its name, or from a YAML file.

    Args:
        name: An entry of `TASKS`, or the path of a YAML file (see `zopeft.tasks.custom`).

    Raises:
        InputError: Unknown name, no such file, or a faulty file.
    """
    given = str(name)
    if given in TASKS:
        return TASKS[given]
    path = Path(name).expanduser()
    if path.suffix.lower() in (".yaml", ".yml") or path.is_file():
        from zopeft.tasks.custom import read_task

        return read_task(path)
    raise input_error(
        "--task",
        "unknown task",
        given,
        close_matches(given, TASKS)
        + "; a task of your own is a YAML file (NAME.yaml) with the keys "
        "name, prompt, and answer, or choices and label",
    )
