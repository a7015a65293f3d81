"""What a recipe may say about meta-training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from zopeft.recipe.fields import named, number


@dataclass(frozen=True)
class MetaSection:
    """How a fine-tuner is learned (meta-train only); see `zopeft.meta` for the maths.

    Attributes:
        tasks: Names of the tasks whose first-order runs are watched.
        objective: "paper" (its Algorithm 2) or "signal" (block statistics, without an lr).
        rule: Closed form of the signal objective.
        steps: Meta-steps over all tasks.
        batch_size: Examples a batch.
        eps: Finite-difference step.
        lr_zo: Step of the zeroth-order update that is judged, the paper's eta_1.
        lr_pertnn: Step of the PertNNs, the paper's eta_2.
        lr_model: Step of the first-order run.
        momentum: Momentum of the first-order run.
        clip: Largest gradient norm of a first-order step; 0 for no clipping.
        reset_every: Steps after which the model goes back to its start; 0 for never.
        reset_below: Also go back once the loss has fallen below this share; 0 for never.
        hidden: Hidden units of a PertNN.
        sharing: One PertNN a "block", a "layer" or a "role".
        policy: "constant" scales, or PertNNs that move them with the "state" of the run
            (signal objective only).
        windows: Stretches of each run that "state" learns from.
        penalty: Weight of the squared deviation from the closed form in "state".
        features: What the PertNNs of "state" read.
        normalise: Keep the total noise power of the blocks constant.
        optimizer: Optimizer of the PertNNs.
        capacity: "scales", a number a block, or "subspace", also leading directions of each
            matrix (signal objective); "auto": subspaces where they can be learned.
        rank: Directions a side of a subspace.
        mix: Share of a subspace's power that is isotropic noise.
        rows: "frequency" scales rows of token embeddings by token frequency, "none" all alike;
            "auto": by frequency with the signal objective.
    """

    tasks: tuple[str, ...] = named((), "task")
    objective: Literal["paper", "signal"] = "signal"
    rule: Literal["signal", "signal_rms", "signal_twice", "none"] = "signal"
    steps: int = number(300, low=1)
    batch_size: int = number(8, low=1)
    eps: float = number(1e-3, above=0.0)
    lr_zo: float = number(1e-6, low=0.0)
    lr_pertnn: float = number(1e-2, low=0.0)
    lr_model: float = number(1e-2, low=0.0)
    momentum: float = number(0.0, low=0.0)
    clip: float = number(1.0, low=0.0)
    reset_every: int = number(100, low=0)
    reset_below: float = number(0.0, low=0.0)
    hidden: int = number(64, low=1)
    sharing: Literal["block", "layer", "role"] = "block"
    policy: Literal["constant", "state"] = "constant"
    windows: int = number(10, low=2)
    penalty: float = number(1.0, low=0.0)
    features: tuple[str, ...] = named(("depth", "loss_share", "change", "log_rms"), "feature")
    normalise: bool = True
    optimizer: Literal["sgd", "adam"] = "sgd"
    capacity: Literal["auto", "scales", "subspace"] = "auto"
    rank: int = number(16, low=1, high=256)
    mix: float = number(0.1, low=0.0, high=1.0)
    rows: Literal["auto", "none", "frequency"] = "auto"
