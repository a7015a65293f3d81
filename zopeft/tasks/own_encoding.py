"""Own encoding: conversations, running text and free answers as token ids.

A task's prompts and answers are `zopeft.tasks.encoding`'s. Here is what people's own data has
besides: turns in a chat template, several of them taught in one text; answers that end with the
tokenizer's end token; text that is taught from end to end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from zopeft.errors import InputError, input_error
from zopeft.tasks.chat import Chat, has_template
from zopeft.tasks.encoding import Encoded, encode, encode_prompts, split, tokenize
from zopeft.tasks.fitting import fit, pieces
from zopeft.tasks.marking import mark
from zopeft.tasks.task import AnyExample, Conversation, Example, Passage, RowError
from zopeft.tasks.template import Ids, Template

Place = Callable[[int], str]


def encode_all(
    tokenizer: Any, examples: Sequence[AnyExample], loss: str, max_length: int, place: Place
) -> tuple[list[Encoded], list[int]]:
    """Encodes examples of any kind.

    Args:
        tokenizer: A Hugging Face tokenizer.
        examples: What to encode; a passage may become several.
        loss: "choice" keeps every option, "answer" the right one alone.
        max_length: Most tokens of a text.
        place: Where an example comes from, by its index, for messages.

    Returns:
        What they become, and the index of the example that each was made of.

    Raises:
        InputError: An example cannot be encoded, or the tokenizer lacks what it needs.
    """
    prompted = [one for one in examples if isinstance(one, Example) and not one.ends]
    if len(prompted) == len(examples):
        return encode(tokenizer, prompted, loss, max_length, place), list(range(len(prompted)))
    found: list[Encoded] = []
    owners: list[int] = []
    encoder = OwnEncoder(tokenizer, max_length)
    for index, example in enumerate(examples):
        try:
            pieces = encoder(example, place(index))
            found += pieces
            owners += [index] * len(pieces)
        except RowError as error:
            raise InputError(f"{place(index)}: {error}") from error
    return found, owners


def encode_openings(
    tokenizer: Any, examples: Sequence[AnyExample], max_length: int, place: Place
) -> list[Ids]:
    """Encodes what stands in front of the answers, for generation; cut from the left.

    Raises:
        InputError: The tokenizer has no template, or it refuses a conversation.
    """
    prompts = [one.prompt for one in examples if isinstance(one, Example)]
    if len(prompts) == len(examples):
        return encode_prompts(tokenizer, prompts, max_length)
    found = []
    encoder = OwnEncoder(tokenizer, max_length)
    for index, example in enumerate(examples):
        try:
            found.append(encoder.opening(example))
        except RowError as error:
            raise InputError(f"{place(index)}: {error}") from error
    return found


def last_tokens(tokenizer: Any, encoded: Sequence[Encoded]) -> list[int]:
    """Returns the tokens of no plain text that answers end with, as chat templates have them."""
    added = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    return sorted({one.options[0][-1] for one in encoded if not one.cut} & added)


class OwnEncoder:
    """Encodes one example after the other.

    Args:
        tokenizer: A Hugging Face tokenizer.
        max_length: Most tokens of a text.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.template = Template.of(tokenizer)
        self.chat: Chat | None = None

    def __call__(self, example: AnyExample, place: str = "row") -> list[Encoded]:
        """Returns the examples to train on: one, or the pieces of a passage.

        Args:
            example: What to encode.
            place: Where it comes from, for messages.

        Raises:
            RowError: It holds nothing to learn, or the template refuses it.
            InputError: The tokenizer has no template, or no end token.
        """
        if isinstance(example, Passage):
            return self._passage(example)
        found = self._as_it_is(example)
        if isinstance(found, Conversation):
            return [self._conversation(found)]
        if not found.ends:
            return encode(self.tokenizer, [found], "answer", self.max_length, lambda _: place)
        return [self._answer(found)]

    def opening(self, example: AnyExample) -> Ids:
        """Returns what stands in front of an example's last answer.

        Raises:
            RowError: The template refuses it.
            InputError: The tokenizer has no template.
        """
        if isinstance(example, Passage):
            raise RowError("running text has no answer")
        found = self._as_it_is(example)
        if isinstance(found, Example):
            return encode_prompts(self.tokenizer, [found.prompt], self.max_length)[0]
        ids = tokenize(self.tokenizer, [self._chat().prompt(found)])[0]
        start, rest = self._begun(ids)
        return (*start, *rest[-max(1, self.max_length - len(start)) :])

    def _as_it_is(self, example: Example | Conversation) -> Example | Conversation:
        """A conversation without its template, where there is none and it can do without."""
        if isinstance(example, Conversation) and example.plain is not None:
            return example if has_template(self.tokenizer) else example.plain
        return example

    def _chat(self) -> Chat:
        self.chat = self.chat or Chat(self.tokenizer)
        return self.chat

    def _end(self) -> Ids:
        end = self.tokenizer.eos_token_id
        if end is None:
            do = "give data.stop=TEXT for what ends an answer, or set the tokenizer's eos_token"
            raise input_error("data", "the tokenizer has no end token to teach", do=do)
        return (int(end),)

    def _begun(self, ids: Sequence[int]) -> tuple[Ids, Sequence[int]]:
        """The tokenizer's start, where the text begins with it, and the rest of the text."""
        rest = self.template.begun(ids)
        return (() if rest is ids else self.template.before), rest

    def _conversation(self, example: Conversation) -> Encoded:
        marked = self._chat().marked(example)
        ids, marks = mark(self.tokenizer, marked.text, marked.spans)
        if not marked.ends:
            ids, marks = [*ids, *self._end()], [*marks, True]
        start, rest = self._begun(ids)
        marks = marks[len(ids) - len(rest) :]
        if not start:
            # The first token of a text follows nothing.
            marks = [False, *marks[1:]]
        if not any(marks):
            raise RowError("no token of it is taught")
        first, last = marks.index(True), len(marks) - marks[::-1].index(True)
        return fit(rest[:first], rest[first:last], marks[first:last], start, self.max_length)

    def _answer(self, example: Example) -> Encoded:
        prompt, answer = example.prompt, example.answers[0]
        before, whole = tokenize(self.tokenizer, [prompt.rstrip(" "), prompt + answer])
        front, back = split(before, whole)
        front = list(self.template.begun(front))
        if not front and not self.template.before:
            raise RowError("an empty prompt, and the tokenizer puts nothing before a text")
        return fit(front, [*back, *self._end()], None, self.template.before, self.max_length)

    def _passage(self, example: Passage) -> list[Encoded]:
        ids = list(self.template.begun(tokenize(self.tokenizer, [example.text])[0]))
        end = () if self.tokenizer.eos_token_id is None else self._end()
        found = list(pieces([*ids, *end], self.template.before, self.max_length))
        if not ids or not found:
            raise RowError("a text without tokens")
        return found
