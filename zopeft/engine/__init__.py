"""The engine: exact probes and updates along addressed directions."""

from zopeft.engine.direction import Direction
from zopeft.engine.engine import Engine

__all__ = ["Direction", "Engine"]
