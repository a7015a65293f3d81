"""What a recipe may say of its executor: who finds the losses of a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from zopeft.recipe.fields import number


@dataclass(frozen=True)
class ExecutorSection:
    """Who finds the losses of a step.

    Attributes:
        name: "here", by forward passes in this process, or "vllm", by a vLLM server that scores
            LoRA probes as adapters.
        url: Where the server listens.
        model: Name of the base model there; None for its first one.
        folder: Where probes' adapters are written, a folder that the server reads, too; None
            for one among this machine's temporary files.
        adapters: Most adapters that the server is to have at once.
        timeout: Seconds that an answer may take.
    """

    name: Literal["here", "vllm"] = "here"
    url: str = "http://localhost:8000"
    model: str | None = None
    folder: str | None = None
    adapters: int = number(8, least=1)
    timeout: float = number(600.0, above=0.0)
