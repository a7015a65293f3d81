"""Writes docs/peft.md: every PEFT type on tiny models of seven families, tried.

python tools/peft_page.py    # tries all of them, about two minutes
"""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers as t
from peft import PeftModel, PeftType
from transformers import AutoModelForCausalLM

import zopeft
from zopeft.errors import InputError
from zopeft.models import PEFT, attach
from zopeft.models.peft_types import REFUSED

PAGE = Path(__file__).resolve().parents[1] / "docs" / "peft.md"
SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
GATED = SIZES | {"intermediate_size": 48, "num_key_value_heads": 2, "initializer_range": 0.2}
FAMILIES = {
    "Llama": lambda: t.LlamaConfig(**GATED),
    "Qwen3": lambda: t.Qwen3Config(**GATED, head_dim=16),
    "Gemma 3": lambda: t.Gemma3TextConfig(**GATED, head_dim=16, sliding_window=16),
    "Mixtral": lambda: t.MixtralConfig(**GATED, num_local_experts=4),
    "Mamba": lambda: t.MambaConfig(
        vocab_size=61, hidden_size=32, state_size=8, num_hidden_layers=2, initializer_range=0.2
    ),
    "OPT": lambda: t.OPTConfig(
        **SIZES, ffn_dim=48, word_embed_proj_dim=32, init_std=0.2, max_position_embeddings=32
    ),
    "GPT-2": lambda: t.GPT2Config(
        vocab_size=61,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=32,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
    ),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "trainable-tokens": {"token_indices": [5, 12, 19]},
    "vera": {"r": 4},
    "lora (experts)": {"targets": "experts"},
}
RATES: dict[str, tuple[float, float]] = {
    "adalora": (0.2, 0.1),
    "loha": (1e-2, 1e-2),
    "layernorm": (1e-2, 1e-2),
    "p-tuning": (3e-3, 1e-2),
}
"""lr and eps where the curvature at the start, products of small numbers, norms of one or an
untrained encoder, says little about the way ahead; elsewhere the proposed lr is used."""
ROWS = [name for kind in PEFT for name in ([kind, "lora (experts)"] if kind == "lora" else [kind])]
STEPS = 12
IDS = (torch.arange(3 * 8).view(3, 8) * 7 + 5) % 60 + 1
SPELLED = {
    "prefix": "PREFIX_TUNING",
    "prompt": "PROMPT_TUNING",
    "layernorm": "LN_TUNING",
    "multitask-prompt": "MULTITASK_PROMPT_TUNING",
    "dora": "LORA",
    "rslora": "LORA",
}
YES, KEPT, NO = "yes", "adapter", "no"
HEAD = f"""# PEFT types

Made by `tools/peft_page.py`, which tries every type on a tiny random model of each family: tuned
for {STEPS} steps, so that the loss falls; saved; loaded in plain PEFT, with equal logits; merged,
with equal logits again.

```bash
zopeft list peft
zopeft tune --peft NAME --task sst2 peft.options.OPTION=VALUE ...
```

Options are the fields of the type's PEFT config, and `rank`, `alpha`, `dropout`, `targets` and
`tokens` whatever it calls them. Sizes of blocks are fitted to the layers. Unless `targets` says
otherwise, layers are the query and value projections, or the input projections of state spaces.

- **{YES}**: all of that. **{KEPT}**: all but merging, which PEFT does not have for it.
- **{NO}**: refused in one line, before anything runs; the notes say why.
"""


