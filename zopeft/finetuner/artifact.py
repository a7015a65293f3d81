"""The fine-tuner: networks, group table and feature list, as one thing that is saved and shared."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from zopeft.blocks import Blocks
from zopeft.engine import Shape
from zopeft.errors import input_error
from zopeft.finetuner import controlled, storage
from zopeft.finetuner.bases import Basis, Pair, sides_of
from zopeft.finetuner.bounded import nets_of
from zopeft.finetuner.config import FineTunerConfig, public_name
from zopeft.finetuner.controls import distance, make_constant
from zopeft.finetuner.course import Reading
from zopeft.finetuner.digest import digest_of
from zopeft.finetuner.feature_sets import PAPER_FEATURES
from zopeft.finetuner.features import Observed, pool, stack_features
from zopeft.finetuner.mask import Mask
from zopeft.finetuner.matching import Match, groups_of, match_blocks
from zopeft.finetuner.normalisation import normalise
from zopeft.finetuner.pertnn import PertNN
from zopeft.finetuner.scores import KEY, comparisons
from zopeft.finetuner.seen import learned_curvature, learned_share
from zopeft.finetuner.subspaces import Fitted, fitted_shapes
from zopeft.installed import library_versions

MOST_BEND = 2.0
"""Nats that the probes of a step may be bent upwards by, as meta-training has seen the curvature.

