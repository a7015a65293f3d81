"""Rewards that tests call: some good, some not."""

import os

CALLS = []
TEXTS = ("Tom has a", "Anna", "It is", "Kate")
PROMPTS = [{"prompt": text, "goal": goal} for goal, text in enumerate(TEXTS)]


def length(completions, **columns):
    CALLS.append(sorted(columns))
    return [len(one) / 10 for one in completions]


def of_goal(prompts, completions, goal):
    pairs = zip(completions, goal, strict=True)
    return [float(one.count("a")) if wanted % 2 else None for one, wanted in pairs]


async def later(completions, **columns):
    return [1.0] * len(completions)


def raising(completions, **columns):
    raise ValueError("no such thing\nat all")


def short(completions, **columns):
    return [1.0]


def nothing(completions, **columns):
    return None


def nan(completions, **columns):
    return [1.0, float("nan"), 1.0][: len(completions)]


def words(completions, **columns):
    return ["good"] * len(completions)


def breaking(completions, **columns):
    CALLS.append(len(completions))
    if len(CALLS) > 3:
        raise KeyError("gone")
    return [float(len(one)) for one in completions]


def stopping(completions, **columns):
    CALLS.append(len(completions))
    if os.environ.get("STOP_AT") == str(len(CALLS)):
        raise KeyboardInterrupt
    return [float(len(one)) for one in completions]


def needing(completions, answer):
    return [float(one in text) for one, text in zip(answer, completions, strict=True)]
