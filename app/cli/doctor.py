"""``localllm doctor``: what this machine can do, what is wrong, and the privacy report."""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict

from localllm.checkup.finding import Finding, Section
from localllm.errors import SettingsError
from localllm.paths import Home
from localllm.sanitize import printable

_MARKS = {"ok": "ok     ", "warn": "warn   ", "problem": "PROBLEM"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``localllm doctor``."""
    parser.description = (
        "Look at the machine, the engines, the home directory and privacy; takes a few seconds. Nothing is changed\n"
        "without --mend. Each line is ok, warn (it works, but could be better) or PROBLEM; 1 when there is a problem."
    )
    parser.add_argument(
        "--mend",
        action="store_true",
        help="look anew how llama.cpp and the BLAS work here; build llama.cpp for this processor where that helps",
    )
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")


def run(args: argparse.Namespace, home: Home) -> int:
    """Print the report; 1 when it has a problem."""
    if args.mend:
        _mend(home)
    sections = []
    for section in examine(home):
        sections.append(section)
        if not args.json:
            _print_section(section)
    findings = [finding for section in sections for finding in section.findings]
    counts = {level: sum(finding.level == level for finding in findings) for level in _MARKS}
    if args.json:
        report = {"ok": not counts["problem"], "sections": [asdict(section) for section in sections]}
        print(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        print(f"\n{_summary(counts['problem'], counts['warn'])}")
    return 1 if counts["problem"] else 0


def _mend(home: Home) -> None:
    """Probe anew, and build llama.cpp where it does not work or could be faster; what is done goes to stderr.

    Raises:
        EngineError: It does not work, and could not be built.
    """
    # Deferred, as in examine().
    from localllm.native.blas import needs_blas, prove_blas
    from localllm.native.mend import blas_line, mend_llama

    def say(line: str) -> None:
        print(printable(line), file=sys.stderr, flush=True)

    mend_llama(home, say, anew=True, rebuild="slow")
    if needs_blas():
        say(blas_line(prove_blas(home, anew=True)))


def examine(home: Home) -> Iterator[Section]:
    """All checks, each section as soon as it is known."""
    # Deferred: with psutil, pydantic and the store these cost 100 ms, which `doctor --help` need not pay.
    from localllm.checkup import computer, engines, privacy
    from localllm.checkup import home as in_home
    from localllm.machine import read_machine
    from localllm.memory import machine_memory
    from localllm.models.store import ModelStore
    from localllm.native.blas import prove_blas
    from localllm.native.llama_verdict import prove_llama
    from localllm.settings import load_settings
    from serve.discovery import running_server

    try:
        settings = load_settings(home.settings_file)
    except SettingsError:
        settings = None  # in_home.check_settings says what is wrong
    memory = machine_memory(settings.memory_gb if settings else 0)
    yield Section("Machine", tuple(computer.check_machine(read_machine(), memory)))
    yield Section("Python", tuple(computer.check_python()))
    yield Section("Engines", (*engines.check_llama(prove_llama(home)), *engines.check_mlx(prove_blas(home))))
    yield Section(
        "Home",
        (
            *in_home.check_disk(home),
            *in_home.check_settings(home),
            *in_home.check_models(ModelStore(home)),
            *in_home.check_partial(home),
        ),
    )
    server = running_server(home)
    yield Section(
        "Privacy",
        (
            *privacy.check_files(home),
            *privacy.check_server(server.pid if server else None),
            *privacy.check_network(os.environ, settings),
        ),
    )


def _print_section(section: Section) -> None:
    print(f"\n{section.title}", flush=True)
    for finding in section.findings:
        _print_finding(finding)


def _print_finding(finding: Finding) -> None:
    print(f"  {_MARKS[finding.level]}  {printable(finding.text)}", flush=True)
    if finding.hint:
        print(f"           {printable(finding.hint)}", flush=True)


def _summary(problems: int, warnings: int) -> str:
    if not problems and not warnings:
        return "All is well."
    parts = [
        f"{count} {word}{'' if count == 1 else 's'}"
        for count, word in ((problems, "problem"), (warnings, "warning"))
        if count
    ]
    return f"{' and '.join(parts)}; what to do stands under each."
