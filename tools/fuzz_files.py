"""All readers that `fuzz.py` tries, by name."""

from __future__ import annotations

import fuzz_messages
import fuzz_models
import fuzz_rows
import fuzz_runs
import fuzz_tuners
from fuzz_reader import Reader

ROOMS = (fuzz_runs, fuzz_tuners, fuzz_rows, fuzz_models, fuzz_messages)
READERS: dict[str, Reader] = {reader.name: reader for room in ROOMS for reader in room.READERS}
