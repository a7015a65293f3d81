"""The course of a run: running means of twenty steps, against losses that keep changing."""

import math

import pytest

from zopeft.finetuner import Course

SPAN = 20


def losses(step):
    """Loss at both sides and at the weights, no two steps alike."""
    middle = 3.0 + math.sin(1.7 * step) + 2.0 / (1 + step)
    half = 0.1 + 0.05 * math.cos(0.9 * step)
    return middle + half, middle - half, middle - 0.02 - 0.015 * math.sin(step)


def seen(step):
    plus, minus, zero = losses(step)
    return 0.5 * (plus + minus), (plus - minus) ** 2, plus + minus - 2 * zero


@pytest.mark.parametrize("count", [1, 2, 19, 20, 21, 22, 60])
def test_means_are_plain_for_twenty_steps_then_exponential(count):
    course = Course()
    for step in range(count):
        course.note(*losses(step))
    rows = [seen(step) for step in range(count)]
    first = [sum(column) / len(column) for column in zip(*rows[:SPAN], strict=True)]
    now = list(first)
    for row in rows[SPAN:]:
        now = [0.95 * mean + 0.05 * value for mean, value in zip(now, row, strict=True)]
    reading = course.reading()
    assert reading.log_loss == pytest.approx(math.log(now[0]), rel=1e-12)
    shares = [math.log(a / b) for a, b in zip(now, first, strict=True)]
    told = (reading.loss_share, 2 * reading.change, reading.bend)
    assert told == pytest.approx(shares, rel=1e-9, abs=1e-12)
    assert (max(map(abs, shares)) > 1e-3) == (count > SPAN)


def test_one_loss_that_is_not_finite_does_not_blind_the_course():
    course = Course()
    for step in range(25):
        course.note(*losses(step))
    before = course.reading()
    for zero in (math.nan, math.inf):
        course.note(2.0, 1.5, zero)
        after = course.reading()
        assert after.bend == before.bend != 0.0 and math.isfinite(after.bend)
        assert after.log_loss != before.log_loss
