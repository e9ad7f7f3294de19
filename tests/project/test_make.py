"""The Makefile and its set-up script, with stand-ins for what they call."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = ("Makefile", "pyproject.toml", "constraints.txt", "scripts/setup.sh")


@pytest.fixture
def project(tmp_path):
    """A directory with the Makefile and what it depends on, and without a ``.venv``."""
    directory = tmp_path / "project"
    for name in FILES:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, directory / name)
    return directory


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def make(project: Path, *words: str, **environment: str) -> subprocess.CompletedProcess:
    # Not as a part of the `make test` that may have started these tests.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", *words],
        cwd=project,
        env={**inherited, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_run_without_a_terminal_pulls_and_asks_and_does_not_install_again(project):
    script(project / ".venv/bin/localllm", 'echo "called with: $1 $2"')
    (project / ".venv/.installed").touch()
    script(project / "scripts/setup.sh", "echo installed")
    (project / ".venv/.installed").touch()
    ran = make(project, "run")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == [
        "called with: pull starter",
        "Question: What is gravity? Answer in two sentences.",
        "called with: chat starter",
    ]


def test_new_versions_install_again(project):
    script(project / ".venv/bin/localllm", ":")
    script(project / "scripts/setup.sh", "echo installed")
    os.utime(project / "constraints.txt", (2e9, 2e9))
    (project / ".venv/.installed").touch()
    assert "installed" in make(project, "run").stdout


def test_a_failure_to_fetch_ends_the_run(project):
    script(project / ".venv/bin/localllm", "exit 1")
    os.utime(project / "constraints.txt", (1, 1))
    os.utime(project / "pyproject.toml", (1, 1))
    (project / ".venv/.installed").touch()
    ran = make(project, "run")
    assert ran.returncode == 2
    assert "Question" not in ran.stdout


def test_make_alone_is_help(project):
    ran = make(project)
    assert ran.returncode == 0
    assert "make run" in ran.stdout
    assert not (project / ".venv").exists()


def test_an_old_python_is_a_clear_message(project):
    script(project / "python2", 'case "$1" in -V) echo "Python 3.9.1";; *) exit 1;; esac')
    ran = make(project, "setup", PYTHON=str(project / "python2"))
    assert ran.returncode == 2
    assert "Python 3.11 or later is needed; found: Python 3.9.1." in ran.stderr
    assert not (project / ".venv").exists()


def test_a_failed_install_shows_the_end_of_the_log_and_leaves_no_stamp(project):
    pip = 'case "$*" in *"pip --disable"*) echo "no matching wheel"; exit 1;; *) exit 0;; esac'
    script(project / ".venv/bin/python", pip)
    ran = make(project, "setup")
    assert ran.returncode == 2
    assert "| no matching wheel" in ran.stderr
    assert not (project / ".venv/.installed").exists()


def test_an_install_leaves_its_stamp_and_a_second_one_does_nothing(project):
    script(project / ".venv/bin/python", "exit 0")
    assert "Installed in" in make(project, "setup").stdout
    assert "Nothing to be done" in make(project, "setup").stdout
