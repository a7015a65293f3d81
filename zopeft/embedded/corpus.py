"""The pretraining text: a mixture of all documents."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from zopeft.embedded import layouts, prompts
from zopeft.embedded.layouts import Layout

MIXTURE: tuple[tuple[Layout, float], ...] = (
    (layouts.echo, 6.0),
    (layouts.scene_questions, 18.0),
    (layouts.scene_retold, 8.0),
    (layouts.scene_claims, 12.0),
    (layouts.scene_checks, 10.0),
    (layouts.count_questions, 14.0),
    (layouts.sums, 2.0),
    (layouts.chain_story, 3.0),
    (layouts.chain_links, 4.0),
    (layouts.chain_directions, 3.0),
    (layouts.riddle_readings, 10.0),
    (layouts.riddle_checks, 8.0),
    (layouts.review_verdicts, 5.0),
    (prompts.sst2, 2.0),
    (prompts.cb, 3.0),
    (prompts.copa, 4.0),
    (prompts.boolq, 3.0),
    (prompts.wsc, 3.0),
    (prompts.squad, 5.0),
    (prompts.drop, 5.0),
)
"""Makers of documents and how often each is drawn, relative to the others."""


def documents(seed: int) -> Iterator[str]:
    """Make documents without end.

    Args:
        seed: Start of the random stream; the same seed gives the same text.

    Yields:
        Documents with marks (see ``zopeft.embedded.markup``).
    """
    rng = Random(seed)
    makers = [maker for maker, _ in MIXTURE]
    weights = [weight for _, weight in MIXTURE]
    while True:
        yield rng.choices(makers, weights)[0](rng)
