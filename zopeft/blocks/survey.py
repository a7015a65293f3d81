"""The survey of a model: its layers, who holds each parameter, and the blocks each one makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from zopeft.blocks.bare import bare, bare_name, named_modules
from zopeft.blocks.block import Block, Owner
from zopeft.blocks.memory import shared
from zopeft.blocks.peft import Unwrapper, base_of, prefix_layers
from zopeft.blocks.roles import family_of, kind_of, role_of
from zopeft.blocks.shards import shard_of


@dataclass(frozen=True, eq=False)
class Held:
    """A tensor of the model with its first name and every place that holds it.

    Attributes:
        name: Its first name; of parameters that share their memory, that of one which lies
            there in order.
        parameter: The parameter of that name.
        owners: All places, that of `parameter` first.
        cuts: Names of parameters that share a part of its memory.
    """

    name: str
    parameter: nn.Parameter
    owners: tuple[Owner, ...]
    cuts: tuple[str, ...] = ()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that are this tensor: one, or several that share their memory."""
        found = (owner.module._parameters.get(owner.leaf) for owner in self.owners)
        return list({id(p): p for p in found if p is not None}.values())

    @property
    def trained(self) -> bool:
        """Whether any of the parameters is to be trained."""
        return any(parameter.requires_grad for parameter in self.parameters)


def held_parameters(model: nn.Module) -> list[Held]:
    """Returns every tensor of the model once, in order, with all of its owners."""
    # Modules are visited once each, so that a module reachable under two names is one owner;
    # a tensor held by two modules is tied, and both are owners.
    found: dict[int, tuple[str, nn.Parameter, list[Owner]]] = {}
    untied = _untied(model)
    for module_name, module in named_modules(model):
        for leaf, parameter in module._parameters.items():
            if parameter is None:
                continue
            name = f"{module_name}.{leaf}" if module_name else leaf
            key = untied.get(id(parameter), id(parameter))
            _, _, owners = found.setdefault(key, (name, parameter, []))
            owners.append(Owner(module_name, module, leaf))
    return _tied([Held(name, one, tuple(owners)) for name, one, owners in found.values()])


def _tied(found: Sequence[Held]) -> list[Held]:
    """Makes one of parameters that are the same memory, and notes those that share a part."""
    first = list(range(len(found)))
    cuts: dict[int, list[str]] = {}
    for low, high, whole in shared([entry.parameter for entry in found]):
        if whole:
            first[high] = min(first[high], first[low])
        else:
            cuts.setdefault(low, []).append(found[high].name)
            cuts.setdefault(high, []).append(found[low].name)
    groups: dict[int, list[int]] = {}
    for number, lowest in enumerate(first):
        groups.setdefault(lowest, []).append(number)
    tied = []
    for members in groups.values():
        # The noise is addressed by the order in memory, which one of them should have.
        members.sort(key=lambda number: not found[number].parameter.is_contiguous())
        main = found[members[0]]
        owners = tuple(owner for number in members for owner in found[number].owners)
        names = tuple(name for number in members for name in cuts.get(number, ()))
        tied.append(Held(main.name, main.parameter, owners, names))
    return tied


def _untied(model: nn.Module) -> dict[int, int]:
    """Tied parameters that a forward over offloaded weights has left as objects of their own.

    Their hooks put a new parameter on the meta device after each forward; the model still
    says which are one.
    """
    found: dict[int, int] = {}
    base = base_of(model)
    for name, source in dict(getattr(base, "all_tied_weights_keys", None) or {}).items():
        try:
            twin, first = base.get_parameter(name), base.get_parameter(source)
        except AttributeError:
            # An adapter has wrapped one of the modules, which moves its weight.
            continue
        if twin is not first and (twin.is_meta or first.is_meta):
            found[id(twin)] = id(first)
    return found


