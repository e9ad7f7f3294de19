"""The machine: chip, cores, and the linear-algebra library that MLX finds on Linux."""

import ctypes
import ctypes.util
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

BLAS_VARIABLE, BLAS_KERNEL_VARIABLE = "LOCALLLM_BLAS", "LOCALLLM_BLAS_KERNEL"
OPENBLAS_VARIABLE = "OPENBLAS_CORETYPE"  # OpenBLAS's own: the kernel that it takes


@dataclass(frozen=True)
class Machine:
    """What this machine is.

    Attributes:
        system: ``macOS 15.5``, ``Linux 6.8.0``.
        architecture: ``arm64``, ``x86_64``.
        chip: As its maker calls it; empty when unknown.
        cores: Physical cores that this process may use.
        performance_cores: The fast ones of them; equal to ``cores`` where all are alike.
    """

    system: str
    architecture: str
    chip: str
    cores: int
    performance_cores: int

    @property
    def apple_silicon(self) -> bool:
        """Apple's own chip: unified memory, Metal."""
        return self.system.startswith("macOS") and self.architecture == "arm64"


@dataclass(frozen=True)
class Blas:
    """A tuned BLAS that MLX can be made to use.

    Attributes:
        name: ``OpenBLAS`` or ``MKL``.
        library: What the loader takes: a path or a library's name.
    """

    name: str
    library: str


def read_machine(root: Path = Path("/")) -> Machine:
    """Look at this machine.

    Args:
        root: Where ``proc`` and ``sys`` are; tests give a directory.
    """
    if platform.system() == "Darwin":
        cores = _positive(sysctl("hw.physicalcpu")) or os.cpu_count() or 1
        fast = _positive(sysctl("hw.perflevel0.physicalcpu")) or cores
        system = f"macOS {platform.mac_ver()[0]}"
        return Machine(system, platform.machine(), sysctl("machdep.cpu.brand_string"), cores, fast)
    cores = _linux_cores()
    fast = min(cores, _count_cpus(root / "sys/devices/cpu_core/cpus") or cores)
    system = f"{platform.system()} {platform.release()}"
    return Machine(system, platform.machine(), _linux_chip(root / "proc/cpuinfo"), cores, fast)


def sysctl(name: str) -> str:
    """A kernel value on macOS; empty where it, or the program that reads it, does not exist."""
    try:
        done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def installed_blas(prefix: Path | None = None) -> list[Blas]:
    """The tuned BLAS libraries that MLX could use on Linux: the system's OpenBLAS, then the ``mkl`` wheel's.

    MLX's Linux wheel carries the reference BLAS: about 5 GFLOP/s, where a tuned one gives 100 on two cores. On macOS
    MLX uses Accelerate and Metal, and none is right.

    Args:
        prefix: Where the ``mkl`` wheel puts its libraries (``sys.prefix``).
    """
    if platform.system() != "Linux":
        return []
    system = ctypes.util.find_library("openblas")
    found = [Blas("OpenBLAS", system)] if system else []
    libraries = sorted((Path(sys.prefix) if prefix is None else prefix).glob("lib/libmkl_rt.so*"))
    return [*found, *(Blas("MKL", str(path)) for path in libraries[-1:])]


def chosen_blas() -> str:
    """The library that MLX gets in this process; empty for none.

    What :mod:`localllm.native.environment` chose for it, else the first that is installed.
    """
    chosen = os.environ.get(BLAS_VARIABLE)
    return chosen if chosen is not None else next((blas.library for blas in installed_blas()), "")


def preload_blas() -> str:
    """Make MLX use :func:`chosen_blas`; call it before ``mlx.core`` is imported, in a process that computes.

    The library's ``cblas_*`` functions become global, so the dynamic linker prefers them to those of MLX's own copy.

    Returns:
        What was loaded; empty when there is none, or it cannot be loaded.
    """
    library = chosen_blas()
    if not library:
        return ""
    kernel, before = os.environ.get(BLAS_KERNEL_VARIABLE), os.environ.get(OPENBLAS_VARIABLE)
    if kernel and before is None:  # it reads this as it is loaded; NumPy's own copy must not
        os.environ[OPENBLAS_VARIABLE] = kernel
    try:
        ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return ""  # found but broken (a missing dependency): slow is better than not at all
    finally:
        if kernel and before is None:
            del os.environ[OPENBLAS_VARIABLE]
    return library


def set_blas_threads(n_threads: int) -> None:
    """Let the BLAS of :func:`preload_blas` use so many threads from now on; where none was loaded, nothing happens."""
    if platform.system() != "Linux":
        return
    loaded = ctypes.CDLL(None)
    for name in ("openblas_set_num_threads", "MKL_Set_Num_Threads"):
        if hasattr(loaded, name):
            getattr(loaded, name)(ctypes.c_int(n_threads))


def _linux_cores() -> int:
    import psutil  # deferred: 15 ms

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(psutil.cpu_count(logical=False) or allowed, allowed)


def _linux_chip(cpuinfo: Path) -> str:
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model", "Hardware"):
            return value.strip()
    return ""


def _count_cpus(cpus: Path) -> int:
    """The number of CPUs in a kernel list such as ``0-7,16``; 0 when there is no such file."""
    try:
        ranges = cpus.read_text(encoding="ascii").strip().split(",")
        bounds = [(int(first), int(last or first)) for first, _, last in (part.partition("-") for part in ranges)]
    except (OSError, ValueError):
        return 0
    return sum(last - first + 1 for first, last in bounds)


def _positive(text: str) -> int:
    return int(text) if text.isdigit() else 0
