"""Writes a small Llama and its byte-level tokenizer as GGUF, as llama.cpp's converter does."""

import json

import numpy as np

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
BYTE_LEVEL = "gpt2"


def name_of(name):
    """The name that a tensor of transformers' has in the file."""
    if name in NAMES:
        return NAMES[name]
    _, _, number, rest = name.split(".", 3)
    module, _, kind = rest.rpartition(".")
    return f"blk.{number}.{LAYER[module]}.{kind}"


def interleaved(weight, heads):
    """Rows of queries or keys in llama.cpp's order of rotary pairs."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path, model, tokenizer, quantised=False, pre="default"):
    """Writes the file.

    Args:
        path: Of the file.
        model: A LlamaForCausalLM.
        tokenizer: A fast byte-level BPE tokenizer.
        quantised: Whether matrices are Q8_0 instead of F32.
        pre: Name of the way texts are split before BPE.
    """
    from gguf import GGMLQuantizationType, GGUFWriter, quants

    config, backend = model.config, json.loads(tokenizer.backend_tokenizer.to_str())
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    writer = GGUFWriter(str(path), "llama")
    writer.add_name("small")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    special = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model(BYTE_LEVEL)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in backend["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(True)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        data, given = tensor.float().numpy(), name_of(name)
        kind = given.split(".")[-2]
        if kind in heads:
            data = interleaved(data, heads[kind])
        if quantised and data.ndim == 2:
            q8 = GGMLQuantizationType.Q8_0
            writer.add_tensor(given, quants.quantize(data, q8), raw_dtype=q8)
        else:
            writer.add_tensor(given, np.ascontiguousarray(data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
