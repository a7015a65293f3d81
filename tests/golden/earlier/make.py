"""Makes the small files of earlier versions that `test_earlier_formats.py` reads.

Each is made by the code of its commit, taken out of the history into a folder of its own, with
the libraries that are installed: a run of six steps with a checkpoint at the fourth, and a
fine-tuner where that commit changed the format. Files that are there are left as they are.

    python tests/golden/earlier/make.py            # all that are missing
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "first": ("c8f38ac", {}),
    "first-networks": ("c8f38ac", {"method": "zo_finetuner"}),
    "low-rank": ("058bd76", {"noise": "low_rank", "rank": 2}),
    "auto": ("84cee6f", {"learning_rate": "auto"}),
    "directions": ("95d7074", {"directions": 3, "sides": "one"}),
    "watched": ("2300825", {}),
    "rounded": ("abb36e4", {"space": "full"}),
    "options": ("18cb11b", {"weight_decay": 0.1, "clip": 2.0}),
    "planned": ("a712546", {"method": "hizoo"}),
    "state": ("5682d87", {"method": "mezo_adam"}),
    "layers": ("fd4c44f", {"method": "lezo"}),
    "thrifty": ("3d93bc3", {"learning_rate": "auto"}),
}
"""A run's name: a commit that wrote such runs, and its options.

Methods that keep a number an element do their arithmetic in one compiled pass since 5682d87, whose
last bits are not those of before: no such run of before that is kept.
"""
TUNERS = {"networks": "c8f38ac", "subspaces": "7fa42be", "compressed": "5a54efa"}
"""A fine-tuner's name, and a commit of its format: 1, 2 and 3."""
KEPT = ("journal.bin", "journal_start.safetensors", "checkpoint-4")
STEPS, EARLY = 6, 4


def model_of(space: str) -> Any:
    """A model whose weights are whole numbers, exact in 16 bits, the same everywhere."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=24, hidden_size=8, intermediate_size=12, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=16, pad_token_id=0,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config)
    if space == "full":
        model = model.to(torch.bfloat16)
    else:
        from peft import LoraConfig, get_peft_model

        made = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
        model = get_peft_model(model, made)
    for number, (name, parameter) in enumerate(sorted(model.named_parameters())):
        places = torch.arange(1000 * number, 1000 * number + parameter.numel())
        values = ((places * 37 + places // 7 * 11) % 101 - 50).float() * 2.0**-7
        parameter.data.copy_(values.view(parameter.shape))
        if name.endswith("norm.weight"):
            parameter.data.fill_(1.0)
    return model.eval()


def trainer_of(model: Any, out: str, options: dict[str, Any], **more: Any) -> Any:
    """A trainer of a run."""
    import torch

    import zopeft
    from zopeft.training import ZOTrainer, ZOTrainingArguments

    rows = (torch.arange(8).unsqueeze(1) * 5 + torch.arange(6) * 3) % 23 + 1
    data = [{"input_ids": row, "labels": row} for row in rows]
    options = {name: value for name, value in options.items() if name != "space"}
    made = {}
    if options.get("method") == "zo_finetuner":
        # Scales that were learned once, the same for every version.
        blocks = zopeft.discover(model)
        made["finetuner"] = tuner = tuner_of(blocks, 1)
        tuner.set_scales(tuner.match(blocks), 1.0 + torch.arange(len(blocks)) % 3)
    chosen = {
        "method": "mezo", "learning_rate": 1e-2, "eps": 1e-2, "max_steps": STEPS,
        "per_device_train_batch_size": 2, "save_strategy": "steps", "save_steps": EARLY,
        "logging_steps": 4, "use_cpu": True, "seed": 3, "report_to": "none", **options, **more,
    }  # fmt: skip
    return ZOTrainer(
        model, ZOTrainingArguments(output_dir=out, **chosen), train_dataset=data, **made
    )


def tuner_of(blocks: Any, kind: int) -> Any:
    """A fine-tuner of a format, of whole numbers; from the second format on, with bases."""
    import torch

    import zopeft

    options: dict[str, Any] = {} if kind < 2 else {"capacity": "subspace", "rank": 2}
    made = zopeft.FineTuner.initial(blocks, hidden=3, **options)
    with torch.no_grad():
        for number, tensor in enumerate(made.nets.parameters()):
            places = torch.arange(100 * number, 100 * number + tensor.numel())
            tensor.copy_((((places * 37) % 101 - 50).float() * 2.0**-6).view(tensor.shape))
    if kind > 1:
        matrices = [n for n, block in enumerate(blocks) if len(block.shape) == 2][1:3]
        sides = {n: [torch.eye(size)[:, :2] for size in blocks[n].shape] for n in matrices}
        made.set_bases(made.match(blocks), {n: tuple(pair) for n, pair in sides.items()})
    return made


def step_of(tuner: Any, model: Any) -> dict[str, list[float]]:
    """What a step with told losses does with a fine-tuner: its scales, and how far blocks go."""
    import torch

    import zopeft

    blocks = zopeft.discover(model)
    losses = [3.0, 2.0]
    before = [block.parameter.detach().clone() for block in blocks]
    method = zopeft.ZOFineTuner(blocks, tuner, lr=1e-2, eps=1e-2, seed=5)
    method.step(lambda: torch.tensor(losses.pop(0)))
    moved = [
        float((block.parameter.detach() - start).norm())
        for block, start in zip(blocks, before, strict=True)
    ]
    return {"scales": method.last_record.scales.tolist(), "moved": moved}


def digest(model: Any) -> str:
    """Hash of a model's weights, names and dtypes."""
    import torch

    sums = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        plain = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        sums.update(f"{name} {tensor.dtype}".encode() + plain.numpy().tobytes())
    return sums.hexdigest()


