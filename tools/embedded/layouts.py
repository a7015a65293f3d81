"""The same skills in other words: the part of the pretraining text that is always right."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from embedded.chains import Chain, make_chain
from embedded.counts import LARGEST, make_count
from embedded.days import make_day
from embedded.markup import answer
from embedded.pronouns import make_riddle
from embedded.reviews import CLOSINGS, make_review
from embedded.scenes import KINDS, make_scene
from embedded.world import PEOPLE, capital

Layout = Callable[[Random], str]


def scene_questions(rng: Random) -> str:
    """A scene and short questions on it."""
    scene = make_scene(rng, rng.choice((2, 3, 3)))
    question, before, after = rng.choice(
        (
            ("Q: ", "\nA:", "\n"),
            ("", "", ".\n"),
            ("- ", " -", "\n"),
            ("Question: ", "\nShort answer:", "\n"),
        )
    )
    opening = rng.choice(("", "Story: ", f"{scene.title}\n", "Context: ", "Passage: "))
    asked = [
        scene.question(fact, rng) for fact in rng.sample(scene.facts, min(3, len(scene.facts)))
    ]
    lines = "".join(
        f"{question}{ask}{before}{answer(f' {reply}{after[:1]}')}{after[1:]}"
        for ask, reply in asked
    )
    return f"{opening}{scene.text}\n{lines}"


def scene_retold(rng: Random) -> str:
    """A scene and its facts once more, in another order."""
    scene = make_scene(rng, rng.choice((2, 3, 4)))
    facts = rng.sample(scene.facts, len(scene.facts))
    before = rng.choice(("We read that ", "So ", "Again, ", "Indeed "))
    told = " ".join(
        f"{before}{fact.statement.removesuffix(' ' + fact.value)}{answer(f' {fact.value}')}."
        for fact in facts
    )
    return f"{scene.text} {told}\n"


def _words(rng: Random) -> list[str]:
    words = [person.name for person in rng.sample(PEOPLE, 4)]
    for kind in rng.sample(KINDS, 4):
        words += [value.split()[-1] for value in rng.sample(kind.values, 3)]
    rng.shuffle(words)
    return words


def echo(rng: Random) -> str:
    """Words in no order, and the same words again: practice in copying."""
    words = _words(rng)[: rng.randint(4, 11)]
    return f"Words: {' '.join(words)}\nAgain: {words[0]}{answer(' ' + ' '.join(words[1:]))}\n"


def scene_claims(rng: Random) -> str:
    """A scene and claims that follow from it, conflict with it or leave it open."""
    scene = make_scene(rng, rng.choice((1, 2, 2)))
    before, between, verdicts = rng.choice(
        (
            ("Claim: ", ".", ("true", "false", "unknown")),
            ("So ", " -", ("certain", "impossible", "possible")),
            ("Is it so that ", "?", ("yes", "no", "maybe")),
            ('From this "', '"', ("follows", "conflicts", "is open")),
        )
    )
    lines = ""
    for fact in rng.sample(scene.facts, min(2, len(scene.facts))):
        label = rng.randrange(3)
        lines += f"{before}{fact.claim(label)}{between}{answer(f' {verdicts[label]}')}\n"
    return f"{rng.choice((scene.text, scene.joined))}\n{lines}"


def day_verdicts(rng: Random) -> str:
    """Somebody's day and whether it was a good one."""
    day = make_day(rng, rng.randrange(2))
    question = capital(day.question(rng))
    before, verdicts = rng.choice(
        (
            (f"{question}?", ("no", "yes")),
            (f"Q: {question}?\nA:", ("no", "yes")),
            (f"A good day for {day.name}: that is", ("wrong", "right")),
            (f"The day of {day.name} was", ("bad", "good")),
            (f"In short, {day.name} was", ("unlucky", "lucky")),
        )
    )
    return f"{day.text}\n{before}{answer(f' {verdicts[day.label]}')}\n"


def count_questions(rng: Random) -> str:
    """A passage with numbers and short questions on it."""
    count = make_count(rng)
    before, between = rng.choice((("Q: ", "\nA:"), ("", ""), ("Question: ", "\nShort answer:")))
    lines = "".join(
        f"{before}{question}{between}{answer(f' {reply}')}\n"
        for question, reply, _ in rng.sample(count.questions(), 4)
    )
    return f"{count.text}\n{lines}"


def sums(rng: Random) -> str:
    """Plain sums and differences."""
    lines: list[str] = []
    for _ in range(6):
        first, second = rng.randint(1, LARGEST), rng.randint(1, LARGEST)
        if rng.random() < 0.5:
            lines.append(f"{first} and {second} make{answer(f' {first + second}')}.")
        else:
            low, high = sorted((first, second))
            lines.append(f"{high} less {low} is{answer(f' {high - low}')}.")
    return " ".join(lines) + "\n"


