"""Bad steps: how many in a row had a loss that is not finite, and when that is too many."""

from __future__ import annotations

from zopeft.errors import run_error


class BadSteps:
    """Counts bad steps in a row.

    Args:
        most: As many in a row end the run.

    Attributes:
        in_a_row: How many there are now.
        problem: Why there was no loss, where that is known.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.in_a_row = 0
        self.problem = ""

    def hear(self, problem: str) -> None:
        """Takes what a closure says of a loss that it did not find; "" for nothing."""
        self.problem = problem or self.problem

    def note(self, good: bool) -> None:
        """Takes note of a step, by whether its losses were finite."""
        self.in_a_row = 0 if good else self.in_a_row + 1

    def check(self, loss: float) -> None:
        """Ends a run that has had too many.

        Args:
            loss: A loss of the last one.

        Raises:
            RunError: There are `most` in a row.
        """
        if self.in_a_row >= self.most:
            if self.problem:
                kept = "the last good weights are kept"
                what = f"no score for {self.in_a_row} steps in a row ({self.problem})"
                raise run_error("objective", what, do=kept)
            raise run_error(
                "loss",
                f"not finite for {self.in_a_row} steps in a row",
                loss,
                "lower --lr or --eps, or use a wider --dtype; the last good weights are kept",
            )
