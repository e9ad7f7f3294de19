"""Export, quantize and --fit as jobs that are cancelled, run out of disk, run twice or meet damage: nothing is left.

Their functions run here, in this process, with a context that the test holds; what they start are real children.
"""

import errno
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from localllm.errors import DiskFullError, InvalidModelError, JobCancelledError
from localllm.jobs.events import Message, Progress
from localllm.models.pull import pull
from localllm.models.store import ModelStore
from localllm.paths import Home
from quant.fit.job import FitWish, fit, fit_spec
from quant.fit.sensitivity import measure_sensitivity
from quant.jobs import export, export_spec
from quant.measure.run import MeasureOptions
from quant.quantize_job import QuantizeWish, quantize, quantize_spec
from tests.fakes.gguf_files import write_tiny_gguf
from tests.fakes.hf_models import write_hf_model


@dataclass
class Context:
    """Of a job: ``at`` decides, at every event and every look at the switch, whether something happens."""

    home: Home
    arguments: dict[str, Any]
    at: Any = None
    events: list[Any] = field(default_factory=list)
    looks: int = 0

    def emit(self, event: object) -> None:
        self.events.append(event)
        if self.at:
            self.at(self)

    def check_cancelled(self) -> None:
        self.looks += 1
        if self.at:
            self.at(self)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        yield


def cancelled_in(stage: str, context: Context) -> None:
    """Cancel once ``stage`` has begun."""
    if any(isinstance(event, Progress) and event.stage == stage for event in context.events):
        raise JobCancelledError


def full_in(stage: str, context: Context) -> None:
    """The disk is full half-way through ``stage``."""
    last = context.events[-1] if context.events else None
    if isinstance(last, Progress) and last.stage == stage and last.total and last.done > last.total // 2:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def store(home, tmp_path):
    """With ``tiny:f16`` and ``hf:f32``, whose rows every type of llama.cpp's takes."""
    store = ModelStore(home)
    pull(str(write_tiny_gguf(tmp_path / "tiny.gguf", n_embd=256, n_ff=256, n_layer=1)), store, as_name="tiny:f16")
    pull(str(write_hf_model(tmp_path / "hf", "llama")), store, as_name="hf:f32")
    return store


@pytest.fixture(autouse=True)
def quick_fit(monkeypatch):
    monkeypatch.setattr("quant.fit.job.DEFAULT_OPTIONS", MeasureOptions(n_ctx=64, max_chunks=2))
    measured = partial(measure_sensitivity, candidates=("q8_0", "q3_k_s"))
    monkeypatch.setattr("quant.fit.job.measure_sensitivity", measured)


def to_gguf(store):
    return export, export_spec(store, "hf", "gguf:f16")[0].arguments


def to_hf(store):
    return export, export_spec(store, "tiny", "hf:f16")[0].arguments


def to_q4_k_m(store):
    return quantize, quantize_spec(store, QuantizeWish("tiny", "q4_k_m", "none"))[0].arguments


def from_hf_to_q8_0(store):
    return quantize, quantize_spec(store, QuantizeWish("hf", "q8_0", "none"))[0].arguments


def to_mlx(store):
    return quantize, quantize_spec(store, QuantizeWish("hf", "mlx-4bit"))[0].arguments


def to_fit(store):
    return fit, fit_spec(store, FitWish("tiny", "80MB", 256, "none"))[0].arguments


JOBS = {
    making.__name__: making for making in (to_gguf, to_hf, to_q4_k_m, from_hf_to_q8_0, to_mlx, to_fit)
}  # fmt: skip


def models(store):
    return sorted(str(model.model_name) for model in store.list())


def assert_nothing_is_left(store, home):
    assert models(store) == ["hf:f32", "tiny:f16"]
    assert list(home.partial.iterdir()) == []
    assert not home.measured.exists() or not list(home.measured.iterdir())


@pytest.mark.parametrize(
    ("making", "stage"),
    [
        (to_gguf, "convert"),
        (to_hf, "convert"),
        (to_gguf, "check"),
        (to_q4_k_m, "quantize"),
        (from_hf_to_q8_0, "convert"),
        (to_mlx, "quantize"),
        (to_fit, "measure"),
    ],
)
def test_a_cancel_in_the_middle_leaves_nothing(store, home, making, stage):
    work, arguments = making(store)
    with pytest.raises(JobCancelledError):
        work(Context(home, arguments, partial(cancelled_in, stage)))
    assert_nothing_is_left(store, home)


@pytest.mark.parametrize(("making", "stage"), [(to_gguf, "convert"), (to_hf, "convert"), (from_hf_to_q8_0, "convert")])
def test_a_disk_that_fills_up_in_a_conversion(store, home, making, stage):
    work, arguments = making(store)
    with pytest.raises(DiskFullError):
        work(Context(home, arguments, partial(full_in, stage)))
    assert_nothing_is_left(store, home)


@pytest.mark.parametrize("making", [to_q4_k_m, to_fit])
def test_a_disk_that_fills_up_under_llama_cpp(store, home, making, monkeypatch):
    monkeypatch.setattr("quant.llama_quantize.WORKER", "tests.quant.small_disk_worker")
    work, arguments = making(store)
    with pytest.raises(DiskFullError, match="disk is full"):
        work(Context(home, arguments))
    assert_nothing_is_left(store, home)


@pytest.mark.parametrize("making", JOBS.values(), ids=JOBS)
def test_two_at_once_make_one_model(store, home, making):
    work, arguments = making(store)
    contexts = [Context(home, arguments) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(work, contexts))
    assert results[0]["manifest"] == results[1]["manifest"]
    assert len(models(store)) == 3
    assert store.is_whole(store.resolve(results[0]["name"]))
    assert list(home.partial.iterdir()) == []
    said = [event.text for context in contexts for event in context.events if isinstance(event, Message)]
    assert [text for text in said if text.startswith("Another process makes")]


@pytest.mark.parametrize("making", JOBS.values(), ids=JOBS)
def test_a_source_that_was_cut_short_is_refused(store, home, making):
    work, arguments = making(store)
    file = store.file(store.resolve(arguments["model"]))
    weights = file if file.suffix == ".gguf" else file.with_name("model.safetensors")
    weights.chmod(0o600)
    weights.write_bytes(weights.read_bytes()[:-5000])
    with pytest.raises(InvalidModelError):
        work(Context(home, arguments))
    assert_nothing_is_left(store, home)


def test_kept_sensitivities_that_are_damaged_are_measured_again(store, home):
    work, arguments = to_fit(store)
    work(Context(home, arguments | {"dry_run": True}))
    (kept,) = home.measured.iterdir()
    whole = kept.read_text()
    kept.write_text(whole[: len(whole) // 2])
    context = Context(home, arguments | {"dry_run": True})
    found = work(context)
    assert any(isinstance(event, Message) and event.level == "warning" for event in context.events)
    assert kept.read_text() == whole
    assert found["plan"]["types"]