That is 3 (Gemma 3 270M) to 11 times (SmolLM2-135M) the one of sst2's batches, by one look at each.
"""


class FineTuner:
    """A learned choice of scales and subspaces: data and pure functions, no optimizer.

    ``x_i = features_i``, ``raw_i = PertNN_g(i)(x_i)``, ``scale = normalise(raw)``; a method
    then perturbs block i along ``scale_i z_i``, where z_i lies mostly in the block's
    subspace if one was learned (see `shapes`).

    Args:
        config: The group table and how the networks are used.
        nets: The networks, one a group.
        bases: Group to the basis learned for it; None for none.
        mask: Which weights matter most, of the model it was learned on; None where that was
            not learned.

    References:
        Zhang et al., "Learning a Zeroth-Order Optimizer for Fine-Tuning LLMs", 2025,
        equations 2 to 4 and Algorithm 1.
    """

    def __init__(
        self,
        config: FineTunerConfig,
        nets: PertNN,
        bases: Mapping[int, Basis] | None = None,
        mask: Mask | None = None,
    ) -> None:
        self.config, self.nets, self.mask = config, nets, mask
        self.bases: dict[int, Basis] = dict(bases or {})

    @classmethod
    def initial(
        cls,
        blocks: Blocks,
        hidden: int = 64,
        features: Sequence[str] = PAPER_FEATURES,
        sharing: str = "block",
        normalise: bool = True,
        seed: int = 0,
        output: str = "absolute",
        inputs: str | None = None,
        **capacity: Any,
    ) -> FineTuner:
        """Makes an untrained fine-tuner for these blocks.

        Args:
            blocks: The blocks it is to serve.
            hidden: Hidden units of each network, 1 or more.
            features: Names of features (see `FEATURES`).
            sharing: ``block``, ``layer`` or ``role`` (see `groups_of`).
            normalise: Whether the scales share a fixed budget.
            seed: Seed of the networks' start.
            output: ``absolute`` (`PertNN`) or ``bounded`` (`BoundedPertNN`).
            inputs: ``log`` or ``raw`` (see `FineTunerConfig`); None: ``log``, but ``raw`` for
                ``bounded`` networks, which keep center and spread of what they read.
            **capacity: The fields ``capacity rank mix rows power`` of `FineTunerConfig`.

        Raises:
            InputError: An argument is out of range or unknown.
        """
        config = FineTunerConfig(
            groups=groups_of(blocks, sharing),
            base_model=public_name(blocks.base_name),
            architecture=blocks.architecture,
            num_layers=blocks.num_layers,
            space=blocks.space,
            features=tuple(features),
            hidden=hidden,
            sharing=sharing,
            output=output,
            inputs=("raw" if output == "bounded" else "log") if inputs is None else inputs,
            normalise=normalise,
            versions=library_versions(),
            **capacity,
        )
        return cls(config, nets_of(config, torch.Generator().manual_seed(seed)))

    def match(self, blocks: Blocks, allow_none: bool = False) -> Match:
        """Says which group serves which block (see `match_blocks`).

        Raises:
            InputError: No block is matched, and `allow_none` is off.
        """
        return match_blocks(self.config, blocks, allow_none)

    def features(
        self,
        match: Match,
        mean: Tensor,
        variance: Tensor,
        losses: Tensor | Sequence[float],
        previous_raw: Tensor,
        reading: Reading | None = None,
    ) -> Tensor:
        """Returns what the networks read.

        Args:
            match: From `match`.
            mean: Mean of each block's values [N].
            variance: Their unbiased variance [N].
            losses: The last step's losses (plus, minus) [2]; zeros before the first step.
            previous_raw: Last raw scales [N]; ones before the first step.
            reading: Where the run stands; None: nothing has been seen.

        Returns:
            Features in the dtype of `mean`, [N, F]. Where layers share a network, mean and
            variance are those of all matched blocks of the layer together.
        """
        if self.config.sharing == "layer":
            group, numels = match.on(mean.device)
            mean, variance = pool(mean, variance, numels, group, len(self.config.groups))
        pair = torch.as_tensor(losses, dtype=mean.dtype, device=mean.device)
        depth = match.depths(mean.device).to(mean.dtype) if self.reads("depth") else None
        seen = Observed(mean, variance, pair, previous_raw.to(mean), depth, reading or Reading())
        return stack_features(self.config.features, seen, self.config.inputs)

    def reads(self, feature: str) -> bool:
        """Tells whether the networks read a feature."""
        return feature in self.config.features

    def raw_scales(self, match: Match, features: Tensor) -> Tensor:
        """Returns the networks' outputs, before normalisation.

        Differentiable in the networks' weights. The networks move to the features' device.

        Args:
            match: From `match`.
            features: From `features`, [N, F].

        Returns:
            Raw scales, at least 0, float32 [N]; 1 for blocks without a group.
        """
        if self.nets.b2.device != features.device:
            self.nets.to(features.device)
        group, _ = match.on(features.device)
        raw: Tensor = self.nets(features.to(self.nets.b2.dtype), group.clamp_min(0))
        return torch.where(group >= 0, raw, torch.ones_like(raw))

    def used_scales(self, match: Match, raw: Tensor, numels: Tensor) -> Tensor:
        """Returns the scales that multiply the noise.

        Args:
            match: From `match`.
            raw: Raw scales [N].
            numels: Elements of each block [N].

        Returns:
            Standard deviations [N]: `raw`, normalised over the matched blocks where the
            configuration says so (see `normalise`, `normalisation_weights`); 1 for the others.
        """
        group, _ = match.on(raw.device)
        matched = group >= 0
        if self.config.normalise:
            return normalise(raw, match.weights(numels.to(raw.device)), matched)
        return torch.where(matched, raw, torch.ones_like(raw))

    def signal_share(self, match: Match, scales: Tensor) -> float | None:
        """Returns which share of the projected gradient's energy was signal in the meta-training.

        ``A / G = sum s^2 S / sum s^2 E`` (see `zopeft.finetuner.seen`).

        Args:
            match: From `match`.
            scales: Standard deviations of the blocks' noise, [N].

        Returns:
            The share, above 0; None where the fine-tuner knows no statistics of the blocks.
        """
        return learned_share(self.config, match, scales)

    def straight_eps(self, match: Match, usual: float) -> float:
        """Returns a finite-difference step along which the loss is still about straight.

        Learned directions are those along which the loss changes most, and bends most: a step
        that suits isotropic noise may reach far out of the range in which a difference of two
        losses says anything of the slope. So it is at most the one at which the curvature of the
        meta-training bends the loss by `MOST_BEND`: ``eps^2 E[u' H u] / 2``.

        Args:
            match: Of blocks that are whole weights.
            usual: The step where nothing is known.
        """
        found = learned_curvature(self.config, match)
        return usual if found is None else min(usual, math.sqrt(2.0 * MOST_BEND / found))

    def set_scales(self, match: Match, scales: Tensor) -> None:
        """Makes the networks constant: each one then gives the scale of its blocks.

        A network that serves several blocks gives their root mean square, weighted by
        size. Networks that serve no block are left alone.

        Args:
            match: From `match`.
            scales: Raw scales to give, finite and at least 0, [N].

        Raises:
            InputError: A scale is negative or not finite.
        """
        if not bool(((scales >= 0) & scales.isfinite()).all()):
            raise input_error("scales", "must be finite and at least 0", scales.min().item())
        group, numels = match.on(self.nets.b2.device)
        make_constant(self.nets, group, numels, scales)

    def set_bases(self, match: Match, bases: Mapping[int, Pair]) -> None:
        """Gives groups the subspaces of the blocks they serve, and drops those they had.

        Args:
            match: From `match`, on the blocks that the fine-tuner is learned on.
            bases: Block to its left [O, r] and right [I, r] directions, orthonormal columns; of
                both sides, or for all blocks of the side of their inputs, None for the other.

        Raises:
            InputError: They are of other sides.
        """
        groups = [replace(group, shape=None, kind="") for group in self.config.groups]
        found: dict[int, Basis] = {}
        for index, (left, right) in sorted(bases.items()):
            block, group = match.blocks[index], int(match.group[index])
            rows, columns = block.shape
            groups[group] = replace(groups[group], shape=(rows, columns), kind=block.kind)
            found[group] = Basis.of(left, right)
        self.config.sides = sides_of((groups[group].kind, own) for group, own in found.items())
        self.config.groups, self.bases = groups, found

    def fitted(
        self, match: Match, token_counts: Tensor | None = None, adapters: bool = False
    ) -> Fitted:
        """Says how each block's direction is shaped, and why the others' are not.

        Args:
            match: From `match`.
            token_counts: How often each token occurs in the training data, [V]; where
                ``rows="frequency"`` it scales the rows of token embeddings.
            adapters: Whether LoRA takes its share of a basis of its base.
        """
        return fitted_shapes(self.config, self.bases, match, token_counts, adapters)

    def shapes(self, match: Match, token_counts: Tensor | None = None) -> dict[int, Shape]:
        """Returns the shapes of the blocks' directions, as `zopeft.engine.Engine` takes them.

        Args:
            match: From `match`.
            token_counts: As for `fitted`.
        """
        return self.fitted(match, token_counts).shapes

    def copy(self) -> Self:
        """Returns an independent copy."""
        config, nets = copy.deepcopy(self.config), copy.deepcopy(self.nets)
        return type(self)(config, nets, self.bases, self.mask)

    def save_pretrained(self, folder: str | Path, overwrite: bool = False) -> Path:
        """Writes ``finetuner_config.json``, ``finetuner.safetensors`` and a card ``README.md``.

        A mask is a file of its own, ``mask.safetensors``.

        Args:
            folder: Where to; made if it does not exist.
            overwrite: Write into a folder that holds files already.

        Returns:
            The folder.

        Raises:
            InputError: The folder is not empty and `overwrite` is off, or cannot be written.
        """
        own = (self._told(), self.nets, self.bases, self.mask)
        return storage.save(*own, Path(folder), overwrite)

    @classmethod
    def from_pretrained(cls, name: str | Path, revision: str | None = None) -> Self:
        """Reads a fine-tuner from a folder or from the hub.

        Args:
            name: Folder that `save_pretrained` wrote, or a hub id.
            revision: Branch, tag or commit on the hub.

        Raises:
            InputError: There is no such folder or hub id, the hub cannot be reached, or the
                files are missing, foreign or damaged.
        """
        return cls(*storage.load(storage.locate(name, revision)))

    def push_to_hub(self, repo_id: str, private: bool = False, token: str | None = None) -> str:
        """Uploads the three files; makes the repository if it does not exist.

        Args:
            repo_id: ``organisation/name``.
            private: Whether a new repository is private.
            token: Access token; None takes the one that the hub's client is logged in with.

        Returns:
            The address of the repository.

        Raises:
            InputError: The hub cannot be reached or refuses.
        """
        own = (self._told(), self.nets, self.bases, self.mask)
        return storage.push(*own, repo_id, private, token)

    def _told(self) -> FineTunerConfig:
        """Returns the configuration without comparisons of what this was before it was changed."""
        training = self.config.training
        if KEY not in training:
            return self.config
        rest = {name: value for name, value in training.items() if name != KEY}
        own = comparisons(training, digest_of(self))
        return replace(self.config, training=rest | ({KEY: own} if own else {}))

    def shuffled(self, seed: int) -> FineTuner:
        """Returns a control whose networks and bases serve other groups (`controlled`)."""
        return controlled.shuffled(self, seed)

    def with_random_bases(self, seed: int) -> FineTuner:
        """Returns a control with subspaces in random directions (`controlled`)."""
        return controlled.with_random_bases(self, seed)

    def untrained(self, seed: int) -> FineTuner:
        """Returns a control that has learned nothing (`controlled`)."""
        return controlled.untrained(self, seed)

    def without_bases(self) -> FineTuner:
        """Returns a control with the scales alone (`controlled`)."""
        return controlled.without_bases(self)

    def distance(self, other: FineTuner) -> dict[str, Any]:
        """Says how far these networks are from another's, ``||w - w'|| / ||w'||``.

        Args:
            other: A fine-tuner with the same numbers of groups, features and hidden units, for
                example the start of its training.

        Returns:
            ``total``, over all networks, and ``groups``, a list in the order of the table.

        Raises:
            InputError: The two are of different sizes.
        """
        return distance(self.nets, other.nets)

    def __repr__(self) -> str:
        c = self.config
        return f"FineTuner({c.base_model or c.architecture}, {len(c.groups)} groups, {c.space})"
