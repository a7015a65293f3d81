#!/usr/bin/env bash
# A LoRA on tied embeddings is merged twice, with the flag that keeps it tied.
#
# Seen with: peft 0.21.2, transformers 5.23.0, torch 2.13.0, CPU.
#
# Guess:     ensure_weight_tying=True ties the adapter of the head to that of the embedding, so that
#            the tied weight W has one update D; merge_and_unload() gives W + D and the same logits.
# Behaviour: the head and the embedding are two LoRA layers over one W. Each merges its own D into
#            it: W + 2 D, still tied. The merged model is another model. (A UserWarning at the
#            merge speaks of "complications".) Without the flag the head alone has an update and
#            the embedding receives it as well: another model too, as one may expect there.
# So:        neither merge a LoRA on tied embeddings nor export it to formats that merge (GGUF and
#            the like) without a look at the logits. Merged by hand, W + D is right: see below.
# Upstream:  huggingface/peft#2972 discusses merges of tied layers.
#
# Output seen (gaps: largest difference of logits to the adapted model's, over their deviation):
#   peft 0.21.2 transformers 5.23.0 torch 2.13.0
#   merge_and_unload: W + 2.0000 D (rest 1e-07), tied: True, gap 4.2254
#   by hand:          W + 1.0000 D, gap 0.0000
#   as stated
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
"${PYTHON:-python3.11}" -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.2 \
  accelerate==1.15.0 numpy==2.4.6
cd "$dir"
HF_HUB_OFFLINE=1 "$dir/venv/bin/python" -I -W ignore - <<'PY'
import copy
from importlib.metadata import version

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

print("peft", version("peft"), "transformers", version("transformers"),
      "torch", version("torch").split("+")[0])
torch.manual_seed(0)
base = LlamaForCausalLM(LlamaConfig(
    vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=True)).eval()
model = get_peft_model(copy.deepcopy(base), LoraConfig(
    r=4, target_modules=["lm_head"], ensure_weight_tying=True)).eval()
ids = torch.randint(0, 96, (4, 12))
with torch.no_grad():
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.normal_(std=0.1)
    head = model.base_model.model.lm_head
    delta = head.lora_B["default"].weight @ head.lora_A["default"].weight * head.scaling["default"]
    adapted = model(input_ids=ids).logits

    merged = model.merge_and_unload()
    change = merged.lm_head.weight - base.lm_head.weight
    factor = float((change * delta).sum() / delta.square().sum())
    rest = float((change - factor * delta).abs().max() / delta.abs().max())

    by_hand = copy.deepcopy(base)
    by_hand.lm_head.weight += delta
    gap = lambda other: float((other(input_ids=ids).logits - adapted).abs().max() / adapted.std())
    gaps = gap(merged), gap(by_hand)
tied = merged.lm_head.weight is merged.get_input_embeddings().weight
print(f"merge_and_unload: W + {factor:.4f} D (rest {rest:.0e}), tied: {tied}, gap {gaps[0]:.4f}")
print(f"by hand:          W + 1.0000 D, gap {gaps[1]:.4f}")
if abs(factor - 2) < 1e-3 and rest < 1e-3 and tied and gaps[0] > 0.1 and gaps[1] < 1e-3:
    print("as stated")
else:
    raise SystemExit("the behaviour changed")
PY
