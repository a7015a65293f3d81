#!/usr/bin/env bash
# attention_mask does not hide padding from every causal LM: some read it as text.
#
# Seen with: transformers 5.23.0, torch 2.13.0, CPU.
#
# Guess:     a row padded on either side, with attention_mask (and position_ids, where the model
#            takes them) given as for any decoder, has the logits that the row has alone, up to
#            the last bits; and what cannot honour the mask refuses it or warns.
# Behaviour: no error and no warning. RecurrentGemma masks its attention, but its recurrent blocks
#            run over the padding; RWKV takes the argument and never uses it: with left padding
#            the logits of the text are others. CPM-Ant computes the mask itself from the ids and
#            stands for left padding alone: with right padding they are others. Mamba, recurrent
#            as well, blanks the padding out, and Llama is the control.
# So:        a batched score, loss or generation of these models depends on the neighbours' length.
#            Give them rows of equal length, or one row at a time.
# Upstream:  huggingface/transformers#31201 asked this for RecurrentGemma.
#
# Output seen (largest gap of the text's logits, padded against alone, over their deviation):
#   transformers 5.23.0 torch 2.13.0
#   llama            left   0.00000
#   mamba            left   0.00000
#   recurrent_gemma  left   1.66179
#   rwkv             left   3.27505
#   cpmant           left   0.00001
#   cpmant           right  5.43279
#   as stated
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
"${PYTHON:-python3.11}" -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 numpy==2.4.6
cd "$dir"
HF_HUB_OFFLINE=1 "$dir/venv/bin/python" -I -W ignore - <<'PY'
import inspect
from importlib.metadata import version

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, logging

logging.set_verbosity_error()
print("transformers", version("transformers"), "torch", version("torch").split("+")[0])
TEXT, PADS = [7, 9, 11, 13, 5], 20


def gap(kind, side, pad=0, **sizes):
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](vocab_size=64, hidden_size=32, **sizes)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for p in model.parameters():  # away from the zeros of a fresh start
            p.add_(0.1 * torch.randn(p.shape))
    text, pads = [1] * len(TEXT), [0] * PADS
    row = [pad] * PADS + TEXT if side == "left" else TEXT + [pad] * PADS
    mask = torch.tensor([pads + text if side == "left" else text + pads])
    more = {}
    if "position_ids" in inspect.signature(model.forward).parameters:
        more["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        alone = model(input_ids=torch.tensor([TEXT]), use_cache=False).logits[0, -len(TEXT):]
        padded = model(input_ids=torch.tensor([row]), attention_mask=mask, use_cache=False,
                       **more).logits[0, -len(row):]
    padded = padded[PADS:] if side == "left" else padded[:len(TEXT)]
    return ((padded - alone).abs().max() / alone.std()).item()


heads = dict(num_attention_heads=4, num_hidden_layers=3)
found = {
    ("llama", "left"): gap("llama", "left", num_key_value_heads=4, intermediate_size=48, **heads),
    ("mamba", "left"): gap("mamba", "left", num_hidden_layers=3, state_size=8),
    ("recurrent_gemma", "left"): gap(
        "recurrent_gemma", "left", num_key_value_heads=1, lru_width=32, intermediate_size=48,
        **heads),
    ("rwkv", "left"): gap("rwkv", "left", num_hidden_layers=3),
    ("cpmant", "left"): gap("cpmant", "left", dim_head=8, dim_ff=48, prompt_length=4, **heads),
    ("cpmant", "right"): gap("cpmant", "right", dim_head=8, dim_ff=48, prompt_length=4, **heads),
}
for (kind, side), value in found.items():
    print(f"{kind:<16} {side:<6} {value:.5f}")
hidden = {("llama", "left"), ("mamba", "left"), ("cpmant", "left")}
if all((value < 1e-3) if case in hidden else (value > 0.1) for case, value in found.items()):
    print("as stated")
else:
    raise SystemExit("the behaviour changed")
PY
