"""Checks of the machine and of the Python it runs."""

import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from localllm.checkup.finding import Finding
from localllm.machine import Machine
from localllm.memory import MachineMemory, gigabytes

_PACKAGES = ("llama-cpp-python", "mlx", "numpy", "huggingface-hub", "httpx2", "starlette", "uvicorn", "textual")
_LITTLE_MEMORY = 4_000_000_000


def check_machine(machine: Machine, memory: MachineMemory) -> list[Finding]:
    """The system, the chip, and the memory that models may use."""
    cores = f"{machine.cores} {'core' if machine.cores == 1 else 'cores'}"
    if machine.performance_cores != machine.cores:
        cores += f" ({machine.performance_cores} fast)"
    findings = [Finding("ok", f"{machine.system} on {machine.architecture}: {machine.chip or 'unknown chip'}, {cores}")]
    text = (
        f"Memory: {gigabytes(memory.total)}, {gigabytes(memory.available)} free; "
        f"models may use {gigabytes(memory.budget)} together"
    )
    if memory.total < _LITTLE_MEMORY:
        findings.append(Finding("warn", text, "Only small models fit: see `localllm models fit`."))
    else:
        findings.append(Finding("ok", text))
    if machine.system.startswith("macOS") and machine.architecture != "arm64":
        findings.append(
            Finding("warn", "This is an Intel Mac, or a Python for one", "On Apple Silicon install an arm64 Python.")
        )
    return findings


def check_python(packages: Sequence[str] = _PACKAGES) -> list[Finding]:
    """Python, and the versions of the packages that matter (read from their metadata; nothing is imported)."""
    findings = [Finding("ok", f"Python {platform.python_version()} ({sys.prefix})")]
    present: list[str] = []
    for package in packages:
        try:
            present.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            findings.append(
                Finding("problem", f"{package} is not installed", f"Run `python -m pip install {package}`.")
            )
    if present:
        findings.append(Finding("ok", ", ".join(present)))
    return findings
