"""Tiny random models of four families, and what one batch gives."""

import torch
import transformers as t
from transformers import AutoModelForCausalLM

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "tie_word_embeddings": False,
}
GATED = SIZES | {"intermediate_size": 48, "num_key_value_heads": 2, "initializer_range": 0.2}
CONFIGS = {
    "llama": lambda: t.LlamaConfig(**GATED),
    "qwen2": lambda: t.Qwen2Config(**GATED),
    "opt": lambda: t.OPTConfig(
        **SIZES, ffn_dim=48, word_embed_proj_dim=32, init_std=0.2, max_position_embeddings=32
    ),
    "gpt2": lambda: t.GPT2Config(
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
IDS = (torch.arange(3 * 8).view(3, 8) * 7 + 5) % 61


def build(family):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[family]()).eval()


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits
