"""A small run that tests start in this process or, as a script, in another one."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

VOCABULARY = 64


def tiny_model(dtype: torch.dtype = torch.float32, seed: int = 0, dropout: float = 0.0) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        attention_dropout=dropout,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).to(dtype)


def with_lora(model: Any, seed: int = 1, dropout: float = 0.0) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(
        r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", lora_dropout=dropout
    )
    return get_peft_model(model, config)


class Counting(torch.utils.data.Dataset):
    """Sequences that count upwards, each from another number."""

    def __init__(self, length: int = 24, width: int = 8) -> None:
        starts = torch.arange(length).unsqueeze(1)
        self.rows = (starts * 7 + torch.arange(width)) % (VOCABULARY - 1) + 1

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def digest(model: Any) -> str:
    """Hash of all weights' bytes."""
    sums = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        sums.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return sums.hexdigest()


def arguments(out: Path | str, **options: Any) -> Any:
    from zopeft.training import ZOTrainingArguments

    chosen: dict[str, Any] = {
        "method": "mezo",
        "learning_rate": 1e-3,
        "max_steps": 12,
        "per_device_train_batch_size": 4,
        "save_strategy": "no",
        "logging_steps": 4,
        "use_cpu": True,
        "seed": 3,
        **options,
    }
    return ZOTrainingArguments(output_dir=str(out), **chosen)


def trainer(model: Any, out: Path | str, *, callbacks: Any = (), **options: Any) -> Any:
    from zopeft.training import ZOTrainer

    made = {
        name: options.pop(name)
        for name in (
            *("loss_function", "eval_dataset", "compute_metrics", "finetuner", "blocks"),
            "optimizers",
        )
        if name in options
    }
    made.setdefault("eval_dataset", Counting(8))
    return ZOTrainer(
        model,
        arguments(out, **options),
        train_dataset=Counting(),
        callbacks=list(callbacks),
        **made,
    )


class Kill(TrainerCallback):
    """Ends the process as kill -9 does, right after a step has been recorded or before it."""

    def __init__(self, step: int, event: str) -> None:
        self.step, self.event = step, event

    def _at(self, event: str, step: int) -> None:
        if event == self.event and step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._at("step_begin", state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._at("step_end", state.global_step)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--space", choices=("lora", "full-bf16"), default="lora")
    parser.add_argument("--kill-step", type=int)
    parser.add_argument("--kill-event", default="step_end")
    parser.add_argument("--adapter-seed", type=int, default=1)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--distributed", action="store_true")
    parser.add_argument("--options", default="{}")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.space == "lora":
        model = with_lora(tiny_model(), seed=given.adapter_seed)
    else:
        model = tiny_model(torch.bfloat16)
    callbacks = [] if given.kill_step is None else [Kill(given.kill_step, given.kill_event)]
    options = json.loads(given.options)
    made = trainer(model, given.out, callbacks=callbacks, **options)
    made.train(resume_from_checkpoint=given.resume or None)
    rank = made.args.process_index if given.distributed else 0
    result = {
        "digest": digest(model),
        "steps": made.state.global_step,
        "forward_passes": made.method.forward_passes,
        "world_size": made.args.world_size,
        "losses": [entry["loss"] for entry in made.state.log_history if "loss" in entry],
    }
    Path(given.out, f"result-{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
