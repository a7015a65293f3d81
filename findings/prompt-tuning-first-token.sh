#!/usr/bin/env bash
# The loss of a prompt-tuned model is a mean over one token a text more than that of its base.
#
# Seen with: peft 0.21.2, transformers 5.23.0, torch 2.13.0, CPU.
#
# Guess:     with one batch of `input_ids` and `labels`, a causal model's loss is the mean over the
#            same labelled tokens whatever the adapter: the first token of a text is predicted by
#            nobody, since nothing stands before it.
# Behaviour: prompt tuning and P-tuning put virtual tokens before the text and -100 before its
#            labels, and the last virtual token predicts the first real one. Where that is
#            labelled, as in `labels = input_ids`, it counts: B T tokens in place of B (T - 1). LoRA
#            and prefix tuning count as the base does.
# So:        such losses are not comparable: the more, the shorter the texts, and the first token is
#            the dearest. Put -100 on the first label, or compare adapters on answers alone. A count
#            of tokens for `num_items_in_batch` that leaves the first one out is off, too.
#
# Output seen (4 texts of 6 tokens; the loss, and the mean over which tokens it is):
#   peft 0.21.2 transformers 5.23.0 torch 2.13.0
#   base: the mean over 20 tokens
#   LORA: the mean over 20 tokens
#   PREFIX_TUNING: the mean over 20 tokens
#   PROMPT_TUNING: the mean over 24 tokens
#   P_TUNING: the mean over 24 tokens
#   as stated
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
"${PYTHON:-python3.11}" -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.2 numpy==2.4.6
cd "$dir"
"$dir/venv/bin/python" -I -W ignore - <<'PY'
from importlib.metadata import version

import peft
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

names = ("peft", "transformers", "torch")
print(*(word for n in names for word in (n, version(n).split("+")[0])))
config = LlamaConfig(
    vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2
)
configs = {
    "base": None,
    "LORA": peft.LoraConfig(task_type="CAUSAL_LM"),
    "PREFIX_TUNING": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "PROMPT_TUNING": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "P_TUNING": peft.PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=5, encoder_hidden_size=16
    ),
}
ids = torch.randint(0, 97, (4, 6), generator=torch.Generator().manual_seed(0))
batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
found = {}
for name, own in configs.items():
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    model = (model if own is None else peft.get_peft_model(model, own)).eval()
    with torch.no_grad():
        out = model(**batch)
    logits = out.logits
    inner = cross_entropy(logits[:, -6:-1].flatten(0, 1), ids[:, 1:].flatten())
    means = {20: float(inner)}
    if logits.shape[1] > 6:
        means[24] = float(cross_entropy(logits[:, -7:-1].flatten(0, 1), ids.flatten()))
    found[name] = min(means, key=lambda count: abs(means[count] - float(out.loss)))
    assert abs(means[found[name]] - float(out.loss)) < 1e-5, (name, means, float(out.loss))
    print(f"{name}: the mean over {found[name]} tokens")
virtual = ("PROMPT_TUNING", "P_TUNING")
if found == {name: 24 if name in virtual else 20 for name in configs}:
    print("as stated")
else:
    raise SystemExit("the behaviour changed")
PY
