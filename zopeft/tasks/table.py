"""Table: the model's embedding, whose rows are the tokens that the model knows.

A tokenizer may know more: tokens that were added to it alone. Padding is masked, so its id
is of no matter as long as the table has it; any other token outside the table is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from zopeft.errors import input_error


def table_rows(model: Any) -> int | None:
    """Returns the number of rows of a model's embedding; None where it has no such table."""
    find = getattr(model, "get_input_embeddings", None)
    table = None if find is None else find()
    while table is not None:
        rows = getattr(table, "num_embeddings", None)
        if rows is not None:
            return int(rows)
        # What PEFT puts around a module.
        table = getattr(table, "base_layer", None) or getattr(table, "original_module", None)
    return None


def padding_id(tokenizer: Any, rows: int | None = None) -> int:
    """Returns the id that fills a batch: the padding token's, or the end token's, or 0.

    Args:
        tokenizer: A Hugging Face tokenizer; it is left as it is.
        rows: Rows of the model's table, where known; an id outside is passed over.
    """
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(int(i) for i in ids if i is not None and (rows is None or 0 <= i < rows))


def check_ids(
    tokenizer: Any,
    texts: Iterable[Iterable[int]],
    rows: int | None,
    place: Callable[[int], str],
) -> None:
    """Refuses tokens that are not in the table.

    Args:
        tokenizer: The tokenizer, which knows what the tokens are called.
        texts: Token ids of each text.
        rows: Rows of the table; None checks nothing.
        place: Where a text comes from, by its index, for the message.

    Raises:
        InputError: Names the tokens of the first such text.
    """
    if rows is None:
        return
    for number, ids in enumerate(texts):
        strange = sorted({one for one in ids if one >= rows})
        if strange:
            names = [str(tokenizer.convert_ids_to_tokens(one)) for one in strange[:3]]
            raise input_error(
                place(number),
                f"tokens that the model's embedding of {rows} rows does not have",
                ", ".join(f"{n} (id {i})" for n, i in zip(names, strange, strict=False)),
                "call model.resize_token_embeddings(len(tokenizer)) and save the model, or use "
                "the tokenizer that the model was saved with",
            )
