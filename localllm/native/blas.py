"""Which BLAS MLX gets on Linux, and which of its kernels: tried once a machine, the fastest that is right is kept.

OpenBLAS chooses a kernel by the processor's family and model, and takes one for processors of 2004 where it does not
know them; it may be told another by ``OPENBLAS_CORETYPE``. That is done for our own workers only, and never where the
person has set it.
"""

import os
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from localllm.machine import OPENBLAS_VARIABLE, Blas, installed_blas
from localllm.native.probing import RunProbe, run_probe
from localllm.native.processor import Processor, read_processor
from localllm.native.record import keep_record, read_record
from localllm.paths import Home

PROBE = "localllm.native.blas_probe"
_FORM = 1
# What a kernel of OpenBLAS uses, as the feature (llama.cpp's words) that it needs; the better ones first.
_KERNELS = {
    "SapphireRapids": "AVX512_BF16",
    "Cooperlake": "AVX512_BF16",
    "SkylakeX": "AVX512",
    "Haswell": "AVX2",
    "Zen": "AVX2",
    "Sandybridge": "AVX",
}
_WIDTHS = {"AVX512_BF16": 3, "AVX512": 3, "AVX2": 2, "AVX": 1}
# A kernel that somebody names must be this much faster than the library's own choice: less is noise.
_WORTH = 1.1


@dataclass(frozen=True)
class Tried:
    """A library with a kernel.

    Attributes:
        name: ``OpenBLAS`` or ``MKL``.
        library: What the loader takes.
        told: The kernel that it was told to take; empty for its own choice.
        kernel: The one that it took, as it says; empty where it does not.
        gflops: Its speed in a large float32 product, billions of operations a second; 0 when it failed.
        failure: Why it cannot be used; empty when it can.
        file: The library's file; empty when unknown.
        stamp: Size and time of that file: with another one it is tried anew.
    """

    name: str
    library: str
    told: str
    kernel: str = ""
    gflops: float = 0.0
    failure: str = ""
    file: str = ""
    stamp: str = ""

    @property
    def text(self) -> str:
        """For people: ``OpenBLAS, SkylakeX, 149 GFLOP/s``."""
        parts = (self.name, self.kernel or self.told, self.failure or f"{self.gflops:.0f} GFLOP/s")
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True)
class BlasVerdict:
    """What was found.

    Attributes:
        tried: All of it, in order.
        best: The one to use; None where none can be.
    """

    tried: tuple[Tried, ...]
    best: Tried | None

    @property
    def as_it_came(self) -> Tried | None:
        """What the best one's library does by itself; None where there is no best one."""
        return next((one for one in self.tried if self.best and one.library == self.best.library), None)


def prove_blas(
    home: Home,
    *,
    anew: bool = False,
    probe: RunProbe = run_probe,
    libraries: Sequence[Blas] | None = None,
    processor: Processor | None = None,
) -> BlasVerdict:
    """The verdict; where there is none, libraries and kernels are tried, half a second each, and it is kept.

    Args:
        home: Where it is kept.
        anew: Try although there is a verdict.
        probe: Runs a probe.
        libraries: Those to try; None for :func:`localllm.machine.installed_blas`.
        processor: What they run on; None looks.
    """
    found = installed_blas() if libraries is None else libraries
    processor = processor or read_processor()
    own = os.environ.get(OPENBLAS_VARIABLE)
    path = home.native / f"blas-{_FORM}-{_key(found, own)}-{processor.key}.json"
    if not anew and (known := _read(path)) is not None:
        return known
    tried: list[Tried] = []
    for blas in found:
        tried.append(_try(blas, "", probe))
        if blas.name == "OpenBLAS" and own is None:
            tried += [_try(blas, kernel, probe) for kernel in better_kernels(processor, tried[-1].kernel)]
    verdict = BlasVerdict(tuple(tried), _best(tried))
    keep_record(path, asdict(verdict))
    return verdict


def better_kernels(processor: Processor, taken: str) -> list[str]:
    """The kernels worth a try where OpenBLAS took ``taken``; none where that suits the processor."""
    possible = [kernel for kernel, feature in _KERNELS.items() if feature in processor.features]
    width = _WIDTHS.get(_KERNELS.get(taken, ""), 0)
    widest = max((_WIDTHS[_KERNELS[kernel]] for kernel in possible), default=0)
    return [kernel for kernel in possible if kernel != taken] if width < widest else []


def _best(tried: Sequence[Tried]) -> Tried | None:
    usable = [one for one in tried if not one.failure]
    if not usable:
        return None
    fastest = max(usable, key=lambda one: one.gflops)
    own = [one for one in usable if not one.told and one.gflops * _WORTH >= fastest.gflops]
    return own[0] if own else fastest


def _try(blas: Blas, kernel: str, probe: RunProbe) -> Tried:
    environment = {OPENBLAS_VARIABLE: kernel} if kernel else {}
    found = probe(PROBE, blas.library, environment=environment)
    if found.failure:
        return Tried(blas.name, blas.library, kernel, failure=found.failure)
    facts = found.facts
    file = str(facts["file"])
    speed, failure = (float(facts["gflops"]), "") if facts["right"] else (0.0, "its products are wrong")
    return Tried(blas.name, blas.library, kernel, str(facts["kernel"]), speed, failure, file, _stamp(file))


def _key(libraries: Sequence[Blas], own: str | None) -> str:
    names = "+".join(blas.name.lower() for blas in libraries) or "none"
    return names if own is None else f"{names}-{re.sub(r'[^a-z0-9]', '', own.lower())[:20]}"


def _stamp(file: str) -> str:
    if not file:
        return ""
    try:
        status = Path(file).stat()
    except OSError:
        return ""
    return f"{status.st_size}-{status.st_mtime_ns}"


def _read(path: Path) -> BlasVerdict | None:
    record = read_record(path)
    try:
        tried = tuple(Tried(**one) for one in record["tried"])
        if any(one.stamp != _stamp(one.file) for one in tried):
            return None  # another version of the library
        return BlasVerdict(tried, None if record["best"] is None else Tried(**record["best"]))
    except (TypeError, KeyError):
        return None  # there is none, or a damaged one


def needs_blas() -> bool:
    """Whether MLX takes its linear algebra from a BLAS here: on macOS it has Accelerate and Metal."""
    return platform.system() == "Linux"
