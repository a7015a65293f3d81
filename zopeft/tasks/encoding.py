"""Encoding: examples as token ids, with the answer's tokens marked.

The whole text and its prompt are tokenised; what the two have in common is the prompt,
the rest is the answer. Where a tokenizer merges across the border, the merged token
belongs to the answer, so an answer always has tokens. What the tokenizer puts before a
text stands before the prompt, once; what it puts behind a text is left out
(`zopeft.tasks.template`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from zopeft.errors import input_error, panicked
from zopeft.tasks.task import Example
from zopeft.tasks.template import Ids, Template
from zopeft.tasks.threads import threads_for


@dataclass(frozen=True)
class Encoded:
    """One example as token ids.

    Attributes:
        prompts: The prompt before each option; they differ where a tokenizer merges
            across the border.
        options: The tokens of each option; one option for an "answer" example.
        label: Index of the right option; None for an "answer" example.
        taught: Which tokens of an "answer" example's option are taught; None for all.
        cut: Tokens of the text that were left out, for want of room.
    """

    prompts: tuple[Ids, ...]
    options: tuple[Ids, ...]
    label: int | None = None
    taught: tuple[bool, ...] | None = None
    cut: int = field(default=0, compare=False)

    @property
    def shared(self) -> bool:
        """True where every option is one token after one prompt: one row holds them all."""
        return all(len(o) == 1 for o in self.options) and len(set(self.prompts)) == 1

    @property
    def texts(self) -> tuple[Ids, ...]:
        """The whole text of each option."""
        return tuple(p + o for p, o in zip(self.prompts, self.options, strict=True))

    def __len__(self) -> int:
        return max(len(p) + len(o) for p, o in zip(self.prompts, self.options, strict=True))


def start_tokens(tokenizer: Any) -> Ids:
    """Returns the ids that the tokenizer puts before a text: (bos,), (), or others."""
    return Template.of(tokenizer).before


def unwarned(tokenizer: Any) -> Any:
    """Returns the tokenizer, which says no more that a text is too long for the model.

    Texts are cut after they are tokenised; the warning would mislead.
    """
    warned = getattr(tokenizer, "deprecation_warnings", {})
    warned["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


def tokenize(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Returns the ids of each text, without special tokens."""
    if not texts:
        return []
    try:
        with threads_for(len(texts)):
            return unwarned(tokenizer)(list(texts), add_special_tokens=False).input_ids
    except BaseException as error:
        if not panicked(error):
            raise
        what = f"gives up on a text ({error!s:.80})"
        do = "take the base model's tokenizer files"
        raise input_error("tokenizer", what, do=do) from error


def by_number(index: int) -> str:
    """Returns what a row is called of which no more is known than its number."""
    return f"row {index + 1}"


def encode(
    tokenizer: Any,
    examples: Sequence[Example],
    loss: str,
    max_length: int,
    place: Callable[[int], str] = by_number,
) -> list[Encoded]:
    """Encodes examples, cutting long prompts from their left.

    Args:
        tokenizer: A Hugging Face tokenizer.
        examples: What to encode.
        loss: "choice" keeps every option, "answer" the right one alone.
        max_length: Most tokens of prompt and answer together; the tokens that the tokenizer
            puts before a text and the answer are kept whatever happens.
        place: Where an example comes from, by its index, for messages.

    Raises:
        InputError: An answer doesn't fit into `max_length`, or has no tokens.
    """
    options = [_options(example, loss) for example in examples]
    prompts = [example.prompt.lstrip() for example in examples]
    whole = [
        prompt + option.rstrip(" ")
        for prompt, group in zip(prompts, options, strict=True)
        for option in group
    ]
    prompt_ids = tokenize(tokenizer, [prompt.rstrip(" ") for prompt in prompts])
    whole_ids = iter(tokenize(tokenizer, whole))
    template = Template.of(tokenizer, whole[:1])
    start = template.before
    encoded = []
    for index, (example, group, before) in enumerate(
        zip(examples, options, prompt_ids, strict=True)
    ):
        halves = [split(before, next(whole_ids)) for _ in group]
        pairs = [(template.begun(prompt), answer) for prompt, answer in halves]
        longest = max(len(answer) for _, answer in pairs)
        for (_, answer), option in zip(pairs, group, strict=True):
            if not answer:
                raise input_error(place(index), "an answer without tokens", option)
        room = max_length - len(start) - longest
        if room < 0 or room + len(start) < 1:
            raise input_error(
                place(index),
                f"the answer has {longest} tokens and does not fit",
                f"max_length {max_length}",
                "raise max_length",
            )
        cut = tuple(start + tuple(p[len(p) - room :] if len(p) > room else p) for p, _ in pairs)
        if not all(cut):
            raise input_error(place(index), "an empty prompt, and the tokenizer has no start")
        label = example.label if loss == "choice" else None
        lost = max(len(start) + len(p) - len(c) for (p, _), c in zip(pairs, cut, strict=True))
        answers = tuple(tuple(answer) for _, answer in pairs)
        encoded.append(Encoded(cut, answers, label, cut=lost))
    return encoded


def encode_prompts(tokenizer: Any, prompts: Sequence[str], max_length: int) -> list[Ids]:
    """Encodes prompts for generation, cutting long ones from their left."""
    texts = [prompt.lstrip().rstrip(" ") for prompt in prompts]
    template = Template.of(tokenizer, texts[:1])
    room = max(1, max_length - len(template.before))
    found = [template.begun(ids) for ids in tokenize(tokenizer, texts)]
    return [template.before + tuple(ids[-room:]) for ids in found]


def _options(example: Example, loss: str) -> tuple[str, ...]:
    if loss == "choice":
        return example.choices or ()
    if example.choices is not None and example.label is not None:
        return (example.choices[example.label],)
    return example.answers[:1]


def split(prompt: list[int], whole: list[int]) -> tuple[list[int], list[int]]:
    """Returns the tokens of the whole that are the prompt's, and the rest."""
    common = 0
    for one, other in zip(prompt, whole, strict=False):
        if one != other:
            break
        common += 1
    # The whole text is never shorter than its prompt, but its tokens may be.
    common = min(common, max(0, len(whole) - 1))
    return whole[:common], whole[common:]
