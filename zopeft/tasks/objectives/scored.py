"""The negative score of what a model generates, as a loss function of batches of prompts."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from zopeft.errors import input_error
from zopeft.noise import role_seed, step_seed
from zopeft.probing.examples import tell
from zopeft.ranks import ALONE, Ranks
from zopeft.tasks.dealing import dealt
from zopeft.tasks.endings import end_ids, text_of
from zopeft.tasks.generation import continue_all
from zopeft.tasks.objectives.anchor import Anchor
from zopeft.tasks.objectives.prompted import PROMPTED, Prompted
from zopeft.tasks.objectives.sampling import Draw, Sampling, ScoreError, row_numbers
from zopeft.tasks.objectives.shaping import SHAPINGS, by_rows, centred_ranks
from zopeft.tasks.objectives.whole import Gathered, WholeScore
from zopeft.tasks.table import padding_id, table_rows

logger = logging.getLogger(__name__)


class Scorer(Protocol):
    """What gives each completion a number."""

    def __call__(
        self, rows: Sequence[Prompted], texts: Sequence[str], ids: Sequence[Sequence[int]]
    ) -> list[float]:
        """Returns the scores [R] of rows' completions.

        Raises:
            ScoreError: There is none.
        """
        ...


@dataclass(frozen=True)
class Generated:
    """How answers are generated.

    Attributes:
        max_new_tokens: Longest answer in tokens.
        stop: Text that ends an answer; None where only an end token does.
        sampling: How tokens are chosen.
        samples: Answers to each prompt.
        end_tokens: End tokens beside the model's and the tokenizer's.
        seed: Seed of the run.
    """

    max_new_tokens: int = 50
    stop: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    samples: int = 1
    end_tokens: tuple[int, ...] = ()
    seed: int = 0


class ScoreLoss:
    """``-mean score`` over a batch's completions, and the anchor's term.

    Both probes of a step generate from the same prompts by the same random numbers, which are
    those of the step that `begin` names. A batch without a score (a reward that raises, or returns
    what is no number) has the loss NaN, so that its step is skipped and counted; `problem` says
    what it was.

    Args:
        tokenizer: The model's tokenizer.
        score: Gives completions their numbers.
        how: How completions are generated.
        anchor: What keeps the model near its start; None for nothing.
        strip: Whether answers are given to `score` without spaces around them.
        shaping: "none"; "ranks" or "rows", see `zopeft.tasks.objectives.shaping`.

    Attributes:
        problem: Why the last batch had no score; "" if it had.
        step: The step that is due.
    """

    def __init__(
        self,
        tokenizer: Any,
        score: Scorer,
        how: Generated,
        anchor: Anchor | None = None,
        strip: bool = False,
        shaping: str = "none",
    ) -> None:
        self.tokenizer, self.score, self.how = tokenizer, score, how
        self.anchor, self.strip = anchor, strip
        if shaping not in SHAPINGS:
            raise input_error("shaping", f"must be one of {', '.join(SHAPINGS)}", shaping)
        if shaping == "rows" and isinstance(score, WholeScore):
            what = f"{score.compare.name} is a number of all rows together, and has none for a row"
            raise input_error("objective.shaping", what, shaping, "use ranks, or leave it out")
        self.shaping = shaping
        self._seen: list[tuple[float, list[float], float]] = []
        self.problem = ""
        self.step = 0
        self._told: set[str] = set()

    def begin(self, step: int) -> None:
        """Takes the random numbers of a step, from 0, for the batches to come."""
        self.step = step
        if hasattr(self.score, "step"):
            self.score.step = step
        # What was run since and never shaped, as in an evaluation, is no probe of the step.
        self._seen = []

    def tokens(self, batch: Mapping[str, Any]) -> int:
        """Returns the tokens of one forward: most of them make one new token a row."""
        return len(batch[PROMPTED]) * self.how.samples

    flat = True
    """Whether the loss is flat in places, so that probes may not differ."""

    def shaped(self, losses: Tensor) -> Tensor | None:
        """Returns what the losses [P] of a step's probes are turned into; None for nothing.

        Args:
            losses: What `__call__` or `stacked` have returned, since they were last shaped.
        """
        seen, self._seen = self._seen, []
        if self.shaping == "none" or not bool(losses.isfinite().all()):
            return None
        if self.shaping == "ranks":
            return centred_ranks(losses)
        # A probe may have been run again: what it last came to is what counts.
        found, at = [], 0
        for loss in losses.tolist():
            at = next(n for n in range(at, len(seen)) if seen[n][0] == loss) + 1
            found.append(seen[at - 1])
        terms = torch.tensor([term for _, _, term in found]).to(losses)
        return by_rows([scores for _, scores, _ in found], self.how.samples).to(losses) + terms

    def __call__(self, model: Any, batch: Mapping[str, Any]) -> Tensor:
        """Returns the loss of a batch, 0-dim fp32."""
        return self.stacked(model, batch, 1)[0]

    def stacked(self, model: Any, batch: Mapping[str, Any], count: int) -> Tensor:
        """Returns the losses [P] of copies of a batch, which layers may treat each in its own way.

        Args:
            model: A causal language model.
            batch: A batch that `PromptCollator` made.
            count: Number of copies P.
        """
        device = batch["input_ids"].device
        try:
            scores, terms = self.scores(model, batch[PROMPTED], count)
        except ScoreError as error:
            self._note(str(error))
            return torch.full((count,), float("nan"), device=device)
        self.problem = ""
        losses = [-sum(own) / len(own) + term for own, term in zip(scores, terms, strict=True)]
        found = torch.tensor(losses, dtype=torch.float32, device=device)
        if self.anchor is None and not isinstance(self.score, WholeScore):
            tell(lambda: _by_prompt(scores, self.how.samples))
        if self.shaping == "rows":
            self._seen += list(zip(found.tolist(), scores, terms, strict=True))
        return found

    def scores(
        self, model: Any, rows: Sequence[Prompted], count: int = 1
    ) -> tuple[list[list[float]], list[float]]:
        """Returns scores by copy and completion, a prompt's side by side; and the anchor's terms.

        Raises:
            ScoreError: A completion has none.
        """
        how = self.how
        wanted = [one for one in rows for _ in range(how.samples)]
        prompts = [one.ids for one in wanted]
        ends = end_ids(model, self.tokenizer, how.end_tokens)
        pick = Draw(how.sampling, self._seed, row_numbers(prompts))
        with torch.no_grad():
            made, heard = continue_all(
                model,
                self.tokenizer,
                prompts,
                how.max_new_tokens,
                how.stop,
                ends,
                pick,
                count,
                self.anchor is not None,
            )
            terms = [0.0] * count
            if self.anchor is not None:
                pad = padding_id(self.tokenizer, table_rows(model))
                terms = [
                    self.anchor(model, prompts, own, logs, pad)
                    for own, logs in zip(made, heard, strict=True)
                ]
        found = []
        for own in made:
            texts = [text_of(self.tokenizer, ids, ends, how.stop, self.strip) for ids in own]
            found.append(self.score(wanted, texts, own))
        return found, terms

    def score_of(
        self, model: Any, parts: Iterable[Sequence[Prompted]], ranks: Ranks = ALONE
    ) -> float:
        """Returns the score of many rows, which are continued part by part.

        Args:
            model: The model, in eval mode.
            parts: The rows.
            ranks: The processes that share the parts out.

        Raises:
            ScoreError: There is none.
        """
        score = self.score
        if isinstance(score, WholeScore):
            whole = score

            def gathered(part: Sequence[Prompted], last: bool) -> Gathered:
                with whole.gathering() as found:
                    self.scores(model, part)
                return found

            pairs = dealt(ranks, parts, gathered)
            texts = [text for some, _ in pairs for text in some]
            return whole.value(texts, [answers for _, some in pairs for answers in some])

        def scored(part: Sequence[Prompted], last: bool) -> tuple[float, int]:
            ((*found,),), _ = self.scores(model, part)
            return sum(found), len(found)

        every = dealt(ranks, parts, scored)
        return sum(one for one, _ in every) / sum(count for _, count in every)

    @property
    def _seed(self) -> int:
        return role_seed(step_seed(self.how.seed, self.step), "sampling")

    def _note(self, problem: str) -> None:
        self.problem = problem
        if problem not in self._told:
            self._told.add(problem)
            logger.warning("the step is skipped: %s", problem)


def _by_prompt(scores: Sequence[Sequence[float]], samples: int) -> tuple[Tensor, Tensor]:
    """Returns the losses [P, B] of prompts, and their parts of all [B]."""
    losses = -torch.tensor(scores, dtype=torch.float32).unflatten(1, (-1, samples)).mean(2)
    return losses, torch.full_like(losses[0], 1.0 / losses.shape[1])
