"""What a recipe may say of its objective: what is optimised, on what the model generates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from zopeft.recipe.fields import named, number


@dataclass(frozen=True)
class ObjectiveSection:
    """What is optimised.

    Attributes:
        name: "answer" and "choice" are losses, "metric" and "reward" scores of what the model
            generates; None is the task's own loss, or reward where there are rewards.
        metric: The metric: one of zopeft's, of scikit-learn's (``f1_macro``), or ``evaluate:NAME``;
            a minus before it says that less is better. None takes the task's own.
        trust_remote_code: Run the code of a metric that ``evaluate:NAME`` takes from the hub.
        rewards: Functions of your own, each MODULE:FUNCTION or FILE.py:FUNCTION.
        weights: A weight for each reward; none for 1.
        samples: Completions of each prompt.
        temperature: Of sampled completions; 0 takes the likeliest tokens.
        top_k: Sample from the likeliest so many tokens.
        top_p: Sample from the likeliest tokens with this share of the probability.
        max_new_tokens: Longest completion in tokens; None takes the task's own.
        shaping: "ranks" puts the centred ranks of a step's probes in place of their scores;
            "rows" divides the scores of each prompt by their spread over the probes.
        anchor: Weight of the divergence from the model without its adapter.
    """

    name: str | None = named(None, "objective")
    metric: str | None = named(None, "metric")
    trust_remote_code: bool = False
    rewards: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    samples: int = number(1, least=1)
    temperature: float = number(0.0, least=0.0)
    top_k: int = number(50, least=1, most=1000)
    top_p: float = number(1.0, above=0.0, most=1.0)
    max_new_tokens: int | None = number(None, least=1)
    shaping: Literal["none", "ranks", "rows"] = "none"
    anchor: float = number(0.0, least=0.0)

    @property
    def chosen(self) -> str | None:
        """The objective's name; None for the task's own loss."""
        return self.name or ("reward" if self.rewards else None)

    @property
    def scores(self) -> bool:
        """Whether what is optimised is a score."""
        return self.chosen in ("metric", "reward")
