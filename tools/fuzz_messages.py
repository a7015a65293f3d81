"""Messages: what servers and clients are sent, as they are sent it."""

from __future__ import annotations

import io
import json
import random
from functools import cache
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from fuzz_damage import bytes_damaged, json_damaged
from fuzz_models import fresh
from fuzz_reader import Reader

import zopeft
from zopeft.errors import InputError
from zopeft.federated import Answer, Federation, Participant, Question

BYTES = "bytes:"
"""What the text of bytes begins with where a message is kept as JSON."""
PROMPTS = [[5, 6, 7], [8, 9]]


def _method() -> Any:
    return zopeft.MeZO(zopeft.discover(fresh()), lr=1e-3, seed=3)


def _batch(method: Any) -> Any:
    ids = torch.arange(12).view(2, 6)
    return zopeft.BatchLoss(method.blocks.model, {"input_ids": ids, "labels": ids})


def to_text(value: Any) -> bytes:
    """Returns a message as JSON."""
    return json.dumps(value, default=lambda held: BYTES + held.hex()).encode()


def of_text(content: bytes) -> Any:
    """Undoes `to_text`."""
    return _bytes(json.loads(content))


def _bytes(value: Any) -> Any:
    if isinstance(value, list):
        return [_bytes(one) for one in value]
    if isinstance(value, dict):
        return {key: _bytes(one) for key, one in value.items()}
    if isinstance(value, str) and value.startswith(BYTES):
        return bytes.fromhex(value.removeprefix(BYTES))
    return value


@cache
def sent() -> dict[str, bytes]:
    """A question for a client that has the first steps to make, and a client's answer."""
    seen: list[tuple[Question, Answer]] = []
    method = _method()
    client = Participant(method, lambda _: _batch(method))

    def ask(questions: Any) -> Any:
        question = questions[0]
        answer = client.answer(question)
        seen.append((question, answer))
        return {0: answer}

    federation = Federation(_method(), ask)
    for _ in range(3):
        federation.step([0])
    federation.places.clear()
    federation._asked.clear()
    whole = federation._question(0, 3, True)
    return {"question": to_text(whole.to_dict()), "answer": to_text(seen[-1][1].to_dict())}


def message_damaged(content: bytes, dice: random.Random) -> bytes:
    """Damages the values of a message, or what is in its bytes."""
    values = json.loads(content)
    held = [name for name in ("header", "records") if values.get(name)]
    if not held or dice.random() < 0.5:
        while True:
            # A transport hands over values: what is no JSON does not get here.
            found = json_damaged(content, dice)
            try:
                of_text(found)
            except (ValueError, RecursionError):
                continue
            return found
    if dice.choice(held) == "header":
        kept = bytes.fromhex(values["header"].removeprefix(BYTES))
        values["header"] = BYTES + json_damaged(kept, dice).hex()
    elif values.get("records"):
        at = dice.randrange(len(values["records"]))
        kept = bytes.fromhex(values["records"][at].removeprefix(BYTES))
        values["records"][at] = BYTES + bytes_damaged(kept, dice).hex()
    return json.dumps(values).encode()


def read_question(path: Path) -> None:
    """Answers a question as a client that has just begun."""
    method = _method()
    answer = Participant(method, lambda _: _batch(method)).message(of_text(path.read_bytes()))
    if answer["problem"]:
        raise InputError(str(answer["problem"]))


def read_answer(path: Path) -> None:
    """Makes a server's step of one client's answer."""
    values = of_text(path.read_bytes())
    if isinstance(values, dict) and type(values.get("step")) is int:
        values["step"] = min(values["step"], 0)
    Federation(_method(), lambda _: {0: Answer.from_dict(values)}).step([0])


def http(value: Any, more: str = "") -> bytes:
    """Returns a server's answer as it comes over the wire."""
    body = json.dumps(value)
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{more}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


def answers() -> dict[str, bytes]:
    """What a vLLM server says of its models, and of the scores of two texts."""
    card = {"id": "m", "object": "model", "root": "m", "parent": None, "max_model_len": 100}
    tables = [[None, *({str(t): {"logprob": -1.5}} for t in prompt[1:])] for prompt in PROMPTS]
    choices = [{"index": n, "prompt_logprobs": each} for n, each in enumerate(tables)]
    return {
        "models": http({"object": "list", "data": [card]}),
        "scores": http({"choices": choices}, "Server: uvicorn\r\n"),
    }


def http_damaged(content: bytes, dice: random.Random) -> bytes:
    """Damages an answer of HTTP: its values, with its length made right, or any of its bytes."""
    head, _, body = content.partition(b"\r\n\r\n")
    match dice.randrange(5):
        case 0:
            return bytes_damaged(content, dice)
        case 1:
            claims = (b"-1", b"x", b"9" * 30, b"0", b"1e3", b"")
            return head.replace(str(len(body)).encode(), dice.choice(claims)) + b"\r\n\r\n" + body
        case 2:
            status = dice.choice((b"100", b"204", b"302", b"404", b"500", b"999"))
            more = dice.choice(
                (b"", b"\r\nTransfer-Encoding: chunked", b"\r\nLocation: http://h/x")
            )
            return head.replace(b"200", status) + more + b"\r\n\r\n" + json_damaged(body, dice)
        case _:
            body = json_damaged(body, dice)
            first = head[: head.rindex(b"Content-Length")]
            return first + b"Content-Length: %d\r\n\r\n" % len(body) + body


class _Wire:
    """A connection on which an answer has come already."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def makefile(self, *_: Any, **__: Any) -> Any:
        return io.BufferedReader(io.BytesIO(self.content))  # type: ignore[arg-type]

    def sendall(self, *_: Any) -> None:
        """Sends nothing."""

    def close(self) -> None:
        """Closes nothing."""


def read_server(folder: Path) -> None:
    """Asks a vLLM server for its models and for scores."""
    from zopeft.executors.vllm_server import VLLMServer

    waiting = [(folder / name).read_bytes() for name in ("models", "scores")]

    def connect(self: Any) -> None:
        self.sock = _Wire(waiting.pop(0) if waiting else b"")

    with mock.patch.object(HTTPConnection, "connect", connect):
        server = VLLMServer("http://h")
        server.serves("m")
        assert server.longest is None or server.longest > 0
        server.scores(server.model, PROMPTS)


READERS = (
    Reader(
        "question",
        sent,
        {"question": message_damaged},
        read_question,
        told=("federated", "the server's journal"),
    ),
    Reader("answer", sent, {"answer": message_damaged}, read_answer, told=("federated",)),
    Reader(
        "server",
        answers,
        {"models": http_damaged, "scores": http_damaged},
        read_server,
        folder=True,
        told=("executor.", "http://h"),
    ),
)