class Survey:
    """What is known of the whole model while its blocks are described one by one.

    Args:
        model: The model, bare or wrapped by PEFT; it may be compiled.

    Attributes:
        model: The same, out of what compiles it.
        base: The bare model.
        family: Its key in `FAMILIES`.
        num_layers: Number of transformer layers, 0 where the model has no list of them.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = bare(model)
        self.base = base_of(model)
        self.family = family_of(self.base)
        self.modules = dict(named_modules(model, remove_duplicate=False))
        self.unwrapper = Unwrapper(self.model, self.modules)
        self._layer_lists = _layer_lists(self.base)
        self.num_layers = len(self._layer_lists[0]) if self._layer_lists else 0

    @property
    def layers(self) -> nn.ModuleList | None:
        """The list of transformer layers; None where there is none, or more than one."""
        return self._layer_lists[0] if len(self._layer_lists) == 1 else None

    def layer_of(self, name: str) -> int | None:
        """Returns the index of the layer that the dotted name runs through, None outside."""
        parts = name.split(".")
        for end in range(1, len(parts)):
            module = self.modules.get(".".join(parts[:end]))
            if any(module is one for one in self._layer_lists) and parts[end].isdigit():
                return int(parts[end])
        return None

    def role_of(self, key: str, owner: nn.Module) -> str:
        """Returns the role of the tensor that the bare model calls `key`."""
        return role_of(key, owner, self.family)

    def blocks(self, held: Held, salt: int) -> list[Block]:
        """Returns the blocks of a parameter: one, or two a layer for a prefix tensor."""
        owner = held.owners[0]
        layers = prefix_layers(self.model, owner.module_name, owner.leaf)
        if layers:
            return self._prefix_blocks(held, layers, salt)
        adapted = self.unwrapper.describe(held.name)
        key = held.name if adapted.key is None else adapted.key
        base_role = role_of(key, self._base_module(key, owner.module), self.family)
        if adapted.key is None:
            base_role = adapted.role or base_role
        layer = self.layer_of(held.name)
        shape = tuple(held.parameter.shape)
        kind = kind_of(owner.module, owner.leaf, shape)
        if adapted.role in ("prompt", "prefix") and len(shape) == 2:
            kind = "prompt"
        return [
            Block(
                name=held.name,
                role=adapted.role or base_role,
                layer=layer,
                depth=self._depth(layer),
                kind=kind,
                shape=shape,
                owners=held.owners,
                parameter_name=held.name,
                key=key,
                base_role=base_role,
                salt=salt,
                shard=shard_of(held.name, held.parameter),
            )
        ]

    def _base_module(self, key: str, fallback: nn.Module) -> nn.Module:
        name = f"{self.unwrapper.prefix}{key.rpartition('.')[0]}"
        module = self.modules.get(name, fallback)
        inner = getattr(module, "base_layer", None) or getattr(module, "original_module", None)
        return inner if isinstance(inner, nn.Module) else module

    def _depth(self, layer: int | None) -> float | None:
        return None if layer is None else layer / max(1, self.num_layers - 1)

    def _prefix_blocks(self, held: Held, layers: int, salt: int) -> list[Block]:
        rows, width = held.parameter.shape[0], held.parameter.shape[-1] // (2 * layers)
        projections = self._key_value_tensors()
        blocks = []
        for layer in range(layers):
            for half, part in enumerate(("key", "value")):
                first = (2 * layer + half) * width
                name = f"{held.name}[{layer}.{part}]"
                role = f"prefix_{part}"
                key, base_role = projections.get((layer, part), (name, role))
                blocks.append(
                    Block(
                        name=name,
                        role=role,
                        layer=layer,
                        depth=layer / max(1, layers - 1),
                        kind="prompt",
                        shape=(rows, width),
                        owners=held.owners,
                        parameter_name=held.name,
                        key=key,
                        base_role=base_role,
                        columns=(first, first + width),
                        salt=salt,
                    )
                )
        return blocks

    def _key_value_tensors(self) -> dict[tuple[int, str], tuple[str, str]]:
        """Returns (layer, "key" or "value") -> (name, role) of the weight that makes them."""
        parts = {"k_proj": ("key",), "v_proj": ("value",), "qkv_proj": ("key", "value")}
        found: dict[tuple[int, str], tuple[str, str]] = {}
        prefix = self.unwrapper.prefix
        for name in map(bare_name, dict(self.model.named_parameters())):
            if not name.startswith(prefix) or name.endswith(".bias"):
                continue
            key = name[len(prefix) :]
            role = role_of(key, self.base, self.family)
            layer = self.layer_of(name)
            for part in parts.get(role, ()):
                if layer is not None:
                    found.setdefault((layer, part), (key, role))
        return found


def _layer_lists(base: nn.Module) -> list[nn.ModuleList]:
    """Returns the outermost module lists that hold the transformer layers."""
    every = [(n, m) for n, m in named_modules(base) if isinstance(m, nn.ModuleList)]
    outer = [m for n, m in every if not any(n.startswith(f"{other}.") for other, _ in every)]
    wanted = _configured_layers(base)
    exact = [module for module in outer if len(module) == wanted]
    longest = max((len(module) for module in outer), default=0)
    return exact or [module for module in outer if len(module) == longest]


def _configured_layers(base: nn.Module) -> int | None:
    config = getattr(base, "config", None)
    if config is not None and hasattr(config, "get_text_config"):
        config = config.get_text_config()
    return getattr(config, "num_hidden_layers", None)
