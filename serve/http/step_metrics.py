"""The steps of the engines in ``/metrics``, read from their last reports at every scrape."""

from collections.abc import Iterable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from serve.engine.step_meter import ROWS_BOUNDS, SECONDS_BOUNDS, SHARE_BOUNDS, Distribution, StepReport
from serve.engine.types import Engine

_PREFIX = "localllm_engine_"
_HISTOGRAMS = (
    ("share", "step_python_share", "Python's own share of a step (the rest is decoding and sampling).", SHARE_BOUNDS),
    ("seconds", "step_seconds", "What a step takes.", SECONDS_BOUNDS),
    ("rows", "step_rows", "Tokens in the batch of a step.", ROWS_BOUNDS),
)
_COUNTERS = (
    ("python_seconds", "python_seconds", "Python's own time in all steps."),
    ("n_prefill", "prompt_tokens_computed", "Tokens of prompts computed; cached ones are not among them."),
    ("n_guessed", "tokens_guessed", "Tokens guessed."),
    ("n_right", "tokens_guessed_right", "Those that were right."),
    ("n_preempted", "preemptions", "Times that a request had to give way because the KV cache was full."),
)
_GAUGES = (
    ("kv_used", "kv_used_tokens", "Tokens in the KV cache, those kept for later requests included."),
    ("kv_size", "kv_size_tokens", "Tokens that the KV cache has room for."),
)


class StepCollector(Collector):
    """Totals of every model since the server began, whichever engines it had."""

    def __init__(self) -> None:
        self._engines: dict[str, list[Engine]] = {}
        self._ended: dict[str, StepReport] = {}

    def watch(self, model: str, engine: Engine) -> None:
        """Count ``engine`` under ``model`` from now on; a second call changes nothing."""
        engines = self._engines.setdefault(model, [])
        if not any(known is engine for known in engines):
            engines.append(engine)

    def collect(self) -> Iterable[Metric]:
        """One sample of each kind for each model."""
        self._bury_dead()
        living = {name: [engine.steps for engine in engines] for name, engines in self._engines.items()}
        now = {name: [report for report in reports if report is not None] for name, reports in living.items()}
        totals = {
            name: total
            for name in self._engines
            if (total := _total([*now[name], *([self._ended[name]] if name in self._ended else [])])) is not None
        }
        yield from _histograms(totals)
        for attribute, name, text in _COUNTERS:
            counter = CounterMetricFamily(_PREFIX + name, text, labels=["model"])
            for model, total in totals.items():
                counter.add_metric([model], getattr(total, attribute))
            yield counter
        for attribute, name, text in _GAUGES:
            gauge = GaugeMetricFamily(_PREFIX + name, text, labels=["model"])
            for model in totals:
                gauge.add_metric([model], sum(getattr(report, attribute) for report in now[model]))
            yield gauge

    def _bury_dead(self) -> None:
        for name, engines in self._engines.items():
            for engine in [engine for engine in engines if not engine.alive]:
                engines.remove(engine)
                reports = [report for report in (self._ended.get(name), engine.steps) if report is not None]
                if (total := _total(reports)) is not None:
                    self._ended[name] = total


def _total(reports: Sequence[StepReport]) -> StepReport | None:
    total: StepReport | None = None
    for report in reports:
        total = report if total is None else total + report
    return total


def _histograms(totals: dict[str, StepReport]) -> Iterator[HistogramMetricFamily]:
    for attribute, name, text, bounds in _HISTOGRAMS:
        histogram = HistogramMetricFamily(_PREFIX + name, text, labels=["model"])
        for model, total in totals.items():
            spread: Distribution = getattr(total, attribute)
            running, buckets = 0, []
            for bound, count in zip((*map(str, map(float, bounds)), "+Inf"), spread.counts, strict=True):
                running += count
                buckets.append((bound, running))
            histogram.add_metric([model], buckets, spread.total)
        yield histogram
