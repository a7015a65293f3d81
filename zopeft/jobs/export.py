"""The job of ``zopeft data export``: a task as lm-evaluation-harness takes it, with its rows.

The folder holds the rows as text (prompt, options or answers), one YAML file, and a few lines of
Python that the YAML names: the rows' place beside it, and the F1 of answers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zopeft.errors import input_error
from zopeft.jobs.build import load_rows
from zopeft.jobs.data import make_task
from zopeft.jobs.folder import Folder
from zopeft.jobs.progress import Listener, Progress, ignore
from zopeft.recipe.schema import Recipe
from zopeft.tasks.task import Example, Task

CHOICE = """# {name} of zopeft, for lm-evaluation-harness, with the rows beside it.
task: {name}
custom_dataset: !function zopeft_task.rows
validation_split: validation
output_type: multiple_choice
num_fewshot: 0
doc_to_text: prompt
doc_to_choice: choices
doc_to_target: label
target_delimiter: "{space}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_bytes, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
ANSWER = """# {name} of zopeft, for lm-evaluation-harness, with the rows beside it.
task: {name}
custom_dataset: !function zopeft_task.rows
validation_split: validation
output_type: generate_until
num_fewshot: 0
doc_to_text: prompt
doc_to_target: answer
generation_kwargs: {{until: [{stop}], max_gen_toks: {most}, do_sample: false}}
process_results: !function zopeft_task.scores
metric_list:
  - {{metric: f1, aggregation: mean, higher_is_better: true}}
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
CODE = '''"""The rows beside this file, and how answers are scored."""

from pathlib import Path


def rows(**_):
    import datasets

    file = Path(__file__).with_name("rows.jsonl")
    return {"validation": datasets.Dataset.from_json(str(file))}


def scores(doc, results):
    from zopeft.tasks.answers import exact_match, f1

    given = results[0]
    return {"f1": f1(given, doc["answers"]), "exact_match": exact_match(given, doc["answers"])}
'''


def export(
    recipe: Recipe,
    out: str | None = None,
    overwrite: bool = False,
    listener: Listener = ignore,
) -> dict[str, Any]:
    """Writes a task's rows for lm-evaluation-harness, which gives them the same scores.

    Args:
        recipe: Its task or data. All rows are written unless ``task.eval_examples`` is given,
            which takes the first.
        out: The folder; None takes a new one below ``runs``.
        overwrite: Whether an earlier export may be replaced.
        listener: Called with reports.

    Returns:
        The summary: ``name`` of the task there, ``rows``, ``out``.

    Raises:
        InputError: The rows can't be had, or are conversations or running text, which the
            tokenizer has to put into words.
    """
    task = make_task(recipe, scored=True)
    name = f"zopeft_{Path(task.name).stem}".replace("-", "_")
    with Folder(out, f"export-{name}", overwrite, inputs=recipe.places) as folder:
        rows = load_rows(recipe, task, "validation", recipe.model.name is None, None)
        examples = [_example(task, row) for row in rows]
        folder.begin({"job": "export", "task": task.name, "out": str(folder.path)})
        place = folder.path
        (place / f"{name}.yaml").write_text(_yaml(task, name, examples), encoding="utf-8")
        (place / "zopeft_task.py").write_text(CODE, encoding="utf-8")
        space = _space(examples)
        with open(place / "rows.jsonl", "w", encoding="utf-8") as file:
            for example in examples:
                file.write(json.dumps(_row(example, space), ensure_ascii=False) + "\n")
        done = {"name": name, "rows": len(examples), "status": "done"}
        folder.write(done)
        listener(Progress("export", note=f"{len(examples)} rows of {task.name}"))
        return {"job": "export", "task": task.name, "out": str(folder.path), **done}


def _example(task: Task, row: Any) -> Example:
    example = task.example(row)
    if not isinstance(example, Example) or example.ends or task.kind == "text":
        what = "rows of conversations or running text are not exported"
        raise input_error("data export", what, task.name, "give a task of options or short answers")
    return example


def _space(examples: Sequence[Example]) -> str:
    """Returns what stands before every option or answer: a space, or nothing."""
    texts = [text for one in examples for text in one.choices or one.answers]
    return " " if all(text[:1] == " " and text[1:2] != " " for text in texts) else ""


def _row(example: Example, space: str) -> dict[str, Any]:
    prompt = example.prompt.lstrip().rstrip(" ")
    if example.choices is None:
        return {"prompt": prompt, "answer": example.answers[0], "answers": list(example.answers)}
    choices = [choice.removeprefix(space).rstrip(" ") for choice in example.choices]
    return {"prompt": prompt, "choices": choices, "label": example.label}


def _yaml(task: Task, name: str, examples: Sequence[Example]) -> str:
    if task.kind == "choice":
        return CHOICE.format(name=name, space=_space(examples))
    stop = "" if task.stop is None else json.dumps(task.stop)
    return ANSWER.format(name=name, stop=stop, most=task.max_new_tokens)
