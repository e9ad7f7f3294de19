"""What a model needs and whether it fits: against llama.cpp's own figures, and at the edges."""

import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest

from localllm import memory
from localllm.cgroup import MemoryLimit, memory_limit
from localllm.errors import MemoryFitError
from localllm.gguf_header import GGUFHeader, read_gguf_header
from localllm.memory import MachineMemory, fit, gigabytes, machine_memory, memory_need, model_shape, require_fit
from tests.fakes.gguf_files import write_tiny_gguf

GIB, MIB = 1 << 30, 1 << 20
ROOMY = MachineMemory(64 * GIB, 60 * GIB, 58 * GIB)


def header(architecture: str = "llama", **values: object) -> GGUFHeader:
    """A header without tensors; keys get the architecture's prefix and ``__`` becomes a dot."""
    metadata = {f"{architecture}.{key.replace('__', '.')}": value for key, value in values.items()}
    return GGUFHeader(3, {"general.architecture": architecture, **metadata}, (), 32, 0)


def starter_like(**values: object) -> GGUFHeader:
    """SmolLM2-135M's numbers."""
    return header(
        **{
            "block_count": 30,
            "context_length": 8192,
            "embedding_length": 576,
            "feed_forward_length": 1536,
            "attention__head_count": 9,
            "attention__head_count_kv": 3,
            "vocab_size": 49152,
            **values,
        }
    )


# What llama.cpp 0.3.36 printed as "KV buffer size" and "compute buffer size" (MiB), flash attention on, unified cache.
@pytest.mark.parametrize(
    ("n_ctx", "n_batch", "kv_cache", "scratch"),
    [(2048, 512, 45.0, 102.51), (8192, 512, 180.0, 98.25), (8192, 128, 180.0, 24.56), (8192, 2048, 180.0, 98.25)],
)
def test_the_starter_as_llama_cpp_reckons_it(n_ctx, n_batch, kv_cache, scratch):
    shape = model_shape(starter_like())
    assert shape.need(n_ctx, n_batch).kv_cache / MIB == kv_cache
    assert scratch - 0.05 <= shape.scratch(n_ctx, n_batch) / MIB <= 1.15 * scratch


@pytest.mark.parametrize(
    ("n_ctx", "n_batch", "scratch"),
    [(2048, 512, 18.01), (8192, 512, 24.01), (32768, 512, 48.01), (32768, 128, 12.0), (65536, 128, 20.0)],
)
def test_a_long_context_as_llama_cpp_reckons_it(n_ctx, n_batch, scratch):
    wide = header(embedding_length=512, feed_forward_length=2048, vocab_size=275, block_count=4)
    assert model_shape(wide).scratch(n_ctx, n_batch) / MIB == pytest.approx(scratch, abs=0.02)


@pytest.mark.model
def test_the_real_starter(starter_path):
    need = memory_need(read_gguf_header(starter_path), 8192)
    assert need.weights / MIB == pytest.approx(92.10, abs=0.01)
    assert need.kv_cache == 180 * MIB
    assert need.total == need.weights + need.kv_cache + need.compute


def test_a_tiny_file(tmp_path):
    tiny = read_gguf_header(write_tiny_gguf(tmp_path / "tiny.gguf"))
    need = memory_need(tiny, 256)
    assert need.weights == sum(tensor.n_bytes for tensor in tiny.tensors)
    assert need.kv_cache == 2 * 2 * (2 * 8) * 2 * 256  # layers, K and V, heads of 8, bytes, tokens


@pytest.mark.parametrize(
    ("values", "per_token"),
    [
        ({}, 30 * 3 * 128),
        ({"attention__head_count_kv": (3, 0, 0, 1)}, 4 * 128),
        ({"attention__key_length": 192, "attention__value_length": 128}, 30 * 3 * 320),
        ({"attention__head_count_kv": (float("inf"), -1, 2)}, 2 * 128),
    ],
    ids=["plain", "a number a layer", "own lengths", "nonsense"],
)
def test_kv_of_a_token(values, per_token):
    assert model_shape(starter_like(**values)).kv_per_token == per_token


def test_without_kv_heads_every_head_counts():
    assert model_shape(header(block_count=2, embedding_length=64, attention__head_count=4)).kv_per_token == 2 * 4 * 32


def test_experts_count_when_they_are_wider():
    experts = header(feed_forward_length=100, expert_feed_forward_length=60, expert_used_count=4)
    assert model_shape(experts).n_ff == 240
    assert model_shape(header(feed_forward_length=(100, 300, 200))).n_ff == 300


def test_a_header_that_says_nothing_or_nonsense_is_no_error():
    assert memory_need(header(), 4096).kv_cache == 0
    assert fit(header(), ROOMY).fits
    absurd = starter_like(block_count=(1 << 64) - 1, context_length=(1 << 64) - 1)
    assert not fit(absurd, ROOMY).fits


def test_the_context_is_rounded_up_as_llama_cpp_does():
    assert memory_need(starter_like(), 1) == memory_need(starter_like(), 256)
    assert memory_need(starter_like(), 257).kv_cache == memory_need(starter_like(), 512).kv_cache


def test_a_quantized_cache_is_smaller():
    assert memory_need(starter_like(), 8192, kv_bytes=1.0).kv_cache == memory_need(starter_like(), 8192).kv_cache // 2


