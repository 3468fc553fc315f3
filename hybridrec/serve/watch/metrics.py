"""What Prometheus reads of the service: one registry, every name in one place.

Workers of one service share a folder (:mod:`hybridrec.serve.watch.metrics_folder`), and each
of them answers ``/metrics`` for all: counters, histograms, the queue and the model add up, while
figures of drift carry the worker's ``pid``.
"""

from __future__ import annotations

import math
import os
import threading
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    multiprocess,
)
from prometheus_client.exposition import choose_encoder

from hybridrec.serve.answers.asking import Degradation
from hybridrec.serve.watch.drift import TOP, Drift, DriftConfig
from hybridrec.serve.watch.metrics_folder import check_shared, shared_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from prometheus_client.samples import Sample

    from hybridrec.serve.answers.asking import Id

_MULTIPROCESS: Any = multiprocess  # the one part of prometheus_client without types
_MOST_REQUESTS = 512

# One to ten thousand milliseconds, six steps a decade: a quantile is found to within two thirds.
SECONDS = (
    *(0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.007, 0.01, 0.015, 0.02, 0.03, 0.05, 0.07),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0),
)
BATCHES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256)
# Scores are probabilities where they are calibrated, otherwise of any size and sign.
SCORES = (-10, -5, -2, -1, -0.5, 0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 2, 5, 10)

STAGES = ("queue", "recall", "fuse", "rerank", "newcomers")
REASONS = ("queue_full", "rate", "key", "scope", "host", "content_type", "body", "no_model")


class _BulkHistogram(Histogram):
    """Takes an array at once: ten scores an answer, one by one, would cost more than the rest."""

    def observe_all(self, values: NDArray[np.float64]) -> None:
        counts = np.bincount(np.searchsorted(self._upper_bounds, values, side="left"))
        self._sum.inc(float(values.sum()))
        for bucket in np.flatnonzero(counts):
            self._buckets[bucket].inc(int(counts[bucket]))

    def _child_samples(self) -> Iterable[Sample]:
        """Without a count where there is no sum, as bounds may be negative: OpenMetrics' rule."""
        samples = super()._child_samples()
        summed = any(sample.name == "_sum" for sample in samples)
        return [sample for sample in samples if summed or sample.name != "_count"]


