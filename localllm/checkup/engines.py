"""Checks of the engines: does llama.cpp load, does MLX, and how fast is its linear algebra."""

import json
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from localllm.checkup.finding import Finding
from localllm.machine import Blas
from localllm.sanitize import one_line

_TIMEOUT_SECONDS = 60  # the first import after an installation reads hundreds of MB from the disk


@dataclass(frozen=True)
class Probe:
    """What a probing process said.

    Attributes:
        facts: Its JSON object; empty when it failed.
        failure: Why it failed, in one line; empty when it did not.
    """

    facts: dict[str, Any]
    failure: str = ""


RunProbe = Callable[..., Probe]


def run_probe(*arguments: str, timeout: float = _TIMEOUT_SECONDS) -> Probe:
    """Run :mod:`localllm.checkup.probe` with ``arguments`` in a process of its own."""
    command = [sys.executable, "-P", "-m", "localllm.checkup.probe", *arguments]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Probe({}, f"no answer in {timeout:.0f} seconds")
    if done.returncode < 0:
        return Probe({}, f"it crashed ({signal.Signals(-done.returncode).name})")
    try:
        facts = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        lines = done.stderr.strip().splitlines()
        return Probe({}, one_line(lines[-1], 200) if lines else f"exit code {done.returncode}")
    return Probe(facts)


def check_llama(probe: RunProbe = run_probe) -> list[Finding]:
    """Whether llama.cpp loads, and whether it uses the GPU."""
    found = probe("llama")
    if found.failure:
        reinstall = (
            "python -m pip install --force-reinstall --no-cache-dir --no-binary llama-cpp-python llama-cpp-python"
        )
        return [
            Finding(
                "problem", f"llama.cpp does not load: {found.failure}", f"Build it for this machine: `{reinstall}`."
            )
        ]
    features = " ".join(re.findall(r"(\w+) = 1", str(found.facts["system"])))
    findings = [Finding("ok", f"llama.cpp loads, built with {features or 'no special features'}")]
    if found.facts["gpu"]:
        findings.append(Finding("ok", "It can put layers on the GPU"))
    elif platform.system() == "Darwin":
        findings.append(
            Finding(
                "warn",
                "It was built without Metal: models run on the CPU",
                "Reinstall llama-cpp-python with CMAKE_ARGS=-DGGML_METAL=on.",
            )
        )
    else:
        findings.append(Finding("ok", "It runs on the CPU (built without GPU support)"))
    return findings


def check_mlx(blas: Blas | None, probe: RunProbe = run_probe) -> list[Finding]:
    """Whether MLX loads, its device, and on Linux which BLAS it gets and what that is worth.

    Args:
        blas: The tuned BLAS of this machine, see :func:`localllm.machine.find_blas`.
        probe: Runs a probing process.
    """
    plain = probe("mlx")
    if plain.failure:
        hint = "Fine-tuning needs it; chat and serving do not. Run `python -m pip install mlx`."
        return [Finding("warn", f"MLX does not load: {plain.failure}", hint)]
    device, speed = one_line(str(plain.facts["device"]), 20), float(plain.facts["gflops"])
    findings = [Finding("ok", f"MLX loads; its device is the {device.upper()}")]
    if platform.system() != "Linux" or device != "cpu":
        return findings
    if blas is None:
        return [*findings, Finding("warn", f"MLX uses its reference BLAS: {speed:.0f} GFLOP/s", _faster_blas())]
    tuned = probe("mlx", blas.library)
    if tuned.failure:
        text = f"{blas.name} ({blas.library}) does not load: {tuned.failure}"
        return [*findings, Finding("warn", text, f"Until it does, fine-tuning is slow. {_faster_blas()}")]
    text = f"{blas.name} ({blas.library}) is loaded for MLX: {float(tuned.facts['gflops']):.0f} GFLOP/s"
    return [*findings, Finding("ok", f"{text}, {speed:.0f} without it")]


def _faster_blas() -> str:
    mkl = " or, without root, `python -m pip install mkl`" if platform.machine() in ("x86_64", "AMD64") else ""
    return f"A tuned BLAS makes fine-tuning 10 to 20 times faster: `apt install libopenblas0-pthread`{mkl}."
