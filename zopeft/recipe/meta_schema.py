"""What a recipe may say about meta-training."""

from __future__ import annotations

from dataclasses import dataclass

from zopeft.meta.options import MetaOptions, rows
from zopeft.optim.declared import option


@dataclass(frozen=True)
class MetaSection(MetaOptions):
    """How a fine-tuner is learned (meta-train only); see `zopeft.meta` for the maths."""

    tasks: tuple[str, ...] = option(
        (), "names of the tasks whose first-order runs are watched", registry="task"
    )
    rows: str = rows()
