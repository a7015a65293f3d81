"""What a plan returns: writes of weights and of state, done when the step is applied."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from zopeft.engine.vector import Vector


@dataclass(frozen=True)
class Descent:
    """``theta <- (1 - lr wd) theta - lr / K sum_k g_k u_k``.

    Args:
        directions: u, [K].
        gradients: g, [K].
    """

    directions: tuple[Vector, ...]
    gradients: tuple[float, ...]


@dataclass(frozen=True)
class Map:
    """``(theta, s) <- function(lr, (1 - lr wd) theta, v, s)``, element by element.

    Args:
        function: From learning rate, weights, vectors and state to new weights and state.
        vectors: v.
        state: Names of s.
    """

    function: Callable[..., tuple[Tensor, ...]]
    vectors: tuple[Vector, ...]
    state: tuple[str, ...]


@dataclass(frozen=True)
class Change:
    """New values of state that is not of the size of the weights.

    Args:
        values: Name to value.
    """

    values: Mapping[str, Any]


Write = Descent | Map | Change
