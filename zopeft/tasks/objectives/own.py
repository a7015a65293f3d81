"""Objective: metrics and rewards of what a model generates, from Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zopeft.errors import InputError, input_error
from zopeft.probing.batch_loss import BatchLoss
from zopeft.tasks.objectives.anchor import Anchor
from zopeft.tasks.objectives.objective import metric_score
from zopeft.tasks.objectives.prompted import PromptCollator, Prompted, prompted_rows
from zopeft.tasks.objectives.rewards import Reward, Rewards, load_function
from zopeft.tasks.objectives.sampling import Sampling, ScoreError
from zopeft.tasks.objectives.scored import Generated, ScoreLoss

TOGETHER = 32
"""Rows of an evaluation that are continued together."""


class Objective(ScoreLoss):
    """A score of what a model generates, for plain optimizers and trainers.

    What is minimised is the negative mean score::

        objective = zopeft.Objective(tokenizer, my_reward, max_new_tokens=32)
        for rows in loader:                                     # lists of {"prompt": ..., ...}
            optimizer.step(objective.closure(model, rows))

        data = objective.data(rows)
        trainer = zopeft.ZOTrainer(
            model, args, objective.collator, data, loss_function=objective
        )

    Args:
        tokenizer: The model's tokenizer.
        rewards: Called as TRL's GRPO calls its reward functions, ``f(prompts=, completions=,
            completion_ids=, **columns)``, and returns a list of numbers, None where it does not
            apply: a function, ``module:function``, ``file.py:function``, or a list of them.
        weights: A weight each; none for 1.
        metric: A metric by name in place of rewards (``zopeft list metrics``, or one of
            scikit-learn's or ``evaluate:NAME``); rows then have ``answer`` or ``answers``.
        trust_remote_code: Whether a metric's code from the hub may be run.
        max_new_tokens: Longest completion in tokens.
        stop: Text that ends a completion; None where only an end token does.
        temperature: Of sampled completions; 0 takes the likeliest tokens.
        top_k: Sample from the likeliest so many tokens.
        top_p: Sample from the likeliest tokens with this share of the probability.
        samples: Completions of each prompt.
        anchor: Weight of the divergence from the model without its adapter.
        shaping: "ranks" puts the centred ranks of a step's probes in place of their scores;
            "rows" divides the scores of each prompt by their spread over the probes.
        max_length: Most tokens of a prompt and its completion.
        seed: Seed of what is sampled.

    Raises:
        InputError: There are rewards and a metric or neither, or one is unknown.
    """

    def __init__(
        self,
        tokenizer: Any,
        rewards: Callable[..., Any] | str | Sequence[Callable[..., Any] | str] | None = None,
        *,
        weights: Sequence[float] = (),
        metric: str | None = None,
        trust_remote_code: bool = False,
        max_new_tokens: int = 50,
        stop: str | None = None,
        temperature: float = 0.0,
        top_k: int = 50,
        top_p: float = 1.0,
        samples: int = 1,
        anchor: float = 0.0,
        shaping: str = "none",
        max_length: int = 512,
        seed: int = 0,
    ) -> None:
        if (rewards is None) == (metric is None):
            raise input_error("Objective", "takes rewards or a metric", do="give one of the two")
        sampling = Sampling(temperature, top_k, top_p)
        how = Generated(max_new_tokens, stop, sampling, samples, (), seed)
        score: Any = (
            metric_score(metric, trust_remote_code) if metric else _rewards(rewards, weights)
        )
        term = Anchor(anchor) if anchor else None
        super().__init__(tokenizer, score, how, term, metric is not None, shaping)
        self.max_length = max_length
        self._steps = 0

    @property
    def collator(self) -> PromptCollator:
        """What makes batches of `data`, for the Trainer's ``data_collator``."""
        return PromptCollator(self.tokenizer)

    def data(self, rows: Sequence[Mapping[str, Any]]) -> list[Prompted]:
        """Returns rows with a ``prompt``, text or turns, as a data set for a trainer.

        Raises:
            InputError: A row has none.
        """
        return prompted_rows(self.tokenizer, rows, self.max_length, self.how.max_new_tokens)

    def closure(self, model: Any, rows: Sequence[Mapping[str, Any]]) -> BatchLoss:
        """Returns the closure of the next step of an optimizer, over some rows.

        Args:
            model: The model, in eval mode.
            rows: Rows with a ``prompt``, or what `data` has made of them.
        """
        self.begin(self._steps)
        self._steps += 1
        found = [one for one in rows if isinstance(one, Prompted)]
        batch = self.collator(found if len(found) == len(rows) else self.data(rows))
        moved = {name: _moved(value, model) for name, value in batch.items()}
        return BatchLoss(model, moved, self)

    def evaluate(self, model: Any, rows: Sequence[Mapping[str, Any]]) -> float:
        """Returns the score of rows: the mean, or of a metric of rows together that of all.

        Raises:
            InputError: A completion has no score.
        """
        step, self.step = self.step, -1
        data = self.data(rows)
        parts = [data[first : first + TOGETHER] for first in range(0, len(data), TOGETHER)]
        try:
            return self.score_of(model, parts)
        except ScoreError as error:
            raise InputError(str(error)) from error
        finally:
            self.step = step


def _moved(value: Any, model: Any) -> Any:
    from zopeft.blocks.offloaded import device_of

    return value.to(device_of(model)) if hasattr(value, "to") else value


def _rewards(given: Any, weights: Sequence[float]) -> Rewards:
    functions = [given] if callable(given) or isinstance(given, str) else list(given)
    if weights and len(weights) != len(functions):
        what = f"must be as many as the {len(functions)} rewards"
        raise input_error("Objective weights", what, len(weights))
    found = []
    for one, weight in zip(functions, weights or [1.0] * len(functions), strict=True):
        function = load_function(one) if isinstance(one, str) else one
        name = getattr(function, "__name__", type(function).__name__)
        found.append(Reward(function, name, weight))
    return Rewards(found)
