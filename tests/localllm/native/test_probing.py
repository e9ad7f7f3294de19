"""Probes that go wrong, and how crashes are told."""

import signal
import sys

import pytest

from localllm.native import probing
from localllm.native.crashes import crash_signal, how_it_ended, mend_hint
from localllm.native.probing import Probe, run_probe


@pytest.mark.parametrize(
    ("program", "found"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", Probe({}, "signal 9")),
        (
            "import os, signal; print('{\"a\": 1}', flush=True); os.kill(os.getpid(), signal.SIGILL)",
            Probe({"a": 1}, "an illegal instruction (SIGILL)", signal.SIGILL),
        ),
        ("import time; time.sleep(60)", Probe({}, "no answer in 1 seconds")),
        ("raise ImportError('no \\x1b[31m such library')", Probe({}, "ImportError: no ␛[31m such library")),
        ("raise SystemExit(7)", Probe({}, "exit code 7")),
        ("print('no json')", Probe({}, "exit code 0")),
        ("print('{\"a\": 1}\\nnoise')", Probe({"a": 1})),
    ],
    ids=["killed", "crashes", "hangs", "raises", "exits", "babbles", "works"],
)
def test_probes(monkeypatch, tmp_path, program, found):
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\n{program}\n")
    script.chmod(0o700)
    monkeypatch.setattr(probing.sys, "executable", str(script))
    assert run_probe("a.module", timeout=1) == found


def test_crashes_in_words():
    assert how_it_ended(-signal.SIGSEGV) == "an access to memory that is not there (SIGSEGV)"
    assert how_it_ended(-signal.SIGTERM) == "signal 15"
    assert how_it_ended(3) == "exit code 3"
    assert crash_signal(-signal.SIGKILL) is None
    assert crash_signal(None) is None
    assert crash_signal(1) is None
    assert "localllm doctor --mend" in mend_hint(-signal.SIGILL)
    assert mend_hint(-signal.SIGABRT) == ""
