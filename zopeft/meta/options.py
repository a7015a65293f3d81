"""The settings of meta-training: each is declared here, with its range and a line of help.

Recipes, the command line, `zopeft.meta_train` and the documentation read them from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from zopeft.finetuner.feature_sets import STATE_FEATURES
from zopeft.optim.declared import Declared, option

OBJECTIVES = ("paper", "signal")
GRADIENTS = ("backward", "forward")
RULES = ("signal", "signal_rms", "signal_twice", "none")
PERTNN_OPTIMIZERS = ("sgd", "adam")
SHARINGS = ("block", "layer", "role")
POLICIES = ("constant", "state")
STATE_CHOICES = (*STATE_FEATURES, "log_loss", "bend")
CAPACITIES = ("auto", "scales", "subspace")
ROWS = ("auto", "none", "frequency")


def rows() -> Any:
    """Returns the field that says how rows of token embeddings are scaled.

    It is ``meta.rows`` in a recipe and ``token_rows`` in Python, where ``rows`` are data.
    """
    about = (
        'rows of token embeddings: "frequency" scales them by (count + 1)^0.5, "none" all alike; '
        '"auto": by frequency with the objective signal'
    )
    return option("auto", about, choices=ROWS)


@dataclass(frozen=True)
class MetaOptions(Declared):
    """What a run of meta-training can be told, with the paper's names in brackets.

    The default objective is "signal": with subspaces and rows by frequency it beat MeZO in seven
    of eight pairs of model and task (benchmarks/results/bench-stories and bench-embedded);
    "paper" leaves its networks where they start (bench-stories, two tasks). The other defaults
    are the paper's where it gives a number, and the authors' scripts' where only those do;
    their ``lr_model`` of 1e-2 stands where the text has one eta_1 for both steps, because 1e-6
    leaves the trajectory where it starts.
    """

    objective: str = option(
        "signal",
        '"paper" (its Algorithm 2), or "signal" (block statistics, without an lr)',
        choices=OBJECTIVES,
    )
    gradients: str = option(
        "backward",
        'what is known of gradients comes from "backward" passes, or from "forward" passes alone: '
        "directions of inputs from activations, scales of roles from probes (signal, constant)",
        choices=GRADIENTS,
    )
    rule: str = option(
        "signal", "closed form of the objective signal (`zopeft.meta.signal`)", choices=RULES
    )
    steps: int = option(100, "meta-steps over all tasks (T)", least=1)
    stop: float = option(
        0.0,
        "gain from check to check below which the steps are enough (signal, constant policy); "
        "0 makes them all",
        least=0.0,
        most=1.0,
    )
    batch_size: int = option(8, "examples a batch", least=1)
    eps: float = option(1e-3, "finite-difference step (epsilon)", above=0.0)
    lr_zo: float = option(1e-6, "step of the zeroth-order update that is judged (eta_1)", least=0.0)
    lr_pertnn: float = option(1e-2, "step of the PertNNs (eta_2)", least=0.0)
    lr_model: float = option(1e-2, "step of the first-order run that is watched", least=0.0)
    momentum: float = option(
        0.0, "momentum of that run; above 0 costs a copy of the weights", least=0.0, most=0.999
    )
    clip: float = option(
        1.0,
        "largest gradient norm of a first-order step, that of the pass just before; 0 for none",
        least=0.0,
    )
    reset_every: int = option(
        100, "meta-steps after which the model goes back to its start; 0 for never", least=0
    )
    reset_below: float = option(
        0.0,
        "also go back once the running loss is below this share of the first; 0 for never",
        least=0.0,
        most=1.0,
    )
    hidden: int = option(64, "hidden units of a PertNN", least=1)
    sharing: str = option("block", "one PertNN a block, a layer or a role", choices=SHARINGS)
    policy: str = option(
        "constant",
        '"constant" scales, or PertNNs that move them with the "state" of the run (signal only)',
        choices=POLICIES,
    )
    windows: int = option(10, 'stretches of each run that "state" learns from', least=2)
    penalty: float = option(
        1.0, 'weight of the squared deviation from the closed form in "state"', least=0.0
    )
    features: tuple[str, ...] = option(
        STATE_FEATURES, 'what the PertNNs of "state" read', choices=STATE_CHOICES
    )
    normalise: bool = option(True, "keep the blocks' budget, sum d scale^2 = sum d")
    optimizer: str = option("sgd", "optimizer of the PertNNs", choices=PERTNN_OPTIMIZERS)
    capacity: str = option(
        "auto",
        'learn a scale a block ("scales"), or also leading directions of each matrix '
        '("subspace", signal only); "auto": subspaces where they can be learned',
        choices=CAPACITIES,
    )
    rank: int = option(16, "directions a side of a subspace, or as many as fit", least=1, most=256)
    input_rank: int = option(
        1,
        "directions of each layer's inputs that a subspace has with gradients forward, or as many "
        "as fit",
        least=1,
        most=256,
    )
    mix: float = option(
        0.1, "share of a subspace's power that is isotropic noise", least=0.0, most=1.0
    )
    mask: float = option(
        0.0,
        "share of all weights, those of the largest squared gradients, whose places are kept as a "
        "mask for the method sensitive; 0 for none, above it costs an fp32 copy of the weights",
        least=0.0,
        most=1.0,
    )
