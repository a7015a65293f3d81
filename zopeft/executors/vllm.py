"""LoRA probes scored by a vLLM server: each is an adapter there for the time of its scoring.

This process has the adapter, the noise and the steps; the server has the model. A probe's adapter
is written to a folder that both read, loaded, asked for the log-probabilities of the batch's
tokens, and unloaded. Probes of a step are asked for at once, and the server batches them.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor

from zopeft.engine import Engine
from zopeft.engine.direction import Probe
from zopeft.errors import input_error
from zopeft.executors.texts import texts_of
from zopeft.executors.vllm_server import VLLMServer
from zopeft.optim.looks import is_point
from zopeft.probing.closure import Closure

WHERE = "executor"


class VLLM:
    """An executor that asks a vLLM server for the losses of LoRA probes.

    ::

        method = zopeft.MeZO(zopeft.discover(model), lr=1e-3)
        method.executor = zopeft.executors.VLLM(method.engine, "http://localhost:8000")
        method.step(zopeft.BatchLoss(model, batch))

    Losses are those of ``model(**batch).loss`` and of tasks' answers. They are computed in the
    server's number format, in which it also holds the adapters.

    Args:
        engine: The engine over the adapter's blocks.
        url: Where the server listens.
        model: Name of the base model there; None for its first one, which must have the name of
            the model that the adapter is on.
        folder: Where adapters are written, a folder that the server reads, too; None for a new
            one among this machine's temporary files.
        adapters: Most adapters that the server is to have at once.
        timeout: Seconds that an answer may take.

    Raises:
        InputError: No server answers, it serves another model, or what is trained is no LoRA.
    """

    def __init__(
        self,
        engine: Engine,
        url: str,
        model: str | None = None,
        folder: str | Path | None = None,
        adapters: int = 8,
        timeout: float = 600.0,
    ) -> None:
        if adapters < 1:
            raise input_error("executor.adapters", "must be at least 1", adapters)
        _check_lora(engine)
        self.engine, self.adapters = engine, adapters
        self.server = VLLMServer(url, model, timeout)
        base = engine.blocks.base_name
        if model is None and base and not self.server.serves(base):
            do = "serve the model of the run, or name it by executor.model"
            what = f"serves {self.server.model}, and the adapter is on another model"
            raise input_error("executor.url", what, base, do)
        self.folder = None if folder is None else Path(folder)
        self._name, self._numbers = f"zopeft-{uuid4().hex[:12]}", itertools.count()

    def losses(self, probes: Sequence[Probe], closure: Closure) -> tuple[Tensor, int]:
        """See `Executor.losses`.

        Raises:
            InputError: A probe looks into the model, or the loss is not one of texts.
            RunError: The server does not answer as it should.
        """
        for probe in probes:
            if not is_point(probe):
                do = "choose another method, or leave the executor out"
                what = "cannot serve a look into the model"
                raise input_error(WHERE, what, type(probe).__name__, do)
        texts = texts_of(closure, self.server.longest)
        place = self._place()
        try:
            found: list[float] = []
            for first in range(0, len(probes), self.adapters):
                found += self._scored(probes[first : first + self.adapters], texts, place)
        finally:
            shutil.rmtree(place, ignore_errors=True)
        return torch.tensor(found, dtype=torch.float32), len(probes)

    def _scored(self, probes: Sequence[Probe], texts: Any, place: Path) -> list[float]:
        """Returns the losses of some probes, which are adapters of the server meanwhile."""
        names = [f"{self._name}-{next(self._numbers)}" for _ in probes]
        loaded: list[str] = []
        try:
            for name, probe in zip(names, probes, strict=True):
                self._write(place / name, probe)
                loaded.append(name)
                self.server.load(name, str(place / name))
            with ThreadPoolExecutor(len(names)) as pool:
                ask = self.server.scores
                answers = list(pool.map(lambda name: ask(name, texts.prompts), names))
        finally:
            for name in loaded:
                self.server.unload(name)
        return [texts.loss(answer) for answer in answers]

    def _place(self) -> Path:
        """Returns a new folder for a round's adapters, which a server of another user can read."""
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix="zopeft-adapters-", dir=self.folder)).resolve()
        os.chmod(place, 0o755)
        return place

    def _write(self, folder: Path, probe: Probe) -> None:
        """Writes the adapter at a point, as PEFT would."""
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        model: Any = self.engine.blocks.model
        name = self.engine.blocks.adapter or "default"
        vector, step = probe
        folder.mkdir()
        with self.engine.perturbed(vector, step):
            state = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
            whole = {key: value.detach().cpu().contiguous() for key, value in state.items()}
            save_file(whole, folder / "adapter_model.safetensors", {"format": "pt"})
        model.peft_config[name].save_pretrained(folder)
        told = folder / "adapter_config.json"
        settings = json.loads(told.read_text())
        # The weights are whole in the file, however training began with them.
        settings |= {"inference_mode": True, "init_lora_weights": True}
        told.write_text(json.dumps(settings))

    def agreed(self, seen: np.ndarray) -> np.ndarray:
        """See `Executor.agreed`: what has been seen here."""
        return seen


def _check_lora(engine: Engine) -> None:
    """Refuses what vLLM cannot serve as an adapter.

    Raises:
        InputError: The blocks are not those of a plain LoRA.
    """
    model: Any = engine.blocks.model
    found = getattr(model, "peft_config", {}).get(engine.blocks.adapter)
    kind = str(getattr(getattr(found, "peft_type", None), "value", "no adapter"))
    if engine.blocks.space != "adapter" or kind != "LORA":
        do = "use --lora, or leave the executor out"
        raise input_error(WHERE, "vllm serves LoRA adapters alone", kind.lower(), do)
    for setting, name in (("use_dora", "DoRA"), ("modules_to_save", "modules_to_save")):
        if getattr(found, setting, None):
            do = "leave it out, or leave the executor out"
            raise input_error(WHERE, f"vllm serves no {name}", None, do)
