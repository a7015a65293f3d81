"""Every method without gradients on the same batches: which loss, at which cost.

Each entry trains stories260K (or another small model) on each task, in each space, with as
many forward passes as the others. Its learning rate is chosen on one seed, by the loss of
training rows that are held out, after as many passes, from a grid in its own units, which begins
where a forward pass takes the weights as far as one of MeZO does at its best rate; three other
seeds are reported, by the loss of validation rows. (Rates chosen after half of the passes were
tried: MeZO's on a LoRA then diverged in the second half, with three seeds of three.) All entries
of a seed see the same batches. Settings are the methods' defaults; the sensitive mask is learned
on text of no evaluated task.

Rows are appended to results/methods/, a file a task and space; a run whose row is there is
not made again, so a broken-off command is repeated as it was.

    OMP_NUM_THREADS=1 python benchmarks/methods.py MODEL --data DIR --finetuner FOLDER
    OMP_NUM_THREADS=1 python benchmarks/methods.py MODEL --data DIR --task sst2 --space lora
    OMP_NUM_THREADS=1 python benchmarks/methods.py --cost      # a step's time and memory
    python benchmarks/methods.py --report                      # table and picture of the rows
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from methods_ground import CLIP, Ground, entries
from methods_runs import Field
from rows import RESULTS, about

FOLDER = RESULTS / "methods"
TASKS = ("sst2", "squad", "copa")
SPACES = ("full", "lora")


def train(args: argparse.Namespace) -> None:
    """Makes the runs of some tasks and spaces."""
    torch.set_num_threads(1)
    known = entries(args.finetuner)
    baseline = known[0]
    chosen = [one for one in known if not args.only or one.name in args.only]
    for task in args.task:
        for space in args.space:
            ground = Ground(
                args.model, args.data, task, space, args.batch, args.length, args.compiled
            )
            told = {
                "model": Path(args.model).name,
                "task": task,
                "space": space,
                "batch": args.batch,
                "length": args.length,
                "clip": CLIP,
                "unit": f"nats over {ground.validation} validation rows",
                **about(),
            }
            path = FOLDER / f"{task}-{space}.jsonl"
            field = Field(ground, path, told, args.forwards)
            for entry in chosen:
                if entry.name in args.skip:
                    continue
                field.hold(entry, baseline, args.seeds)


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", help="folder of a float model")
    parser.add_argument("--data", help="folder that holds one folder a task")
    parser.add_argument("--finetuner", default="", help="learned on the model, see README")
    parser.add_argument("--task", nargs="+", default=list(TASKS))
    parser.add_argument("--space", nargs="+", default=list(SPACES), choices=SPACES)
    parser.add_argument("--only", nargs="+", default=[], metavar="ENTRY", help="these entries")
    parser.add_argument("--skip", nargs="+", default=[], metavar="ENTRY", help="not these")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="reported ones")
    parser.add_argument("--forwards", type=int, default=2000, help="forward passes of a run")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=48, help="most tokens of an example")
    parser.add_argument("--eager", dest="compiled", action="store_false", help="compile nothing")
    parser.add_argument("--cost", action="store_true", help="measure steps instead")
    parser.add_argument("--report", action="store_true", help="table and picture of the rows")
    return parser.parse_args()


def main() -> None:
    """Trains, measures or reports."""
    args = arguments()
    if args.report:
        from methods_report import report

        report(FOLDER, args.forwards)
    elif args.cost:
        from methods_cost import measure_all

        measure_all(args, FOLDER / "cost.jsonl")
    elif not (args.model and args.data):
        raise SystemExit("methods.py: MODEL and --data are needed, see --help")
    else:
        train(args)


if __name__ == "__main__":
    main()
