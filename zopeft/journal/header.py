"""The journal's header: what a journal belongs to."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from dataclasses import fields as dataclass_fields
from typing import Any

from torch import Tensor, uint8

from zopeft.errors import input_error
from zopeft.installed import library_versions
from zopeft.optim.options import options_of
from zopeft.optim.zeroth_order import ZerothOrder
from zopeft.reading import checked, fits, parse_json, refuse_newer

FORMAT_VERSION = 1
COMPARED = (
    "method",
    "noise",
    "rank",
    "shapes",
    "directions",
    "sides",
    "normalise",
    "seed",
    "space",
)
ASIDE = ("lr", "max_bad_steps", "carrier", "probes", "finetuner", "token_counts")
"""Options that no header compares: each record has its rate, carriers give the same bits, shapes
tell what counts of tokens do, and a trainer's settings hold digest and way of probing."""
REPLAYED = ("eps", "clip")
"""Options that matter to the steps to come alone: of those made the records hold what they did."""


KINDS = {
    "method": "text",
    "noise": "text",
    "seed": "count",
    "blocks": "list",
    "space": "text",
    "base_model": "text",
    "learning_rate": "number",
    "rate": "numbers?",
    "start": "text?",
    "fingerprint": "text",
    "rank": "count",
    "shapes": "text",
    "directions": "count",
    "sides": "text",
    "normalise": "flag",
    "options": "object?",
    "settings": "object",
    "run": "text",
    "versions": "object",
    "format_version": "count",
}
"""The fields of a header in the file, and their kinds (`zopeft.reading.fits`)."""
NEEDED = ("method", "noise", "seed", "blocks", "format_version")


