"""SuperGLUE: where its tasks are on the hub."""

from __future__ import annotations

from zopeft.tasks.task import HubSource


def superglue(config: str) -> HubSource:
    """Returns the source of one SuperGLUE task, pinned to the commit that made it Parquet."""
    return HubSource("aps/super_glue", config, revision="3de24cf8022e94f4ee4b9d55a6f539891524d646")
