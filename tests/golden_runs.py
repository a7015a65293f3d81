"""The runs whose journals lie in ``golden/``: models, methods and batches from whole numbers.

Nothing here is drawn by a generator of torch, and every number is exact in 16 bits, so that
the start of a run is the same on every machine and with every version. `golden/make.py` makes
the runs and writes what they leave; `test_golden.py` repeats them from that.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import zopeft
from zopeft.engine import Rows, Subspace
from zopeft.methods import METHODS
from zopeft.noise import step_seed

FOLDER = Path(__file__).with_name("golden")
STEPS, EARLY = 30, 5
VOCABULARY = 32
SPACES = ("full", "lora", "prefix")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SEED = 11
PLACES = ((0, 0, 0), (2**63 + 12345, 0xFFFFFFFF, 250), (step_seed(11, 29), 77, 2**31 + 1))
"""Seed, address and first element of the noise that is kept."""
COUNT = 12
"""Elements of it."""


@dataclass(frozen=True)
class Run:
    """One run: its model, its method, and what happens to it on the way.

    Args:
        space: "full", "lora" or "prefix".
        dtype: "fp32" or "bf16", of the base and of the adapter.
        method: A name of `METHODS`.
        shapes: A name of `shapes_of`; "" for none.
        finetuner: "networks" that read features, "scales" that were learned once, or "bend"
            for networks that read the course of the run; "" for methods without one.
        falling: Whether the learning rate falls to zero over the run.
        bad: Steps whose loss is not finite.
        options: Of the method.
        rounding: How 16 bits are rounded to.
    """

    space: str
    dtype: str
    method: str = "mezo"
    shapes: str = ""
    finetuner: str = ""
    falling: bool = False
    bad: tuple[int, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    rounding: str = "nearest"


PARTS = ("shapes", "finetuner", "falling", "bad", "rounding")


def _run(space: str, dtype: str, **options: Any) -> Run:
    own = {n: options.pop(n) for n in PARTS if n in options}
    method = "zo_finetuner" if "finetuner" in own else "mezo"
    return Run(space, dtype, method, options={"lr": 1e-3, "eps": 1e-2, **options}, **own)


ONE = {"sides": "one"}
FZOO = {"noise": "rademacher", "directions": 4, "sides": "one", "normalise": True}
RUNS = {
    "full-fp32": _run("full", "fp32"),
    "full-fp32-falling": _run("full", "fp32", falling=True, weight_decay=0.1, bad=(7, 8)),
    "full-fp32-binomial-clip": _run("full", "fp32", noise="binomial", clip=0.5, weight_decay=0.1),
    "full-fp32-auto": _run("full", "fp32", lr="auto"),
    "full-fp32-auto-fzoo": _run("full", "fp32", **FZOO | {"lr": "auto"}),
    "full-fp32-low-rank": _run("full", "fp32", noise="low_rank", rank=3, directions=2),
    "full-fp32-subspace": _run("full", "fp32", shapes="subspace"),
    "full-fp32-rows": _run("full", "fp32", shapes="rows", noise="binomial"),
    "full-fp32-networks": _run("full", "fp32", finetuner="networks", lr="auto", bad=(4,)),
    "full-fp32-scales": _run("full", "fp32", finetuner="scales", directions=3),
    "full-fp32-bend": _run("full", "fp32", finetuner="bend", lr=3e-4),
    "full-bf16": _run("full", "bf16", lr=1e-4),
    "full-bf16-fzoo": _run("full", "bf16", **FZOO | {"lr": 1e-4}),
    "full-bf16-binomial": _run("full", "bf16", noise="binomial", directions=3, weight_decay=0.5),
    "full-bf16-low-rank": _run("full", "bf16", noise="low_rank", rank=2),
    "full-bf16-mixed": _run("full", "bf16", shapes="mixed", directions=2),
    "full-bf16-scales": _run("full", "bf16", finetuner="scales", noise="rademacher"),
    "full-bf16-philox": _run(
        *("full", "bf16"), lr=1e-4, directions=2, weight_decay=0.1, rounding="stochastic"
    ),
    "full-bf16-hashed": _run("full", "bf16", lr=1e-4, rounding="hashed"),
    "full-bf16-hashed-low-rank": _run(
        *("full", "bf16"), noise="low_rank", directions=2, rounding="hashed"
    ),
    "full-bf16-hashed-mixed": _run(
        *("full", "bf16"), shapes="mixed", noise="rademacher", rounding="hashed"
    ),
    "lora-fp32": _run("lora", "fp32", lr=1e-2),
    "lora-fp32-low-rank": _run("lora", "fp32", lr=1e-2, noise="low_rank", rank=1),
    "lora-fp32-auto-one": _run("lora", "fp32", lr="auto", directions=3, **ONE),
    "lora-bf16-binomial": _run("lora", "bf16", lr=1e-2, noise="binomial", directions=3),
    "lora-bf16-networks": _run("lora", "bf16", lr="auto", finetuner="networks", **ONE),
    "prefix-fp32-one": _run("prefix", "fp32", lr=1e-1, eps=1e-1, noise="binomial", **ONE),
    "prefix-fp32-networks": _run("prefix", "fp32", lr=1e-1, eps=1e-1, finetuner="networks"),
    "prefix-bf16": _run("prefix", "bf16", lr=1e-1, eps=1e-1, directions=2),
}


def numbers(count: int, start: int = 0, modulus: int = 101) -> torch.Tensor:
    """Whole numbers from -50 to 50 in an order without a pattern, fp32 [count]."""
    places = torch.arange(start, start + count, dtype=torch.int64)
    return ((places * 37 + places // 7 * 11) % modulus - modulus // 2).float()


def fill(tensor: torch.Tensor, number: int, size: float) -> None:
    """Writes numbers that 16 bits hold exactly."""
    values = numbers(tensor.numel(), 1000 * number) * size
    tensor.data.copy_(values.view(tensor.shape))


def model_of(run: Run) -> Any:
    """The run's model at its start."""
    from peft import LoraConfig, PrefixTuningConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        tie_word_embeddings=True,
        pad_token_id=0,
    )
    model: Any = LlamaForCausalLM(config).to(DTYPES[run.dtype])
    if run.space == "lora":
        made = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
        model = get_peft_model(model, made, autocast_adapter_dtype=False)
    elif run.space == "prefix":
        made = PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
        model = get_peft_model(model, made).to(DTYPES[run.dtype])
    for number, (name, parameter) in enumerate(sorted(model.named_parameters())):
        if name.endswith("norm.weight"):
            parameter.data.fill_(1.0)
        else:
            fill(parameter, number, 2.0**-7)
    return model.eval()