def _blocks(values: list[Any], where: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Returns the blocks of a header."""
    found = []
    for pair in values:
        good = isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)
        if not good or not fits(pair[1], "counts"):
            what = "has no readable journal header: a block is not a name and a shape"
            raise input_error(where, what, f"{pair!r:.60}")
        found.append((pair[0], tuple(pair[1])))
    return tuple(found)


@dataclass(frozen=True)
class JournalHeader:
    """What must agree before a journal is replayed or gone on with.

    Args:
        method: The method's class name, such as "MeZO".
        noise: Name of the noise.
        seed: Seed of the run's directions.
        blocks: Name and shape of every block, in order, [N].
        space: "full" or "adapter".
        base_model: Hub id or folder of the base model ("" if unknown).
        learning_rate: The learning rate that the run began with (proposed or given).
        rate: Where a running learning rate began (`RunningRate.start`); None for others.
        start: File beside the journal with the start weights of an adapter; None for full
            weights, which start from `base_model`.
        fingerprint: Fingerprint of the blocks' weights at the first step.
        rank: Rank of a low-rank noise; 0 for others.
        shapes: Fingerprint of the shapes that the run was given ("" for none); a replay
            needs the same ones.
        directions: Directions a step.
        sides: On how many sides each is probed, "two" or "one".
        normalise: Whether differences of losses are divided by their spread.
        options: Everything else that the method was made with, by name: what a class of one's
            own adds, too. None in journals of before there were any.
        usual: Defaults of `options`, for journals that were written when there were fewer; not
            part of the file.
        settings: Other settings of the run that its steps depend on, such as batch size.
        run: A random name, by which checkpoints know their run.
        versions: Versions of the packages that wrote it; never compared.
        format_version: Version of the file's format.
    """

    method: str
    noise: str
    seed: int
    blocks: tuple[tuple[str, tuple[int, ...]], ...]
    space: str = "full"
    base_model: str = ""
    learning_rate: float = 0.0
    rate: dict[str, float] | None = None
    start: str | None = None
    fingerprint: str = ""
    rank: int = 0
    shapes: str = ""
    directions: int = 1
    sides: str = "two"
    normalise: bool = False
    options: dict[str, Any] | None = None
    usual: dict[str, Any] = field(default_factory=dict, compare=False)
    settings: dict[str, Any] = field(default_factory=dict)
    run: str = field(default_factory=lambda: secrets.token_hex(8))
    versions: dict[str, str] = field(default_factory=library_versions)
    format_version: int = FORMAT_VERSION

    @property
    def rounding(self) -> str:
        """How the run rounds where weights have 16 bits (`Engine.rounding`).

        "nearest", where a journal does not say: by that all runs were probed once, and such
        a run goes on as it began.
        """
        return str(self.settings.get("rounding", "nearest"))

    def to_bytes(self) -> bytes:
        """Returns the header as JSON in UTF-8."""
        told = asdict(self)
        del told["usual"]
        return json.dumps(told, sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, payload: bytes, where: str) -> JournalHeader:
        """Reads what `to_bytes` gave.

        Args:
            payload: The JSON.
            where: The file's name, for messages.

        Raises:
            InputError: It is not such a header, or one of a later format.
        """
        what = "journal header"
        values = parse_json(payload, where)
        refuse_newer(values, where, "journal", FORMAT_VERSION)
        given = checked(values, KINDS, where, what)
        missing = [name for name in NEEDED if name not in given]
        if missing:
            raise input_error(where, f"has no readable {what}: no {missing[0]}")
        start = given.get("start")
        if start is not None and (start in ("", ".", "..") or "/" in start or "\0" in start):
            raise input_error(where, f"has no readable {what}: start is no file's name", start[:60])
        return cls(**{**given, "blocks": _blocks(given["blocks"], where)})

    def check(self, other: JournalHeader, where: str, replays: bool = False) -> None:
        """Refuses a run that this journal does not belong to.

        Compared are method, noise with rank and shapes, how directions are probed, seed,
        blocks, all further options of the method (but `ASIDE`) and, where both have them, the
        settings.

        Args:
            other: Header of the run at hand.
            where: The journal's name, for the message.
            replays: Whether only recorded steps are made, which `REPLAYED` does not matter to.

        Raises:
            InputError: They differ; the line lists in what.
        """
        wrong = [
            f"{name} {getattr(other, name)!r} instead of {getattr(self, name)!r}"
            for name in COMPARED
            if getattr(self, name) != getattr(other, name)
        ]
        wrong += self._other_blocks(other) + self._other_options(other, replays)
        for key in sorted(set(self.settings) & set(other.settings)):
            if self.settings[key] != other.settings[key]:
                wrong.append(f"{key} {other.settings[key]!r} instead of {self.settings[key]!r}")
        if wrong:
            raise input_error(
                where,
                "belongs to another run: this one has " + ", ".join(wrong),
                None,
                "resume with the settings of the first run, or start anew in another folder",
            )

    def _other_options(self, other: JournalHeader, replays: bool) -> list[str]:
        if self.options is None or other.options is None:
            return []
        # What both have among their settings is compared, and told, there.
        skipped = {*(set(self.settings) & set(other.settings)), *(REPLAYED if replays else ())}
        wrong = []
        for name in sorted({*self.options, *other.options} - skipped):
            before = self.options.get(name, other.usual.get(name))
            now = other.options.get(name, self.usual.get(name))
            if before != now:
                wrong.append(f"{name} {now!r} instead of {before!r}")
        return wrong

    def _other_blocks(self, other: JournalHeader) -> list[str]:
        if self.blocks == other.blocks:
            return []
        if len(self.blocks) != len(other.blocks):
            return [f"{len(other.blocks)} blocks instead of {len(self.blocks)}"]
        pairs = zip(self.blocks, other.blocks, strict=True)
        old, new = next((a, b) for a, b in pairs if a != b)
        return [f"block {new[0]} {list(new[1])} instead of {old[0]} {list(old[1])}"]


def header_of(optimizer: ZerothOrder, **fields: Any) -> JournalHeader:
    """Returns the header of a run with a zeroth-order optimizer.

    Args:
        optimizer: A method of order 0, such as `MeZO`.
        **fields: Further fields of `JournalHeader`.
    """
    blocks, group, rate = optimizer.blocks, optimizer.param_groups[0], optimizer.rate
    fields["settings"] = {"rounding": optimizer.engine.rounding, **fields.get("settings", {})}
    options = optimizer.options | {"eps": optimizer.eps, "clip": optimizer.clip.factor}
    usual = options_of(type(optimizer))
    return JournalHeader(
        method=type(optimizer).__name__,
        noise=optimizer.drawn_from.noise,
        rank=optimizer.drawn_from.rank,
        shapes=optimizer.drawn_from.shape_print,
        **asdict(optimizer.estimator),
        seed=optimizer.seed,
        blocks=tuple((block.name, tuple(int(n) for n in block.shape)) for block in blocks),
        space=blocks.space,
        base_model=blocks.base_name,
        learning_rate=float(group.get("initial_lr", group["lr"]) if rate is None else rate.first),
        rate=None if rate is None else dict(rate.start),
        options=_compared(options),
        usual=_compared(usual),
        **fields,
    )


def _compared(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns options as JSON can hold them, without those that a header tells elsewhere."""
    told = {one.name for one in dataclass_fields(JournalHeader)}
    return {name: _plain(value) for name, value in options.items() if name not in {*told, *ASIDE}}


def _plain(value: Any) -> Any:
    """Returns what a value is compared by: itself, its parts, a digest of a tensor, or a name."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, Tensor):
        content = value.detach().cpu().contiguous().flatten().view(uint8).numpy().tobytes()
        digest = hashlib.blake2b(content, digest_size=8).hexdigest()
        return f"{value.dtype} {list(value.shape)} {digest}"
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"
