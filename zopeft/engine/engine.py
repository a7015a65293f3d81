"""The engine: how a direction is applied to a model's weights and taken away again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
from torch import Tensor

from zopeft.blocks import Block, Blocks
from zopeft.blocks.offloaded import Offload
from zopeft.engine.carrying import carriers_of, check_carrier
from zopeft.engine.direction import Direction
from zopeft.engine.elements import Elements
from zopeft.engine.forms import Forms
from zopeft.engine.maps import inner_products, map_weights
from zopeft.engine.projection import project
from zopeft.engine.reads import Reads
from zopeft.engine.shapes import Shape
from zopeft.engine.tangents import slope_along
from zopeft.engine.vector import Vector, terms_of
from zopeft.errors import input_error
from zopeft.kernels.choice import kernels_for
from zopeft.kernels.plain import ROUNDINGS
from zopeft.noise import Noise


class Engine:
    """Perturbs and updates the blocks of a model along addressed directions.

    Adapters, and full fp32 weights of at most `SMALL` elements, are carried by a
    `FlatBuffer`; other full weights, and what accelerate has offloaded, by `ModuleWeights`.
    Both give the same direction for the same address. The scales of quantised layers are
    carried by `ScaleTensors`, for which a step is relative: ``theta (1 + step u)``.

    Args:
        blocks: The blocks to train, [N].
        noise: Noise family: "gaussian", "binomial" or "rademacher".
        carrier: "flat", "modules", or "auto" for the choice above.
        backend: A name of `zopeft.kernels.BACKENDS`, or "auto" for the fastest one here;
            the bits are the same.
        shapes: Block index to shape, for the whole run; blocks absent are isotropic.

    Attributes:
        reads: Which blocks the forward passes of a step read.
        device: Where scales and statistics are: the first block's, while its module runs.
        unstackable: Why several probes cannot share a forward, as what runs them has found
            (`zopeft.probing`); "" if they can.

    Raises:
        InputError: `noise`, `carrier` or `backend` is unknown, a shape does not fit, or a
            block's weights are offloaded to where they can't be written.
    """

    def __init__(
        self,
        blocks: Blocks,
        noise: str = "gaussian",
        carrier: str = "auto",
        backend: str = "auto",
        shapes: Mapping[int, Shape] | None = None,
    ) -> None:
        check_carrier(carrier)
        self.blocks = blocks
        self.noise = Noise(noise)
        self.offload = Offload(blocks.model)
        devices = {self.offload.device(owner) for block in blocks for owner in block.owners}
        self.device = self.offload.device(blocks[0].owners[0])
        self.kernels = kernels_for(backend, self.noise, devices)
        self.shapes = dict(shapes or {})
        if self.shapes and blocks.space == "scales":
            raise input_error("shapes", "the scales of quantised layers have none", None)
        self.forms = Forms(blocks, self.shapes, self.kernels)
        self.reads = Reads(blocks)
        self.unstackable = ""
        self._in_place = False
        self._numbers = {block.name: index for index, block in enumerate(blocks)}
        self.elements = Elements(blocks, self.kernels, self.forms)
        self.carriers = carriers_of(blocks, carrier, self.elements, self.offload, self.reads)
        if blocks.compiled:
            self.is_compiled()

    @property
    def rounding(self) -> str:
        """How probes and updates are rounded where weights have 16 bits, one of `plain.ROUNDINGS`.

        "hashed": stochastically, by words of a hash, the same for both signs of a probe's step. By
        the others runs of earlier versions go on: "stochastic" takes an update's words from Philox;
        "nearest" rounds probes to nearest besides, which never shows a step below half of a
        weight's ulp.
        """
        return self.kernels.rounding

    @rounding.setter
    def rounding(self, rounding: str) -> None:
        if rounding not in ROUNDINGS:
            raise input_error("rounding", "unknown rounding", rounding, f"use one of {ROUNDINGS}")
        self.kernels.rounding = rounding

    @contextmanager
    def perturbed(self, direction: Vector, step: float) -> Iterator[None]:
        """Shows ``theta + step * u`` to the forward passes inside.

        Afterwards, and after any exception, the weights are bit for bit what they were.

        Args:
            direction: The direction, or another vector.
            step: Finite-difference step with its sign, in the units of the weights.
        """
        watching = self.watching()
        with ExitStack() as stack:
            for carrier in self.carriers:
                stack.enter_context(carrier.perturbed(direction, step))
            stack.enter_context(watching)
            yield
        if not self._in_place:
            wrong = [error for carrier in self.carriers if (error := carrier.replaced())]
            if wrong:
                raise wrong[0]
            self._in_place = True

    def watching(self) -> AbstractContextManager[None]:
        """Watches a probe's forward passes; to be made before the weights are perturbed."""
        return self.reads.watching(not all(carrier.settled for carrier in self.carriers))

    def settle(self) -> bool:
        """Looks after a probe for weights that were read outside of their modules' forward.

        Returns:
            True if the probe just done missed some and has to be done again.
        """
        found = [carrier.settle() for carrier in self.carriers]
        if self.reads.compiled:
            self.is_compiled()
        return any(found)

    def is_compiled(self) -> None:
        """Says that the forward passes run compiled code, which is not to be interfered with.

        What is found out at the first probe otherwise, which is run uncompiled for it.
        """
        self.reads.compiled = True
        for carrier in self.carriers:
            carrier.show_whole()

    def adopt(self) -> None:
        """Takes over weights that were changed outside since the last step."""
        for carrier in self.carriers:
            carrier.adopt()

    def update(
        self,
        direction: Direction | Sequence[Direction],
        coefficients: Tensor | float,
        decays: Tensor | float = 1.0,
    ) -> None:
        """Writes ``theta_i <- decay_i * theta_i + sum_k coefficient_ki * u_ki``, in fp32.

        16-bit storage is rounded stochastically (once; see `zopeft.engine.sums`), with bits
        addressed like the noise, so the same update gives the same bits. Coefficients of
        zero change no bit.

        Args:
            direction: The direction that was probed, or several, [K].
            coefficients: Minus learning rate times projected gradient; float, [N] or [K, N].
            decays: One minus learning rate times weight decay; float or [N].
        """
        directions = [direction] if isinstance(direction, Direction) else list(direction)
        size = (len(directions), len(self.blocks))
        coefficient = torch.as_tensor(coefficients, dtype=torch.float64).expand(size)
        if any(each.indices is not None for each in directions):
            touched = [[each.touches(index) for index in range(size[1])] for each in directions]
            coefficient = coefficient * torch.tensor(touched, dtype=torch.float64)
        decay = torch.as_tensor(decays, dtype=torch.float64).expand(size[1])
        if bool((coefficient == 0).all()) and bool((decay == 1).all()):
            return
        self.forms.kept = len(directions)
        for carrier in self.carriers:
            carrier.update(directions, coefficient, decay)

    def map(
        self,
        function: Callable[..., tuple[Tensor, ...]],
        vectors: Sequence[Vector],
        buffers: Sequence[Sequence[Tensor]],
        seed: int,
        decays: Tensor | float = 1.0,
        alone: Collection[int] = (),
        together: bool = False,
    ) -> None:
        """Writes what a function makes of weights and state, piece by piece (`map_weights`)."""
        decay = torch.as_tensor(decays, dtype=torch.float64).expand(len(self.blocks))
        self.forms.kept = max(1, len(self._shaped_seeds(vectors)))
        given = (function, vectors, buffers, seed, decay, alone, together)
        map_weights(self.carriers, self.elements, *given)

    def _shaped_seeds(self, vectors: Sequence[Vector]) -> set[int]:
        """Seeds of the directions in some vectors that shaped blocks take their numbers from."""
        terms = [term for vector in vectors for _, term in terms_of(vector)]
        shaped = [term for term in terms if any(map(term.touches, self.forms.shapes))]
        return {seed for term in shaped for seed in term.seeds}

    def weights(self, index: int) -> Tensor:
        """Returns a block's weights, to be read alone, in its shape (of scales: ones)."""
        carrier = next(each for each in self.carriers if index in each.indices)
        return carrier.stored(index)

    def slope(self, vector: Vector, closure: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        """Returns a closure's loss and its derivative along a vector (`slope_along`).

        Raises:
            InputError: Some weights are offloaded.
        """
        if self.offload:
            do = "keep the model on one device"
            raise input_error("slope", "cannot be taken of offloaded weights", None, do)
        return slope_along(self.blocks, self.elements, vector, closure)

    def dot(self, first: Vector, second: Vector) -> Tensor:
        """Returns the inner product of two vectors on each block, float64 [N] on the CPU."""
        return inner_products(self.carriers, self.elements, first, second)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Returns mean [N] and unbiased variance [N] of the blocks' elements, float64."""
        mean = torch.zeros(len(self.blocks), dtype=torch.float64, device=self.device)
        variance = torch.zeros_like(mean)
        for carrier in self.carriers:
            means, variances = carrier.statistics()
            mean[carrier.indices] = means.to(self.device)
            variance[carrier.indices] = variances.to(self.device)
        return mean, variance

    def project(self, block: Block, seed: int, gradient: Tensor) -> Tensor:
        """Returns ``<gradient, u>`` of one block at scale one, without keeping u.

        Args:
            block: One of the engine's blocks.
            seed: 64-bit key of the step.
            gradient: Gradient of the block's whole parameter, in its shape.

        Returns:
            0-dim float64.
        """
        index = self._numbers[block.name]
        return project(self.elements, index, seed, gradient)

    def state_dict(self) -> dict[str, Tensor]:
        """Returns what the weights themselves cannot hold: fp32 masters of 16-bit adapters."""
        states = {f"master.{i}": carrier.state() for i, carrier in enumerate(self.carriers)}
        return {name: state for name, state in states.items() if state is not None}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes what `state_dict` gave."""
        for name, master in state.items():
            self.carriers[int(name.split(".")[1])].load_state(master)
