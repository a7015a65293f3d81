"""Makes the golden runs and writes what they leave beside this file.

``python tests/golden/make.py`` overwrites all of it, or the runs that are named. Do so only where a
change is meant: what lies here is what journals of earlier versions hold, and it must go on being
replayed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import golden_runs as golden
import torch

import zopeft
from zopeft.journal import Journal, fingerprint, header_of, save_start
from zopeft.noise import FAMILIES, Noise, direction_seed, rounding_words, step_seed
from zopeft.noise.address import LEFT_STREAM, RIGHT_STREAM
from zopeft.optim.record import StepRecord

RUN_SEEDS = (0, 11, -3, 2**40)


def bits(tensor: torch.Tensor) -> list[str]:
    """fp32 numbers as eight hex digits each."""
    return [f"{word & 0xFFFFFFFF:08x}" for word in tensor.view(torch.int32).tolist()]


def plain(record: StepRecord) -> dict[str, Any]:
    """A record as JSON, every float to its last bit."""

    def told(value: Any) -> Any:
        if isinstance(value, float):
            return value.hex()
        if hasattr(value, "tolist"):
            return bits(torch.tensor(value, dtype=torch.float32))
        return [told(each) for each in value] if isinstance(value, tuple) else value

    return {name: told(value) for name, value in vars(record).items()}


def addressing() -> dict[str, Any]:
    """Addresses, seeds, noise of every family and stream, and the words of rounding."""
    noise, streams = {}, {}
    for family in FAMILIES:
        made = Noise(family)
        noise[family] = [bits(made.at_elements(*place, golden.COUNT)) for place in golden.PLACES]
        counters = torch.arange(1)
        streams[family] = [
            bits(made.at_counters(golden.PLACES[1][0], counters, 77, stream)[:4])
            for stream in (LEFT_STREAM, RIGHT_STREAM)
        ]
    return {
        "addresses": {
            space: {
                block.name: block.address
                for block in zopeft.discover(golden.model_of(golden.Run(space, "fp32")))
            }
            for space in golden.SPACES
        },
        "step_seeds": {f"{run} {n}": step_seed(run, n) for run in RUN_SEEDS for n in (-1, 0, 29)},
        "direction_seeds": [direction_seed(12345, number) for number in range(4)],
        "noise": noise,
        "streams": streams,
        "rounding": [rounding_words(*place, golden.COUNT).tolist() for place in golden.PLACES],
    }


def make(name: str, run: golden.Run) -> dict[str, Any]:
    """Makes a run, with real forward passes, and writes its journal."""
    model = golden.model_of(run)
    method = golden.method_of(run, model)
    start = None
    if run.space != "full":
        start = f"{run.space}-{run.dtype}.safetensors"
        save_start(method.blocks, golden.FOLDER / start)
    found: dict[str, Any] = {"start": golden.digest(dict(model.named_parameters())), "records": {}}
    found["begin"] = golden.digest(golden.kept(method))
    method.calibrate(lambda: model(**golden.batch(0)).loss)
    schedule = golden.schedule_of(run, method)
    header = header_of(method, start=start, fingerprint=fingerprint(method.blocks), run="0" * 16)
    with Journal.create(golden.FOLDER / f"{name}.bin", header, overwrite=True) as journal:
        for step in range(golden.STEPS):
            factor = float("nan") if step in run.bad else 1.0
            method.step(lambda f=factor, s=step: f * model(**golden.batch(s)).loss)
            schedule.step()
            journal.append(method.last_record)
            if step in (0, golden.STEPS - 1):
                found["records"][str(step)] = plain(method.last_record)
            if step + 1 == golden.EARLY:
                found["early"] = golden.digest(golden.kept(method))
    return {**found, "end": golden.digest(golden.kept(method))}


def main() -> None:
    """Writes everything, or the runs that are named."""
    torch.set_num_threads(1)
    place = golden.FOLDER / "golden.json"
    runs = json.loads(place.read_text())["runs"] if sys.argv[1:] else {}
    runs |= {name: make(name, golden.RUNS[name]) for name in sys.argv[1:] or golden.RUNS}
    made = {**addressing(), "runs": {name: runs[name] for name in golden.RUNS}}
    place.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
