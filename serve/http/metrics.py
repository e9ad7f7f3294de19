"""``/metrics`` for Prometheus: counts and times, and never a word of a prompt or an answer.

Labels take their values from fixed sets and from the names of models in the store, so nothing that a client sends can
make new series.
"""

import time
from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.engine.types import Delta, Finished, GenerateEvent, Started
from serve.http.step_metrics import StepCollector
from serve.supervisor import LoadedModel

_FIRST_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_NEXT_TOKEN_SECONDS = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1)
_METHODS = frozenset({"GET", "POST", "HEAD", "DELETE"})


class Metrics:
    """All metrics of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "localllm_http_requests", "Requests answered.", ("method", "route", "status"), registry=self.registry
        )
        self.completions = Counter(
            "localllm_completions",
            "Completions ended: stop, length, cancelled or error.",
            ("model", "outcome"),
            registry=self.registry,
        )
        self.prompt_tokens = self._counter("localllm_prompt_tokens", "Tokens in prompts.")
        self.cached_tokens = self._counter("localllm_cached_prompt_tokens", "Those of them that were cached.")
        self.completion_tokens = self._counter("localllm_completion_tokens", "Tokens in answers.")
        self.first_token = self._histogram(
            "localllm_time_to_first_token_seconds", "From the request to the first text.", _FIRST_TOKEN_SECONDS
        )
        self.next_token = self._histogram(
            "localllm_inter_token_seconds", "Between two tokens of an answer.", _NEXT_TOKEN_SECONDS
        )
        self.steps = StepCollector()
        self.registry.register(self.steps)
        self.waiting = self._gauge("localllm_engine_waiting", "Completions that wait for the engine to admit them.")
        self.running = self._gauge("localllm_engine_running", "Completions that the engine works on.")

    def show_models(self, loaded: Callable[[], Sequence[LoadedModel]]) -> None:
        """Report the models that ``loaded`` names, at every scrape."""
        self.registry.register(_Models(loaded))

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, ("model",), registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, ("model",), registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(name, text, ("model",), registry=self.registry, buckets=buckets)


class CompletionMeter:
    """Counts one completion.

    Args:
        metrics: Where to.
        model: The name of the model that answers.
    """

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._metrics = metrics
        self._model = model
        # Looked up once: a lookup costs more than the observation.
        self._next_token = metrics.next_token.labels(model)
        self._stage = metrics.waiting.labels(model)
        self._stage.inc()
        self._last = time.monotonic()
        self._n_tokens = 0
        self._reason = "error"

    def saw(self, event: GenerateEvent) -> None:
        """An event has come."""
        match event:
            case Delta(n_tokens=n_tokens):
                self._saw_tokens(n_tokens)
            case Started(n_prompt=n_prompt, n_cached=n_cached):
                self._stage.dec()
                self._stage = self._metrics.running.labels(self._model)
                self._stage.inc()
                self._metrics.prompt_tokens.labels(self._model).inc(n_prompt)
                self._metrics.cached_tokens.labels(self._model).inc(n_cached)
            case Finished(reason=reason, usage=usage):
                self._reason = reason
                self._n_tokens = usage.n_completion

    def end(self, *, cancelled: bool) -> None:
        """It is over: with ``Finished``, by an error, or because nobody waits any more."""
        self._stage.dec()
        outcome = "cancelled" if cancelled else self._reason
        self._metrics.completions.labels(self._model, outcome).inc()
        self._metrics.completion_tokens.labels(self._model).inc(self._n_tokens)

    def _saw_tokens(self, n_tokens: int) -> None:
        now = time.monotonic()
        if self._n_tokens == 0:
            self._metrics.first_token.labels(self._model).observe(now - self._last)
        else:
            # Tokens that come together share the time that they took.
            for _ in range(n_tokens):
                self._next_token.observe((now - self._last) / n_tokens)
        self._n_tokens += n_tokens
        self._last = now


class _Models(Collector):
    """The models in memory, as they are at the time of a scrape."""

    def __init__(self, loaded: Callable[[], Sequence[LoadedModel]]) -> None:
        self._loaded = loaded

    def collect(self) -> Iterable[GaugeMetricFamily]:
        memory = GaugeMetricFamily(
            "localllm_model_memory_bytes", "Memory reckoned for a loaded model.", labels=["model"]
        )
        n_ctx = GaugeMetricFamily("localllm_model_context_tokens", "Tokens that one request may use.", labels=["model"])
        for model in self._loaded():
            memory.add_metric([model.name], model.memory)
            n_ctx.add_metric([model.name], model.n_ctx)
        return (memory, n_ctx)


class RequestMeter:
    """ASGI middleware that counts every request, those too that the guards refuse.

    Args:
        app: The app behind it.
        metrics: Where to count.
        routes: Give the values of the label ``route``; any other path is ``other``.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: Sequence[Route]) -> None:
        self._app = app
        self._metrics = metrics
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on and count."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        status = "none"  # the client went away before there was an answer

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            return await self._app(scope, receive, watched)
        except Exception:
            status = "500"  # a bug, which is answered further out
            raise
        finally:
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.requests.labels(method, self._label(scope["path"]), status).inc()

    def _label(self, path: str) -> str:
        return next((route.path for route in self._routes if route.path_regex.match(path)), "other")
