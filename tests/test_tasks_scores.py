"""Scores of options: accuracies under the names of others, calibration, shares of labels."""

import math

import pytest
import torch

from zopeft.tasks.scores import OptionScores, accuracy, calibrated, choice_scores, shares

INF = math.inf


def table(sums, tokens, texts, right):
    return OptionScores(
        torch.tensor(sums, dtype=torch.float64),
        torch.tensor(tokens, dtype=torch.float64),
        texts,
        torch.tensor(right),
    )


def test_options_of_unequal_length_are_compared_in_four_ways():
    """Each way prefers another option of the one row."""
    texts = [("a", "abcdefgh", "äöü", "ab cd")]
    found = table([[-2.0, -8.0, -4.0, -6.0]], [[1, 3, 4, 8]], texts, [0])
    assert found.sums.argmax() == 0
    assert found.by_token.argmax() == 3  # -2, -2.67, -1, -0.75
    assert found.by_character.argmax() == 1  # -2, -1, -1.33, -1.2
    assert found.by_byte.argmax() == 2  # -2, -1, -0.67, -1.2
    rights = [accuracy(one, torch.tensor([0])) for one in (found.sums, found.by_token)]
    assert rights == [1.0, 0.0]


def test_rows_may_have_fewer_options_than_others():
    found = table([[-1.0, -INF], [-3.0, -2.0]], [[1, 0], [1, 1]], [("a",), ("a", "b")], [0, 1])
    assert choice_scores(found) == dict.fromkeys(("accuracy", "acc", "acc_norm", "acc_bytes"), 1.0)
    assert found.labels == ()


def test_calibration_takes_away_what_a_label_gets_after_any_prompt():
    torch.manual_seed(0)
    right = torch.arange(200) % 2
    clear = torch.randn(200, 2, dtype=torch.float64) * 0.3
    clear[torch.arange(200), right] += 2.0
    bias = torch.tensor([5.0, 0.0], dtype=torch.float64)
    assert accuracy(clear, right) > 0.95
    assert accuracy(clear + bias, right) == 0.5
    torch.testing.assert_close(calibrated(clear + bias), calibrated(clear))
    assert accuracy(calibrated(clear + bias), right) > 0.95
    assert calibrated(clear).mean(0).abs().max() < 1e-12


def test_a_model_that_says_one_label_is_told():
    sums = [[-1.0, -3.0], [-1.0, -2.0], [-1.0, -1.1], [-1.0, -4.0]]
    found = choice_scores(table(sums, [[1, 1]] * 4, [("no", "yes")] * 4, [0, 1, 1, 0]))
    assert found["predicted"] == {"no": 1.0, "yes": 0.0}
    assert found["labels"] == {"no": 0.5, "yes": 0.5}
    assert (found["accuracy"], found["calibrated_accuracy"]) == (0.5, 1.0)


def test_shares_of_labels_of_one_name_are_added():
    assert shares(torch.tensor([0, 2, 1, 2]), ["a", "b", "a"]) == pytest.approx(
        {"a": 0.75, "b": 0.25}
    )
