"""What two processes find of a model that they share out, beside one that holds all of it.

Run as a script by each of them; writes a file of findings, see tests/test_sharded.py.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from test_methods_contracts import RATES, SMALL
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.distributed.configuration_utils import DistributedConfig

import zopeft
from zopeft.blocks.shards import gatherers, let_go, local, put, whole
from zopeft.journal import Journal, fingerprint, header_of, load_start, rebuild, save_start
from zopeft.kernels.plain_backend import PlainKernels
from zopeft.methods import METHODS
from zopeft.models.soundness import spoilt
from zopeft.noise import Noise
from zopeft.training import save_result

IDS = torch.arange(40).view(4, 10)
TARGETS = ["q_proj", "o_proj", "down_proj"]


def base(folder: str) -> None:
    """Writes a model whose vocabulary two processes cannot share out evenly."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=61, max_position_embeddings=32, **sizes, **heads)
    LlamaForCausalLM(config).save_pretrained(folder)


def with_lora(model: Any, dtype: torch.dtype = torch.float32) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(5)
    config = LoraConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM")
    model = get_peft_model(model, config, autocast_adapter_dtype=dtype == torch.float32)
    source = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            put(parameter, 0.1 * torch.randn(parameter.shape, generator=source))
    return model.eval()


class Cases:
    """One model a kind, brought back to its start before each case."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.found: dict[str, Any] = {}
        self.models: dict[tuple[str, bool, torch.dtype], tuple[Any, list[torch.Tensor]]] = {}

    def model(self, kind: str, lora: bool, dtype: torch.dtype = torch.float32) -> Any:
        key = (kind, lora, dtype)
        if key not in self.models:
            made = self._loaded(kind, lora, dtype)
            self.models[key] = made, [local(p).clone() for p in made.parameters()]
        model, start = self.models[key]
        let_go(gatherers(model))
        for parameter, values in zip(model.parameters(), start, strict=True):
            local(parameter).copy_(values)
        return model

    def _loaded(self, kind: str, lora: bool, dtype: torch.dtype) -> Any:
        options: dict[str, Any] = {}
        if kind == "tensor":
            options["distributed_config"] = DistributedConfig(tp_plan="auto")
        if kind == "fsdp":
            options["distributed_config"] = DistributedConfig(fsdp_size=2)
        model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=dtype, **options).eval()
        model = with_lora(model, dtype) if lora else model
        if kind == "own":
            # As somebody shards a model by hand, adapters and all.
            from torch.distributed.fsdp import fully_shard

            for layer in (model.base_model.model if lora else model).model.layers:
                fully_shard(layer)
            fully_shard(model)
        return model

    def method(self, model: Any, name: str, **options: Any) -> Any:
        backend = options.pop("backend", None)
        options = {"lr": min(RATES.get(name, 1e-3), 1e-2), "eps": 1e-3, "seed": 1, **options}
        method = METHODS[name](zopeft.discover(model), **SMALL.get(name, {}), **options)
        if backend is not None:
            method.engine.kernels = method.engine.elements.kernels = PlainKernels(Noise())
            for carrier in method.engine.carriers:
                carrier.kernels = method.engine.kernels
        return method

    def steps(self, model: Any, name: str, count: int = 3, **options: Any) -> list[Any]:
        method, records = self.method(model, name, **options), []
        for _ in range(count):
            method.step(lambda: model(input_ids=IDS, labels=IDS).loss)
            records.append(method.last_record)
        return records

    def replayed(self, model: Any, name: str, records: list[Any], **options: Any) -> None:
        method = self.method(model, name, **options)
        for record in records:
            method.replay(record)

    def compare(self, case: str, kind: str, name: str, lora: bool, live: bool, **options: Any):
        """Notes how far a shared-out run is from one of a single process."""
        dtype = options.pop("dtype", torch.float32)
        alone = self.model("", lora, dtype)
        start = weights(alone)
        records = self.steps(alone, name, **options)
        ended = weights(alone)
        options.pop("count", None)
        own = self.model(kind, lora, dtype)
        self.replayed(own, name, records, **options)
        self.found[case] = found = {
            "moved": furthest(start, ended),
            "same": all(torch.equal(ended[n], value) for n, value in weights(own).items()),
        }
        if live:
            own = self.model(kind, lora, dtype)
            again = self.steps(own, name, len(records), **options)
            pairs = [(a.losses, b.losses) for a, b in zip(records, again, strict=True)]
            found["losses"] = max(abs(a - b) for x, y in pairs for a, b in zip(x, y, strict=True))
            found["weights"] = furthest(ended, weights(own))
            found["digest"] = digest(weights(own))


def weights(model: Any) -> dict[str, torch.Tensor]:
    let_go(gatherers(model))
    return {name: whole(p).clone() for name, p in model.named_parameters() if p.requires_grad}


def furthest(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - two[name]).abs().max()) for name in one)


def digest(found: dict[str, torch.Tensor]) -> str:
    made = hashlib.sha256()
    for name, value in sorted(found.items()):
        made.update(name.encode() + value.float().numpy().tobytes())
    return made.hexdigest()


def all_methods(cases: Cases) -> None:
    for name in METHODS:
        made = METHODS[name]
        if made.order or made.needs_finetuner or made.required or "full" not in made.spaces:
            continue
        if made.shards:
            cases.compare(f"method {name}", "tensor", name, False, False, count=2)
        else:
            try:
                cases.method(cases.model("tensor", False), name)
            except zopeft.errors.InputError as error:
                cases.found[f"method {name}"] = {"refused": str(error)}


def ways(cases: Cases) -> None:
    for kind in ("tensor", "fsdp", "own"):
        for lora in (False, True):
            kept = f"{kind} {'lora' if lora else 'full'}"
            cases.compare(f"live {kept}", kind, "mezo", lora, True, directions=2)
        cases.compare(f"16 bit {kind}", kind, "mezo", False, False, dtype=torch.bfloat16)
        two = {"dtype": torch.bfloat16, "directions": 2}
        cases.compare(f"16 bit lora {kind}", kind, "mezo_adam", True, False, **two)
        for noise in ("binomial", "rademacher", "low_rank"):
            cases.compare(f"{noise} {kind}", kind, "mezo", False, False, noise=noise, count=2)
        cases.compare(f"plain {kind}", kind, "mezo_adam", False, False, backend="plain")


def measured(cases: Cases) -> None:
    """Statistics, fingerprints, start weights and journals: those of the whole model."""
    for kind in ("tensor", "fsdp"):
        alone, own = cases.model("", False), cases.model(kind, False)
        one, two = (cases.method(model, "mezo").engine for model in (alone, own))
        pairs = zip(one.statistics(), two.statistics(), strict=True)
        cases.found[f"statistics {kind}"] = max(
            float(((a - b).abs() / a.abs().clamp(min=1e-12)).max()) for a, b in pairs
        )
        marks = [fingerprint(zopeft.discover(model)) for model in (alone, own)]
        cases.found[f"fingerprint {kind}"] = marks
        folder = Path(cases.folder).parent / kind
        # A run of the shared-out model is rebuilt by one process, from start and journal.
        adapter = cases.model(kind, True)
        method = cases.method(adapter, "mezo")
        save_start(method.blocks, folder / "start.safetensors")
        journal = None
        if dist.get_rank() == 0:
            header = header_of(method, start="start.safetensors", settings={})
            journal = Journal.create(folder / "journal.bin", header)
        for _ in range(3):
            method.step(lambda adapter=adapter: adapter(input_ids=IDS, labels=IDS).loss)
            if journal is not None:
                journal.append(method.last_record)
        if journal is not None:
            journal.close()
        ended = weights(adapter)
        save_result(adapter, None, folder / "adapter")
        save_result(own, None, folder / "model")
        dist.barrier()
        plain = with_lora(AutoModelForCausalLM.from_pretrained(cases.folder).eval())
        rebuild(folder / "journal.bin", cases.method(plain, "mezo"))
        cases.found[f"rebuilt {kind}"] = furthest(ended, weights(plain))
        load_start(zopeft.discover(adapter), folder / "start.safetensors")
        cases.found[f"start {kind}"] = furthest(weights(adapter), weights(cases.model("", True)))
        spoil = cases.model(kind, False).model.layers[1].mlp.up_proj.weight
        local(spoil)[0, 0] = float("nan")
        cases.found[f"spoilt {kind}"] = spoilt(cases.models[kind, False, torch.float32][0])
        torch.save(ended, folder / f"ended-{dist.get_rank()}.pt")


def main() -> None:
    folder = sys.argv[1]
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    from transformers.utils import logging

    logging.disable_progress_bar()
    if dist.get_rank() == 0:
        base(f"{folder}/base")
    dist.barrier()
    cases = Cases(f"{folder}/base")
    for part in (ways, measured, all_methods):
        part(cases)
    Path(folder, f"found-{dist.get_rank()}.json").write_text(json.dumps(cases.found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
