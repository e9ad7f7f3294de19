"""Building llama.cpp for this very processor, where no way of loading the present build works.

Each rung of the ladder is a build with other instruction sets, the fastest first. It is compiled into a wheel, unpacked
aside and probed there; only one that works is installed, so that a failure leaves everything as it was. It needs a
compiler, the package registry, and five minutes or more a rung: :mod:`.mend` does it when a person says so.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from localllm.errors import EngineError
from localllm.native.libraries import LIBRARY_VARIABLE
from localllm.native.llama_verdict import Verdict, probe_ways
from localllm.native.probing import RunProbe, run_probe
from localllm.native.processor import X86_FEATURES, Processor
from localllm.sanitize import one_line

_PACKAGE = "llama-cpp-python"
_TESTED = "0.3.36"  # what is built where none is installed


@dataclass(frozen=True)
class Rung:
    """One build.

    Attributes:
        name: For people: ``without AVX-512``.
        cmake: What CMake is told besides the person's own ``CMAKE_ARGS``.
    """

    name: str
    cmake: tuple[str, ...]


def rungs(processor: Processor, features: Sequence[str]) -> list[Rung]:
    """The builds to try on this processor, the fastest first.

    Args:
        processor: What they must suit.
        features: Of the present build, in llama.cpp's words. The compiler's own choice is tried only where they show
            that the present build was not made by it here: with the same result it would fail again.
    """
    natively = Rung("for this processor, as the compiler sees it", ("-DGGML_NATIVE=ON",))
    if not processor.is_x86 or not processor.flags:
        return [natively, Rung("for every processor of this kind", ("-DGGML_NATIVE=OFF",))]
    named = [feature for feature in processor.features if not feature.startswith("AMX")]
    builds = [
        ("with the processor's features named one by one, without AMX", named),
        ("without AVX-512", [feature for feature in named if not feature.startswith("AVX512")]),
        ("for every processor of this kind", [feature for feature in named if feature == "SSE42"]),
    ]
    found = [natively] if _built_elsewhere(processor, features) else []
    for name, wanted in builds:
        cmake = ("-DGGML_NATIVE=OFF", *(f"-DGGML_{feature}={_on(feature in wanted)}" for feature in X86_FEATURES))
        if all(rung.cmake != cmake for rung in found):
            found.append(Rung(name, cmake))
    return found


def _built_elsewhere(processor: Processor, features: Sequence[str]) -> bool:
    """Whether the build has what the processor lacks, or the other way round."""
    missing = [name for name in processor.features if name not in features and name in ("AVX", "AVX2", "AVX512")]
    return bool(processor.lacks(features) or missing) or not features


def _on(switch: bool) -> str:
    return "ON" if switch else "OFF"


@dataclass(frozen=True)
class Rebuilt:
    """A build that works, not installed yet.

    Attributes:
        rung: Which.
        wheel: Its file.
        verdict: What the probe found of it.
        failures: Of the rungs before it, a line each.
    """

    rung: Rung
    wheel: Path
    verdict: Verdict
    failures: tuple[str, ...]


Build = Callable[[Rung, Path], Path]


def climb_down(
    rungs_to_try: Sequence[Rung],
    directory: Path,
    *,
    build: Build,
    on_rung: Callable[[Rung], None],
    probe: RunProbe = run_probe,
) -> Rebuilt:
    """Build one rung after another until one works.

    Args:
        rungs_to_try: From :func:`rungs`.
        directory: For wheels and what is in them; the caller removes it.
        build: Makes a wheel; :func:`build_wheel`.
        on_rung: Told of each before it is built.
        probe: Runs a probe.

    Raises:
        EngineError: None can be built, or none works.
    """
    failures: list[str] = []
    for number, rung in enumerate(rungs_to_try):
        on_rung(rung)
        place = directory / str(number)
        place.mkdir()
        wheel = build(rung, place)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(place / "unpacked")
        verdict = probe_ways(probe, library=place / "unpacked" / "llama_cpp" / "lib")
        if verdict.way is not None:
            return Rebuilt(rung, wheel, verdict, tuple(failures))
        failures.append(f"{rung.name}: {verdict.failure}")
    raise EngineError(
        f"No build of llama.cpp works on this machine ({'; '.join(failures)}).",
        "Please report this, with the output of `localllm doctor`. Directories of safetensors still run, on MLX.",
    )


def build_wheel(rung: Rung, directory: Path, *, constraints: Path | None = None) -> Path:
    """Compile llama-cpp-python, of the version that is installed, into ``directory``; return the wheel.

    pip's own cache is left out: it knows nothing of the processor that a wheel was made for.

    Raises:
        EngineError: pip failed: no compiler, no network, no room.
    """
    try:
        wanted = version(_PACKAGE)
    except PackageNotFoundError:
        wanted = _TESTED
    command = ["wheel", "--no-deps", "--no-cache-dir", "--no-binary", _PACKAGE, "-w", str(directory)]
    if constraints is not None:
        command += ["-c", str(constraints)]
    own = os.environ.get("CMAKE_ARGS", "")
    _pip([*command, f"{_PACKAGE}=={wanted}"], CMAKE_ARGS=" ".join([own, *rung.cmake]).strip())
    return next(directory.glob("*.whl"))


def install_wheel(wheel: Path) -> None:
    """Put a build in the place of the installed one.

    Raises:
        EngineError: pip failed; the installed one is as it was.
    """
    _pip(["install", "--force-reinstall", "--no-deps", str(wheel)])


def _pip(arguments: Sequence[str], **environment: str) -> None:
    """Run pip in this environment; what it says goes to a file whose end explains a failure.

    Raises:
        EngineError: It failed.
    """
    inherited = {name: value for name, value in os.environ.items() if name != LIBRARY_VARIABLE}
    with tempfile.TemporaryFile() as log:
        done = subprocess.run(
            [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**inherited, "PIP_USER": "0", **environment},
            check=False,
        )
        if not done.returncode:
            return
        log.seek(0)
        lines = [line for line in log.read().decode("utf-8", "replace").splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if "rror" in line), lines[-1] if lines else "no message")
    raise EngineError(
        f"llama-cpp-python could not be built or installed: {one_line(last.strip(), 300)}",
        "It needs a C/C++ compiler, and a package registry that pip can reach. What was installed before is untouched.",
    )
