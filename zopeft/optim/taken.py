"""What the losses of a step's pairs have shown, for its record."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Taken:
    """What the losses of a step's pairs have shown, for its record.

    Args:
        first: Number of the first of its losses among all that the step asked for; where it is
            not 0, the one before is the loss at the weights.
        count: How many they are; 0 where the plan makes its estimate itself.
        mirrored: Whether the loss on the other side of the first direction follows them.
        spread: What the differences were divided by.
        gradients: Projected gradients, [K].
        raw: The same before they were clipped and divided.
    """

    first: int = 0
    count: int = 0
    mirrored: bool = False
    spread: float = 1.0
    gradients: tuple[float, ...] = ()
    raw: list[float] = field(default_factory=list)
