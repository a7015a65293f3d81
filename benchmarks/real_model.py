"""Learned directions on a real pretrained model: against MeZO, a rule, and their own controls.

Entries: MeZO; rows of token embeddings by frequency alone (needs no meta-training); the
fine-tuner; without its subspaces (`scales`); with all that it learned serving other blocks
(`shuffled`); not trained; with subspaces in random directions; and MeZO and the fine-tuner with
four one-sided directions a step. Of a LoRA also those whose B alone is trained (`mezo B`), with A
begun with what the fine-tuner, or its shuffle, has learned (`mezo start`, `learned start`,
`shuffled start`). Each runs at lr auto and at its own best rate, which is chosen
on two seeds that are not reported, by the loss of training rows that are held out, after as many
passes. All entries of a seed see the same batches. Projected gradients are clipped in all.

Rows are appended to results/real_model/MODEL/, a file a task and space. A run whose row is there
is not made again, so the command is repeated until all are made; `--seeds`, `--only`, `--rates`,
`--task` and `--space` choose what a sitting makes. What `--entry` names runs beside, as a
`zopeft bench` would write it; the name=value in it are arguments of the method, and of a LoRA
start= and train= (`real_model_ground.OF_LORA`).

    OMP_NUM_THREADS=1 python benchmarks/real_model.py MODEL --data DIR --finetuner FOLDER
    OMP_NUM_THREADS=1 python benchmarks/real_model.py MODEL --data DIR --finetuner FOLDER \
        --task sst2 --space full --forwards 200 --rates auto --only mezo learned --seeds 1
    OMP_NUM_THREADS=1 python benchmarks/real_model.py MODEL --data DIR \
        --entry "mezo noise=rademacher label=rademacher" --only rademacher
    python benchmarks/real_model.py --report                   # one table a claim
    python benchmarks/real_model.py --report learned           # of one claim
    python benchmarks/real_model.py --report --into benchmarks/real_model.md
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

import torch
from methods_ground import CLIP
from real_model_ground import LENGTHS, Amounts, Competitor, RealGround, competitors
from real_model_runs import AUTO, Sitting
from rows import RESULTS, about

from zopeft.embedded import MODEL_DIR
from zopeft.errors import InputError
from zopeft.models.source import EMBEDDED
from zopeft.report.summary import versions

FOLDER = RESULTS / "real_model"
TASKS = tuple(LENGTHS)
SPACES = ("full", "lora")
RATES = (AUTO, "best")


def digest(*files: Path) -> str:
    """Returns 16 hex digits of the files' bytes."""
    found = hashlib.blake2b(digest_size=8)
    for file in files:
        with file.open("rb") as opened:
            while part := opened.read(1 << 24):
                found.update(part)
    return found.hexdigest()


def sit(args: argparse.Namespace) -> None:
    """Makes the runs of some tasks and spaces that are still to be made."""
    torch.set_num_threads(args.threads)
    known = competitors(args.finetuner, args.entry)
    baseline = known[0]
    names = [one.name for one in known]
    for name in (*args.only, *args.skip):
        if name not in names:
            raise InputError(f"--only: no such entry, got {name!r}; there are {', '.join(names)}")
    chosen = [one for one in known if not args.only or one.name in args.only]
    chosen = [one for one in chosen if one.name not in args.skip]
    weights = digest(*sorted(Path(args.model).glob("*.safetensors")))
    for task in args.task:
        for space in args.space:
            _sat(args, task, space, weights, chosen, baseline)


def _sat(
    args: argparse.Namespace,
    task: str,
    space: str,
    weights: str,
    chosen: list[Competitor],
    baseline: Competitor,
) -> None:
    length = args.length or LENGTHS.get(Path(task).stem, 64)
    amounts = Amounts(args.held, args.rows, args.answers)
    ground = RealGround(args.model, args.data, task, space, args.batch, length, amounts)
    files = sorted(Path(ground.folder).glob("*.jsonl"))
    setting: dict[str, Any] = {
        "batch": args.batch,
        "length": length,
        "held_rows": len(ground.held),
        "validation_rows": ground.validation,
        "model_digest": weights,
        "data_digest": digest(*files),
    }
    told = {
        "model": _name(args.model),
        "task": ground.task.name,
        "space": space,
        **setting,
        "train_rows": len(ground.train),
        "clip": CLIP,
        "unit": "nats a token of the answer, or an example where options are compared",
        **about(),
    }
    told["versions"] |= versions()
    path = FOLDER / told["model"] / f"{ground.task.name}-{space}.jsonl"
    sitting = Sitting(ground, path, told, args.forwards, setting)
    # A seed of all entries before the next, so that what was broken off can be compared.
    for seed in args.seeds:
        for one in chosen:
            sitting.hold(one, baseline, [seed], args.rates)


def _name(model: str) -> str:
    """Returns what rows call a model: its folder's name; the package's own one is "embedded"."""
    path = Path(model).resolve()
    return EMBEDDED if path == MODEL_DIR.resolve() else path.name


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", help="folder of a pretrained model")
    parser.add_argument("--data", help="folder that holds one folder a task")
    parser.add_argument("--finetuner", default="", help="learned on the model, see README")
    parser.add_argument("--task", nargs="+", default=list(TASKS))
    parser.add_argument("--space", nargs="+", default=list(SPACES), choices=SPACES)
    parser.add_argument("--rates", nargs="+", default=list(RATES), choices=RATES)
    parser.add_argument("--entry", action="append", default=[], metavar="LINE", help="one more")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these entries")
    parser.add_argument("--skip", nargs="+", default=[], metavar="NAME", help="not these")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="reported ones")
    parser.add_argument("--forwards", type=int, default=600, help="forward passes of a run")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=0, help="most tokens of a row; 0: by task")
    parser.add_argument("--held", type=int, default=64, help="training rows that are held out")
    parser.add_argument("--rows", type=int, default=256, help="validation rows")
    parser.add_argument("--answers", type=int, default=64, help="rows that answers are made for")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report", nargs="*", metavar="CLAIM", help="one table a claim")
    parser.add_argument("--into", type=Path, metavar="PAGE", help="puts tables between its marks")
    return parser.parse_args()


def main() -> None:
    """Makes runs or reports."""
    args = arguments()
    try:
        if args.report is not None or args.into:
            from real_model_report import markdown, read, write_into

            if args.into and args.report:
                raise InputError("--into: takes all claims of the page; leave the names out")
            if args.into:
                write_into(args.into, read(FOLDER))
            else:
                print(markdown(read(FOLDER), args.report))
        elif not (args.model and args.data):
            raise InputError("MODEL and --data are needed, see --help")
        else:
            sit(args)
    except InputError as error:
        raise SystemExit(f"real_model.py: {error}") from None


if __name__ == "__main__":
    main()
