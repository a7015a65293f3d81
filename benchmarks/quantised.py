"""Whether a model that is quantised on disk learns as its float original does.

Saves MODEL in 8 bit and in 4 bit (NF4), and tunes each of the three on a task by the command
line: LoRA on all of them, the weights in full on the original, the scales alone on the
quantised ones, for the same number of steps and at lr=auto, or at each of some rates; what
counts is the cut, validation loss before minus after, at the case's best rate.
Prints one JSON row a run, and at the end each quantised case's share of the original's cut:
LoRA beside LoRA, scales beside full.

    python benchmarks/quantised.py MODEL --data DIR --keep
    python benchmarks/quantised.py MODEL --data DIR --cases 8bit-scales --rates 3e-3
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rows import about, keep

CASES = {
    "float-lora": ("--lora",),
    "8bit-lora": ("--lora",),
    "4bit-lora": ("--lora",),
    "float-full": ("--full",),
    "8bit-scales": ("--peft", "scales"),
    "4bit-scales": ("--peft", "scales"),
}
"""Case, named by base and space, to the words that choose its space."""
BESIDE = {"lora": "float-lora", "scales": "float-full"}
"""Space to the case of the original that its cut is compared with."""


def quantise(model: str, base: str, folder: Path) -> Path:
    """Saves a model in the way of a base ("8bit", "4bit") and returns its folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    if base == "8bit":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        )
    path = folder / base
    loaded = AutoModelForCausalLM.from_pretrained(
        model, quantization_config=config, dtype=torch.float32, device_map="cpu"
    )
    loaded.save_pretrained(path)
    AutoTokenizer.from_pretrained(model).save_pretrained(path)
    return path


def run(case: str, model: str | Path, lr: str, args: argparse.Namespace) -> dict[str, Any]:
    """Tunes once by the command line and returns its row."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "zopeft.cli.main", "tune", str(model), *CASES[case]]
        command += ["--task", args.task, "--data", args.data, "--lr", lr, "--json"]
        command += ["--steps", str(args.steps), "--batch-size", str(args.batch)]
        command += ["--seed", str(args.seed), "--out", f"{folder}/out"]
        command += [f"task.eval_examples={args.eval}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr.strip().splitlines()[-1])
        summary = json.loads(done.stdout)
    before, after = summary["metrics"]["before"], summary["metrics"]["after"]
    return {
        "case": case,
        "model": Path(args.model).name,
        "task": args.task,
        "lr": summary["lr"],
        "lr_last": summary["lr_last"],
        "lr_given": lr,
        "steps": summary["steps"],
        "batch": args.batch,
        "seed": args.seed,
        "unit": f"nats over {after['examples']} validation rows",
        "loss_before": before["loss"],
        "loss_after": after["loss"],
        "cut": before["loss"] - after["loss"],
        "accuracy_after": after.get("accuracy"),
        "trained_numbers": summary["trained_numbers"],
        "seconds_training": summary["seconds_training"],
    }


def shares(rows: list[dict[str, Any]]) -> list[str]:
    """Returns a line a case: its best rate, its cut, and the share of the original's."""
    best: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["case"] not in best or row["cut"] > best[row["case"]]["cut"]:
            best[row["case"]] = row
    lines = []
    for case, row in best.items():
        line = (
            f"{case}: {row['loss_before']:.3f} -> {row['loss_after']:.3f} at lr {row['lr_given']}"
        )
        beside = BESIDE.get(case.partition("-")[2])
        if beside in best and beside != case:
            line += f", {row['cut'] / best[beside]['cut']:.2f} of the cut of {beside}"
        lines.append(line)
    return lines


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder of a float model")
    parser.add_argument("--data", required=True, help="folder with the task's files")
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--rates", nargs="+", default=["auto"], help="numbers or auto")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--eval", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="append the rows to results/")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case in args.cases:
            base, _, _ = case.partition("-")
            path = args.model if base == "float" else quantise(args.model, base, Path(folder))
            for lr in args.rates:
                row = {**run(case, path, lr, args), **about()}
                print(json.dumps(row), flush=True)
                rows.append(row)
                if args.keep:
                    keep("quantised", [row])
    print("\n".join(shares(rows)), file=sys.stderr)


if __name__ == "__main__":
    main()
