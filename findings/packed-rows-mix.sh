#!/usr/bin/env bash
# Restarting position_ids keep the texts of a packed row apart only if two other things are so.
#
# Seen with: transformers 5.23.0, torch 2.13.0, CPU, sdpa and eager attention.
#
# Guess:     two texts in one row whose position_ids restart at 0 ("packed", "padding-free") attend
#            to themselves alone, as the collators for it promise; what does not do so says so.
# Behaviour: Llama finds the texts by the restarts only where attention_mask is None and no cache
#            is made. With the mask of ones that every tokenizer gives, or with the default
#            use_cache=True, the second text reads the first: same shapes, no warning, other
#            logits. OPT takes position_ids and never looks for restarts: there the second text
#            reads the first however it is called.
# So:        pass no attention_mask and use_cache=False, or give a four-dimensional mask; and compare
#            one packed row with its texts alone before a model is trained so.
#
# Output seen (largest gap of the second text's logits, packed against alone, over their deviation):
#   transformers 5.23.0 torch 2.13.0
#   llama  sdpa   plain           0.0000
#   llama  sdpa   mask of ones    mixed
#   llama  sdpa   cache           mixed
#   llama  eager  plain           0.0000
#   llama  eager  mask of ones    mixed
#   llama  eager  cache           mixed
#   opt    sdpa   plain           mixed
#   as stated
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
"${PYTHON:-python3.11}" -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 numpy==2.4.6
cd "$dir"
HF_HUB_OFFLINE=1 "$dir/venv/bin/python" -I -W ignore - <<'PY'
from importlib.metadata import version

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, logging

logging.set_verbosity_error()
print("transformers", version("transformers"), "torch", version("torch").split("+")[0])
FIRST, SECOND = [7, 9, 11, 13, 5, 21], [3, 8, 30, 2]
SHAPES = {
    "llama": dict(hidden_size=32, intermediate_size=48, num_key_value_heads=4),
    "opt": dict(hidden_size=32, ffn_dim=48, word_embed_proj_dim=32),
}
ROW = torch.tensor([FIRST + SECOND])
PLACES = torch.tensor([[*range(len(FIRST)), *range(len(SECOND))]])


def gap(kind, attention, **given):
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](
        vocab_size=64, num_hidden_layers=3, num_attention_heads=4, **SHAPES[kind]
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for weight in model.parameters():  # away from the small numbers of a fresh start
            weight.add_(0.1 * torch.randn(weight.shape))
        alone = model(input_ids=torch.tensor([SECOND]), use_cache=False).logits[0]
        given = {"use_cache": False, **given}
        packed = model(input_ids=ROW, position_ids=PLACES, **given).logits[0, len(FIRST):]
    return ((packed - alone).abs().max() / alone.std()).item()


ones = {"attention_mask": torch.ones_like(ROW)}
good = True
for kind, attention, name, given, together in [
    *(("llama", how, name, given, bool(given)) for how in ("sdpa", "eager")
      for name, given in (("plain", {}), ("mask of ones", ones), ("cache", {"use_cache": True}))),
    ("opt", "sdpa", "plain", {}, True),
]:
    value = gap(kind, attention, **given)
    mixed = value > 0.05
    good &= mixed == together and (mixed or value < 1e-3)
    print(f"{kind:<6} {attention:<6} {name:<15} {'mixed' if mixed else format(value, '.4f')}")
if good:
    print("as stated")
else:
    raise SystemExit("the behaviour changed")
PY
