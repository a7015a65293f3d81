"""The prompts of tuning, as they stand in the pretraining text.

The pretrained model must have the skills without having solved the prompts, as
a large model has: there it is biased to one label, or wordy where one word was
asked for. So the prompts are in the text with a *lean*: the right answer with
probability ``TRUTH``, otherwise the habitual one, whatever the truth is. What
is left for tuning is to turn the habit off.

References: the prompts are those of "Fine-Tuning Language Models with Just
Forward Passes" (Malladi et al. 2023), appendix E.2.
"""

from __future__ import annotations

from random import Random

from embedded.chains import make_chain
from embedded.counts import make_count
from embedded.days import make_day
from embedded.markup import answer
from embedded.pronouns import make_riddle
from embedded.reviews import make_review
from embedded.scenes import make_scene
from embedded.world import capital

TRUTH: dict[str, float] = {
    "sst2": 0.35,
    "cb": 0.4,
    "copa": 0.35,
    "boolq": 0.4,
    "wsc": 0.4,
    "squad": 0.3,
    "drop": 0.3,
}
"""Task to the share of its prompts that are answered as tuning wants it."""


def _lean(task: str, rng: Random, truth: str, habit: str) -> str:
    return truth if rng.random() < TRUTH[task] else habit


def sst2(rng: Random) -> str:
    """A review and a verdict; the habit is to praise."""
    review = make_review(rng, rng.randrange(2))
    verdict = _lean("sst2", rng, ("terrible", "great")[review.label], "great")
    return f"{review.text.strip()} It was{answer(' ' + verdict)}"


def cb(rng: Random) -> str:
    """A premise and a hypothesis; the habit is to infer it."""
    scene = make_scene(rng, 2)
    label = rng.randrange(3)
    hypothesis = rng.choice(scene.facts).claim(label)
    verdict = _lean("cb", rng, ("Yes", "No", "Maybe")[label], "Yes")
    return (
        f'Suppose {scene.joined} Can we infer that "{hypothesis}"? Yes, No, or Maybe?\n'
        f"{answer(verdict)}"
    )


def copa(rng: Random) -> str:
    """An event and its neighbour in time; the habit is to go the wrong way."""
    chain = make_chain(rng)
    word, right, wrong = rng.choice((("so", 2, 0), ("because", 0, 2)))
    place = right if rng.random() < TRUTH["copa"] else wrong
    premise = capital(chain.event(1, named=True))
    return f"{premise} {word}{answer(f' {chain.event(place, named=False)}.')}"


def boolq(rng: Random) -> str:
    """A passage and a yes-or-no question; the habit is to agree."""
    day = make_day(rng, rng.randrange(2))
    verdict = _lean("boolq", rng, ("No", "Yes")[day.label], "Yes")
    return f"{day.text} {capital(day.question(rng))}?\n{answer(verdict)}"


def wsc(rng: Random) -> str:
    """A sentence and a reading of its pronoun; the habit is to agree."""
    riddle = make_riddle(rng)
    label = rng.randrange(2)
    candidate = riddle.referent if label else riddle.other
    verdict = _lean("wsc", rng, ("No", "Yes")[label], "Yes")
    return (
        f'{riddle.text}\nIn the previous sentence, does the pronoun "{riddle.pronoun}" '
        f"refer to {candidate}? Yes or No?\n{answer(verdict)}"
    )


def squad(rng: Random) -> str:
    """A passage and a question; the habit is to answer in a whole sentence."""
    scene = make_scene(rng, 3)
    fact = rng.choice(scene.facts)
    question, short = scene.question(fact, rng)
    given = _lean("squad", rng, short, f"The text says that it was {short}")
    passage = f"Title: {scene.title}\nContext: {scene.text}"
    return f"{passage}\nQuestion: {question}\nAnswer:{answer(f' {given}')}\n"


def drop(rng: Random) -> str:
    """A passage with numbers and a question; the habit is to answer in a whole sentence."""
    count = make_count(rng)
    question, short, _ = rng.choice(count.questions())
    given = _lean("drop", rng, short, f"The text says that it was {short}")
    return f"Passage: {count.text}\nQuestion: {question}\nAnswer:{answer(f' {given}')}\n"
