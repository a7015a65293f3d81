#!/usr/bin/env bash
# AutoTokenizer makes a tokenizer without a vocabulary of a folder that has none, and reads nothing.
#
# Seen with: transformers 5.23.0, tokenizers 0.23.3.
#
# Guess:     a folder with config.json and weights but no tokenizer files (a forgotten
#            tokenizer.save_pretrained) is an error, as it is for Llama.
# Behaviour: for GPT-2, OPT, Qwen2 and GPT-NeoX a tokenizer of special tokens alone is returned; its
#            text becomes []. For BERT and T5 every word is unknown. Nothing is said. What a folder
#            answers depends on its model_type: Llama, Mistral and BLOOM raise.
# So:        after AutoTokenizer.from_pretrained(folder) compare len(tokenizer) with
#            config.vocab_size, or tokenise a word, before a run trains or scores on empty rows.
#
# Output seen:
#   transformers 5.23.0 tokenizers 0.23.3
#   gpt2      1 of 50257 tokens, 'the cat' -> []
#   opt       1 of 50272 tokens, 'the cat' -> []
#   qwen2     1 of 151936 tokens, 'the cat' -> []
#   gpt_neox  2 of 50432 tokens, 'the cat' -> []
#   bert      5 of 30522 tokens, 'the cat' -> ['[UNK]', '[UNK]']
#   t5        104 of 32128 tokens, 'the cat' -> ['▁', '<unk>', '▁', '<unk>']
#   llama     ValueError
#   mistral   ValueError
#   bloom     ValueError
#   as stated
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
"${PYTHON:-python3.11}" -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet transformers==5.23.0 tokenizers==0.23.3 numpy==2.4.6
cd "$dir"
HF_HUB_OFFLINE=1 "$dir/venv/bin/python" -I -W ignore - <<'PY'
import os
from importlib.metadata import version

from transformers import CONFIG_MAPPING, AutoTokenizer

print("transformers", version("transformers"), "tokenizers", version("tokenizers"))
found = {}
for kind in ("gpt2", "opt", "qwen2", "gpt_neox", "bert", "t5", "llama", "mistral", "bloom"):
    config = CONFIG_MAPPING[kind]()
    config.save_pretrained(kind)
    assert os.listdir(kind) == ["config.json"]
    try:
        tokenizer = AutoTokenizer.from_pretrained(kind)
    except (OSError, ValueError) as error:
        found[kind] = type(error).__name__
        print(f"{kind:<9} {found[kind]}")
    else:
        found[kind] = tokenizer("the cat", add_special_tokens=False).input_ids
        read = tokenizer.convert_ids_to_tokens(found[kind])
        print(f"{kind:<9} {len(tokenizer)} of {config.vocab_size} tokens, 'the cat' -> {read}")
empty = all(found[kind] == [] for kind in ("gpt2", "opt", "qwen2", "gpt_neox"))
refused = all(found[kind] == "ValueError" for kind in ("llama", "mistral", "bloom"))
if empty and refused and "ValueError" not in (found["bert"], found["t5"]):
    print("as stated")
else:
    raise SystemExit("the behaviour changed")
PY
