"""A server of vLLM's routes on this machine, which computes with a model of this process.

It keeps to the requests, answers and errors of vLLM 0.33: names of adapters, folders that PEFT
wrote, prompts of token numbers, and ``prompt_logprobs`` as one table a token, None for the first.
"""

from __future__ import annotations

import copy
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch


class FakeVLLM:
    """The server; ``with FakeVLLM(model) as url`` runs it.

    Args:
        model: The base model.
        name: What it is served as.
        slots: Adapters that there is room for.
        rank: Largest rank of an adapter.
        updating: Whether adapters can be loaded at all.
        delay: Seconds that each answer takes.
    """

    def __init__(
        self,
        model: Any,
        name: str = "tiny",
        slots: int = 8,
        rank: int = 16,
        updating: bool = True,
        delay: float = 0.0,
    ) -> None:
        self.model, self.name, self.slots, self.rank = model, name, slots, rank
        self.updating, self.delay = updating, delay
        self.adapters: dict[str, str] = {}
        self.most, self.asked = 0, 0
        self.broken: Any = None
        self._lock = threading.Lock()

    def __enter__(self) -> str:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                self._answer(*fake.get(self.path))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                time.sleep(fake.delay)
                self._answer(*fake.post(self.path, body))

            def _answer(self, status: int, answer: Any) -> None:
                text = answer if isinstance(answer, str) else json.dumps(answer)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()

    def get(self, path: str) -> tuple[int, Any]:
        if path != "/v1/models":
            return 404, {"detail": "Not Found"}
        base = {"id": self.name, "root": self.name, "parent": None, "max_model_len": 32}
        own = [{"id": n, "root": p, "parent": self.name} for n, p in self.adapters.items()]
        return 200, {"object": "list", "data": [base, *own]}

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/v1/completions":
            return self._complete(body)
        if not self.updating:
            return 404, {"detail": "Not Found"}
        with self._lock:
            if path == "/v1/load_lora_adapter":
                return self._load(body["lora_name"], body["lora_path"])
            if path == "/v1/unload_lora_adapter":
                return self._unload(body["lora_name"])
        return 404, {"detail": "Not Found"}

    def _load(self, name: str, path: str) -> tuple[int, Any]:
        if name in self.adapters:
            return _error(400, f"The lora adapter '{name}' has already been loaded.")
        settings = Path(path, "adapter_config.json")
        if not settings.is_file():
            return _error(404, f"Loading lora {name} failed: No adapter found for {path}")
        rank = json.loads(settings.read_text())["r"]
        if rank > self.rank:
            return _error(500, f"LoRA rank {rank} is greater than max_lora_rank {self.rank}.")
        if len(self.adapters) >= self.slots:
            return _error(500, "No free lora slots")
        self.adapters[name] = path
        self.most = max(self.most, len(self.adapters))
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def _unload(self, name: str) -> tuple[int, Any]:
        if self.adapters.pop(name, None) is None:
            return _error(404, f"The lora adapter '{name}' cannot be found.")
        return 200, f"Success: LoRA adapter '{name}' removed successfully."

    def _complete(self, body: dict[str, Any]) -> tuple[int, Any]:
        if self.broken is not None:
            return 200, self.broken
        name = body["model"]
        if name != self.name and name not in self.adapters:
            return _error(404, f"The model `{name}` does not exist.")
        assert body["prompt_logprobs"] == 0 and body["max_tokens"] == 1
        with self._lock, torch.no_grad():
            self.asked += 1
            model = self._with(name)
            choices = []
            for index, prompt in enumerate(body["prompt"]):
                scores = model(input_ids=torch.tensor([prompt])).logits[0].log_softmax(-1)
                tables: list[Any] = [None]
                for place, token in enumerate(prompt[1:]):
                    own = {"logprob": float(scores[place, token]), "rank": 1, "decoded_token": "x"}
                    tables.append({str(token): own})
                found = {"index": index, "text": "x", "logprobs": None, "prompt_logprobs": tables}
                choices.append(found)
        # Answers are read by their numbers, not by their order.
        return 200, {"id": "cmpl-1", "model": name, "choices": choices[::-1]}

    def _with(self, name: str) -> Any:
        from peft import PeftModel

        if name == self.name:
            return self.model
        return PeftModel.from_pretrained(copy.deepcopy(self.model), self.adapters[name]).eval()


def _error(status: int, message: str) -> tuple[int, Any]:
    return status, {"error": {"message": message, "type": "BadRequestError", "code": status}}
