"""``zopeft chat``: talk to a model or to what a run has made of it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Annotated

import typer

from . import options as o

Name = Annotated[
    str | None,
    typer.Argument(metavar="[MODEL|ADAPTER]", help="A model, or an adapter's folder or hub id."),
]
Prompt = Annotated[
    str | None,
    typer.Argument(metavar="[PROMPT]", help="Answer this and end; without it, a conversation."),
]
Adapter = Annotated[
    str | None, typer.Option("--adapter", metavar="DIR", help="An adapter for another MODEL.")
]
System = Annotated[
    str, typer.Option("--system", metavar="TEXT", help="A system message.", show_default=False)
]
Tokens = Annotated[
    int, typer.Option("--max-new-tokens", metavar="N", help="Most tokens of an answer.")
]
Temperature = Annotated[
    float, typer.Option("--temperature", metavar="NUMBER", help="0: the likeliest token.")
]
SamplingSeed = Annotated[int, typer.Option("--seed", metavar="N", help="Of sampled tokens.")]


def chat(
    model: Name = None,
    prompt: Prompt = None,
    adapter: Adapter = None,
    system: System = "",
    max_new_tokens: Tokens = 256,
    temperature: Temperature = 0.0,
    seed: SamplingSeed = 0,
    load_in_8bit: o.In8bit = False,
    load_in_4bit: o.In4bit = False,
    dtype: o.Dtype = None,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Talk to a model or an adapter in the terminal; with a PROMPT, one answer."""
    from .output import output

    flags = o.model_flags(None, dtype, load_in_8bit, load_in_4bit)
    with output(json, debug) as screen:
        from zopeft.jobs.chat import Sampling, open_chat

        sampling = Sampling(max_new_tokens, temperature, seed)
        if json and prompt is None:
            from zopeft.errors import input_error

            raise input_error("--json", "needs a PROMPT", do="zopeft chat MODEL PROMPT --json")
        talk, label = open_chat(model, adapter, flags, system, sampling, screen.listen)
        if json:
            answer = "".join(talk.ask(str(prompt)))
            screen.result({"model": label, "prompt": prompt, "answer": answer})
            return
        screen.close()
        if prompt is not None:
            _say(talk.ask(prompt))
            return
        screen.note(f"{label}; an empty line or Ctrl-D ends")
        while line := _heard():
            _say(talk.ask(line))


def _heard() -> str:
    """Returns a line of the user; "" at the end."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""


def _say(pieces: Iterable[str]) -> None:
    """Prints pieces of text as they come, and a newline."""
    for piece in pieces:
        print(piece, end="", flush=True)
    print(flush=True)
