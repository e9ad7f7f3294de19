"""The real library on processors that lack AVX or AVX2, which qemu-user plays: it is found out, and mended.

make test-builds
"""

import os
import platform
import shutil
import signal
import sys
from functools import partial

import pytest

from localllm.native import probing
from localllm.native.llama_verdict import PROBE, probe_ways
from localllm.native.probing import run_probe
from localllm.native.rebuild import build_wheel, climb_down, rungs
from tests.fakes.machines import processor

pytestmark = [
    pytest.mark.build,
    pytest.mark.skipif(platform.machine() != "x86_64" or sys.platform != "linux", reason="needs Linux on x86-64"),
    pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="needs Debian's qemu-user"),
]
_patient = partial(run_probe, timeout=600)  # two seconds of a real processor are thirty of an emulated one


@pytest.fixture
def emulated(monkeypatch, tmp_path):
    """A function after which probes run on another processor."""
    python = sys.executable

    def become(cpu: str) -> None:
        script = tmp_path / f"python-on-{cpu}"
        script.write_text(f'#!/bin/sh\nexec qemu-x86_64 -cpu {cpu} {python} "$@"\n')
        script.chmod(0o755)
        monkeypatch.setattr(probing.sys, "executable", str(script))

    return become


@pytest.fixture(scope="module")
def features():
    """What the installed library was built with."""
    found = probe_ways()
    if "AVX2" not in found.features:
        pytest.skip("the installed library does not use AVX2, so it runs on the processors that are tried here")
    return found.features


@pytest.mark.parametrize("cpu", ["Nehalem", "SandyBridge"])
def test_a_native_build_is_found_out_on_older_processors(emulated, features, cpu):
    emulated(cpu)
    assert _patient(PROBE, "full").crash is signal.SIGILL
    assert probe_ways(_patient).way is None


def test_a_native_build_works_on_an_emulated_processor_that_has_what_it_needs(emulated, features):
    emulated("max")
    if "AVX512" in features:
        pytest.skip("qemu-user has no AVX-512")
    assert probe_ways(_patient).way.name == "full"


def test_the_portable_rung_is_built_and_works_there(emulated, features, tmp_path, monkeypatch):
    # Built by this processor; without the optimizer's last pass, which would take most of the time.
    quick = "-DCMAKE_C_FLAGS_RELEASE=-O1 -DCMAKE_CXX_FLAGS_RELEASE=-O1 -DLLAVA_BUILD=OFF"
    monkeypatch.setenv("CMAKE_ARGS", f"{os.environ.get('CMAKE_ARGS', '')} {quick}".strip())
    python = sys.executable

    def build(rung, directory):
        with monkeypatch.context() as patch:
            patch.setattr(probing.sys, "executable", python)
            return build_wheel(rung, directory)

    emulated("Nehalem")
    portable = rungs(processor("no-avx", tmp_path), features)[-1:]
    rebuilt = climb_down(portable, tmp_path, build=build, on_rung=print, probe=_patient)
    assert rebuilt.verdict.way.name == "full"
    assert not {"AVX", "AVX2", "FMA"} & set(rebuilt.verdict.features)
