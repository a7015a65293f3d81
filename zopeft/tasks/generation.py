"""Generation: greedy answers in batches, up to a text that ends them or an end token."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from zopeft.blocks.offloaded import device_of
from zopeft.tasks.neighbours import by_length, try_out
from zopeft.tasks.table import padding_id, table_rows


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop: str | None = "\n",
    end_tokens: Sequence[int] = (),
) -> list[str]:
    """Continues prompts greedily, each up to a newline (or other text) or an end token.

    An answer does not depend on the batch: a model that looks at padding, which is tried out
    once, is given prompts of one length at a time (`zopeft.tasks.neighbours`).

    Args:
        model: A causal language model, with or without a PEFT adapter.
        tokenizer: Its tokenizer.
        prompts: Token ids, one sequence a prompt; padded on the left here.
        max_new_tokens: Most tokens of an answer.
        stop: Text that ends an answer; None where only an end token does.
        end_tokens: End tokens beside the model's and the tokenizer's.

    Returns:
        The answers without what ended them and surrounding spaces.
    """
    if not prompts:
        return []
    pad = padding_id(tokenizer, table_rows(model))
    ends = sorted({*_end_tokens(model, tokenizer), *end_tokens})
    lengths = [len(prompt) for prompt in prompts]
    longest = max(range(len(prompts)), key=lambda index: lengths[index])

    def first_logits(rows: Sequence[Sequence[int]]) -> Any:
        return _continued(model, rows, pad, min(2, max_new_tokens), output_logits=True)[1]

    answers = [""] * len(prompts)
    with torch.inference_mode(), _own_settings(model):
        most = lengths[longest] + max_new_tokens - 1
        alone = len(set(lengths)) > 1 and try_out(
            model, "left", prompts[longest], most, first_logits
        )
        for group in by_length(lengths) if alone else [range(len(prompts))]:
            rows = [prompts[index] for index in group]
            stops = [] if stop is None else [_stopping(tokenizer, stop)]
            found, _ = _continued(
                model, rows, pad, max_new_tokens, stops, eos_token_id=ends or None
            )
            for index, ids in zip(group, found.tolist(), strict=True):
                answers[index] = _text(tokenizer, ids, ends, stop)
    return answers


def _text(tokenizer: Any, ids: Sequence[int], ends: Sequence[int], stop: str | None) -> str:
    """The answer of new tokens: what comes after an end token is filling."""
    size = next((place for place, one in enumerate(ids) if one in ends), len(ids))
    text: str = tokenizer.decode(ids[:size], skip_special_tokens=True)
    return (text if stop is None else text.split(stop, 1)[0]).strip()


def _continued(
    model: Any,
    prompts: Sequence[Sequence[int]],
    pad: int,
    max_new_tokens: int,
    stops: Sequence[Any] = (),
    **settings: Any,
) -> tuple[Tensor, Any]:
    """The new tokens [R, S] after prompts, padded to be one batch; and the logits, if wished."""
    from transformers import GenerationConfig, StoppingCriteriaList

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


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """End tokens of the tokenizer and of the model's own settings (chat models have several)."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = own if isinstance(own, list) else [own]
    return sorted({int(end) for end in [*ends, tokenizer.eos_token_id] if end is not None})


def _stopping(tokenizer: Any, stop: str) -> Any:
    return _Newline(tokenizer) if stop == "\n" else _StopText(tokenizer, stop)


class _StopText:
    """Stops a row once its new tokens hold a text; the last ones are read together."""

    def __init__(self, tokenizer: Any, stop: str) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        # A token holds one byte of text at least.
        self.length = len(stop.encode()) + 1
        self.begin: int | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        size = input_ids.shape[1]
        self.begin = size - 1 if self.begin is None else self.begin
        ends = self.tokenizer.batch_decode(input_ids[:, max(self.begin, size - self.length) :])
        done = [self.stop in end for end in ends]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)


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
