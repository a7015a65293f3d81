"""Offloaded weights: what ``accelerate.hooks`` keeps on the CPU or on disk between forwards.

Such a parameter is on the meta device, without values, except while its module runs: a
hook then loads it from a map of names to tensors. `Offload` finds the hooks of a model,
reads values from their maps and gives tensors that can be written in place:

- what lies on the CPU is the map's own tensor;
- what lies in a file is only read until it is to be written. Then it is copied into a
  private file of the offload folder, which is mapped into memory and takes the old one's
  place in the map. So neither the checkpoint nor an offload folder that another process
  may read is ever written, and a private file is gone with the process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from zopeft.blocks.weights_map import held, resolved, writable
from zopeft.errors import input_error

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from zopeft.blocks.block import Block, Blocks, Owner


class Offload:
    """The offloaded tensors of a model, by the modules that own them.

    Args:
        model: The model; one without hooks has no offloaded tensors.
    """

    def __init__(self, model: nn.Module) -> None:
        self._hooks: dict[nn.Module, tuple[Any, str]] = {}
        self._modules = list(model.modules())
        for module in self._modules:
            for hook in _hooks(module):
                if not getattr(hook, "offload", False):
                    continue
                if not hook.place_submodules:
                    self._hooks[module] = (hook, "")
                    continue
                for name, child in module.named_modules():
                    self._hooks[child] = (hook, f"{name}." if name else "")

    def __bool__(self) -> bool:
        """Whether the model has offloaded tensors at all."""
        return bool(self._hooks)

    def device(self, owner: Owner) -> torch.device:
        """Returns the device that an owner's tensor is on while its module runs."""
        if owner.module in self._hooks:
            return _device(self._hooks[owner.module][0].execution_device)
        return _own(owner).device

    def holds(self, block: Block) -> bool:
        """Whether a hook loads the block's values for at least one of its owners."""
        return any(owner.module in self._hooks for owner in block.owners)

    def always_there(self, modules: Iterable[nn.Module]) -> set[nn.Module]:
        """Returns those of some modules whose tensors are no hook's to load.

        Args:
            modules: Modules whose own forward has not run.

        Raises:
            InputError: The tensors of one of them are loaded by a module that contains it,
                which may read them itself.
        """
        there = set()
        for module in modules:
            if module not in self._hooks:
                there.add(module)
            elif self._hooks[module][1]:
                raise input_error(
                    "model",
                    "offloaded weights are read by another module than their own",
                    f"{type(module).__name__} ({self._hooks[module][1].rstrip('.')})",
                    "freeze them, or keep them on the device (device_map)",
                )
        return there

    def value(self, block: Block) -> Tensor:
        """Returns the values of a block's whole parameter, wherever they lie, detached."""
        owner = block.owners[0]
        if owner.module not in self._hooks:
            return block.parameter.detach()
        weights, key = self._place(owner)
        value: Tensor = weights[key]
        return value.detach()

    def writable(self, block: Block) -> list[Tensor]:
        """Returns the tensors to be written when a block is to be changed.

        Usually one; tied weights that accelerate keeps apart are several, and must be given
        the same values.

        Raises:
            InputError: The values lie in a file, and there is no offload folder to copy
                them to.
        """
        found: dict[int, Tensor] = {}
        for owner in block.owners:
            if owner.module in self._hooks:
                self._unload(owner.module)
                tensor = writable(*self._place(owner))
            else:
                tensor = _own(owner).detach()
            found.setdefault(tensor.data_ptr(), tensor)
        return list(found.values())

    def check(self, block: Block) -> None:
        """Refuses a block whose values are nowhere, or nowhere to be written.

        Raises:
            InputError: It is such a block.
        """
        for owner in block.owners:
            if owner.module in self._hooks:
                weights, key = self._place(owner)
                if key not in held(weights) and getattr(weights, "save_folder", None) is None:
                    raise input_error(
                        "model",
                        f"{block.name} is trained and lies in a file that is only read",
                        do="load the model with offload_folder=FOLDER, to keep a copy in",
                    )
            elif _own(owner).is_meta:
                raise input_error(
                    "model",
                    f"{block.name} is on the meta device and has no values",
                    do="attach adapters to an offloaded model with zopeft.models.attach",
                )

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Shows the offloaded values as parameters, for code that looks at weights.

        They are mapped rather than read where the map allows it, and stay on the CPU. The
        device map is hidden meanwhile: PEFT would dispatch the model anew by it.
        """
        from torch import nn

        kept: list[tuple[nn.Module, str, nn.Parameter]] = []
        maps = [m for m in self._modules if "hf_device_map" in m.__dict__ and self]
        hidden = [(module, module.__dict__.pop("hf_device_map")) for module in maps]
        try:
            for module, (hook, prefix) in self._hooks.items():
                for leaf, parameter in list(module._parameters.items()):
                    if parameter is None or not parameter.is_meta:
                        continue
                    weights, key = resolved(hook.weights_map, prefix + leaf)
                    value = weights[key].detach().to("cpu", parameter.dtype)
                    kept.append((module, leaf, parameter))
                    module._parameters[leaf] = nn.Parameter(value, parameter.requires_grad)
            yield
        finally:
            for module, places in hidden:
                module.hf_device_map = places
            for module, leaf, parameter in kept:
                if leaf in module._parameters:
                    shown = module._parameters[leaf]
                    assert shown is not None
                    parameter.requires_grad_(shown.requires_grad)
                    module._parameters[leaf] = parameter

    def bring(self, model: nn.Module) -> None:
        """Moves what an adapter has put beside offloaded layers to where these run.

        Args:
            model: The model with its adapter.
        """
        if not self:
            return
        for module in model.modules():
            inner = getattr(module, "base_layer", None)
            if inner not in self._hooks:
                continue
            device = _device(self._hooks[inner][0].execution_device)
            own = {id(parameter) for parameter in inner.parameters()}
            for parameter in module.parameters():
                if id(parameter) not in own:
                    parameter.data = parameter.data.to(device)
        prompts: Any = getattr(model, "prompt_encoder", None)
        if prompts is not None:
            prompts.to(device_of(model))

    def _place(self, owner: Owner) -> tuple[Any, str]:
        hook, prefix = self._hooks[owner.module]
        return resolved(hook.weights_map, prefix + owner.leaf)

    def _unload(self, module: nn.Module) -> None:
        """Finishes a forward that an exception broke off: it has left loaded copies behind."""
        hook, prefix = self._hooks[module]
        loaded = any(p is not None and not p.is_meta for p in module._parameters.values())
        if loaded and not prefix and hasattr(hook, "tied_pointers_to_remove"):
            hook.post_forward(module, None)


def device_of(model: nn.Module) -> torch.device:
    """Returns the device that a model takes its inputs on."""
    for module in model.modules():
        for hook in _hooks(module):
            if getattr(hook, "execution_device", None) is not None:
                return _device(hook.execution_device)
    return next(model.parameters()).device


def refuse_offloaded(blocks: Blocks, where: str) -> None:
    """Refuses blocks that have no gradient because their weights come and go.

    Args:
        blocks: The blocks.
        where: What needs the gradients.

    Raises:
        InputError: Some of them are offloaded.
    """
    offload = Offload(blocks.model)
    found = [block.name for block in blocks if offload.holds(block)] if offload else []
    if found:
        raise input_error(
            where,
            f"{len(found)} trained tensors are offloaded and get no gradient",
            found[0],
            "keep the model on one device, or use a zeroth-order method",
        )


def _own(owner: Owner) -> nn.Parameter:
    parameter = owner.module._parameters.get(owner.leaf)
    assert parameter is not None
    return parameter


def _device(place: int | str | torch.device) -> torch.device:
    import torch

    return torch.device("cuda", place) if isinstance(place, int) else torch.device(place)


def _hooks(module: nn.Module) -> Iterator[Any]:
    hook = module.__dict__.get("_hf_hook")
    if hook is not None:
        yield from getattr(hook, "hooks", (hook,))
