"""Prometheus metrics under the names that vLLM gave them, with `glm5:` in front, so that known dashboards fit.

Gauges and counters of the engine are read when they are scraped; times are measured per request as its deltas pass.
"""

import time
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from glm5.engine.records import Delta, EngineStats

_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TOKENS = tuple(2**power for power in range(18))


class Metrics:
    """All metrics of one server, in a registry of their own."""

    def __init__(self, stats: Callable[[], EngineStats], model_name: str) -> None:
        """Read the engine's side from `stats`; `model_name` labels everything."""
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(stats, model_name))
        self._model_name = model_name
        self.first_token = self._histogram("time_to_first_token_seconds", "From arrival to the first token.", _SECONDS)
        self.between_tokens = self._histogram("inter_token_latency_seconds", "Between tokens of a request.", _SECONDS)
        self.whole = self._histogram("e2e_request_latency_seconds", "From arrival to the last token.", _SECONDS)
        self.prompt_length = self._histogram("request_prompt_tokens", "Tokens of a prompt.", _TOKENS)
        self.answer_length = self._histogram("request_generation_tokens", "Tokens of all answers to it.", _TOKENS)
        self._finished = Counter(
            "glm5:request_success",
            "Answers by the reason that ended them; abort: the client hung up.",
            ("model_name", "finished_reason"),
            registry=self._registry,
        )

    def request(self, prompt_tokens: int, answers: int) -> "RequestMetrics":
        """Begin to measure a request for so many answers."""
        return RequestMetrics(self, prompt_tokens, answers)

    def finished(self, reason: str) -> None:
        """Count an answer that has ended."""
        self._finished.labels(self._model_name, reason).inc()

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry)

    def _histogram(self, name: str, meaning: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(f"glm5:{name}", meaning, ("model_name",), buckets=buckets, registry=self._registry)
        return histogram.labels(self._model_name)


class RequestMetrics:
    """One request being measured."""

    def __init__(self, metrics: Metrics, prompt_tokens: int, answers: int) -> None:
        self._metrics = metrics
        self._prompt_tokens = prompt_tokens
        self._begin = time.perf_counter()
        self._last: dict[int, float] = {}  # when each of the n answers grew last
        self._open = set(range(answers))
        self._generated = 0

    def delta(self, delta: Delta) -> None:
        """Count one delta."""
        now = time.perf_counter()
        if delta.tokens:
            if not self._last:
                self._metrics.first_token.observe(now - self._begin)
            if (last := self._last.get(delta.index)) is not None:
                for _ in delta.tokens:
                    self._metrics.between_tokens.observe((now - last) / len(delta.tokens))
            self._last[delta.index] = now
            self._generated += len(delta.tokens)
        if delta.finish_reason is not None:
            self.finished(delta.index, delta.finish_reason)

    def finished(self, index: int, reason: str) -> None:
        """Answer `index` has ended, by the engine's word or because the server needs no more of it."""
        if index in self._open:
            self._open.discard(index)
            self._metrics.finished(reason)

    def end(self, reason: str) -> None:
        """The request is over; answers that are still open ended for `reason`."""
        for index in tuple(self._open):
            self.finished(index, reason)
        self._metrics.prompt_length.observe(self._prompt_tokens)
        self._metrics.answer_length.observe(self._generated)
        self._metrics.whole.observe(time.perf_counter() - self._begin)


class _EngineCollector(Collector):
    """Reads `EngineStats` at every scrape."""

    def __init__(self, stats: Callable[[], EngineStats], model_name: str) -> None:
        self._stats = stats
        self._model_name = model_name

    def collect(self) -> Iterable[Metric]:
        stats = self._stats()
        used = stats.used_pages / stats.total_pages if stats.total_pages else 0.0
        yield self._gauge("num_requests_running", "Sequences being computed.", stats.running)
        yield self._gauge("num_requests_waiting", "Sequences waiting for pages or a place.", stats.waiting)
        yield self._gauge("kv_cache_usage_perc", "Share of the pages in use by sequences, 0 to 1.", used)
        yield self._gauge("kv_cache_cached_pages", "Pages kept for prefix hits.", stats.cached_pages)
        yield self._counter("prompt_tokens", "Prompt tokens.", stats.prompt_tokens)
        yield self._counter("generation_tokens", "Generated tokens.", stats.generated_tokens)
        yield self._counter("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", stats.prompt_tokens)
        yield self._counter("prefix_cache_hits", "Prompt tokens found there.", stats.cached_tokens)
        yield self._counter("num_preemptions", "Sequences sent back to wait.", stats.preemptions)
        yield self._counter("spec_decode_num_drafts", "Verification steps that had drafts.", stats.drafts)
        yield self._counter("spec_decode_num_draft_tokens", "Draft tokens proposed.", stats.drafted)
        yield self._counter("spec_decode_num_accepted_tokens", "Draft tokens accepted.", stats.accepted)
        yield self._gauge("spec_decode_acceptance_length", "1 + accepted / drafts.", stats.acceptance_length)
        by_position = CounterMetricFamily(
            "glm5:spec_decode_num_accepted_tokens_per_pos",
            "Draft tokens accepted at each position.",
            labels=("model_name", "position"),
        )
        for position, accepted in enumerate(stats.accepted_per_position):
            by_position.add_metric((self._model_name, str(position)), accepted)
        yield by_position

    def _gauge(self, name: str, meaning: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"glm5:{name}", meaning, labels=("model_name",))
        family.add_metric((self._model_name,), value)
        return family

    def _counter(self, name: str, meaning: str, value: float) -> Metric:
        family = CounterMetricFamily(f"glm5:{name}", meaning, labels=("model_name",))
        family.add_metric((self._model_name,), value)
        return family
