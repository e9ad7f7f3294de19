"""Look whether the native libraries work here, mend what does not, and say so in a line each.

    python -P -m localllm.native.mend [--anew] [--rebuild broken]

``scripts/setup.sh`` runs it after an install, ``localllm doctor --mend`` when a person asks for it.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from localllm.errors import EngineError, LocalLLMError
from localllm.native.blas import BlasVerdict, needs_blas, prove_blas
from localllm.native.llama_verdict import Verdict, prove_llama
from localllm.native.processor import Processor, read_processor
from localllm.native.rebuild import build_wheel, climb_down, install_wheel, rungs
from localllm.paths import Home

Say = Callable[[str], None]
# When to build llama.cpp anew: where it works in no way, or also where another build would be faster.
Rebuild = Literal["never", "broken", "slow"]
_FREE = 2_000_000_000  # bytes that a build takes for a while


def mend_llama(
    home: Home,
    say: Say,
    *,
    anew: bool = False,
    rebuild: Rebuild = "never",
    constraints: Path | None = None,
    install: Callable[[Path], None] = install_wheel,
) -> Verdict:
    """Find the way in which llama.cpp works; where there is none, build it for this machine if that is allowed.

    Args:
        home: Where the verdict is kept.
        say: Shows a line.
        anew: Probe although there is a verdict.
        rebuild: When to build it anew.
        constraints: Versions for pip.
        install: Puts a wheel in the place of the present build.

    Raises:
        EngineError: It works in no way, and was not to be built; or no build works, or none could be made.
    """
    verdict = prove_llama(home, anew=anew)
    processor = read_processor()
    slow = what_is_slow(verdict, processor)
    if verdict.way is not None and not (rebuild == "slow" and slow):
        say(llama_line(verdict, processor))
        return verdict
    if rebuild == "never":
        raise EngineError(
            f"llama.cpp does not work on this machine: {verdict.failure}.",
            "`localllm doctor --mend` builds it for this processor: some minutes a try, with a C/C++ compiler.",
        )
    why = f"does not work here ({verdict.failure})" if verdict.way is None else slow
    say(f"llama.cpp {why}; building it anew, five minutes a try on two cores.")
    with tempfile.TemporaryDirectory(prefix="localllm-build-") as directory:
        if shutil.disk_usage(directory).free < _FREE:
            raise EngineError(f"A build needs 2 GB in {directory} for a while.", "Free some room, or set TMPDIR.")
        rebuilt = climb_down(
            rungs(processor, verdict.features),
            Path(directory),
            build=partial(build_wheel, constraints=constraints),
            on_rung=lambda rung: say(f"  building llama.cpp {rung.name}"),
        )
        install(rebuilt.wheel)
    for failure in rebuilt.failures:
        say(f"  {failure}")
    verdict = prove_llama(home, anew=True)
    say(f"Built {rebuilt.rung.name}. {llama_line(verdict, processor)}")
    return verdict


def what_is_slow(verdict: Verdict, processor: Processor) -> str:
    """Completes "llama.cpp …" where another build would be faster; empty where this one has all there is."""
    if verdict.way is not None and not verdict.way.packed:
        return "does without packed weights, which make prompts faster"
    wanted = ("AVX", "AVX2", "FMA", "F16C", "AVX512")
    unused = [name for name in wanted if name in processor.features and name not in verdict.features]
    return f"does not use {', '.join(unused)}, which this processor has" if unused and verdict.features else ""


def llama_line(verdict: Verdict, processor: Processor) -> str:
    """The verdict in a line."""
    assert verdict.way is not None
    uses = [name for name in verdict.features if name in processor.features]
    built = f" (it uses {', '.join(uses)})" if uses else ""
    if not verdict.failure:
        return f"llama.cpp: proved, it computes rightly on this processor{built}."
    found = "a model died in it" if verdict.at_work else "as it was built it fails here"
    return f"llama.cpp: {found} ({verdict.failure}); it {verdict.way.words}, and is used so{built}."


def blas_line(verdict: BlasVerdict) -> str:
    """The verdict in a line."""
    if verdict.best is None:
        failed = "; ".join(one.text for one in verdict.tried)
        return f"BLAS for MLX: none that is fast{f' ({failed})' if failed else ''}."
    own = verdict.as_it_came
    line = f"BLAS for MLX: {verdict.best.text}"
    if verdict.best.told and own is not None:
        line += f"; by itself it took {own.kernel or 'another kernel'}, {own.failure or f'{own.gflops:.0f} GFLOP/s'}"
    return f"{line}."


def main(argv: Sequence[str] | None = None) -> int:
    """Look, mend, say; 1 where llama.cpp does not work."""
    parser = argparse.ArgumentParser(prog="python -P -m localllm.native.mend", description=__doc__)
    parser.add_argument("--anew", action="store_true", help="probe although there is a verdict")
    parser.add_argument("--rebuild", choices=("never", "broken", "slow"), default="never", help="when to build anew")
    parser.add_argument("--constraints", type=Path, help="versions for pip")
    args = parser.parse_args(argv)

    def say(line: str) -> None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    try:
        home = Home.resolve().ensure()
        mend_llama(home, say, anew=args.anew, rebuild=args.rebuild, constraints=args.constraints)
        if needs_blas():
            say(blas_line(prove_blas(home, anew=args.anew)))
    except LocalLLMError as error:
        sys.stderr.write(f"{error.message}\n  {error.hint}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
