"""The processor: its name, and which instruction sets it has, in the words of ``/proc/cpuinfo``."""

import hashlib
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from localllm.machine import sysctl

# What llama.cpp calls the parts of a processor that it can be built for, and the kernel's words for them. The order is
# that in which they came.
X86_FEATURES = {
    "SSE42": "sse4_2",
    "AVX": "avx",
    "F16C": "f16c",
    "FMA": "fma",
    "AVX2": "avx2",
    "BMI2": "bmi2",
    "AVX_VNNI": "avx_vnni",
    "AVX512": "avx512f",
    "AVX512_VBMI": "avx512_vbmi",
    "AVX512_VNNI": "avx512_vnni",
    "AVX512_BF16": "avx512_bf16",
    "AMX_INT8": "amx_int8",
}
# What `-mavx512…` of llama.cpp's build brings in besides AVX512F: a processor without one of them has no AVX512 here.
_AVX512_PARTS = {"avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"}
# Linux and macOS write some names in other ways.
_SPELLINGS = {"avx512vbmi": "avx512_vbmi", "avx1.0": "avx", "sse4.2": "sse4_2"}


@dataclass(frozen=True)
class Processor:
    """What a library must suit.

    Attributes:
        architecture: ``x86_64``, ``arm64``, ``aarch64``.
        name: As its maker or the kernel calls it; empty when unknown.
        flags: Its instruction sets, in the kernel's words; empty where the kernel does not tell.
    """

    architecture: str
    name: str
    flags: frozenset[str]

    @property
    def is_x86(self) -> bool:
        """Whether :attr:`features` say anything."""
        return self.architecture in ("x86_64", "AMD64", "amd64")

    @property
    def features(self) -> tuple[str, ...]:
        """Those of :data:`X86_FEATURES` that it has, in llama.cpp's words; none on other architectures."""
        if not self.is_x86:
            return ()
        return tuple(name for name, flag in X86_FEATURES.items() if self._has(flag))

    @property
    def key(self) -> str:
        """A short digest: the same for processors that run the same programs."""
        text = "\n".join((self.architecture, self.name, *sorted(self.flags)))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def lacks(self, features: Iterable[str]) -> tuple[str, ...]:
        """Those of ``features`` (llama.cpp's words) that it does not have; none where it tells nothing of itself."""
        if not self.is_x86 or not self.flags:
            return ()
        return tuple(name for name in features if name in X86_FEATURES and name not in self.features)

    def _has(self, flag: str) -> bool:
        return self.flags >= _AVX512_PARTS if flag == "avx512f" else flag in self.flags


def read_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> Processor:
    """Look at the processor that this process runs on.

    Args:
        cpuinfo: Where the Linux kernel describes it; tests give a file.
    """
    if platform.system() == "Darwin":
        # Apple's processors are told apart by name; what an Intel Mac has is in two lists.
        words = f"{sysctl('machdep.cpu.features')} {sysctl('machdep.cpu.leaf7_features')}".lower().split()
        return Processor(platform.machine(), sysctl("machdep.cpu.brand_string"), _spelled(words))
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    first: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        first.setdefault(name.strip(), value.strip())
    flags = (first.get("flags") or first.get("Features") or "").split()
    # The family and model tell processors apart whose names a virtual machine hides.
    name = " ".join(first[part] for part in ("model name", "cpu family", "model") if part in first)
    return Processor(platform.machine(), name, _spelled(flags))


def _spelled(flags: Iterable[str]) -> frozenset[str]:
    return frozenset(_SPELLINGS.get(flag, flag) for flag in flags)
