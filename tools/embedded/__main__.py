"""``python tools/embedded data|pretrain``: make the files of `zopeft.embedded` again."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from zopeft.embedded import DATA_DIR, MODEL_DIR

# The package is this folder, whose parent need not be on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def _data(folder: Path) -> None:
    from embedded.samples import write_samples

    for path in write_samples(folder):
        print(path)


def _pretrain(folder: Path, steps: int | None, threads: int) -> None:
    import torch

    from embedded.pretrain import Pretraining, pretrain, save

    torch.set_num_threads(threads)
    started = time.monotonic()
    settings = Pretraining() if steps is None else Pretraining(steps=steps)

    def report(step: int, loss: float) -> None:
        print(
            f"step {step}/{settings.steps}  loss {loss:.4f}  {time.monotonic() - started:.0f} s",
            flush=True,
        )

    model, tokenizer = pretrain(settings, report)
    save(model, tokenizer, folder)
    print(folder)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Words after ``python tools/embedded``.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog="python tools/embedded", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    data = commands.add_parser("data", help="write the samples of the seven tasks")
    data.add_argument("--out", type=Path, default=DATA_DIR)
    training = commands.add_parser(
        "pretrain", help="train the tokenizer and the model (about 25 minutes)"
    )
    training.add_argument("--out", type=Path, default=MODEL_DIR)
    training.add_argument("--steps", type=int, default=None, help="fewer steps, to try it out")
    training.add_argument(
        "--threads", type=int, default=1, help="the files of the package were made with 1"
    )
    parsed = parser.parse_args(arguments)
    if parsed.command == "data":
        _data(parsed.out)
    else:
        _pretrain(parsed.out, parsed.steps, parsed.threads)
    return 0


if __name__ == "__main__":
    sys.exit(main())
