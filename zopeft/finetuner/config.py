"""The configuration of a fine-tuner: everything about it but the networks' numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import PurePath
from typing import Any

from zopeft.errors import close_matches, input_error
from zopeft.finetuner.feature_sets import PAPER_FEATURES
from zopeft.finetuner.features import INPUTS, check_features
from zopeft.reading import refuse_newer

FORMAT_VERSION = 4
READABLE = (1, 2, 3, 4)
"""Formats that can be read; the first knew no subspaces and no token frequency, the second read
all features as they are, the third knew bases of both sides alone. What it could hold is still
written as the third."""
TWO_SIDED = 3
SHARINGS = ("block", "layer", "role")
OUTPUTS = ("absolute", "bounded")
NORMALISATIONS = ("all", "authors")
CAPACITIES = ("scales", "subspace")
ROWS = ("none", "frequency")
SIDES = ("both", "inputs")


@dataclass(frozen=True)
class Group:
    """What one PertNN serves.

    Attributes:
        key: Name of the base tensor (`Block.key`); ``layer 3`` where a whole layer shares,
            ``role q_proj`` where a role does.
        role: Role of the blocks it was learned on; ``layer`` where a whole layer shares.
        base_role: Role of the tensor that `key` names.
        layer: Layer index, None outside the layers.
        depth: Relative depth in [0, 1], None outside the layers.
        shape: Shape [O, I] of its block, where the fine-tuner holds a subspace for it.
        kind: Kind of that block (`Block.kind`): says which way round a weight is stored.
    """

    key: str
    role: str
    base_role: str
    layer: int | None
    depth: float | None
    shape: tuple[int, int] | None = None
    kind: str = ""


@dataclass
class FineTunerConfig:
    """What ``finetuner_config.json`` holds.

    Attributes:
        groups: The group table; row g is served by network g.
        base_model: Hub id or folder name of the model it was learned on.
        architecture: Class name of that model.
        num_layers: Its number of transformer layers.
        space: The space it was learned in, ``full`` or ``adapter``.
        features: Names of the features, in the networks' input order.
        inputs: How they are read: ``raw``, as they are (the paper's, and all there was in earlier
            formats), or ``log``, see `zopeft.finetuner.features.compressed`.
        hidden: Hidden units of each network.
        sharing: ``block``, a network for each block, ``layer``, one for each layer, or
            ``role``, one for each role.
        output: What a network's output is: ``absolute``, the scale itself (`PertNN`), or
            ``bounded``, how far it lies from a fixed one (`BoundedPertNN`).
        bound: Largest ``|log(scale / fixed scale)|`` of ``bounded``, above 0.
        normalise: Whether ``sum d scale^2 = sum d`` is enforced.
        normalisation: What d counts: ``all``, every element of a block; ``authors``, as in
            the authors' code, an embedding only `embed_rows` of its rows (see
            `normalisation_weights`).
        embed_rows: Rows of an embedding that ``authors`` counts: 15 tokens an example of the
            batch.
        capacity: What was learned: ``scales``, a number a block, or ``subspace``, also a
            left and a right basis for each matrix.
        rank: Directions of a basis, at most; a small matrix has as many as fit.
        sides: ``both``, or ``inputs`` where the bases hold directions of the layers' inputs alone.
        mix: Share in [0, 1] of a subspace's power that is isotropic noise.
        rows: ``frequency`` where rows of token embeddings are scaled by how often their
            tokens occur in the training data, ``none`` where all alike.
        power: The power of the frequency that a row's standard deviation is.
        rows_order: Seed of an order in which rows take each other's frequencies, of the
            shuffled control; None: each row takes its own.
        training: Facts of its own training: tasks, settings, scores.
        versions: Versions of the libraries that made it.
        format_version: Version of this layout.
    """

    groups: list[Group]
    base_model: str = ""
    architecture: str = ""
    num_layers: int = 0
    space: str = "full"
    features: tuple[str, ...] = PAPER_FEATURES
    inputs: str = "raw"
    hidden: int = 64
    sharing: str = "block"
    output: str = "absolute"
    bound: float = math.log(2.0)
    normalise: bool = True
    normalisation: str = "all"
    embed_rows: int = 15 * 16
    capacity: str = "scales"
    rank: int = 16
    sides: str = "both"
    mix: float = 0.1
    rows: str = "none"
    power: float = 0.5
    rows_order: int | None = None
    training: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        self.features = check_features(self.features)
        for name, known in (
            ("inputs", INPUTS),
            ("sharing", SHARINGS),
            ("output", OUTPUTS),
            ("normalisation", NORMALISATIONS),
            ("capacity", CAPACITIES),
            ("sides", SIDES),
            ("rows", ROWS),
        ):
            value = getattr(self, name)
            if value not in known:
                do = close_matches(str(value), known)
                raise input_error(name, f"unknown {name}", value, do)
        if not 0.0 < self.bound < math.inf:
            raise input_error("bound", "must be finite and above 0", self.bound)
        if type(self.hidden) is not int or self.hidden < 1:
            raise input_error("hidden", "must be a whole number, 1 or more", self.hidden)
        if not isinstance(self.normalise, bool):
            raise input_error("normalise", "must be true or false", self.normalise)
        for name in ("embed_rows", "rank"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise input_error(name, "must be a whole number, 1 or more", value)
        for name, high in (("mix", 1.0), ("power", 10.0)):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and 0.0 <= value <= high):
                raise input_error(name, f"must be a number between 0 and {high:g}", value)
        if self.rows_order is not None and type(self.rows_order) is not int:
            raise input_error("rows_order", "must be a whole number or null", self.rows_order)
        if self.capacity == "subspace" and self.sharing != "block":
            do = "share by block, or learn scales alone"
            raise input_error("capacity", "a subspace belongs to one block", self.sharing, do)
        if not self.groups:
            raise input_error("groups", "the group table is empty")

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values that JSON can hold; a number that is not finite becomes null."""
        plain = _plain(asdict(self))
        assert isinstance(plain, dict)
        if self.sides == "both":
            del plain["sides"]
            plain["format_version"] = TWO_SIDED
        for group in plain["groups"]:
            if group["shape"] is None:
                del group["shape"], group["kind"]
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> FineTunerConfig:
        """Reads what `to_dict` gave.

        Args:
            values: The mapping.
            where: Name of the file, for messages.

        Raises:
            InputError: It is of another format, or a field is missing or malformed.
        """
        refuse_newer(values, where, "fine-tuner", FORMAT_VERSION)
        version = values.get("format_version")
        if isinstance(version, bool) or version not in READABLE:
            what = f"not a fine-tuner's configuration of format {FORMAT_VERSION}"
            do = "give a folder that FineTuner.save_pretrained wrote"
            raise input_error(where, what, version, do)
        known = {one.name for one in fields(cls)}
        try:
            groups = [_group(row) for row in values["groups"]]
            rest = {k: v for k, v in values.items() if k in known and k != "groups"}
            rest["format_version"] = FORMAT_VERSION
            rest["features"] = tuple(values["features"])
            rest["training"] = dict(values.get("training", {}))
            rest["versions"] = dict(values.get("versions", {}))
            return cls(groups=groups, **rest)
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as problem:
            text = f"no {problem}" if isinstance(problem, KeyError) else str(problem)
            raise input_error(where, f"malformed ({text})") from None


def _group(row: Mapping[str, Any]) -> Group:
    layer, depth, shape = row["layer"], row["depth"], row.get("shape")
    rows, columns = (0, 0) if shape is None else shape
    return Group(
        key=str(row["key"]),
        role=str(row["role"]),
        base_role=str(row.get("base_role", row["role"])),
        layer=None if layer is None else int(layer),
        depth=None if depth is None else float(depth),
        shape=None if shape is None else (int(rows), int(columns)),
        kind=str(row.get("kind", "")),
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(v) for v in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if hasattr(value, "tolist") and not isinstance(value, float):
        return _plain(value.tolist())
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return str(value)


def public_name(base_name: str) -> str:
    """Returns a model's name as it may be shared: a hub id as it is, of a folder its last part."""
    if base_name.count("/") == 1 and base_name[0] not in "/.~" and "\\" not in base_name:
        return base_name
    return PurePath(base_name).name
