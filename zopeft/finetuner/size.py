"""What a fine-tuner takes on disk and in memory, from its configuration alone."""

from __future__ import annotations

import math

from zopeft.finetuner.bases import stored_shapes
from zopeft.finetuner.bounded import net_shapes
from zopeft.finetuner.config import FineTunerConfig


def network_numbers(config: FineTunerConfig) -> int:
    """Numbers of all networks: ``G (H F + 2 H + 1)``, and ``G + 2 F`` more where bounded."""
    return sum(math.prod(shape) for shape in net_shapes(config).values())


def basis_numbers(config: FineTunerConfig) -> int:
    """Numbers of all bases: the sum of ``(O + I) r``."""
    return sum(math.prod(shape) for shape in stored_shapes(config).values())


def file_bytes(config: FineTunerConfig) -> int:
    """Bytes of the tensors on disk: 4 a number of a network, 2 of a basis."""
    return 4 * network_numbers(config) + 2 * basis_numbers(config)


def memory_bytes(config: FineTunerConfig) -> int:
    """Bytes of the tensors while tuning, when bases are fp32."""
    return 4 * network_numbers(config) + 4 * basis_numbers(config)
