"""`make run < /dev/null` on machines of other sorts, from the command to the answer of the real model."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from localllm.machine import BLAS_VARIABLE
from localllm.native.llama_params import WAY_VARIABLE
from tests.fakes.machines import needs_compiler

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def make_run(starter_home, odd_llama_directory, tmp_path):
    """A function that runs it on a machine of a sort; the set-up script's proof comes first, as after an install."""

    def run(sort: str) -> tuple[subprocess.CompletedProcess, subprocess.CompletedProcess]:
        unset = (WAY_VARIABLE, BLAS_VARIABLE, "MAKEFLAGS", "MAKELEVEL", "MFLAGS")
        environment = {name: value for name, value in os.environ.items() if name not in unset}
        environment |= {"LLAMA_CPP_LIB_PATH": str(odd_llama_directory), "ODD_LLAMA": sort}
        environment["LOCALLLM_HOME"] = str(starter_home.root)
        project = tmp_path / "project"
        for name in ("Makefile", "pyproject.toml", "constraints.txt", "scripts/setup.sh"):
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, project / name)
            os.utime(project / name, (1, 1))  # older than the stamp: nothing is installed again
        (project / ".venv").symlink_to(ROOT / ".venv")
        options = {
            "cwd": project,
            "env": environment,
            "stdin": subprocess.DEVNULL,
            "capture_output": True,
            "text": True,
        }
        prove = [".venv/bin/python", "-P", "-m", "localllm.native.mend"]
        proved = subprocess.run(prove, timeout=60, check=False, **options)
        return proved, subprocess.run(["make", "run"], timeout=120, check=False, **options)

    yield run
    # The app's own server outlives the question by minutes.
    record = starter_home.server_file
    if record.exists():
        os.kill(json.loads(record.read_text())["pid"], signal.SIGTERM)


pytestmark = [pytest.mark.model, needs_compiler]


def test_on_a_machine_with_amx(make_run):
    proved, ran = make_run("amx")
    assert proved.returncode == 0
    assert "fails here (an illegal instruction (SIGILL)); it works without packed weights" in proved.stdout
    assert ran.returncode == 0, ran.stderr
    assert "gravity" in ran.stdout.lower().split("?", 1)[1]


def test_on_a_machine_where_only_the_first_long_prompt_dies(make_run):
    proved, ran = make_run("long")
    assert "proved, it computes rightly" in proved.stdout, "no probe sees it"
    assert ran.returncode == 0, ran.stderr


def test_on_a_machine_for_which_the_library_was_not_built(make_run):
    proved, ran = make_run("foreign")
    assert proved.returncode == 1
    assert ran.returncode != 0
    assert "llama.cpp does not work on this machine: an illegal instruction (SIGILL)." in ran.stderr
    assert "localllm doctor --mend" in ran.stderr
