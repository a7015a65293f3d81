"""Finds the blocks of a model: every trainable tensor, once, with its role, layer and owners."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from zopeft.blocks.bare import is_compiled
from zopeft.blocks.block import Block, Blocks, address_of
from zopeft.blocks.packing import keep_unpacked
from zopeft.blocks.peft import active_adapter, is_adapted
from zopeft.blocks.scales import quantised_layers, scale_blocks, scale_names
from zopeft.blocks.selection import chooser
from zopeft.blocks.shards import gatherers, let_go
from zopeft.blocks.survey import Survey, held_parameters
from zopeft.errors import InputError, close_matches, input_error

_SPACES = ("auto", "full", "adapter", "scales")
_SHOWN = 8


def discover(model: nn.Module, space: str = "auto", select: str | None = None) -> Blocks:
    """Finds the blocks of a model.

    Every trainable floating-point parameter becomes a block; a tied one becomes one block with
    several owners, a prefix tensor becomes a key and a value block for each layer. Parameters
    are tied if they are one object, or the same memory (views of each other). Names are those
    of the bare model, whatever compiles it. No ``requires_grad`` is changed. 4-bit
    layers are kept from packing their weights for the processor at a forward
    (`zopeft.blocks.packing.keep_unpacked`).

    Args:
        model: A bare model, or one that PEFT has wrapped; either may be compiled.
        space: ``full`` (weights of a bare model), ``adapter`` (what PEFT left trainable),
            ``scales`` (of a quantised model's layers, whatever its parameters' grad flags), or
            ``auto``: ``adapter`` if PEFT has wrapped the model, else ``full``.
        select: Roles (``q_proj``; several joined by commas) or a regular expression searched in
            the names. It states which blocks are meant; the other parameters must be frozen
            already (`keep_trainable` does that).

    Raises:
        InputError: `space` or `select` is wrong; nothing is trainable; a trainable parameter
            would be in no block (each is named), or shares a part of its memory with another;
            the weights are quantised and `space` is ``full``.
    """
    space = _space(model, space)
    if space != "scales":
        keep_unpacked(model)
    # What a forward pass has gathered hides the parts that are to be trained.
    let_go(gatherers(model))
    survey, compiled = Survey(model), is_compiled(model)
    base = survey.base
    if space == "full":
        _refuse_quantised(base, select)
    held = held_parameters(model)
    if space == "scales":
        names = [entry.name for entry in held] + list(scale_names(model))
        blocks = scale_blocks(survey, _salts(names))
        return _blocks(blocks, survey, space, select, compiled)
    salts = _salts(entry.name for entry in held)
    blocks = []
    outside: list[str] = []
    for entry in held:
        if not entry.trained:
            continue
        if entry.cuts:
            raise input_error(
                "model",
                f"{entry.name} is trained and shares a part of its memory",
                entry.cuts[0],
                "give each a copy of its own (.clone()), or freeze it",
            )
        if not entry.parameter.is_floating_point():
            outside.append(f"{entry.name} ({str(entry.parameter.dtype).removeprefix('torch.')})")
            continue
        blocks.extend(survey.blocks(entry, salts[entry.name]))
    if outside:
        raise _uncovered(outside, "freeze them: only floating-point tensors can be perturbed")
    if not blocks:
        raise input_error("model", "no trainable parameter", do=_nothing(space))
    return _blocks(blocks, survey, space, select, compiled)


def _blocks(
    blocks: Sequence[Block], survey: Survey, space: str, select: str | None, compiled: bool
) -> Blocks:
    if select is not None and space == "scales":
        # Nothing else would be trained by mistake: scales have no flag to forget.
        choice = chooser(select, blocks)
        blocks = [block for block in blocks if choice(block)]
    elif select is not None:
        blocks = _selected(blocks, select)
    config = getattr(survey.base, "config", None)
    return Blocks(
        blocks,
        survey.model,
        space,
        survey.num_layers,
        str(getattr(config, "_name_or_path", "") or ""),
        type(survey.base).__name__,
        active_adapter(survey.model) if space == "adapter" else None,
        compiled,
    )


def _space(model: nn.Module, space: str) -> str:
    if space not in _SPACES:
        raise input_error("space", "unknown space", space, close_matches(space, _SPACES))
    adapted = is_adapted(model)
    if space == "auto":
        return "adapter" if adapted else "full"
    if space == "adapter" and not adapted:
        raise input_error(
            "space", "the model has no adapter", space, "wrap it with peft.get_peft_model first"
        )
    if space in ("full", "scales") and adapted:
        raise input_error(
            "space", "the model carries a PEFT adapter", space, "use space='adapter' or unload it"
        )
    return space


def _refuse_quantised(base: nn.Module, select: str | None) -> None:
    quantised = _says_quantised(getattr(base, "config", None))
    odd = next(quantised_layers(base), None)
    if odd is None:
        odd = next((n for n, p in base.named_parameters() if not _can_move(p)), None)
    if quantised or odd is not None:
        if select is not None:
            return  # It may name the few float tensors of a quantised model on purpose.
        raise input_error(
            "space",
            "the weights are quantised" + ("" if odd is None else f" ({odd} among them)"),
            "full",
            "use an adapter (--lora) or the quantisation scales",
        )
    if getattr(base, "hf_quantizer", None) is not None:
        _forget_packing(base)


def _forget_packing(base: Any) -> None:
    """Has a model of plain weights no longer say that they are packed.

    Once they are trained, they are not the file's, and transformers neither trains nor
    saves a model that says so.
    """
    base.hf_quantizer = None
    base.is_quantized = False
    for owner, name in ((base, "quantization_method"), (base.config, "quantization_config")):
        if name in vars(owner):
            delattr(owner, name)


def _says_quantised(config: object) -> bool:
    """Tells whether a configuration says that weights are packed.

    One that was unpacked when it was read, from GGUF or by ``dequantize``, still names its
    origin; there the weights themselves tell.
    """
    held = getattr(config, "quantization_config", None)
    get = held.get if isinstance(held, dict) else lambda name: getattr(held, name, None)
    unpacked = str(get("quant_method")).endswith(("gguf", "GGUF")) or bool(get("dequantize"))
    return held is not None and not unpacked


def _can_move(parameter: nn.Parameter) -> bool:
    # 8-bit floats are storage formats of quantised checkpoints, not weights to be nudged.
    return parameter.dtype.itemsize != 1


def _salts(names: Iterable[str]) -> dict[str, int]:
    # Over all names of the model in sorted order, frozen ones too, so that an address never
    # depends on what is trained or on the order of the parameters.
    taken: set[int] = set()
    salts: dict[str, int] = {}
    for name in sorted(names):
        salt = 0
        while address_of(name, salt) in taken:
            salt += 1
        taken.add(address_of(name, salt))
        salts[name] = salt
    return salts


def _selected(blocks: Sequence[Block], select: str) -> list[Block]:
    choice = chooser(select, blocks)
    left_out = [block.name for block in blocks if not choice(block)]
    if left_out:
        raise _uncovered(left_out, "freeze them (zopeft.blocks.keep_trainable) or widen select")
    return list(blocks)


def _uncovered(names: Sequence[str], do: str) -> InputError:
    shown = ", ".join(names[:_SHOWN])
    if len(names) > _SHOWN:
        shown += f" and {len(names) - _SHOWN} more"
    return input_error(
        "model", f"{len(names)} trainable parameters are in no block: {shown}", do=do
    )


def _nothing(space: str) -> str:
    if space == "adapter":
        return "set the adapter active and trainable (set_adapter; is_trainable=True when loading)"
    return "call requires_grad_(True) on the parameters to tune, or attach an adapter"
