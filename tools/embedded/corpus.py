"""The pretraining text: a mixture of all documents."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from embedded import layouts, prompts
from embedded.layouts import Layout

MIXTURE: tuple[tuple[Layout, float], ...] = (
    (layouts.echo, 5.0),
    (layouts.scene_questions, 20.0),
    (layouts.scene_retold, 10.0),
    (layouts.scene_claims, 10.0),
    (layouts.day_verdicts, 8.0),
    (layouts.count_questions, 18.0),
    (layouts.sums, 2.0),
    (layouts.chain_story, 2.0),
    (layouts.chain_links, 8.0),
    (layouts.chain_directions, 4.0),
    (layouts.riddle_readings, 8.0),
    (layouts.riddle_checks, 10.0),
    (layouts.review_verdicts, 8.0),
    (prompts.sst2, 2.0),
    (prompts.cb, 3.0),
    (prompts.copa, 4.0),
    (prompts.boolq, 3.0),
    (prompts.wsc, 4.0),
    (prompts.squad, 5.0),
    (prompts.drop, 5.0),
)
"""Makers of documents and how often each is drawn, relative to the others."""

_HEAVIER: dict[Layout, float] = {layouts.riddle_checks: 50.0, prompts.wsc: 24.0}

PRONOUNS: tuple[tuple[Layout, float], ...] = (
    *((maker, _HEAVIER.get(maker, weight)) for maker, weight in MIXTURE),
    (layouts.pronoun_checks, 60.0),
)
"""The same with many more readings of pronouns, which are learned last."""

PRACTICE = 8_000
"""Number of documents at the start of which half are practice in copying."""


def documents(seed: int, *, last: bool = False) -> Iterator[str]:
    """Make documents without end.

    Args:
        seed: Start of the random stream; the same seed gives the same text.
        last: Whether to draw from `PRONOUNS`, without practice, in place of `MIXTURE`.

    Yields:
        Documents with marks (see ``embedded.markup``).
    """
    rng = Random(seed)
    mixture = PRONOUNS if last else MIXTURE
    makers = [maker for maker, _ in mixture]
    weights = [weight for _, weight in mixture]
    for _ in range(0 if last else PRACTICE):
        maker = layouts.echo if rng.random() < 0.5 else rng.choices(makers, weights)[0]
        yield maker(rng)
    while True:
        yield rng.choices(makers, weights)[0](rng)
