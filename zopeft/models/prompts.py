"""Prompts: PEFT types that put trained vectors before the text.

Prefix tuning starts from real activations, as MeZO does: the keys and values of random
tokens, taken from the model itself. A random start is far from anything the model has
seen, and the two probes of a step then differ by noise alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zopeft.blocks.offloaded import Offload, device_of
from zopeft.errors import input_error
from zopeft.models.options import build_config

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor


def random_tokens(model: Any, count: int) -> Tensor:
    """Draws token ids uniformly over the model's vocabulary from torch's generator.

    Returns:
        Token ids [1, count] on the CPU.
    """
    import torch

    return torch.randint(0, model.config.get_text_config().vocab_size, (1, count))


def real_prefix(model: Any, tokens: Tensor) -> tuple[Tensor, int, int]:
    """Computes the prefix that stands for `tokens` exactly.

    The model reads the tokens once; layer l's keys and values become slices 2l and
    2l + 1, in PEFT's layout ``[tokens, layers * 2 * heads * head_dim]``.

    Args:
        model: The base model.
        tokens: Token ids [1, T].

    Returns:
        The prefix as float32 [T, layers * 2 * heads * head_dim], the number of layers
        and the number of key-value heads.
    """
    import torch

    device = device_of(model)
    if device.type == "meta":
        return _shape_of_prefix(model, tokens.shape[1])
    training = model.training
    model.eval()
    with torch.no_grad():
        cache = model(input_ids=tokens.to(device), use_cache=True).past_key_values
    model.train(training)
    layers = getattr(cache, "layers", None)
    pairs = [(one.keys, one.values) for one in layers] if layers is not None else list(cache)
    heads, length = pairs[0][0].shape[1:3]
    flat = [
        tensor[0].transpose(0, 1).reshape(length, -1).float().cpu()
        for pair in pairs
        for tensor in pair[:2]
    ]
    return torch.cat(flat, dim=1), len(pairs), heads


def _shape_of_prefix(model: Any, length: int) -> tuple[Tensor, int, int]:
    """Returns what `real_prefix` does for a model without weights, from its configuration."""
    import torch

    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    layers = config.num_hidden_layers
    return torch.empty(length, 2 * layers * heads * width, device="meta"), layers, heads


def prefix(model: Any, **options: Any) -> PeftModel:
    """Prefix tuning: trained keys and values before every layer's own.

    5 virtual tokens without reparametrisation, started from the activations of random
    tokens (``real=False``: PEFT's random start).

    References:
        Prefix-Tuning: Optimizing Continuous Prompts for Generation (Li and Liang 2021);
        the start: Fine-Tuning Language Models with Just Forward Passes (Malladi et al.
        2023), appendix E.5.
    """
    import torch
    from peft import PrefixTuningConfig, get_peft_model

    real = options.pop("real", True)
    defaults = {"num_virtual_tokens": 5, "task_type": "CAUSAL_LM"}
    config = build_config("prefix", PrefixTuningConfig, defaults, options)
    if not isinstance(config.num_virtual_tokens, int) or config.num_virtual_tokens < 1:
        raise input_error(
            "peft prefix", "num_virtual_tokens must be at least 1", config.num_virtual_tokens
        )
    tokens = random_tokens(model, config.num_virtual_tokens)
    values, config.num_layers, heads = real_prefix(model, tokens)
    # PEFT guesses these from the config and is wrong where head_dim stands on its own.
    config.num_attention_heads = heads
    config.token_dim = values.shape[1] // (2 * config.num_layers)
    # Reading the tokens has sent offloaded weights away again, and PEFT follows the weights.
    with Offload(model).shown():
        tuned = get_peft_model(model, config)
    weight = tuned.prompt_encoder[tuned.active_adapter].embedding.weight
    if real and not config.prefix_projection:
        with torch.no_grad():
            weight.copy_(values.view_as(weight))
    return tuned


def prompt(model: Any, **options: Any) -> PeftModel:
    """Prompt tuning: trained embeddings before the text, random tokens' at the start.

    References:
        The Power of Scale for Parameter-Efficient Prompt Tuning (Lester et al. 2021).
    """
    import torch
    from peft import PromptTuningConfig, get_peft_model

    defaults = {"num_virtual_tokens": 5, "task_type": "CAUSAL_LM"}
    config = build_config("prompt", PromptTuningConfig, defaults, options)
    tokens = random_tokens(model, config.num_virtual_tokens)
    tuned = get_peft_model(model, config)
    if "prompt_tuning_init" not in options:
        weight = tuned.prompt_encoder[tuned.active_adapter].embedding.weight
        with torch.no_grad():
            weight.copy_(model.get_input_embeddings()(tokens.to(device_of(model)))[0])
    return tuned


def p_tuning(model: Any, **options: Any) -> PeftModel:
    """P-tuning: prompt embeddings from a small trained encoder.

    References:
        GPT Understands, Too (Liu et al. 2021).
    """
    from peft import PromptEncoderConfig, get_peft_model

    defaults = {
        "num_virtual_tokens": 5,
        "encoder_hidden_size": 128,
        "encoder_dropout": 0.0,
        "task_type": "CAUSAL_LM",
    }
    config = build_config("p-tuning", PromptEncoderConfig, defaults, options)
    return get_peft_model(model, config)
