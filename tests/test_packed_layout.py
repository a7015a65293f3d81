"""Layouts: each token sees its own text alone, and no text is put where it does not belong."""

from __future__ import annotations

import random

import pytest
import torch

from zopeft.probing.layout import lay_out
from zopeft.probing.packed import labels_of, texts_of
from zopeft.probing.rows import Costs

DOUBLED = 100


def random_texts(seed, count=12, longest=40):
    """Texts of a small vocabulary, of which many begin alike or are others' beginnings."""
    draw = random.Random(seed)
    texts = []
    for _ in range(count):
        begun = (
            draw.choice(texts)[: draw.randrange(longest)] if texts and draw.random() < 0.6 else []
        )
        texts.append((begun + [draw.randrange(3) for _ in range(draw.randrange(1, 12))])[:longest])
    return texts


def seen(layout, row, column):
    """The columns that a place of a row sees."""
    ends = layout.ends[row].tolist()
    return [key for key in range(column + 1) if column < ends[key]]


def padded(texts):
    width = max(map(len, texts))
    ids = torch.tensor([[*text, *[0] * (width - len(text))] for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts])
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


@pytest.mark.parametrize("join", [True, False])
@pytest.mark.parametrize("limit", [0, 7, 50])
def test_each_token_sees_what_stands_before_it_in_its_text(join, limit):
    joined = 0
    for seed in range(20):
        texts = random_texts(seed)
        width = max(map(len, texts))
        layout, _ = lay_out(texts, width, Costs(DOUBLED, limit), join)
        joined += layout.joined
        length = layout.ids.shape[1]
        assert length <= (max(width, limit) if limit else sum(map(len, texts)))
        used = set()
        for index, text in enumerate(texts):
            flat = layout.places[index * width : index * width + len(text)].tolist()
            assert layout.ids.flatten()[flat].tolist() == text
            assert layout.positions.flatten()[flat].tolist() == list(range(len(text)))
            row = flat[0] // length
            for depth, place in enumerate(flat):
                assert [row * length + key for key in seen(layout, row, place % length)] == flat[
                    : depth + 1
                ]
            used |= set(flat)
        for row in range(len(layout.ids)):
            for column in range(length):
                if row * length + column not in used:
                    assert seen(layout, row, column) == [column]
    assert joined == (20 if join else 0)


def test_what_texts_begin_with_stands_in_a_row_once():
    texts = [[1, 2, 3, 4, 5, 6, tail] for tail in range(7, 12)]
    together, cost = lay_out(texts, 7, Costs(DOUBLED))
    alone, dearer = lay_out(texts, 7, Costs(DOUBLED), join=False)
    assert together.ids.numel() == 6 + 5 and alone.ids.numel() == 35
    assert cost < dearer


def test_rows_are_filled_as_it_pays():
    texts = [[1] * size for size in (30, 3, 4, 5, 6, 7, 8, 2, 9, 11)]
    layout, _ = lay_out(texts, 30, Costs(40_000), join=False)
    assert layout.ids.numel() <= 1.05 * sum(map(len, texts))
    assert torch.equal(layout.ids, lay_out(texts, 30, Costs(40_000), join=False)[0].ids)
    narrow, _ = lay_out(texts, 30, Costs(1), join=False)
    assert narrow.ids.shape[1] == 30  # Where attention is dear, rows are no longer than a text.


def test_texts_end_with_the_last_token_that_is_needed():
    batch = padded([[1, 2, 3, 4], [5, 6], [7, 8, 9]])
    assert texts_of(batch, None) == [[1, 2, 3, 4], [5, 6], [7, 8, 9]]
    assert texts_of(batch, torch.tensor([1, 0, 8])) == [[1, 2], [], [7]]


def test_only_texts_that_begin_in_the_first_column_are_packed():
    batch = padded([[1, 2, 3, 4], [5, 6]])
    left = {name: tensor.flip(1) for name, tensor in batch.items()}
    torn = {**batch, "attention_mask": torch.tensor([[1, 1, 0, 1], [1, 1, 0, 0]])}
    assert texts_of(left, None) is None
    assert texts_of(torn, None) is None
    assert texts_of({"inputs_embeds": torch.zeros(1, 2, 3)}, None) is None
    assert texts_of({"input_ids": torch.zeros(0, 4, dtype=torch.long)}, None) is None


def test_no_label_is_predicted_by_another_text():
    batch = padded([[1, 2, 3], [4, 5], [6]])
    layout, _ = lay_out(texts_of(batch, None), 3, Costs(DOUBLED, 6), join=False)
    pairs = set()
    labels = labels_of(batch, layout)
    for ids, own in zip(layout.ids.tolist(), labels.tolist(), strict=True):
        pairs |= {(ids[at - 1], own[at]) for at in range(1, len(ids)) if own[at] != -100}
    assert pairs == {(1, 2), (2, 3), (4, 5)}
    assert int((labels != -100).sum()) == 3
