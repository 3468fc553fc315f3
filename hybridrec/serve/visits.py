"""One request, from its first byte to its line in the log."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hybridrec.serve.access.callers import NOBODY, Caller

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hybridrec.serve.answers.asking import Answer

VISIT = "hybridrec.visit"
"""Where in the ASGI scope the :class:`Visit` is."""


@dataclass
class Visit:
    """What is known of a request so far.

    Attributes:
        request_id: stands in its answer and in the log.
        arrived: ``time.monotonic()`` when it came in.
        caller: who sent it.
        status: of the answer; 0 before there is one.
        code: of the error, if it was one.
        user: whom it was about, as text; goes nowhere but through a keyed hash.
        model: the version that answered.
        degraded: what was left out for want of time.
        stages: seconds by stage.
        computed: ``time.monotonic()`` when the last of them ended.
    """

    request_id: str
    arrived: float
    caller: Caller = NOBODY
    status: int = 0
    code: str | None = None
    user: str | None = None
    model: str | None = None
    degraded: str | None = None
    stages: Mapping[str, float] = field(default_factory=dict)
    computed: float = 0.0

    def answered(self, found: Answer, now: float) -> None:
        """The model has answered."""
        self.model, self.degraded = found.version, found.degraded
        self.stages, self.computed = found.seconds, now