def batch(step: int) -> dict[str, torch.Tensor]:
    """The batch of a step, [2, 8]."""
    rows = (torch.arange(2).unsqueeze(1) * 5 + torch.arange(8) * 3 + step) % (VOCABULARY - 1) + 1
    return {"input_ids": rows, "labels": rows}


def basis(rows: int, columns: int) -> torch.Tensor:
    """Orthonormal columns of zeros and ones: products with them are exact."""
    found = torch.zeros(rows, columns)
    found[torch.arange(columns) * 2 % rows, torch.arange(columns)] = 1.0
    return found


def shapes_of(kind: str, blocks: Any) -> dict[int, Any] | None:
    """The shapes of a run's matrices; every second one has none."""
    if not kind:
        return None
    found: dict[int, Any] = {}
    for index, block in enumerate(blocks):
        if len(block.shape) != 2 or index % 2:
            continue
        rows, columns = block.shape
        if kind == "rows":
            # Sixteen rows of each weight: a mean of squares that is exact.
            found[index] = Rows(2.0 ** (torch.arange(rows) // 8 % 2))
        else:
            mix = 0.25 if kind == "mixed" else 0.0
            found[index] = Subspace(basis(rows, 4), basis(columns, 3), mix)
    return found


def finetuner_of(kind: str, blocks: Any) -> zopeft.FineTuner:
    """A fine-tuner whose networks are filled with numbers."""
    from zopeft.finetuner import STATE_FEATURES

    if kind == "bend":
        features = (*STATE_FEATURES, "log_loss", "bend")
        made = zopeft.FineTuner.initial(blocks, hidden=4, features=features, output="bounded")
    else:
        made = zopeft.FineTuner.initial(blocks, hidden=4, inputs="raw")
    with torch.no_grad():
        for number, tensor in enumerate(made.nets.parameters()):
            fill(tensor, 40 + number, 2.0**-6)
        if kind == "bend":
            made.nets.prior.copy_(1.0 + made.nets.prior.abs())
    if kind == "scales":
        made.set_scales(made.match(blocks), 1.0 + torch.arange(len(blocks)) % 4)
    return made


def method_of(run: Run, model: Any) -> Any:
    """The run's method over a model of it."""
    blocks = zopeft.discover(model)
    options = {**run.options, "seed": SEED, "shapes": shapes_of(run.shapes, blocks)}
    if run.finetuner:
        options["finetuner"] = finetuner_of(run.finetuner, blocks)
    method = METHODS[run.method](blocks, **options)
    method.engine.rounding = run.rounding
    return method


def schedule_of(run: Run, method: Any) -> torch.optim.lr_scheduler.LRScheduler:
    """The run's schedule of learning rates."""
    last = 0.0 if run.falling else 1.0
    return torch.optim.lr_scheduler.LinearLR(method, 1.0, last, total_iters=STEPS)


def digest(tensors: dict[str, torch.Tensor]) -> str:
    """Hash of the names, dtypes and bytes of some tensors."""
    sums = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(tensors.items()):
        plain = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        sums.update(f"{name} {tensor.dtype}".encode() + plain.numpy().tobytes())
    return sums.hexdigest()


def weights(blocks: Any) -> dict[str, torch.Tensor]:
    """The blocks' weights by the names of their parameters."""
    return {block.parameter_name: block.parameter.data for block in blocks}


def kept(method: Any) -> dict[str, torch.Tensor]:
    """All that a run has made: its weights, and the fp32 masters of 16-bit adapters."""
    return {**weights(method.blocks), **method.engine.state_dict()}
