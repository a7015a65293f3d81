"""Recipe files, overrides and flags, read into one checked `Recipe`.

Later sources win: the defaults, the recipe file, the file's settings for the chosen
model, task and space, those for its small twin, ``key.sub=value`` overrides, flags.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from zopeft import reading
from zopeft.errors import InputError, close_matches, explain, input_error
from zopeft.recipe.check import Setting, check_settings, flatten
from zopeft.recipe.names import unknown
from zopeft.recipe.schema import Recipe

CHOICES = {"models": "model.name", "tasks": "task.name", "spaces": "peft.name"}
"""Parts of a recipe that hold settings for one choice, and the key that chooses; a task's
settings go over a model's, a space's over a task's."""
KINDS = {"models": "model", "tasks": "task", "spaces": "peft"}
"""The registries of their names."""
SMALL = "small"
"""The part of a recipe that turns it into its small twin."""


def shipped_recipes() -> dict[str, Path]:
    """Returns the recipes in the package: name (``embedded/tune``) to file."""
    root = Path(str(files("zopeft.recipes")))
    return {
        path.relative_to(root).with_suffix("").as_posix(): path
        for path in sorted(root.rglob("*.yaml"))
    }


def recipe_path(name: str, job: str | None = None) -> Path:
    """Returns the file of a recipe.

    Args:
        name: A file, a shipped recipe's name, or its folder's name where `job` tells which.
        job: The job that the recipe is for.

    Raises:
        InputError: There is no such recipe.
    """
    if name.endswith((".yaml", ".yml")) or Path(name).is_file():
        if Path(name).is_file():
            return Path(name)
        raise input_error("--recipe", "no such file", name, "give a recipe's name or file")
    shipped = shipped_recipes()
    for key in (name, f"{name}/{job}"):
        if key in shipped:
            return shipped[key]
    jobs = [key for key in shipped if key.startswith(f"{name}/")]
    if jobs and job:
        what = f"no recipe for zopeft {job} in this folder of {', '.join(jobs)}"
        do = f"leave it out, or give a file of your own with 'job: {job}'"
        raise input_error("--recipe", what, name, do)
    if jobs:
        raise input_error("recipe", "a folder of recipes", name, "name one: " + ", ".join(jobs))
    # A folder's name stands for the recipe in it that is for this job.
    folders = {key.partition("/")[0] for key in shipped if key.endswith(f"/{job}")}
    known = {*shipped, *folders}
    raise input_error("--recipe", "unknown recipe", name, close_matches(name, known))


def read_yaml(path: Path) -> dict[str, Any]:
    """Returns the mapping in a YAML file.

    Raises:
        InputError: The file cannot be read, is not YAML or holds no mapping.
    """
    content = reading.read_yaml(path)
    if not isinstance(content, dict):
        raise input_error(
            str(path), "a recipe must be a mapping of sections", type(content).__name__
        )
    return content


def parse_override(text: str) -> Setting:
    """Returns the setting of one ``key.sub=value``; the value is read as YAML.

    Raises:
        InputError: There is no key, or the value is not YAML.
    """
    key, _, value = text.partition("=")
    if not key.strip():
        raise input_error(text, "an override needs a key", do="write key.sub=value")
    return Setting(key.strip(), reading.parse_yaml(value, key.strip()), key.strip())


def load_recipe(
    job: str,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    flags: Mapping[str, tuple[str, Any]] | None = None,
    stored: Mapping[str, Any] | None = None,
    small: bool = False,
) -> Recipe:
    """Returns the checked recipe of one run.

    Args:
        job: "tune", "meta-train", "eval" or "bench".
        recipe: Name or file of a recipe; None starts from the defaults.
        overrides: ``key.sub=value`` texts.
        flags: Dotted key to (the flag's name, its value); None values are left out.
        stored: The recipe of an earlier run, to be continued; the lowest layer.
        small: Whether the recipe's small twin is wanted: its ``small`` sections on top.

    Raises:
        InputError: Something is wrong; its one line lists every problem.
    """
    path = None if recipe is None else recipe_path(recipe, job)
    layer = {} if path is None else read_yaml(path)
    return _laid(job, layer, "" if path is None else path.name, overrides, flags, stored, small)