@pytest.mark.parametrize(
    ("trained", "chosen"), [(8192, 8192), (2048, 2048), (131072, 8192), (1000, 1000), (128, 128), (0, 8192)]
)
def test_the_chosen_context(trained, chosen):
    found = fit(starter_like(context_length=trained), ROOMY)
    assert (found.n_ctx, found.fits) == (chosen, True)


def test_the_context_shrinks_until_it_fits():
    needed = memory_need(starter_like(), 2048).total
    for budget, chosen in ((needed, 2048), (needed - 1, 1792)):
        assert fit(starter_like(), MachineMemory(GIB, GIB, budget)).n_ctx == chosen


def test_nothing_fits():
    found = fit(starter_like(), MachineMemory(GIB, GIB, 1000))
    assert (found.fits, found.n_ctx) == (False, 256)
    with pytest.raises(MemoryFitError, match=r"needs 0\.\d+ GB.*models may use 0\.00 GB") as refused:
        require_fit(starter_like(), MachineMemory(GIB, GIB, 1000))
    assert "smaller model" in refused.value.hint
    assert pickle.loads(pickle.dumps(refused.value)).message == refused.value.message


def test_a_shorter_context_is_hinted_at():
    machine = MachineMemory(GIB, GIB, memory_need(starter_like(), 2048).total)
    assert require_fit(starter_like(), machine, 2048).n_ctx == 2048
    with pytest.raises(MemoryFitError) as refused:
        require_fit(starter_like(), machine, 8192)
    assert "--ctx 2048 or less" in refused.value.hint


def test_little_free_memory_is_said_but_not_refused():
    found = fit(starter_like(), MachineMemory(GIB, 1000, GIB))
    assert found.fits
    assert "only 0.00 GB is free now" in found.reason


def test_gigabytes():
    assert [gigabytes(n) for n in (0, 350_000_000, 4_920_000_000)] == ["0.00 GB", "0.35 GB", "4.9 GB"]


def machine_of(monkeypatch, total: int, *, system: str = "Linux", chip: str = "x86_64", wired: str = "", limit=None):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=total, available=total // 2))
    monkeypatch.setattr(memory.platform, "system", lambda: system)
    monkeypatch.setattr(memory.platform, "machine", lambda: chip)
    monkeypatch.setattr(memory, "sysctl", lambda name: wired)
    monkeypatch.setattr(memory, "memory_limit", lambda: limit)


@pytest.mark.parametrize(
    ("gib", "budget"), [(1, 0.5), (2, 1), (4, 3), (16, 12.8), (64, 58), (512, 506)], ids=lambda value: str(value)
)
def test_the_budget_leaves_the_system_its_share(monkeypatch, gib, budget):
    machine_of(monkeypatch, gib * GIB)
    assert machine_memory().budget == pytest.approx(budget * GIB, abs=2)


@pytest.mark.parametrize(("gib", "wired", "budget"), [(16, "", 32 / 3), (36, "0", 27), (64, "", 48), (64, "57344", 56)])
def test_the_budget_on_apple_silicon_is_what_metal_keeps_resident(monkeypatch, gib, wired, budget):
    machine_of(monkeypatch, gib * GIB, system="Darwin", chip="arm64", wired=wired)
    assert machine_memory().budget == pytest.approx(budget * GIB, abs=2)


def test_the_setting_overrides_the_budget_up_to_all_there_is(monkeypatch):
    machine_of(monkeypatch, 16 * GIB)
    assert machine_memory(4).budget == 4_000_000_000
    assert machine_memory(100).budget == 16 * GIB


def test_a_container_has_what_its_limit_says(monkeypatch):
    machine_of(monkeypatch, 64 * GIB, limit=MemoryLimit(4 * GIB, 3 * GIB))
    found = machine_memory()
    assert (found.total, found.available, found.budget) == (4 * GIB, 3 * GIB, 3 * GIB)


def test_this_machine():
    found = machine_memory()
    assert 0 < found.budget < found.total
    assert 0 < found.available <= found.total


def group(root: Path, path: str, **files: str) -> None:
    directory = root / "sys/fs/cgroup" / path
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name.replace("__", ".")).write_text(content)


def self_groups(root: Path, *lines: str) -> None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("\n".join(lines) + "\n")


def test_cgroup_version_2_takes_the_tightest_of_the_groups_above(tmp_path):
    self_groups(tmp_path, "0::/user/app")
    group(tmp_path, "user/app", memory__max="max\n", memory__current="5", memory__stat="inactive_file 1\n")
    group(tmp_path, "user", memory__max="1000\n", memory__current="700", memory__stat="anon 5\ninactive_file 300\n")
    assert memory_limit(tmp_path) == MemoryLimit(1000, 600)


def test_cgroup_version_1_where_the_path_is_the_hosts(tmp_path):
    self_groups(tmp_path, "9:cpu:/", "4:memory:/docker/abc", "0::/")
    files = {"memory__limit_in_bytes": "2000", "memory__usage_in_bytes": "500", "memory__stat": "total_inactive_file 0"}
    group(tmp_path, "memory", **files)
    assert memory_limit(tmp_path) == MemoryLimit(2000, 1500)


@pytest.mark.parametrize("limit", ["max", str((1 << 63) - 4096), "", "many"])
def test_no_cgroup_limit(tmp_path, limit):
    self_groups(tmp_path, "0::/", "nonsense")
    group(tmp_path, "", memory__max=limit, memory__current="1", memory__stat="inactive_file 0")
    assert memory_limit(tmp_path) is None


def test_a_system_without_control_groups(tmp_path):
    assert memory_limit(tmp_path) is None