class Metrics:
    """Counts and times of one process, from any thread.

    Args:
        drift: how much of what is served is looked at.

    Raises:
        InputError: there is a folder to share, and prometheus_client was imported before it was.
    """

    def __init__(self, drift: DriftConfig | None = None) -> None:
        self.registry = CollectorRegistry()
        self._folder = shared_folder()
        if self._folder is None:
            ProcessCollector(registry=self.registry)
        self._drift_config = drift or DriftConfig()
        self._drift = Drift(self._drift_config)
        self._catalogue = 0
        self._version: str | None = None
        self._stages: dict[str, Histogram] = {}
        self._requests: dict[tuple[str, int], Histogram] = {}
        self._lock = threading.Lock()
        self._make_times()
        self._make_counters()
        self._make_drift()
        if self._folder is not None:
            check_shared(self._folder)

    def _make_times(self) -> None:
        self._stage = self._histogram("stage_seconds", "Time by stage.", SECONDS, "stage")
        self._request = self._histogram(
            "request_seconds", "Time from the request to its answer.", SECONDS, "route", "status"
        )
        self._batch = self._histogram("batch_size", "Requests answered together.", BATCHES)
        self._lag = self._histogram(
            "event_loop_lag_seconds", "How late the event loop comes back.", SECONDS
        )
        self._score = _BulkHistogram(
            "hybridrec_score",
            f"Scores of the first {TOP} places of every answer, {self._drift_config.step} answers "
            "at a time.",
            registry=self.registry,
            buckets=SCORES,
        )
        self._queue = self._gauge("queue_waiting", "Requests that wait.", "livesum")
        for stage in STAGES:
            self._stages[stage] = self._stage.labels(stage)

    def _make_counters(self) -> None:
        self._degraded = self._counter(
            "degraded_total", "Answers that left something out for want of time.", "kind"
        )
        self._rejected = self._counter("rejected_total", "Requests turned away.", "reason")
        self._hits = self._counter("prefix_cache_hits_total", "Prefixes the reranker had at hand.")
        self._misses = self._counter("prefix_cache_misses_total", "Prefixes it had to compute.")
        self._events = self._counter("events_total", "Events of feedback.", "result")
        # A counter that begins at its first 1 hides that one from rate().
        for kind in get_args(Degradation):
            self._degraded.labels(kind)
        for reason in REASONS:
            self._rejected.labels(reason)
        for result in ("accepted", "duplicate"):
            self._events.labels(result)

    def _make_drift(self) -> None:
        window = f"in the newest {self._drift_config.window} answers"
        self._model = self._gauge(
            "model_info", "Workers that answer with it.", "livesum", "version"
        )
        self._coverage = self._gauge(
            "catalogue_coverage", f"Share of the catalogue {window}.", "liveall"
        )
        self._cold = self._gauge(
            "cold_user_share", f"Share without a history to go by {window}.", "liveall"
        )
        self._trained_cold = self._gauge(
            "training_cold_user_share", "The same share when the model was trained.", "liveall"
        )
        self._shift = self._gauge(
            "score_drift",
            f"Population stability index of the scores {window} against those of the model's first "
            f"{self._drift_config.reference}.",
            "liveall",
        )
        self._compared = self._gauge(
            "drift_answers", "Answers that the figures of drift are of, so far.", "liveall"
        )
        self._clear_drift()

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(f"hybridrec_{name}", text, labels, registry=self.registry, buckets=buckets)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"hybridrec_{name}", text, labels, registry=self.registry)

    def _gauge(
        self, name: str, text: str, together: Literal["livesum", "liveall"], *labels: str
    ) -> Gauge:
        return Gauge(
            f"hybridrec_{name}", text, labels, registry=self.registry, multiprocess_mode=together
        )

    def observe_stage(self, name: str, seconds: float) -> None:
        """A stage took so long."""
        histogram = self._stages.get(name)
        if histogram is None:
            histogram = self._stages[name] = self._stage.labels(name)
        histogram.observe(seconds)

    def observe_batch(self, size: int) -> None:
        """So many requests were answered together."""
        self._batch.observe(size)

    def set_queue(self, n: int) -> None:
        """So many requests wait."""
        self._queue.set(n)

    def observe_request(self, route: str, status: int, seconds: float) -> None:
        """A request was answered.

        Args:
            route: the template of the path ("/v1/users/{user}"), never the path, which callers
                choose; beyond 512 pairs with a status all others are "other".
            status: of HTTP.
            seconds: since it came in.
        """
        histogram = self._requests.get((route, status))
        if histogram is None:
            known = len(self._requests) < _MOST_REQUESTS
            histogram = self._request.labels(route if known else "other", str(status))
            if known:
                self._requests[route, status] = histogram
        histogram.observe(seconds)

    def count_degraded(self, kind: Degradation) -> None:
        """An answer left something out for want of time."""
        self._degraded.labels(kind).inc()

    def count_rejected(self, reason: str) -> None:
        """A request was turned away; ``reason`` is one of ``REASONS`` or another fixed word."""
        self._rejected.labels(reason).inc()

    def count_cache(self, hits: int, misses: int) -> None:
        """Prefixes that the reranker had at hand, and those that it had to compute."""
        self._hits.inc(hits)
        self._misses.inc(misses)

    def count_events(self, accepted: int, duplicates: int) -> None:
        """Events that are on the disk, and those that had been there."""
        self._events.labels("accepted").inc(accepted)
        self._events.labels("duplicate").inc(duplicates)

    def observe_lag(self, seconds: float) -> None:
        """The event loop came back so much later than it was asked to."""
        self._lag.observe(seconds)

    def observe_answer(
        self, scores: Sequence[float | None], items: Sequence[Id], cold_users: int
    ) -> None:
        """One answer of the current model as it was served.

        Args:
            scores: best first; None for an item that no stage could score. Pass () for those of a
                degraded or popular answer, which are another stage's and would pass for drift.
            items: the items' ids.
            cold_users: 1 where there was no history to go by, 0 otherwise.
        """
        with self._lock:
            if self._drift.add(scores, items, cold=bool(cold_users)):
                self._show_drift()

    def set_model(
        self, version: str, *, items: int | None = None, cold_users: float | None = None
    ) -> None:
        """Another version answers from now on: figures of drift begin anew.

        Args:
            version: its id.
            items: in its catalogue; None leaves the coverage out.
            cold_users: share of users without a history when it was trained; None leaves it out.
        """
        with self._lock:
            if self._version not in (None, version):
                self._model.labels(self._version).set(0)
            self._version = version
            self._model.labels(version).set(1)
            self._catalogue = items or 0
            self._drift = Drift(self._drift_config)
            self._clear_drift()
            self._trained_cold.set(math.nan if cold_users is None else cold_users)

    def _clear_drift(self) -> None:
        for gauge in (self._coverage, self._cold, self._shift, self._trained_cold):
            gauge.set(math.nan)
        self._compared.set(0)

    def _show_drift(self) -> None:
        self._score.observe_all(self._drift.newest)
        figures = self._drift.figures
        self._compared.set(figures.answers)
        self._cold.set(figures.cold)
        self._shift.set(figures.scores)
        if self._catalogue:
            self._coverage.set(figures.items / self._catalogue)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The body and content type of ``/metrics``.

        Args:
            accept: the request's Accept header: OpenMetrics where it asks for it.
        """
        encode, content_type = choose_encoder(accept)
        registry = self.registry
        if self._folder is not None:
            _bury_the_dead(self._folder)
            registry = CollectorRegistry()
            _MULTIPROCESS.MultiProcessCollector(registry, path=str(self._folder))
        return encode(registry), content_type


def _bury_the_dead(folder: Path) -> None:
    """Drop the gauges of workers that are no more: killed, they could not do it themselves."""
    for pid in {path.stem.rpartition("_")[2] for path in folder.glob("gauge_live*.db")}:
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            _MULTIPROCESS.mark_process_dead(int(pid), str(folder))
        except PermissionError:
            pass  # another user's, so alive