def _laid(
    job: str,
    layer: Mapping[str, Any],
    label: str,
    overrides: Sequence[str] = (),
    flags: Mapping[str, tuple[str, Any]] | None = None,
    stored: Mapping[str, Any] | None = None,
    small: bool = False,
) -> Recipe:
    """Returns what `load_recipe` does, of a recipe's values and its file's name."""
    problems: list[str] = []
    settings: list[Setting] = []
    if stored is not None:
        settings += flatten(stored, "recipe in run.json", problems)
    if label:
        if layer.get("job", job) != job:
            problems.append(
                explain(label, f"is a recipe for {layer['job']}", do=f"not for zopeft {job}")
            )
        settings += flatten(layer, label, problems)
    late = _late(overrides, flags or {}, problems)
    if stored is not None:
        _refuse_code(stored, late)
    settings += _chosen_settings(layer, label, [*settings, *late], problems)
    settings += _small_settings(layer, label, problems) if small else []
    settings += late
    settings = [s for s in settings if s.key not in ("job", SMALL, *CHOICES)]
    settings.append(Setting("job", job, "job"))
    # With overrides or flags, what is wrong between settings may as well be theirs.
    with _named("" if late else label):
        return check_settings(settings, problems)


@contextmanager
def _named(label: str) -> Iterator[None]:
    """Puts a file's name before what is wrong in it, where the line does not have it."""
    try:
        yield
    except InputError as error:
        if label in str(error):
            raise
        raise InputError(f"{label}: {error}") from None


def _refuse_code(stored: Mapping[str, Any], late: Sequence[Setting]) -> None:
    """Refuses to run code because a record names it: who goes on with a run says so again.

    Raises:
        InputError: The record of a run names rewards or a metric of code, and the command does
            not.
    """
    objective = stored.get("objective") or {}
    metric = str(objective.get("metric") or "")
    if metric.lstrip("-").startswith("evaluate:"):
        needed = {"objective.metric": metric}
        if objective.get("trust_remote_code"):
            needed["objective.trust_remote_code"] = "true"
        if not needed.keys() <= {one.key for one in late}:
            what = "the run's metric is code, which is not run by a record's word"
            do = "give it again: " + " ".join(f"{key}={value}" for key, value in needed.items())
            raise input_error("--resume", what, do=do)
    rewards = objective.get("rewards") or []
    if rewards and not any(one.key == "objective.rewards" for one in late):
        what = "the run's rewards are code, which is not run by a record's word"
        do = "give them again: " + " ".join(f"--reward {name}" for name in rewards)
        raise input_error("--resume", what, do=do)


def _late(
    overrides: Sequence[str], flags: Mapping[str, tuple[str, Any]], problems: list[str]
) -> list[Setting]:
    """Returns the settings of overrides and flags."""
    settings = []
    for text in overrides:
        try:
            settings.append(parse_override(text))
        except InputError as error:
            problems.append(str(error))
    settings += [
        Setting(key, value, flag) for key, (flag, value) in flags.items() if value is not None
    ]
    return settings


def _chosen_settings(
    layer: Mapping[str, Any], label: str, settings: Sequence[Setting], problems: list[str]
) -> list[Setting]:
    """Returns what the recipe says for the chosen model, task and space alone."""
    found: list[Setting] = []
    for top, key in CHOICES.items():
        entries = layer.get(top) or {}
        if not isinstance(entries, Mapping):
            problems.append(explain(f"{label}: {top}", "must map names to settings"))
            continue
        given = [setting.value for setting in settings if setting.key == key]
        for name, values in entries.items():
            where = f"{label}: {top}.{name}"
            if not isinstance(values, Mapping):
                problems.append(explain(where, "must hold sections", str(values)))
                continue
            wrong = unknown(KINDS[top], str(name))
            problems += [f"{where}: {wrong}"] if wrong else []
            laid = flatten(values, where, problems)
            found += laid if given and given[-1] == name else []
    return found


def _small_settings(layer: Mapping[str, Any], label: str, problems: list[str]) -> list[Setting]:
    """Returns what the recipe says for its small twin alone."""
    values, where = layer.get(SMALL), f"{label or '--small'}: {SMALL}"
    if not isinstance(values, Mapping):
        problems.append(explain(where, "the recipe has no small twin", do="leave out --small"))
        return []
    return flatten(values, where, problems)


def check_recipe(recipe: str, job: str | None = None) -> list[Recipe]:
    """Checks one recipe: as it stands, and once for each model, task and space it names.

    Args:
        recipe: Name or file.
        job: The job; None takes the one that the file names.

    Returns:
        The recipes that the file can make.

    Raises:
        InputError: Something is wrong in it.
    """
    path = recipe_path(recipe, job)
    layer = read_yaml(path)
    job = job or str(layer.get("job", "tune"))
    made = [_laid(job, layer, path.name)]
    for top, key in CHOICES.items():
        for name in layer.get(top) or {}:
            with _named(path.name):
                flags = {key: (f"{top}.{name}", name)}
                made.append(_laid(job, layer, path.name, flags=flags))
    if SMALL in layer:
        made.append(_laid(job, layer, path.name, small=True))
    return made
