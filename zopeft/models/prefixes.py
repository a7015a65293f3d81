"""Prefixes: PEFT types that put trained keys and values before every layer's own.

They start from real activations, as MeZO's prefix tuning does: the keys and values of random
tokens, taken from the model itself. A random start is far from anything the model has
seen, and the two probes of a step then differ by noise alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zopeft.blocks.offloaded import Offload, device_of
from zopeft.errors import input_error
from zopeft.models.fit import first_line, rehearse, unfit
from zopeft.models.options import build_config
from zopeft.models.prompts import random_tokens
from zopeft.models.tuner import peft_config

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor

_SLIDING = ("sliding_attention", "chunked_attention")


def real_prefix(model: Any, tokens: Tensor, name: str = "prefix") -> tuple[Tensor, int, int]:
    """Computes the prefix that stands for `tokens` exactly.

    The model reads the tokens once; layer l's keys and values become slices 2l and
    2l + 1, in PEFT's layout ``[tokens, layers * 2 * heads * head_dim]``.

    Args:
        model: The base model.
        tokens: Token ids [1, T].
        name: The PEFT type, for messages.

    Returns:
        The prefix as float32 [T, layers * 2 * heads * head_dim], the number of layers
        and the number of key-value heads.

    Raises:
        InputError: The model keeps no keys and values of one shape in every layer.
    """
    import torch

    device = device_of(model)
    if device.type == "meta":
        return _shape_of_prefix(model, tokens.shape[1], name)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            read = model(input_ids=tokens.to(device), use_cache=True)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # every model's code raises its own
        raise unfit(name, model, f"its cache cannot be filled ({first_line(error)})") from error
    finally:
        model.train(training)
    pairs = _keys_and_values(model, getattr(read, "past_key_values", None), tokens.shape[1], name)
    heads, length = pairs[0][0].shape[1:3]
    flat = [
        tensor[0].transpose(0, 1).reshape(length, -1).float().cpu()
        for pair in pairs
        for tensor in pair
    ]
    return torch.cat(flat, dim=1), len(pairs), heads


def _keys_and_values(model: Any, cache: Any, length: int, name: str) -> list[tuple[Tensor, Tensor]]:
    """Returns the keys and values [1, heads, T, head_dim] of every layer that has its own.

    Raises:
        InputError: A layer keeps something else, or another shape than the first.
    """
    layers = getattr(cache, "layers", None)
    if layers is None:
        raise unfit(name, model, "it keeps no keys and values of what it has read")
    while layers and type(layers[-1]).__name__ == "DummyLayer":
        layers = layers[:-1]  # reads an earlier layer's
    pairs: list[tuple[Tensor, Tensor]] = []
    for number, layer in enumerate(layers):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None or values is None:
            kind = type(layer).__name__
            raise unfit(name, model, f"layer {number} keeps no keys and values ({kind})")
        pairs.append((keys, values))
    shapes = {tuple(tensor.shape) for pair in pairs for tensor in pair}
    if len(shapes) != 1:
        raise unfit(name, model, "its keys and values have several shapes", str(sorted(shapes)[:3]))
    if next(iter(shapes))[2] != length:
        raise unfit(name, model, f"its cache does not hold {length} tokens")
    return pairs


def _shape_of_prefix(model: Any, length: int, name: str) -> tuple[Tensor, int, int]:
    """Returns what `real_prefix` does for a model without weights, from its configuration."""
    import torch

    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", *_SLIDING}
    if kinds or not hasattr(config, "num_attention_heads"):
        raise unfit(name, model, f"no keys and values in layers of {', '.join(kinds) or 'it'}")
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
    if not config.prefix_projection:
        if weight.numel() != values.numel():
            shapes = f"{values.shape[1]} numbers a token, {weight.shape[1]} by its configuration"
            raise unfit("prefix", model, "its keys and values are not as configured", shapes)
        if real:
            with torch.no_grad():
                weight.copy_(values.view_as(weight))
    rehearse(tuned, "prefix")
    return tuned


def cartridge(model: Any, **options: Any) -> PeftModel:
    """A cartridge: a prefix of 6 tokens whose first stays as it is, a sink for attention.

    Started from the activations of random tokens, as `prefix` is (``real=False``: PEFT's
    random start). The paper distils long documents into it; here rows of a task train it.

    References:
        Cartridges: Lightweight and general-purpose long context representations via self-study
        (Eyuboglu et al. 2025), section 3.
    """
    import torch
    from peft import get_peft_model

    real = options.pop("real", True)
    defaults = {"num_virtual_tokens": 6, "num_frozen_tokens": 1, "task_type": "CAUSAL_LM"}
    kind = peft_config("cartridge", "CartridgeConfig")
    config = build_config("cartridge", kind, defaults, options)
    tokens, fixed = config.num_virtual_tokens, config.num_frozen_tokens
    if not isinstance(tokens, int) or not isinstance(fixed, int) or not 0 <= fixed < tokens:
        what = "num_virtual_tokens must be more than num_frozen_tokens, and that at least 0"
        raise input_error("peft cartridge", what, f"{tokens} and {fixed}")
    read = random_tokens(model, tokens)
    values, config.num_layers, heads = real_prefix(model, read, "cartridge")
    config.num_attention_heads = heads
    config.token_dim = values.shape[1] // (2 * config.num_layers)
    with Offload(model).shown():
        tuned = get_peft_model(model, config)
    encoder = tuned.prompt_encoder[tuned.active_adapter]
    if real and not values.is_meta:
        with torch.no_grad():
            encoder.trainable_embedding.copy_(values[fixed:])
            if fixed:
                encoder.frozen_embedding.copy_(values[:fixed])
    rehearse(tuned, "cartridge")
    return tuned
