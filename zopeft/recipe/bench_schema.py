"""What a recipe may say about a bench: who competes, on what, with how many forward passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from zopeft.recipe.fields import named, number


@dataclass(frozen=True)
class BenchSection:
    """A comparison of methods (bench only).

    Attributes:
        models: Aliases, hub ids, folders or "embedded"; none of them is ``model.name``.
        tasks: Names of tasks or YAML files; none of them is ``task.name``.
        spaces: What is trained, as ``peft.name``; none of them is ``peft.name``.
        entries: Who competes, one line each: a method, a fine-tuner and options, as in
            "mezo clip=1" or "finetuner FOLDER" (see `zopeft.jobs.bench.entry`). MeZO and the
            controls of every fine-tuner are added.
        finetuners: Folders or hub ids of fine-tuners that compete, too; ``{model}`` in them
            stands for the model's name.
        forwards: Budget of one run in forward passes; a backward pass costs as much as two.
        count_calibration: Whether the forward passes with which lr=auto is found count.
        grid: Learning rates of an entry's grid, around the one that it proposes; 0 tries none,
            and compares runs at lr=auto, those of controls too.
        ratio: From one learning rate of the grid to the next.
        extensions: Points that a grid may grow by where the best is at its edge.
        lrs: Learning rates to try in place of the grid.
        auto: Whether every entry also runs with lr=auto.
        tune_seeds: Seeds on which an entry's learning rate is chosen.
        seeds: Further seeds, on which the chosen learning rate is reported.
        metric: Whether the metric is measured, on the reported seeds.
        workers: Processes that share the runs; with several, each has one thread.
    """

    models: tuple[str, ...] = ()
    tasks: tuple[str, ...] = named((), "task")
    spaces: tuple[str, ...] = named((), "peft")
    entries: tuple[str, ...] = ()
    finetuners: tuple[str, ...] = ()
    forwards: int = number(1000, least=4)
    count_calibration: bool = True
    grid: int = number(5, least=0)
    ratio: float = number(2.0, above=1.0)
    extensions: int = number(3, least=0)
    lrs: tuple[float, ...] = number((), above=0.0)
    auto: bool = True
    tune_seeds: int = number(1, least=1)
    seeds: int = number(3, least=1)
    metric: bool = True
    workers: int = number(1, least=1)

    @property
    def searches(self) -> bool:
        """Whether learning rates are tried for each entry."""
        return bool(self.lrs) or self.grid > 0


LISTS: dict[str, str] = {
    "models": "model.name",
    "tasks": "task.name",
    "spaces": "peft.name",
}
"""The lists that a bench crosses, and the key that each of their values is laid over."""

Job = Literal["tune", "meta-train", "eval", "bench"]
"""What a recipe can be for."""
