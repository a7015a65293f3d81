"""The model card of a fine-tuner: what it is, what it was learned on, how to use it."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from zopeft.finetuner import scores
from zopeft.finetuner.config import FineTunerConfig

_LONG = 400
UNTRAINED = "None: the networks stand at their random start.\n"
SCORES = {
    "loss_first": "loss of the first batch of the run that it watched",
    "loss_last": "loss of its last batch",
    "mean_gain": "mean fall of the loss by a zeroth-order step with its scales",
    "distance_from_start": "distance of the networks from their start, relative",
}
"""Names in a fine-tuner's training that say how well it went, and what they mean."""


def card(config: FineTunerConfig) -> str:
    """Returns the card as Markdown with the hub's YAML header."""
    parts = [_header(config), _title(config), _USE, _facts(config), _training(config)]
    parts.append(scores.section(scores.comparisons(config.training)))
    return "\n".join(part for part in parts if part) + "\n"


def _header(config: FineTunerConfig) -> str:
    import yaml

    fields: dict[str, Any] = {"library_name": "zopeft"}
    if "imported_from" not in config.training:
        # Numbers that others have published keep the licence that those chose.
        fields["license"] = "apache-2.0"
    if config.base_model:
        fields["base_model"] = config.base_model
    fields["tags"] = ["zopeft", "zeroth-order", "zo-finetuner", "learned-optimizer"]
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---\n"


def _title(config: FineTunerConfig) -> str:
    base = config.base_model or config.architecture
    return (
        f"# ZO fine-tuner for {base}\n\n"
        "Small learned networks that choose how strongly each parameter block of the base model\n"
        "is perturbed in zeroth-order fine-tuning: forward passes only, the memory of inference.\n"
    )


_USE = """## Use

```python
import zopeft

blocks = zopeft.discover(model)
finetuner = zopeft.FineTuner.from_pretrained("this-folder-or-hub-id")
optimizer = zopeft.ZOFineTuner(blocks, finetuner)
loss = optimizer.step(lambda: model(**batch).loss)
```

It serves this base model, its derivatives and its siblings of other sizes, in full and under
LoRA or prefix adapters; `finetuner.match(blocks).report` says which blocks it serves.
"""


def _facts(config: FineTunerConfig) -> str:
    roles = Counter(group.role for group in config.groups)
    facts = {
        "architecture": f"{config.architecture}, {config.num_layers} layers",
        "space": config.space,
        "groups": f"{len(config.groups)} ({', '.join(f'{n} {r}' for r, n in roles.items())})",
        "sharing": f"one network a {config.sharing}",
        "network": f"{', '.join(config.features)} -> {config.hidden} tanh -> 1, {_ending(config)}",
        "features read as": "sign(x) log(1 + abs(x) / u) / s" if config.inputs == "log" else "",
        "normalised": _normalised(config),
        "subspaces": _subspaces(config),
        "embedding rows": f"(token count + 1)^{config.power:g}" if config.rows != "none" else "",
        "versions": ", ".join(f"{name} {v}" for name, v in config.versions.items()),
    }
    return "## What it holds\n\n" + _table(facts)


def _ending(config: FineTunerConfig) -> str:
    if config.output == "absolute":
        return "absolute value"
    return f"a fixed scale times exp({config.bound:.3g} tanh)"


def _subspaces(config: FineTunerConfig) -> str:
    if config.capacity != "subspace":
        return ""
    count = sum(group.shape is not None for group in config.groups)
    sides = "" if config.sides == "both" else " of the inputs alone"
    return f"{count}, rank {config.rank} at most{sides}, {config.mix:.0%} isotropic noise"


def _normalised(config: FineTunerConfig) -> str:
    if not config.normalise:
        return "no"
    text = "yes, sum d scale^2 = sum d"
    if config.normalisation == "authors":
        text += f" (d of an embedding: {config.embed_rows} rows, as in the authors' code)"
    return text


def _training(config: FineTunerConfig) -> str:
    facts, own = {}, {}
    for name, value in config.to_dict()["training"].items():
        text = value if isinstance(value, str) else json.dumps(value)
        # Long tables (a number for each block) stay in the configuration file.
        text = text if len(text) <= _LONG else "see `finetuner_config.json`"
        if name == scores.KEY:
            continue
        if name in SCORES:
            own[SCORES[name]] = f"{value:.4g}" if isinstance(value, float) else text
        else:
            facts[name] = text
    told = _table(facts) if facts else UNTRAINED
    found = f"## Training\n\n{told}"
    return found + (f"\n## Scores\n\n{_table(own)}" if own else "")


def _table(facts: dict[str, str]) -> str:
    rows = [
        f"| {name} | {' '.join(text.replace('|', '/').split())} |"
        for name, text in facts.items()
        if text
    ]
    return "\n".join(["| | |", "|---|---|", *rows]) + "\n"
