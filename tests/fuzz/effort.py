"""How much the fuzzers do: among the tests a little, always the same; with ``make fuzz`` as much as there is time."""

import os
import random
from pathlib import Path

_FUZZERS = 2  # that run one after the other
# Read when tests are collected, because every test runs in an environment that has been cleaned.
SECONDS = float(os.environ.get("FUZZ_SECONDS") or 0) / _FUZZERS
"""How long each fuzzer goes on; 0 for the short run, whose size each fuzzer knows itself."""

SEED = random.randrange(1, 1 << 31) if SECONDS else 1
"""Of all random choices: the same in every short run, another in every long one."""

KEPT = Path(__file__).resolve().parents[2] / ".cache" / "fuzz"
"""Where a long run keeps what it found interesting, for the next one."""
