"""How often each token occurs in training data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zopeft.engine.frequency import frequency_shapes
from zopeft.errors import input_error
from zopeft.tasks.encoding import Encoded

if TYPE_CHECKING:
    from zopeft.blocks import Blocks


def count_tokens(datasets: Iterable[Any]) -> Tensor:
    """Counts the tokens of training examples.

    Of a task's example with several options those that training reads count: the right one
    where the loss is "answer", all of them, each after its prompt, where it is "choice".

    Args:
        datasets: Datasets of encoded examples, or of dicts with ``input_ids``; of a
            `zopeft.tasks.stream.TaskStream` the first rows count.

    Returns:
        int64 [V'], V' one more than the largest id found.

    Raises:
        InputError: A dataset cannot be read twice or says nothing of its tokens, or there is
            no token at all.
    """
    counter: Counter[int] = Counter()
    for one in datasets:
        # Of what is streamed, the first rows, which are held.
        dataset = getattr(one, "head", one)
        if not hasattr(dataset, "__len__"):
            raise input_error(
                "token counts",
                "the training data can be read only once",
                type(dataset).__name__,
                "use rows='none'",
            )
        for index in range(len(dataset)):
            counter.update(_ids(dataset[index]))
    if not counter:
        raise input_error("token counts", "the training data holds no token")
    counts = torch.zeros(max(counter) + 1, dtype=torch.int64)
    counts[list(counter)] = torch.tensor(list(counter.values()))
    return counts


def _ids(example: Any) -> Iterator[int]:
    if isinstance(example, Encoded):
        prompts = example.prompts[:1] if example.shared else example.prompts
        return chain.from_iterable((*prompts, *example.options))
    try:
        ids = example["input_ids"]
    except (TypeError, KeyError, IndexError):
        raise input_error(
            "token counts",
            "an example of the training data has no input_ids",
            type(example).__name__,
            "use rows='none'",
        ) from None
    return iter(torch.as_tensor(ids).flatten().tolist())


def frequency_options(
    rows: str | None, finetuner: Any, blocks: Blocks, datasets: Sequence[Any]
) -> dict[str, Any]:
    """Returns a zeroth-order method's arguments for rows of embeddings by token frequency.

    Args:
        rows: "frequency", "none", or None for what the fine-tuner was learned with.
        finetuner: The method's fine-tuner; None for none.
        blocks: The blocks to train, [N].
        datasets: The training data, as for `count_tokens`.

    Raises:
        InputError: "frequency", and no table of token embeddings is trained; or as `count_tokens`.
    """
    if rows == "frequency":
        shapes = frequency_shapes(blocks, count_tokens(datasets))
        if not shapes:
            do = "leave rows out, or train the full model"
            raise input_error("rows", "no table of token embeddings is trained", rows, do)
        return {"shapes": shapes}
    if rows == "none" or finetuner is None or finetuner.config.rows != "frequency":
        return {}
    return {"token_counts": count_tokens(datasets)}