def child(kind: str, name: str, out: str) -> None:
    """Makes one, with the zopeft that is on the path."""
    import torch

    import zopeft

    if not Path(str(zopeft.__file__)).is_relative_to(Path.cwd()):
        raise SystemExit(f"this is the zopeft of {zopeft.__file__}")
    torch.set_num_threads(1)
    if kind == "run":
        options = RUNS[name][1]
        model = model_of(options.get("space", "adapter"))
        trainer = trainer_of(model, out, options)
        trainer.train()
        told = {"digest": digest(model), "forwards": trainer.method.forward_passes}
    else:
        model = model_of("full").float()
        tuner = tuner_of(zopeft.discover(model), 1 + list(TUNERS).index(name))
        tuner.save_pretrained(out)
        told = step_of(tuner, model)
    Path(out, "told.json").write_text(json.dumps(told))


def make(kind: str, name: str, commit: str, repository: Path) -> None:
    """Makes one file with the code of its commit."""
    with tempfile.TemporaryDirectory() as place:
        code = subprocess.run(
            ["git", "archive", commit], cwd=repository, check=True, capture_output=True
        ).stdout
        with tarfile.open(fileobj=BytesIO(code)) as archive:
            archive.extractall(Path(place, "code"), filter="data")
        out = Path(place, "out")
        subprocess.run(
            [sys.executable, __file__, "--child", kind, name, str(out)],
            check=True, cwd=Path(place, "code"),
            env={**os.environ, "PYTHONPATH": str(Path(place, "code")), "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        with zipfile.ZipFile(
            FOLDER / f"{name}.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9
        ) as kept:
            for path in sorted(out.rglob("*")):
                where = path.relative_to(out)
                named = where.parts[0] in (*KEPT, "told.json")
                if path.is_file() and (named or (kind == "tuner" and path.name != "README.md")):
                    entry = zipfile.ZipInfo(where.as_posix())
                    kept.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED, 9)


def main() -> None:
    """Makes those that are missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", nargs=3)
    given = parser.parse_args()
    if given.child:
        child(*given.child)
        return
    repository = FOLDER.parents[2]
    wanted = [("run", name, commit) for name, (commit, _) in RUNS.items()]
    wanted += [("tuner", name, commit) for name, commit in TUNERS.items()]
    for kind, name, commit in wanted:
        if not (FOLDER / f"{name}.zip").exists():
            make(kind, name, commit, repository)
            print(name, (FOLDER / f"{name}.zip").stat().st_size)


if __name__ == "__main__":
    main()
