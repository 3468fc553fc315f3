"""What the parts of the service tell of themselves, whoever listens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hybridrec.serve.answers.asking import Degradation, Id


class Meter(Protocol):
    """Told counts and times; :class:`~hybridrec.serve.watch.metrics.Metrics` is one."""

    def observe_stage(self, name: str, seconds: float) -> None:
        """A stage took so long: "queue", "recall", "fuse", "rerank", "newcomers"."""

    def observe_batch(self, size: int) -> None:
        """So many requests were answered together."""

    def set_queue(self, n: int) -> None:
        """So many requests wait."""

    def observe_request(self, route: str, status: int, seconds: float) -> None:
        """A request was answered. ``route`` is the template of the path, never the path."""

    def count_degraded(self, kind: Degradation) -> None:
        """An answer left something out for want of time."""

    def count_rejected(self, reason: str) -> None:
        """A request was turned away: "queue_full", "rate", "key", "scope", "host", "body", ..."""

    def count_cache(self, hits: int, misses: int) -> None:
        """Prefixes that the reranker had at hand, and those that it had to compute."""

    def count_events(self, accepted: int, duplicates: int) -> None:
        """Events that are on the disk, and those that had been there."""

    def observe_answer(
        self, scores: Sequence[float | None], items: Sequence[Id], cold_users: int
    ) -> None:
        """One answer as it was served; ``cold_users`` is 1 where there was no history to go by."""

    def set_model(
        self, version: str, *, items: int | None = None, cold_users: float | None = None
    ) -> None:
        """Another version answers from now on; see ``Metrics.set_model``."""

    def observe_lag(self, seconds: float) -> None:
        """The event loop came back so much later than it was asked to."""
