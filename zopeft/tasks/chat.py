"""Chat: a conversation in the words of a tokenizer's template, with what is taught marked.

The template is asked, not read. A turn of the assistant's begins where the template would let
the model begin to speak (``add_generation_prompt``). It ends where the text is the same again
once other words stand in its place; the token that the template puts there (``<|im_end|>``,
``<|eot_id|>``, ``</s>``) is taught with it, for it is how an answer ends. What follows that token,
often a line end, is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zopeft.errors import close_matches, input_error
from zopeft.tasks.task import Conversation, RowError

PLAIN = """\
{%- if bos_token is defined and bos_token %}{{ bos_token }}{% endif %}
{%- for message in messages %}
    {%- if message['role'] == 'assistant' %}
        {{- 'Assistant: ' + message['content'].strip() + eos_token + '\\n' }}
    {%- elif message['role'] == 'user' %}
        {{- 'User: ' + message['content'].strip() + '\\n' }}
    {%- else %}
        {{- message['content'].strip() + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""
"""A template without tokens of its own, for base models: it takes no training of embeddings."""
TEMPLATES = {"plain": PLAIN}
"""Templates by name, beside those of tokenizers and files."""
NEEDED = (
    "give data.template=plain (User: and Assistant: as text) or data.template=FILE.jinja, "
    "or take a chat model"
)

Span = tuple[int, int]


def read_template(name: str) -> str:
    """Returns a chat template by name or from a file.

    Raises:
        InputError: There is none of that name, or the file cannot be read.
    """
    if name in TEMPLATES:
        return TEMPLATES[name]
    path = Path(name).expanduser()
    if not path.is_file():
        do = f"{close_matches(name, TEMPLATES)}; or a file of Jinja"
        raise input_error("data.template", "no such template or file", name, do)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise input_error("data.template", f"cannot be read ({error})", name) from None


@dataclass(frozen=True)
class Marked:
    """A text and the places in it that are taught.

    Attributes:
        text: The text.
        spans: Begin and end of each part that is taught, in characters.
        ends: Whether the last part ends in a token of the template's own; if not, the
            tokenizer's end token is to follow.
    """

    text: str
    spans: tuple[Span, ...]
    ends: bool


class Chat:
    """A tokenizer's chat template.

    Args:
        tokenizer: A Hugging Face tokenizer with a template.

    Raises:
        InputError: It has none.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not has_template(tokenizer):
            raise input_error("messages", "this tokenizer has no chat template", do=NEEDED)
        self.tokenizer = tokenizer
        self.added = sorted(
            {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}, key=len, reverse=True
        )

    def prompt(self, conversation: Conversation) -> str:
        """Returns the text in front of the assistant's last turn.

        Raises:
            RowError: The template refuses the conversation.
        """
        return self._render(conversation, conversation.messages[: conversation.last], True)

    def marked(self, conversation: Conversation) -> Marked:
        """Returns the text up to the assistant's last turn, its turns marked.

        Raises:
            RowError: The template refuses the conversation, or leaves a turn out.
        """
        messages = conversation.messages[: conversation.last + 1]
        text = self._render(conversation, messages, False)
        places = [k for k, turn in enumerate(messages) if turn["role"] == "assistant"]
        found = [self._content(conversation, messages, place, text) for place in places]
        after = text[found[-1][1] :]
        token = self._closing(after)
        tail = token or after
        spans = []
        for begin, stop in found:
            after = text[stop:]
            if after.startswith(tail):
                stop += len(tail)
            elif token and (own := self._closing(after)).strip() in self.added:
                # Templates that end the last turn in another way than those before.
                stop += len(own)
            spans.append((begin, stop))
        return Marked(text, tuple(spans), bool(token))

    def _content(
        self,
        conversation: Conversation,
        messages: Sequence[Mapping[str, Any]],
        place: int,
        text: str,
    ) -> Span:
        """Where a turn's own words stand, found by putting others there."""
        other = _other(text)
        changed = [*messages]
        changed[place] = {"role": "assistant", "content": other}
        before, found, after = self._render(conversation, changed, False).partition(other)
        stop = len(text) - len(after)
        prompt = self._render(conversation, messages[:place], True)
        for begun in (prompt, before):
            if found and text.endswith(after) and text.startswith(begun) and len(begun) <= stop:
                return len(begun), stop
        raise RowError(f"the chat template leaves out turn {place + 1}, or changes it")

    def _closing(self, after: str) -> str:
        """What follows a turn's words, up to the first token that is no plain text."""
        places = [(after.find(token), -len(token)) for token in self.added if token in after]
        if not places:
            return ""
        at, size = min(places)
        return after[: at - size]

    def _render(
        self, conversation: Conversation, messages: Sequence[Mapping[str, Any]], prompt: bool
    ) -> str:
        try:
            text: str = self.tokenizer.apply_chat_template(
                [dict(turn) for turn in messages],
                tools=conversation.tools,
                tokenize=False,
                add_generation_prompt=prompt,
                **conversation.options,
            )
        except Exception as error:
            # Jinja's own errors, and those that a template raises on purpose.
            why = " ".join(str(error).split())[:160]
            if type(error).__name__ == "TemplateSyntaxError":
                where = f"line {getattr(error, 'lineno', 1)}: {why}"
                do = "correct it, or give another with data.template"
                raise input_error(
                    "data.template", f"the template is no Jinja ({where})", do=do
                ) from error
            raise RowError(f"the chat template refuses the conversation ({why})") from error
        return text


def _other(text: str) -> str:
    """A word that does not stand in the text."""
    word = "zopeftturn"
    while word in text:
        word += "x"
    return word


def has_template(tokenizer: Any) -> bool:
    """Tells whether a tokenizer has a chat template."""
    return getattr(tokenizer, "chat_template", None) is not None
