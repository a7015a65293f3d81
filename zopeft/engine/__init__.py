"""The engine: exact probes and updates along addressed directions."""

from zopeft.engine.direction import Direction
from zopeft.engine.engine import Engine
from zopeft.engine.shapes import LowRank, Rows, Shape
from zopeft.engine.subspace import Subspace

__all__ = ["Direction", "Engine", "LowRank", "Rows", "Shape", "Subspace"]
