"""Checks of the engines: does llama.cpp load, does MLX, and how fast is its linear algebra."""

import os
import platform

from localllm.checkup.finding import Finding
from localllm.machine import BLAS_KERNEL_VARIABLE, BLAS_VARIABLE, OPENBLAS_VARIABLE
from localllm.native.blas import BlasVerdict
from localllm.native.llama_params import WAY_VARIABLE, way_named
from localllm.native.llama_verdict import Verdict
from localllm.native.mend import what_is_slow
from localllm.native.probing import RunProbe, run_probe
from localllm.native.processor import Processor, read_processor
from localllm.sanitize import one_line

_PROBE = "localllm.checkup.probe"
_MEND = "`localllm doctor --mend` builds it for this machine: some minutes, with a C/C++ compiler."


def check_llama(verdict: Verdict, processor: Processor | None = None) -> list[Finding]:
    """Whether llama.cpp computes rightly, in which way, what would be faster, and whether it uses the GPU.

    Args:
        verdict: What the probes found.
        processor: That of this machine; None looks.
    """
    processor = processor or read_processor()
    lacking = processor.lacks(verdict.features)
    built = f" (built with {' '.join(verdict.features)})" if verdict.features else ""
    if verdict.way is None:
        text = f"llama.cpp does not work here: {verdict.failure}{built}"
        reason = f"This processor has no {', '.join(lacking)}. " if lacking else ""
        return [Finding("problem", text, reason + _MEND)]
    slow = what_is_slow(verdict, processor)
    if not verdict.failure:
        found = Finding("ok", f"llama.cpp computes rightly, alone and in batches{built}")
        if slow:
            found = Finding("warn", f"llama.cpp computes rightly, but {slow}{built}", _MEND)
    else:
        when = "a model died in it" if verdict.at_work else "as it was built it fails here"
        text = f"llama.cpp {verdict.way.words}: {when} ({verdict.failure}){built}"
        found = Finding("warn", text, _MEND if slow else "It is used so; nothing needs to be done.")
    findings = [found]
    if chosen := os.environ.get(WAY_VARIABLE):
        findings.append(Finding("ok", f"{WAY_VARIABLE} is set: llama.cpp loads in the way {way_named(chosen).name!r}"))
    if verdict.gpu and verdict.way.gpu:
        findings.append(Finding("ok", "It can put layers on the GPU"))
    elif verdict.gpu:
        findings.append(Finding("warn", "It has a GPU, which computes wrongly or crashes: models run on the CPU"))
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


def check_mlx(blas: BlasVerdict, probe: RunProbe = run_probe) -> list[Finding]:
    """Whether MLX loads, its device, and on Linux which BLAS it gets and what that is worth.

    Args:
        blas: What was found of the BLAS libraries of this machine.
        probe: Runs a probing process.
    """
    plain = probe(_PROBE, environment={BLAS_VARIABLE: ""})
    if plain.failure:
        hint = "Fine-tuning needs it; chat and serving do not. Run `python -m pip install mlx`."
        return [Finding("warn", f"MLX does not load: {plain.failure}", hint)]
    device, speed = one_line(str(plain.facts["device"]), 20), float(plain.facts["gflops"])
    findings = [Finding("ok", f"MLX loads; its device is the {device.upper()}")]
    if platform.system() != "Linux" or device != "cpu":
        return findings
    unusable = [one for one in blas.tried if one.failure and not one.told]
    findings += [Finding("warn", f"{one.name} ({one.library}) cannot be used: {one.failure}") for one in unusable]
    best = blas.best
    if best is None:
        return [*findings, Finding("warn", f"MLX uses its reference BLAS: {speed:.0f} GFLOP/s", _faster_blas())]
    tuned = probe(_PROBE, environment={BLAS_VARIABLE: best.library, BLAS_KERNEL_VARIABLE: best.told})
    if tuned.failure:
        text = f"{best.name} ({best.library}) does not load under MLX: {tuned.failure}"
        return [*findings, Finding("warn", text, f"Until it does, fine-tuning is slow. {_faster_blas()}")]
    kernel = f", kernel {best.kernel}" if best.kernel else ""
    text = f"{best.name} ({best.library}{kernel}) is loaded for MLX: {float(tuned.facts['gflops']):.0f} GFLOP/s"
    text += f", {speed:.0f} without it"
    own = blas.as_it_came
    if best.told and own is not None:
        text += f"; by itself it takes {own.kernel}: {own.failure or f'{own.gflops:.0f} GFLOP/s'}"
    findings.append(Finding("ok", text))
    if chosen := os.environ.get(OPENBLAS_VARIABLE):
        findings.append(Finding("ok", f"{OPENBLAS_VARIABLE}={one_line(chosen, 40)} is set, and obeyed"))
    return findings


def _faster_blas() -> str:
    mkl = " or, without root, `python -m pip install mkl`" if platform.machine() in ("x86_64", "AMD64") else ""
    return f"A tuned BLAS makes fine-tuning 10 to 20 times faster: `apt install libopenblas0-pthread`{mkl}."
