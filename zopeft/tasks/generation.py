"""Generation: greedy answers in batches, up to the first newline."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


def generate(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> list[str]:
    """Continues prompts greedily, each up to a newline or the end token.

    Args:
        model: A causal language model, with or without a PEFT adapter.
        tokenizer: Its tokenizer.
        prompts: Token ids, one sequence a prompt; padded on the left here.
        max_new_tokens: Most tokens of an answer.

    Returns:
        The answers without their newline and surrounding spaces.
    """
    from transformers import GenerationConfig, StoppingCriteriaList

    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    pad = next(int(one) for one in ids if one is not None)
    length = max(len(prompt) for prompt in prompts)
    device = model.device
    inputs = torch.tensor([[pad] * (length - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts], device=device)
    ends = _end_tokens(model, tokenizer)
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        pad_token_id=pad,
        eos_token_id=ends or None,
        bos_token_id=tokenizer.bos_token_id,
    )
    with torch.inference_mode(), _own_settings(model):
        output = model.generate(
            input_ids=inputs,
            attention_mask=mask,
            generation_config=config,
            stopping_criteria=StoppingCriteriaList([_Newline(tokenizer)]),
        )
    texts = tokenizer.batch_decode(output[:, length:], skip_special_tokens=True)
    # The first piece may decode to a space before a newline that was the model's answer.
    return [text.split("\n", 1)[0].strip() for text in texts]


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """End tokens of the tokenizer and of the model's own settings (chat models have several)."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = own if isinstance(own, list) else [own]
    return sorted({int(end) for end in [*ends, tokenizer.eos_token_id] if end is not None})


class _Newline:
    r"""Stops a row once its last token holds a newline.

    By text, not by id: many tokenizers have tokens like ``.\n``.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.known: dict[int, bool] = {}

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        last = input_ids[:, -1].tolist()
        for token in set(last) - set(self.known):
            self.known[token] = "\n" in self.tokenizer.decode([token])
        done = [self.known[token] for token in last]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)


@contextlib.contextmanager
def _own_settings(model: Any) -> Iterator[None]:
    """Generates with our settings alone, and without the warnings that they would cause.

    A chat model brings sampling settings of its own, which greedy decoding would warn of.
    """
    from transformers import GenerationConfig

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    before = base.generation_config
    base.generation_config = GenerationConfig()
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        base.generation_config = before
        logger.setLevel(level)
