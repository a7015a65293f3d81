"""The journal's header: what a journal belongs to."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from zopeft.errors import input_error

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
PACKAGES = ("zopeft", "torch", "transformers", "peft")


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
    settings: dict[str, Any] = field(default_factory=dict)
    run: str = field(default_factory=lambda: secrets.token_hex(8))
    versions: dict[str, str] = field(default_factory=lambda: _versions())
    format_version: int = FORMAT_VERSION

    @property
    def rounding(self) -> str:
        """How the run's probes are rounded where weights have 16 bits (`Engine.rounding`).

        To nearest, where a journal does not say: by that all runs were probed once, and such
        a run goes on as it began.
        """
        return str(self.settings.get("rounding", "nearest"))

    def to_bytes(self) -> bytes:
        """Returns the header as JSON in UTF-8."""
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, payload: bytes, where: str) -> JournalHeader:
        """Reads what `to_bytes` gave.

        Args:
            payload: The JSON.
            where: The file's name, for messages.

        Raises:
            InputError: It is not such a header, or one of a later format.
        """
        try:
            fields = json.loads(payload)
            if fields["format_version"] != FORMAT_VERSION:
                raise input_error(
                    where,
                    f"has a journal format other than {FORMAT_VERSION}",
                    fields["format_version"],
                    "use the version of zopeft that wrote it",
                )
            fields["blocks"] = tuple((name, tuple(shape)) for name, shape in fields["blocks"])
            return cls(**fields)
        except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise input_error(where, "has no readable journal header", repr(error)) from error

    def check(self, other: JournalHeader, where: str) -> None:
        """Refuses a run that this journal does not belong to.

        Compared are method, noise with rank and shapes, how directions are probed, seed,
        blocks and, where both have them, the settings.

        Args:
            other: Header of the run at hand.
            where: The journal's name, for the message.

        Raises:
            InputError: They differ; the line lists in what.
        """
        wrong = [
            f"{name} {getattr(other, name)!r} instead of {getattr(self, name)!r}"
            for name in COMPARED
            if getattr(self, name) != getattr(other, name)
        ]
        wrong += self._other_blocks(other)
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

    def _other_blocks(self, other: JournalHeader) -> list[str]:
        if self.blocks == other.blocks:
            return []
        if len(self.blocks) != len(other.blocks):
            return [f"{len(other.blocks)} blocks instead of {len(self.blocks)}"]
        pairs = zip(self.blocks, other.blocks, strict=True)
        old, new = next((a, b) for a, b in pairs if a != b)
        return [f"block {new[0]} {list(new[1])} instead of {old[0]} {list(old[1])}"]


def header_of(optimizer: Any, **fields: Any) -> JournalHeader:
    """Returns the header of a run with a zeroth-order optimizer.

    Args:
        optimizer: A method of order 0, such as `MeZO`.
        **fields: Further fields of `JournalHeader`.
    """
    blocks, group = optimizer.blocks, optimizer.param_groups[0]
    fields["settings"] = {"rounding": optimizer.engine.rounding, **fields.get("settings", {})}
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
        learning_rate=float(group.get("initial_lr", group["lr"])),
        rate=None if optimizer.rate is None else dict(optimizer.rate.start),
        **fields,
    )


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
