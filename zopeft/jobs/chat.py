"""The job of ``zopeft chat``: answers of a model or an adapter, as they are generated."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zopeft.errors import input_error, run_error
from zopeft.jobs.build import model_label
from zopeft.jobs.progress import Listener, ignore
from zopeft.jobs.served import is_adapter, load_served
from zopeft.recipe.load import load_recipe

if TYPE_CHECKING:
    from torch import Tensor

Message = dict[str, str]
"""A turn: ``role`` ("system", "user" or "assistant") and ``content``."""


@dataclass(frozen=True)
class Sampling:
    """How answers are made.

    Attributes:
        tokens: Most tokens of an answer.
        temperature: 0 takes the likeliest token at each step.
        seed: Of the tokens drawn at a temperature.
    """

    tokens: int = 256
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise input_error("--max-new-tokens", "must be at least 1", self.tokens)
        if not 0 <= self.temperature < 100:
            raise input_error("--temperature", "must be from 0 to 100", self.temperature)


class Chat:
    """A model that answers; what was said is kept.

    Tokenizers with a chat template get the whole conversation by it, others the last
    message as a text to go on from.

    Args:
        model: A causal LM, with or without an adapter, in eval mode.
        tokenizer: Its tokenizer.
        system: A system message at the start; "" for none.
        sampling: How answers are made.

    Raises:
        InputError: A system message for a tokenizer without a chat template.
    """

    def __init__(
        self, model: Any, tokenizer: Any, system: str = "", sampling: Sampling | None = None
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.sampling = sampling or Sampling()
        self.templated = bool(getattr(tokenizer, "chat_template", None))
        if system and not self.templated:
            do = "leave it out, or put it before the prompt"
            raise input_error("--system", "the tokenizer has no chat template", do=do)
        self.messages: list[Message] = [{"role": "system", "content": system}] if system else []

    def ask(self, text: str) -> Iterator[str]:
        """Yields the answer to a message, piece by piece, and keeps both.

        Args:
            text: The message.

        Raises:
            InputError: The template refuses the conversation, or it leaves no room.
            RunError: Generation broke.
        """
        turns = [*self.messages, {"role": "user", "content": text}]
        pieces = []
        for piece in self._generated(self._ids(turns, text)):
            pieces.append(piece)
            yield piece
        self.messages = [*turns, {"role": "assistant", "content": "".join(pieces)}]

    def _ids(self, turns: Sequence[Message], text: str) -> list[int]:
        """Returns the prompt's token ids."""
        if self.templated:
            try:
                found = self.tokenizer.apply_chat_template(
                    turns, add_generation_prompt=True, tokenize=True, return_dict=False
                )
            except Exception as error:  # a template is code of its own, and raises what it likes
                line = " ".join(str(error).split())
                raise input_error("chat", f"the template refuses this ({line})") from error
        else:
            from zopeft.tasks.template import Template

            plain = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            found = [*Template.of(self.tokenizer, [text]).before, *plain]
        ids = [int(token) for token in found]
        room = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if not ids:
            raise input_error("chat", "an empty prompt", do="say something")
        if room and len(ids) >= room:
            raise input_error("chat", f"{len(ids)} tokens are more than the model's {room}")
        return ids

    def _generated(self, ids: Sequence[int]) -> Iterator[str]:
        """Yields pieces of text that follow, made in a thread beside the reader."""
        import torch
        from transformers import TextIteratorStreamer

        from zopeft.models.quiet import quiet

        streamer = TextIteratorStreamer(
            self.tokenizer, skip_prompt=True, timeout=0.5, skip_special_tokens=True
        )
        prompt = torch.tensor([list(ids)], device=self.model.device)
        broken: list[BaseException] = []
        left = threading.Event()

        def generate() -> None:
            try:
                with torch.no_grad(), quiet(), self._drawing():
                    self.model.generate(**self._options(prompt, streamer, left))
            except BaseException as error:
                broken.append(error)
            finally:
                streamer.end()

        worker = threading.Thread(target=generate, daemon=True)
        worker.start()
        try:
            yield from _pieces(streamer, worker)
        finally:
            left.set()
            worker.join()
        if broken:
            error = broken[0]
            if isinstance(error, torch.OutOfMemoryError):
                raise error
            raise run_error("chat", f"generation broke ({error})") from error

    def _options(self, prompt: Tensor, streamer: Any, left: threading.Event) -> dict[str, Any]:
        """Returns the arguments of `generate`."""
        import torch

        def enough(ids: Tensor, scores: Any, **_: Any) -> Tensor:
            return torch.full((ids.shape[0],), left.is_set(), device=ids.device)

        sampling, ends = self.sampling, self.tokenizer.eos_token_id
        options: dict[str, Any] = {
            "input_ids": prompt,
            "attention_mask": torch.ones_like(prompt),
            "max_new_tokens": sampling.tokens,
            "do_sample": sampling.temperature > 0,
            "streamer": streamer,
            "stopping_criteria": [enough],
        }
        if sampling.temperature > 0:
            options["temperature"] = sampling.temperature
        if self.tokenizer.pad_token_id is None and ends is not None:
            options["pad_token_id"] = ends
        return options

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        """Gives an answer draws of its own, by its place in the chat; then torch's come back."""
        import torch

        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.sampling.seed + 1_000_003 * len(self.messages))
            yield


def _pieces(streamer: Any, worker: threading.Thread) -> Iterator[str]:
    """Yields a streamer's pieces while its worker lives; wakes twice a second for Ctrl-C."""
    while True:
        try:
            yield next(streamer)
        except StopIteration:
            return
        except queue.Empty:
            if not worker.is_alive():
                return


def open_chat(
    name: str | None,
    adapter: str | None = None,
    flags: dict[str, Any] | None = None,
    system: str = "",
    sampling: Sampling | None = None,
    listener: Listener = ignore,
) -> tuple[Chat, str]:
    """Loads a model, or the adapter in a folder with its base, to chat with.

    Args:
        name: An alias, hub id or folder; of an adapter, too. None is the embedded model.
        adapter: An adapter for the model named.
        flags: Flags of the command line that say how the model is loaded.
        system: A system message.
        sampling: How answers are made.
        listener: Called with reports.

    Returns:
        The chat, and what its model is called.

    Raises:
        InputError: The model or adapter cannot be used.
    """
    if adapter is None and name is not None and is_adapter(name):
        name, adapter = None, name
    recipe = load_recipe("eval", None, [], {**(flags or {}), "model.name": ("MODEL", name)})
    model, tokenizer, source = load_served(recipe, adapter, listener)
    label = model_label(source) if adapter is None else f"{model_label(source)} + {adapter}"
    return Chat(model, tokenizer, system, sampling), label
