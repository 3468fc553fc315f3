"""What is told of every request: counts, a line in the log, a span."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from hybridrec.serve.watch.logs import log_request, user_mark
from hybridrec.serve.wire.errors import GONE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hybridrec.serve.answers.asking import Answer
    from hybridrec.serve.visits import Visit
    from hybridrec.serve.watch.metrics import Metrics
    from hybridrec.serve.watch.tracing import Tracing

_log = logging.getLogger("hybridrec.serve")
_LAG_SECONDS = 0.1


class Observer:
    """Tells of requests.

    Args:
        metrics: where counts go.
        secret: of the installation, for what stands for users.
        tracing: where spans go; None writes none.
    """

    def __init__(self, metrics: Metrics, secret: bytes, tracing: Tracing | None = None) -> None:
        self.metrics = metrics
        self.tracing = tracing
        self._secret = secret

    def answered(self, visit: Visit, found: Answer, *, usual: bool) -> None:
        """The model has answered.

        Args:
            visit: the request.
            found: its answer.
            usual: it is what the current model recommends with all of its stages. Of anything else,
                such as the order of a caller's own candidates, drift must not be told.
        """
        visit.answered(found, time.monotonic())
        if usual:
            # Popular items have scores of another kind; how many get them is a figure of its own.
            whole = not (found.degraded or found.popular)
            scores = [each.score for each in found.items] if whole else []
            items = [each.item for each in found.items]
            self.metrics.observe_answer(scores, items, int(found.popular))

    def saw(self, visit: Visit, method: str, route: str, headers: Mapping[str, str]) -> None:
        """A request was answered, or its client has gone."""
        now = time.monotonic()
        seconds, status = now - visit.arrived, visit.status or GONE
        self.metrics.observe_request(route, status, seconds)
        told: dict[str, str | None] = {"model": visit.model, "degraded": visit.degraded}
        told["error"] = visit.code
        trace = None
        if self.tracing is not None:
            trace = self.tracing.request(
                method,
                route,
                status,
                seconds,
                stages=visit.stages,
                since=now - visit.computed if visit.stages else 0.0,
                headers=headers,
                request_id=visit.request_id,
                **told,
            )
        user = None if visit.user is None else user_mark(self._secret, visit.user)
        log_request(
            method, route, status, seconds, key=visit.caller.key, user=user, trace_id=trace, **told
        )

    def rejected(self, reason: str) -> None:
        """A request was turned away."""
        self.metrics.count_rejected(reason)

    def failed(self, error: Exception) -> None:
        """A request met something that is broken."""
        _log.error("a request failed", exc_info=error)

    async def watch_lag(self) -> None:
        """Count how late the event loop comes back, until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _LAG_SECONDS
            await asyncio.sleep(_LAG_SECONDS)
            self.metrics.observe_lag(max(0.0, loop.time() - due))
