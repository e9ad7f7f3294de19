"""Machines of other sorts: their processors, and libraries that behave as they do there.

def test_of_ten_lines(odd_llama, home):
    odd_llama("amx")
    assert prove_llama(home).way.name == "unpacked"
"""

import ctypes
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from localllm.machine import Blas
from localllm.native.llama_params import WAY_VARIABLE
from localllm.native.processor import Processor, read_processor

_HERE = Path(__file__).parent
needs_compiler = pytest.mark.skipif(sys.platform != "linux", reason="the odd libraries are ELF files")

_COMMON = "fpu sse sse2 ssse3 sse4_1 sse4_2 popcnt"
_AVX2 = f"{_COMMON} avx f16c fma avx2 bmi1 bmi2"
_AVX512 = f"{_AVX2} avx512f avx512dq avx512cd avx512bw avx512vl"
_CPUINFO = {
    # An Emerald Rapids Xeon, family 6, model 207: Debian 12's OpenBLAS does not know it.
    "amx": ("INTEL(R) XEON(R) PLATINUM 8581C", 6, 207, f"{_AVX512} avx512_vbmi avx512_vnni avx512_bf16 amx_int8"),
    "avx512": ("Intel(R) Xeon(R) Gold 6154", 6, 85, _AVX512),
    "avx2": ("AMD EPYC 7B13", 25, 1, _AVX2),
    "no-avx": ("Intel(R) Xeon(R) CPU X5570", 6, 26, _COMMON),
}


def processor(sort: str, directory: Path) -> Processor:
    """The processor of a sort: ``amx``, ``avx512``, ``avx2``, ``no-avx``; as the kernel tells it."""
    name, family, model, flags = _CPUINFO[sort]
    path = directory / f"cpuinfo-{sort}"
    path.write_text(
        f"processor\t: 0\nvendor_id\t: x\ncpu family\t: {family}\nmodel\t\t: {model}\nmodel name\t: {name}\n"
        f"flags\t\t: {flags}\n\nprocessor\t: 1\nmodel name\t: another\n"
    )
    found = read_processor(path)
    return Processor("x86_64", found.name, found.flags)


def _compile(source: str, target: Path, *options: str) -> Path:
    command = ["cc", "-O2", "-shared", "-fPIC", "-Wall", "-o", str(target), str(_HERE / source), *options]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return target


@pytest.fixture(scope="session")
def odd_llama_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for ``LLAMA_CPP_LIB_PATH`` with llama.cpp as it is on odd machines; ``$ODD_LLAMA`` names one."""
    import llama_cpp

    directory = tmp_path_factory.mktemp("odd-llama")
    real = Path(llama_cpp.__file__).parent / "lib"
    params = llama_cpp.llama_model_params
    sizes = {
        "PARAMS_SIZE": ctypes.sizeof(params),
        "PACKED_AT": params.use_extra_bufts.offset,
        "DEVICES_AT": params.devices.offset,
        "BATCH_SIZE": ctypes.sizeof(llama_cpp.llama_batch),
    }
    defined = [f"-D{name}={size}" for name, size in sizes.items()]
    # What it does not use itself, the bindings look up through it.
    linked = ["-Wl,--no-as-needed", str(real / "libllama.so"), f"-Wl,-rpath,{real}", "-ldl"]
    _compile("odd_llama.c", directory / "libllama.so", *defined, *linked)
    return directory


@pytest.fixture
def odd_llama(odd_llama_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A function that makes this a machine of another sort for every llama.cpp that is started from now on."""

    def become(sort: str) -> None:
        monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(odd_llama_directory))
        monkeypatch.setenv("ODD_LLAMA", sort)
        monkeypatch.delenv(WAY_VARIABLE, raising=False)

    return become


@pytest.fixture(scope="session")
def odd_blas(tmp_path_factory: pytest.TempPathFactory) -> Blas:
    """A BLAS that takes the wrong kernel by itself."""
    return Blas("OpenBLAS", str(_compile("odd_blas.c", tmp_path_factory.mktemp("odd-blas") / "libodd.so")))
