"""Jobs that several processes do together: one folder, claimed and written by the first of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from zopeft.errors import input_error
from zopeft.jobs.claim import CLAIM
from zopeft.jobs.folder import Folder
from zopeft.ranks import ALONE, Ranks, current


def sharing(model: Any) -> Ranks:
    """Returns the processes that can do an evaluation's batches for one another.

    Args:
        model: The model. Of one that they hold together, all take part in each forward pass.
    """
    from zopeft.blocks.shards import how_sharded

    return ALONE if how_sharded(model) else current()


def save(folder: Folder, model: Any, tokenizer: Any) -> None:
    """Writes a run's result, by the first process; all of them take part where they must."""
    from zopeft.blocks.shards import how_sharded
    from zopeft.training import save_result

    if folder.leads or how_sharded(model):
        save_result(model, tokenizer, folder.path)


@contextmanager
def all_of(ranks: Ranks, make: Callable[[], Folder]) -> Iterator[Folder]:
    """Returns a job's folder as a context, where all of its processes can use it.

    Args:
        ranks: The processes.
        make: Returns the folder of this process, checked.

    Raises:
        InputError: It cannot be used, or one of the processes does not see it.
    """
    made: list[Folder] = []
    try:
        with ranks.gate():
            made.append(make())
        _check_seen(ranks, made[0])
    except BaseException:
        for folder in made:
            folder.close()
        raise
    with made[0] as folder:
        yield folder


def _check_seen(ranks: Ranks, folder: Folder) -> None:
    """Refuses a folder of which the processes do not see the same claim.

    Raises:
        InputError: One of them sees another one, or none.
    """
    if not ranks.several:
        return
    try:
        claim = (folder.path / CLAIM).read_text()
    except OSError:
        claim = ""
    every = ranks.everyone(claim)
    for number, one in enumerate(every):
        if one != every[0]:
            raise input_error(
                "--out",
                f"rank {number} does not see the folder of rank 0",
                str(folder.path),
                "give a folder that all machines share",
            )
