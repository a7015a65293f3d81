"""The table of blocks as plain text, and as rows for whoever prints it in colour."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zopeft.blocks.block import Block, Blocks

_HEADS = ("block", "role", "layer", "kind", "shape", "elements", "tied to")


def rows(blocks: Blocks) -> list[dict[str, Any]]:
    """Returns one dict a block, with plain values that JSON can hold.

    Keys: ``name role base_role layer depth kind shape elements dtype key owners tied``, where
    ``owners`` are the names under which the tensor is held and ``tied`` those after the first.
    """
    return [_row(block) for block in blocks]


def _row(block: Block) -> dict[str, Any]:
    owners = [f"{o.module_name}.{o.leaf}" if o.module_name else o.leaf for o in block.owners]
    return {
        "name": block.name,
        "role": block.role,
        "base_role": block.base_role,
        "layer": block.layer,
        "depth": block.depth,
        "kind": block.kind,
        "shape": list(block.shape),
        "elements": block.numel,
        "dtype": str(block.parameter.dtype).removeprefix("torch."),
        "key": block.key,
        "owners": owners,
        "tied": owners[1:],
    }


def text(blocks: Blocks) -> str:
    """Returns the table as aligned plain text, with a line of counts below it."""
    body = [
        (
            row["name"],
            row["role"],
            "-" if row["layer"] is None else str(row["layer"]),
            row["kind"],
            " x ".join(str(n) for n in row["shape"]) or "scalar",
            f"{row['elements']:,}",
            ", ".join(row["tied"]),
        )
        for row in rows(blocks)
    ]
    widths = [max(len(line[i]) for line in [_HEADS, *body]) for i in range(len(_HEADS))]
    numbers = (2, 5)

    def line(cells: tuple[str, ...]) -> str:
        parts = [
            cell.rjust(width) if i in numbers else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(parts).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(_HEADS), rule, *(line(cells) for cells in body), rule, footer(blocks)])


def footer(blocks: Blocks) -> str:
    """Returns the line of counts: blocks, roles, layers, elements, tied blocks."""
    tied = sum(len(block.owners) > 1 for block in blocks)
    roles = len({block.role for block in blocks})
    line = (
        f"{len(blocks)} blocks of {roles} roles in {blocks.num_layers} layers, "
        f"{blocks.numel:,} elements, {tied} tied; {blocks.architecture}, space {blocks.space}"
    )
    return line if blocks.adapter is None else f"{line}, adapter {blocks.adapter}"
