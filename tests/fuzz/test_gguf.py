"""The GGUF validator refuses what is wrong, cleanly and soon, whatever it is given."""

import importlib.util
import os
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from tests.fuzz.effort import KEPT, SECONDS, SEED
from tests.fuzz.ggml_reader import GGMLReader
from tests.fuzz.gguf_check import check_gguf
from tests.fuzz.gguf_seeds import CORPUS, seeds, write_dictionary, write_seeds

ROOT = Path(__file__).resolve().parents[2]
_SHORT_RUNS = 20_000  # about eight seconds
_MAX_MEMORY = 512  # MiB, of the whole process; it has 50 in fact
_SLOWEST = 10  # seconds for one input, after which libFuzzer ends the process
# What the validator keeps of a header is bounded by 16 MiB; files of kilobytes stay far below, whatever they claim.
_MAX_KEPT = 8 << 20


@pytest.mark.parametrize("name", seeds())
def test_every_seed_is_accepted(tmp_path, name):
    path, ggml = tmp_path / "model", GGMLReader()
    assert check_gguf(seeds()[name], path, ggml)
    assert ggml.n_tensors(path) is not None


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.bin")), ids=lambda path: path.stem)
def test_the_corpus_is_still_read_or_refused_in_little_memory(tmp_path, path):
    content, ggml = path.read_bytes(), GGMLReader()
    tracemalloc.start()
    try:
        check_gguf(content, tmp_path / "model", ggml)
        assert tracemalloc.get_traced_memory()[1] < _MAX_KEPT
    finally:
        tracemalloc.stop()


def test_the_corpus_is_small():
    sizes = [path.stat().st_size for path in CORPUS.glob("*.bin")]
    assert 10 <= len(sizes) <= 40
    assert max(sizes) < 2048


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None,
    reason="atheris has wheels for Linux on x86-64 and Python 3.11 to 3.13 only; the corpus was checked all the same",
)
def test_a_coverage_guided_fuzzer_finds_no_input_that_breaks_a_promise(tmp_path):
    found = KEPT / "gguf" if SECONDS else tmp_path / "found"
    found.mkdir(parents=True, exist_ok=True)
    write_seeds(tmp_path / "seeds")
    write_dictionary(tmp_path / "words")
    amount = f"-max_total_time={SECONDS:.0f}" if SECONDS else f"-runs={_SHORT_RUNS}"
    fuzzed = subprocess.run(
        [
            *(sys.executable, "-m", "tests.fuzz.gguf_target", found, tmp_path / "seeds", CORPUS),
            *(f"-dict={tmp_path / 'words'}", f"-artifact_prefix={tmp_path}/broken-", f"-seed={SEED}", amount),
            *(f"-timeout={_SLOWEST}", f"-rss_limit_mb={_MAX_MEMORY}", "-max_len=4096", "-print_final_stats=1"),
        ],
        cwd=ROOT,
        # The order of sets decides a little about what is covered.
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=SECONDS + 120,
        check=False,
    )
    broken = [f"{path.name}: {path.read_bytes().hex()}" for path in tmp_path.glob("broken-*")]
    assert fuzzed.returncode == 0, "\n".join(
        ["Keep the input in tests/fuzz/corpus/gguf/NAME.bin once it is mended:", *broken, fuzzed.stderr[-3000:]]
    )
    runs = re.search(r"stat::number_of_executed_units: (\d+)", fuzzed.stderr)
    assert runs, fuzzed.stderr[-3000:]
    assert int(runs[1]) >= (SECONDS or _SHORT_RUNS)
    print(f"GGUF: {runs[1]} inputs")