def chain_story(rng: Random) -> str:
    """Three events, told with words that say which brought about which."""
    chain = make_chain(rng)
    first, second, third = (chain.event(place, named=place == 0) for place in range(3))
    shape = rng.randrange(3)
    if shape == 0:
        link = ". As a result,"
        return f"{capital(first)}{link}{answer(f' {second}')}{link}{answer(f' {third}')}.\n"
    if shape == 1:
        return f"{capital(first)}. Then{answer(f' {second}')}. In the end{answer(f' {third}')}.\n"
    link = ". This came about since"
    return f"{capital(third)}{link}{answer(f' {second}')}{link}{answer(f' {first}')}.\n"


def chain_links(rng: Random) -> str:
    """A cause and its effect, from one side or the other."""
    chain = make_chain(rng)
    place = rng.randrange(2)
    cause, effect = chain.event(place, named=True), chain.event(place + 1, named=True)
    he_cause, he_effect = chain.event(place, named=False), chain.event(place + 1, named=False)
    return rng.choice(
        (
            f"{capital(cause)}. As a result,{answer(f' {he_effect}')}.\n",
            f"{capital(effect)}. This came about since{answer(f' {he_cause}')}.\n",
            f"Event: {effect}. Why?{answer(f' {he_cause}')}.\n",
            f"Event: {cause}. What next?{answer(f' {he_effect}')}.\n",
            f"{capital(cause)}, which led to this:{answer(f' {he_effect}')}.\n",
            f"{capital(effect)}, and the reason was this:{answer(f' {he_cause}')}.\n",
        )
    )


def chain_directions(rng: Random) -> str:
    """The middle event, then what came before or after it."""
    chain = make_chain(rng)
    middle = chain.event(1, named=True)
    before, after = (
        Chain(chain.person, chain.number).event(place, named=False) for place in (0, 2)
    )
    return f"{capital(middle)}. Before,{answer(f' {before}')}. After,{answer(f' {after}')}.\n"


def riddle_readings(rng: Random) -> str:
    """A sentence with a pronoun and what the pronoun means."""
    riddle = make_riddle(rng)
    who, pronoun = riddle.referent, riddle.pronoun
    return rng.choice(
        (
            f'{riddle.text}\nHere "{pronoun}" means{answer(f" {who}")}.\n',
            f'{riddle.text}\nWho or what is "{pronoun}"?{answer(f" {who}")}\n',
            f'{riddle.text}\nIn the previous sentence, "{pronoun}" is{answer(f" {who}")}.\n',
            f"{riddle.text} In other words:{answer(f' {who}')} is {riddle.cue}.\n",
        )
    )


def riddle_checks(rng: Random) -> str:
    """A sentence with a pronoun and claims on what the pronoun means."""
    riddle = make_riddle(rng)
    who, candidates = riddle.referent, list(riddle.candidates)
    rng.shuffle(candidates)
    before, words = rng.choice(
        (
            ("does it mean", ("no", "yes")),
            ("read it as", ("wrong", "right")),
            ("does it refer to", ("false", "true")),
        )
    )
    lines = "".join(
        f'"{riddle.pronoun}": {before} {candidate}?{answer(" " + words[candidate == who])}\n'
        for candidate in candidates
    )
    return f"{riddle.text}\n{lines}"


def pronoun_checks(rng: Random) -> str:
    """As `riddle_checks`, in whole questions."""
    riddle = make_riddle(rng)
    who, candidates = riddle.referent, list(riddle.candidates)
    rng.shuffle(candidates)
    before, after, words = rng.choice(
        (
            ("Does the pronoun", "?", ("No", "Yes")),
            ("In the previous sentence, does the pronoun", "?", ("no", "yes")),
            ("Can the pronoun", "? Say yes or no:", ("no", "yes")),
            ("In the sentence before, does the pronoun", "? True or false?\n", ("False", "True")),
        )
    )
    space = "" if after.endswith("\n") else " "
    lines = "".join(
        f'{before} "{riddle.pronoun}" refer to {candidate}{after}'
        f"{answer(space + words[candidate == who])}\n"
        for candidate in candidates[: rng.randint(1, 2)]
    )
    return f"{riddle.text}\n{lines}"


def review_verdicts(rng: Random) -> str:
    """A review and what its writer thought."""
    review = make_review(rng, rng.randrange(2))
    label, text = review.label, review.text
    return rng.choice(
        (
            f"{text}{answer(f' {rng.choice(CLOSINGS[label])}')} .\n",
            f"Review: {text}\nMood:{answer(' ' + ('negative', 'positive')[label])}\n",
            f"{text} That means{answer(' ' + ('terrible', 'great')[label])}\n",
            f"{text} Stars:{answer(' ' + ('one', 'five')[label])}\n",
            f'They wrote: "{text}" - a{answer(" " + ("bad", "good")[label])} review\n',
        )
    )
