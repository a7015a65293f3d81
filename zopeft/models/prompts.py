"""Prompts: PEFT types that put trained vectors before the text, or before what attention reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zopeft.blocks.offloaded import device_of
from zopeft.models.fit import first_line, rehearse, unfit
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


def adaption_prompt(model: Any, **options: Any) -> PeftModel:
    """Adaption prompts: 10 tokens that every attention layer reads through a gate, 0 at first.

    Raises:
        InputError: PEFT has them for Llama, Mistral and GPT-2 alone.

    References:
        LLaMA-Adapter: Efficient Fine-tuning of Language Models with Zero-init Attention
        (Zhang et al. 2023), equation 5.
    """
    from peft import AdaptionPromptConfig, get_peft_model

    layers = getattr(model.config.get_text_config(), "num_hidden_layers", 1)
    defaults = {"adapter_len": 10, "adapter_layers": layers, "task_type": "CAUSAL_LM"}
    config = build_config("adaption-prompt", AdaptionPromptConfig, defaults, options)
    try:
        tuned = get_peft_model(model, config)
    except (ValueError, TypeError) as error:
        raise unfit("adaption-prompt", model, first_line(error)) from error
    rehearse(tuned, "adaption-prompt", changes=False)
    return tuned


def _size(config: Any, model: Any) -> None:
    """Sets what PEFT would look up under names that not every configuration has.

    A prompt has the width of the embeddings, which OPT-350m then projects, and no heads.
    """
    text = model.config.get_text_config()
    given = {
        "token_dim": model.get_input_embeddings().weight.shape[1],
        "num_layers": getattr(text, "num_hidden_layers", 1),
        "num_attention_heads": getattr(text, "num_attention_heads", 1),
    }
    for name, value in given.items():
        if getattr(config, name) is None:
            setattr(config, name, value)


def prompt(model: Any, **options: Any) -> PeftModel:
    """Prompt tuning: trained embeddings before the text, random tokens' at the start.

    References:
        The Power of Scale for Parameter-Efficient Prompt Tuning (Lester et al. 2021).
    """
    import torch
    from peft import PromptTuningConfig, get_peft_model

    defaults = {"num_virtual_tokens": 5, "task_type": "CAUSAL_LM"}
    config = build_config("prompt", PromptTuningConfig, defaults, options)
    _size(config, model)
    tokens = random_tokens(model, config.num_virtual_tokens)
    tuned = get_peft_model(model, config)
    if "prompt_tuning_init" not in options:
        weight = tuned.prompt_encoder[tuned.active_adapter].embedding.weight
        with torch.no_grad():
            weight.copy_(model.get_input_embeddings()(tokens.to(device_of(model)))[0])
    rehearse(tuned, "prompt")
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
    _size(config, model)
    tuned = get_peft_model(model, config)
    rehearse(tuned, "p-tuning")
    return tuned
