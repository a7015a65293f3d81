"""Stopping between two steps: an interrupt that comes in the middle of one waits for its end."""

from __future__ import annotations


class Stopping:
    """Whether a step is being made, and whether the run is to stop after it."""

    def __init__(self) -> None:
        self.making = False
        self.asked = False

    def ask(self) -> bool:
        """Asks for a stop after the step that is being made.

        Returns:
            Whether there is one and nobody has asked before; else one may stop at once.
        """
        first = self.making and not self.asked
        self.asked = self.asked or first
        return first

    def begin(self) -> None:
        """A step begins."""
        self.making = True

    def end(self) -> None:
        """A step has ended, or the run has.

        Raises:
            KeyboardInterrupt: Somebody has asked for a stop.
        """
        asked, self.making, self.asked = self.asked, False, False
        if asked:
            raise KeyboardInterrupt

    def clear(self) -> None:
        """The run is over, however it ended."""
        self.making = self.asked = False


stopping = Stopping()
"""That of this process."""
