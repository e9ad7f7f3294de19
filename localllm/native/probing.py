"""Running a probe: a module of ours in a process of its own, which may crash, hang, or tell in JSON what it found."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from localllm.native.crashes import crash_signal, how_it_ended
from localllm.sanitize import one_line

TIMEOUT_SECONDS = 60  # the first import after an installation reads hundreds of MB from the disk
# No debugger attached to a dying process, which takes minutes; and no threads that spin beside other programs.
_ENVIRONMENT = {"GGML_NO_BACKTRACE": "1", "GOMP_SPINCOUNT": "1000"}


@dataclass(frozen=True)
class Probe:
    """What a probing process said.

    Attributes:
        facts: Its last JSON object; what it said before it failed, if it failed.
        failure: Why it failed, in one line; empty when it did not.
        crash: The signal of a crash; None where it ended in another way.
    """

    facts: Mapping[str, Any] = field(default_factory=dict)
    failure: str = ""
    crash: signal.Signals | None = None


class RunProbe(Protocol):
    """Runs a probe; :func:`run_probe`, or a test's stand-in."""

    def __call__(
        self, module: str, *arguments: str, environment: Mapping[str, str] = ..., timeout: float = ...
    ) -> Probe:
        """Run ``module`` with ``arguments``."""


def run_probe(
    module: str,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    timeout: float = TIMEOUT_SECONDS,
) -> Probe:
    """Run ``python -P -m module`` with ``arguments`` in a process of its own.

    Args:
        module: Prints JSON objects, one a line.
        arguments: For it.
        environment: Variables besides this process's own.
        timeout: Seconds.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
            env={**_ENVIRONMENT, **os.environ, **(environment or {})},
        )
    except subprocess.TimeoutExpired:
        return Probe({}, f"no answer in {timeout:.0f} seconds")
    facts = _last_object(done.stdout)
    if done.returncode < 0:
        return Probe(facts, how_it_ended(done.returncode), crash_signal(done.returncode))
    if done.returncode or not facts:
        lines = done.stderr.strip().splitlines()
        return Probe(facts, one_line(lines[-1], 200) if lines else how_it_ended(done.returncode))
    return Probe(facts)


def _last_object(output: str) -> dict[str, Any]:
    for line in reversed(output.splitlines()):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            return found
    return {}