def build(family: str) -> Any:
    """Returns a tiny random model of a family."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(FAMILIES[family]()).eval()


def adapted(row: str, family: str) -> Any:
    """Returns the model of a family with the adapter of a row."""
    return attach(build(family), row.partition(" ")[0], OPTIONS.get(row), seed=1)


def loss_of(model: Any) -> float:
    """Returns the loss on the one batch."""
    with torch.no_grad():
        return float(model(input_ids=IDS, labels=IDS).loss)


def logits_of(model: Any) -> torch.Tensor:
    """Returns the logits on the one batch."""
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=IDS).logits
    return logits


def tune(model: Any, lr: Any = "auto", eps: float | None = None) -> tuple[float, float]:
    """Makes a few steps on the batch; returns the losses before and after."""
    method = zopeft.MeZO(zopeft.discover(model), lr=lr, eps=eps, seed=3)
    first = loss_of(model)
    for _ in range(STEPS):
        method.step(lambda: model(input_ids=IDS, labels=IDS).loss)
    assert method.skipped == 0
    return first, loss_of(model)


def outcome(row: str, family: str) -> tuple[str, str]:
    """Tries a type on a family.

    Returns:
        A word of the table, and the reason of a refusal.

    Raises:
        AssertionError: It was taken, and something is not as the page says.
    """
    try:
        model = adapted(row, family)
    except InputError as error:
        return NO, str(error).partition(": ")[2]
    first, last = tune(model, *RATES.get(row, ()))
    assert last < first, f"{row} on {family}: loss {first} -> {last}"
    expected = logits_of(model)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
        plain: Any = PeftModel.from_pretrained(build(family), folder).eval()
        torch.testing.assert_close(logits_of(plain), expected, atol=1e-5, rtol=1e-5)
        try:
            merged = plain.merge_and_unload()
        except (NotImplementedError, AttributeError, ValueError):
            return KEPT, ""
        torch.testing.assert_close(logits_of(merged), expected, atol=1e-4, rtol=1e-4)
    return YES, ""


def peft_type(name: str) -> PeftType:
    """Returns PEFT's own name of a type."""
    return PeftType(SPELLED.get(name, name.upper().replace("-", "_")))


def page(cells: Mapping[tuple[str, str], str], reasons: Mapping[str, str]) -> str:
    """Returns the page.

    Args:
        cells: (row, family) to a word of the table.
        reasons: Row to what a refusal on a family said.
    """
    lines = [HEAD, f"| `--peft` | {' | '.join(FAMILIES)} | |", "|---" * (len(FAMILIES) + 2) + "|"]
    for row in ROWS:
        name, _, part = row.partition(" ")
        about = "`targets=experts`: each expert's own matrices" if part else PEFT.about(name)
        words = " | ".join(cells[row, family] for family in FAMILIES)
        lines.append(f"| `{name}`{' ' + part if part else ''} | {words} | {about} |")
    lines += ["", "## Refused on a family", ""]
    said: dict[str, list[str]] = {}
    for row in ROWS:
        if row in reasons:
            said.setdefault(reasons[row], []).append(f"`{row}`")
    lines += [f"- {', '.join(rows)}: {why}" for why, rows in said.items()]
    lines += ["", "## Not made", "", "| PEFT type | why |", "|---|---|"]
    lines += [f"| {peft_type(name).value} (`{name}`) | {why} |" for name, why in REFUSED.items()]
    lines += ["", "Adapters of these types that others saved may still load.", ""]
    return "\n".join(lines)


def read_page() -> tuple[dict[tuple[str, str], str], dict[str, str]]:
    """Returns the cells and reasons of the page as it is."""
    text = PAGE.read_text(encoding="utf-8")
    cells, reasons = {}, {}
    for name, part, words in re.findall(
        r"^\| `([a-z][\w-]*)`( \(\w+\))? \|((?: \w+ \|)+)", text, re.M
    ):
        found = [word.strip() for word in words.split("|")[:-1]]
        cells |= {(name + part, f): word for f, word in zip(FAMILIES, found, strict=True)}
    for rows, why in re.findall(r"^- (`[\w`(), -]+`): (.*)$", text, re.M):
        reasons |= dict.fromkeys(re.findall(r"`([\w() -]+)`", rows), why)
    return cells, reasons


def main() -> None:
    """Tries everything and writes the page."""
    torch.set_num_threads(1)
    cells, reasons = {}, {}
    for row in ROWS:
        for family in FAMILIES:
            cells[row, family], why = outcome(row, family)
            if why:
                reasons.setdefault(row, why)
    PAGE.write_text(page(cells, reasons), encoding="utf-8")


if __name__ == "__main__":
    main()
