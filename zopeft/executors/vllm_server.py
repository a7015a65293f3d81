"""A vLLM server, asked over HTTP: adapters come and go, and texts are scored.

The routes are those of vLLM 0.33's OpenAI-compatible server: ``GET /v1/models``, ``POST
/v1/load_lora_adapter`` and ``/v1/unload_lora_adapter`` (there with ``--enable-lora`` and
``VLLM_ALLOW_RUNTIME_LORA_UPDATING=True``), and ``POST /v1/completions`` with ``prompt_logprobs``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from zopeft.errors import InputError, RunError, input_error, run_error
from zopeft.reading import parse_json

URL = "executor.url"
LONGEST = 1 << 30
"""Bytes of the longest answer: the scores of a hundred texts of 100,000 tokens."""
PIECE = 1 << 20
"""Bytes that are read at a time."""
START = "start it: VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve MODEL --enable-lora"


class AnsweredError(Exception):
    """A server's answer that is an error.

    Args:
        status: HTTP status.
        message: What it says, in one line.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class VLLMServer:
    """A server, its base model and its adapters.

    Args:
        url: Where it listens, such as "http://localhost:8000".
        model: Name of the base model there; None for the first one.
        timeout: Seconds that an answer may take.

    Raises:
        InputError: Nothing answers there, or nothing that serves models.
    """

    def __init__(self, url: str, model: str | None = None, timeout: float = 600.0) -> None:
        if not url.startswith(("http://", "https://")):
            do = "give an address such as http://localhost:8000"
            raise input_error(URL, "is no address of a server", url, do)
        self.url, self.timeout = url.rstrip("/").removesuffix("/v1"), float(timeout)
        cards = self._models()
        bases = [card for card in cards if not card.get("parent")]
        names = [card["id"] for card in bases]
        if model is not None and model not in names:
            raise input_error("executor.model", "is not served there", model, f"one of {names}")
        if not bases:
            raise input_error(URL, "serves no model", self.url, START)
        self.card = bases[0 if model is None else names.index(model)]
        self.model = str(self.card["id"])

    def _models(self) -> list[dict[str, Any]]:
        try:
            found = self._ask("/v1/models")
            cards = found["data"]
            return [{**dict(card), "id": str(card["id"])} for card in cards]
        except RunError as error:
            raise InputError(str(error)) from error
        except (AnsweredError, KeyError, TypeError, ValueError) as error:
            what = f"is no server of models ({str(error)[:80]})"
            raise input_error(URL, what, self.url, START) from error

    def serves(self, name: str) -> bool:
        """Whether the base model may be that of a name or folder, as far as names tell."""
        known = {str(self.card.get(key) or "").rstrip("/") for key in ("id", "root")}
        ends = {each.rpartition("/")[2].lower() for each in known}
        return name.rstrip("/").rpartition("/")[2].lower() in ends

    @property
    def longest(self) -> int | None:
        """Tokens of the longest text that it takes; None where it does not say."""
        found = self.card.get("max_model_len")
        return found if isinstance(found, int) and found > 0 else None

    def load(self, name: str, folder: str) -> None:
        """Has the server load an adapter.

        Args:
            name: What it is called from now on.
            folder: A folder that the server can read, too.

        Raises:
            RunError: It does not.
        """
        try:
            self._ask("/v1/load_lora_adapter", {"lora_name": name, "lora_path": folder})
        except AnsweredError as error:
            raise self._refused("does not load an adapter", error) from error

    def unload(self, name: str) -> None:
        """Has the server forget an adapter; one that it does not have is no matter."""
        try:
            self._ask("/v1/unload_lora_adapter", {"lora_name": name})
        except AnsweredError as error:
            if error.status != 404:
                raise self._refused("does not unload an adapter", error) from error

    def scores(self, model: str, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Returns the log-probability of each token of some texts, after those before it.

        Args:
            model: The name of an adapter, or of the base model.
            prompts: Token numbers of each text, [R].

        Returns:
            [R], one number a token from the second one on.

        Raises:
            RunError: The server does not answer, or not so.
        """
        request = {
            "model": model,
            "prompt": [list(map(int, prompt)) for prompt in prompts],
            # A text must be followed by something; what it is is not looked at.
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": 0,
        }
        try:
            answer = self._ask("/v1/completions", request)
        except AnsweredError as error:
            raise self._refused("does not score texts", error) from error
        try:
            choices = sorted(answer["choices"], key=lambda choice: int(choice["index"]))
            if len(choices) != len(prompts):
                raise ValueError(f"{len(choices)} answers for {len(prompts)} texts")
            pairs = zip(choices, prompts, strict=True)
            return [_of_text(choice["prompt_logprobs"], prompt) for choice, prompt in pairs]
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            what = f"its scores cannot be read ({type(error).__name__}: {str(error)[:80]})"
            raise run_error(self.url, what, do="use vLLM 0.9 to 0.33") from error

    def _refused(self, what: str, error: AnsweredError) -> RunError:
        text, do = error.message.lower(), "see the server's log"
        if error.status == 404 and "not found" in text and "adapter" not in text:
            do = START
        elif "rank" in text:
            do = "start it with a larger --max-lora-rank"
        elif "slot" in text or "max_loras" in text or "max_cpu_loras" in text:
            do = "start it with more --max-loras and --max-cpu-loras, or lower executor.adapters"
        elif "does not exist" in text or "no adapter found" in text:
            do = "give executor.folder a folder that the server reads, too"
        elif "maximum context length" in text or "max_model_len" in text:
            do = "lower task.max_length, or start it with a larger --max-model-len"
        return run_error(self.url, f"the server {what} ({error.message})", do=do)

    def _ask(self, route: str, body: dict[str, Any] | None = None) -> Any:
        """Returns what a route answers: JSON, or text where it is no JSON.

        Raises:
            AnsweredError: It answers that something is wrong.
            RunError: It does not answer.
        """
        data = None if body is None else json.dumps(body).encode()
        request = Request(self.url + route, data, {"Content-Type": "application/json"})
        try:
            with urlopen(request, timeout=self.timeout) as answer:
                text = _text(answer)
        except HTTPError as error:
            raise AnsweredError(error.code, _message(error)) from error
        except TimeoutError as error:
            raise self._silent(f"no answer within {self.timeout:g} s") from error
        except (URLError, OSError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise self._silent(f"no answer within {self.timeout:g} s") from error
            raise self._silent(f"no server answers ({reason})") from error
        except (HTTPException, ValueError, OverflowError) as error:
            raise self._silent(f"no server of HTTP answers ({error!r:.80})") from error
        try:
            return parse_json(text, self.url)
        except InputError:
            return text

    def _silent(self, what: str) -> RunError:
        return run_error(URL, what, self.url, START)


def _of_text(found: Sequence[Any], prompt: Sequence[int]) -> list[float]:
    """Returns a text's log-probabilities from one table a token, by the token's number."""
    if len(found) != len(prompt):
        raise ValueError(f"{len(found)} scores for {len(prompt)} tokens")
    pairs = zip(found[1:], prompt[1:], strict=True)
    return [float(table[str(int(token))]["logprob"]) for table, token in pairs]


def _text(answer: Any) -> str:
    """Returns what an answer holds.

    Raises:
        ValueError: That is more than anybody would ask for.
    """
    parts, size = [], 0
    while part := answer.read(PIECE):
        parts.append(part)
        size += len(part)
        if size > LONGEST:
            raise ValueError(f"more than {LONGEST} bytes")
    return b"".join(parts).decode("utf-8", "replace")


def _message(error: HTTPError) -> str:
    """Returns what an answer says is wrong, in one line."""
    try:
        text = _text(error)
    except (HTTPException, OSError, ValueError, OverflowError):
        text = ""
    try:
        found = json.loads(text)
        found = found.get("error", found)
        text = str(found.get("message") or found.get("detail") or text)
    except (ValueError, AttributeError, RecursionError):
        pass
    return " ".join(text.split())[:160] or f"status {error.code}"
