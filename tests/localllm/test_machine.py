"""The machine's facts, and the BLAS that MLX is given."""

import ctypes
import subprocess
from pathlib import Path

import pytest

from localllm import machine
from localllm.machine import BLAS_VARIABLE, Blas, installed_blas, preload_blas, read_machine, sysctl


@pytest.fixture
def linux(monkeypatch):
    monkeypatch.setattr(machine.platform, "system", lambda: "Linux")
    monkeypatch.setattr(machine.platform, "release", lambda: "6.8")
    monkeypatch.setattr(machine, "_linux_cores", lambda: 12)


def test_this_machine():
    found = read_machine()
    assert found.system.split()[0] in ("Linux", "macOS")
    assert 1 <= found.performance_cores <= found.cores


def test_linux_with_fast_and_slow_cores(tmp_path, linux):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nmodel name\t: Some Chip 9000\n\nprocessor : 1\n")
    (tmp_path / "sys/devices/cpu_core").mkdir(parents=True)
    (tmp_path / "sys/devices/cpu_core/cpus").write_text("0-5,8,10\n")
    found = read_machine(tmp_path)
    assert (found.system, found.chip, found.cores, found.performance_cores) == ("Linux 6.8", "Some Chip 9000", 12, 8)
    assert not found.apple_silicon


@pytest.mark.parametrize("cpus", [None, "", "nonsense", "0-200"])
def test_linux_where_all_cores_are_alike(tmp_path, linux, cpus):
    if cpus is not None:
        (tmp_path / "sys/devices/cpu_core").mkdir(parents=True)
        (tmp_path / "sys/devices/cpu_core/cpus").write_text(cpus)
    found = read_machine(tmp_path)
    assert (found.chip, found.cores, found.performance_cores) == ("", 12, 12)


def test_macos(monkeypatch):
    values = {"hw.physicalcpu": "10", "hw.perflevel0.physicalcpu": "8", "machdep.cpu.brand_string": "Apple M2 Pro"}
    monkeypatch.setattr(machine.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(machine.platform, "machine", lambda: "arm64")
    monkeypatch.setattr(machine.platform, "mac_ver", lambda: ("15.5", ("", "", ""), "arm64"))
    monkeypatch.setattr(machine, "sysctl", lambda name: values.get(name, ""))
    found = read_machine()
    assert found == machine.Machine("macOS 15.5", "arm64", "Apple M2 Pro", 10, 8)
    assert found.apple_silicon
    assert installed_blas() == []  # MLX uses Accelerate there


@pytest.mark.parametrize("error", [FileNotFoundError(2, "no sysctl"), subprocess.TimeoutExpired("sysctl", 5)])
def test_sysctl_that_is_not_there(monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(machine.subprocess, "run", fail)
    assert sysctl("hw.physicalcpu") == ""


def library(prefix: Path, name: str) -> str:
    (prefix / "lib").mkdir(exist_ok=True)
    (prefix / "lib" / name).touch()
    return str(prefix / "lib" / name)


def test_the_systems_openblas_comes_first(tmp_path, monkeypatch, linux):
    monkeypatch.setattr(ctypes.util, "find_library", {"openblas": "libopenblas.so.0"}.get)
    path = library(tmp_path, "libmkl_rt.so.2")
    assert installed_blas(tmp_path) == [Blas("OpenBLAS", "libopenblas.so.0"), Blas("MKL", path)]


def test_the_mkl_wheel_comes_next_and_nothing_after_it(tmp_path, monkeypatch, linux):
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    assert installed_blas(tmp_path) == []
    library(tmp_path, "libmkl_core.so.3")
    assert installed_blas(tmp_path) == []
    library(tmp_path, "libmkl_rt.so.2")
    path = library(tmp_path, "libmkl_rt.so.3")
    assert installed_blas(tmp_path) == [Blas("MKL", path)]


def test_preloading_makes_symbols_global_and_survives_a_broken_library(tmp_path, monkeypatch):
    loaded = []
    monkeypatch.delenv(BLAS_VARIABLE, raising=False)
    monkeypatch.setattr(machine, "installed_blas", lambda: [Blas("OpenBLAS", "libopenblas.so.0")])
    monkeypatch.setattr(ctypes, "CDLL", lambda path, mode: loaded.append((path, mode)))
    assert preload_blas() == "libopenblas.so.0"
    assert loaded == [("libopenblas.so.0", ctypes.RTLD_GLOBAL)]
    monkeypatch.undo()

    (tmp_path / "broken.so").write_bytes(b"no library")
    monkeypatch.setenv(BLAS_VARIABLE, str(tmp_path / "broken.so"))
    assert preload_blas() == ""
    monkeypatch.setenv(BLAS_VARIABLE, "")
    assert preload_blas() == "", "whoever started this process has chosen none"
