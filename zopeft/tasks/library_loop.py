"""Transformers' own loop: what prompts are continued by where zopeft's own cannot.

It also is what the own loop (`zopeft.tasks.decoding`) must agree with.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from zopeft.blocks.offloaded import device_of
from zopeft.tasks.endings import Endings

Pick = Callable[[Tensor, Sequence[int], int], Tensor]
"""From fp32 logits [R, V], the rows' numbers [R] and the new token's place to tokens [R]."""


def continued(
    model: Any,
    prompts: Sequence[Sequence[int]],
    pad: int,
    max_new_tokens: int,
    stops: Sequence[Any] = (),
    processors: Sequence[Any] = (),
    **settings: Any,
) -> tuple[Tensor, Any]:
    """Returns the new tokens [R, S] after prompts, padded to be one batch; and logits, if wished.

    Args:
        model: A causal language model, with or without a PEFT adapter.
        prompts: Token ids of each prompt.
        pad: The id that fills a batch.
        max_new_tokens: Most new tokens.
        stops: Stopping criteria.
        processors: Logits processors.
        **settings: Further settings of generation.
    """
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    if _has_soft_prompt(model):
        generator, inputs = model.get_base_model(), _soft_inputs(model, prompts, pad)
    else:
        generator, inputs = model, _inputs(model, prompts, pad)
    output = generator.generate(
        **inputs,
        generation_config=GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=max_new_tokens,
            pad_token_id=pad,
            return_dict_in_generate=True,
            **settings,
        ),
        stopping_criteria=StoppingCriteriaList(stops),
        logits_processor=LogitsProcessorList(processors),
    )
    # From embeddings, generate returns the new tokens alone.
    given = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
    return output.sequences[:, given:], output.logits


def _inputs(model: Any, prompts: Sequence[Sequence[int]], pad: int) -> dict[str, Tensor]:
    length = max(len(prompt) for prompt in prompts)
    ids = [[pad] * (length - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    device = device_of(model)
    return {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }


def _has_soft_prompt(model: Any) -> bool:
    """True for prompt and P-tuning: trained embeddings before the text (not prefix tuning)."""
    config = getattr(model, "active_peft_config", None)
    kind = str(getattr(getattr(config, "peft_type", None), "value", ""))
    return kind in ("PROMPT_TUNING", "P_TUNING")


def _soft_inputs(model: Any, prompts: Sequence[Sequence[int]], pad: int) -> dict[str, Tensor]:
    """Embeddings of padding, trained prompt and text, in this order.

    PEFT puts the trained prompt before the padding, which then stands between it and the
    text and moves them apart: the answers would depend on what else is in the batch.
    """
    soft = model.get_prompt(batch_size=1)[0]
    count = soft.shape[0]
    whole = _inputs(model, [[pad] * count + list(prompt) for prompt in prompts], pad)
    embeds = model.get_input_embeddings()(whole["input_ids"])
    length = whole["input_ids"].shape[1]
    for row, prompt in enumerate(prompts):
        first = length - len(prompt) - count
        embeds[row, first : first + count] = soft.to(embeds.dtype)
    return {"inputs_embeds": embeds, "attention_mask": whole["attention_mask"]}


@contextlib.contextmanager
def own_settings(model: Any) -> Iterator[None]:
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


class Stopping:
    """What tells transformers' own loop which rows have ended.

    Args:
        endings: Whether new tokens end an answer.
    """

    def __init__(self, endings: Endings) -> None:
        self.endings = endings
        self.begin: int | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Returns which rows have ended, bool [R]."""
        size = input_ids.shape[1]
        self.begin = size - 1 if self.begin is None else self.begin
        tails = input_ids[:, max(self.begin, size - self.endings.length) :].tolist()
        done = [self.endings(tail) for tail in tails]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)


class Picking:
    """Has transformers' own loop take the tokens that are picked; notes their probabilities.

    Args:
        pick: Chooses tokens; None for the likeliest.
        rows: The rows' numbers.

    Attributes:
        heard: Log-probabilities of the tokens, by place and row.
    """

    def __init__(self, pick: Pick | None, rows: Sequence[int]) -> None:
        self.pick, self.rows = pick, list(rows)
        self.heard: list[list[float]] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns scores by which only the tokens that are picked are possible."""
        logits = scores.float()
        chosen = logits.argmax(-1)
        if self.pick is not None:
            chosen = self.pick(logits, self.rows, len(self.heard))
        own = logits.log_softmax(-1).gather(1, chosen[:, None])[:, 0]
        self.heard.append(own.tolist())
        return torch.full_like(scores, float("-inf")).scatter(1, chosen[:, None], 0.0)
