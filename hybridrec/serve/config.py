"""Settings of the service."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hybridrec.checks import InputError, real_number, whole_number

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """What ``hybridrec serve`` is told.

    Attributes:
        model: the model folder.
        host: address to listen on; other than loopback only with a key.
        port: 0 takes a free one.
        store: where events and keys are: None for ``service.sqlite`` in the model folder, the path
            of an SQLite file, or a ``postgresql://`` URL.
        workers: processes; more than one needs PostgreSQL.
        hosts: names that requests may be addressed to (Host header); loopback's always may.
        queue: requests that may wait; beyond it 429.
        batch: requests answered together at most; 1 does not batch.
        budget_ms: the most time any request has; None sets no limit.
        rate: requests a second that a key may make, averaged; None sets no limit.
        burst: and at once.
        body_bytes: of a request at most.
        watch_seconds: how often the folder is looked at for a new current version; 0 never.
        health_queries: kept to check new models with; 0 keeps none.
        health_overlap: share of its items that a new model's answers must have in common with the
            old one's, on average over the kept queries; 0 asks for valid answers only.
        certificate: PEM file for TLS, with ``private_key``.
        private_key: its key.
        log_json: JSON lines instead of text.
    """

    model: Path
    host: str = "127.0.0.1"
    port: int = 8000
    store: str | None = None
    workers: int = 1
    hosts: tuple[str, ...] = ()
    queue: int = 256
    batch: int = 32
    budget_ms: float | None = None
    rate: float | None = None
    burst: int = 50
    body_bytes: int = 1 << 20
    watch_seconds: float = 5.0
    health_queries: int = 50
    health_overlap: float = 0.0
    certificate: Path | None = None
    private_key: Path | None = None
    log_json: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", Path(self.model))
        whole_number("port", self.port, most=65_535)
        for name in ("workers", "queue", "batch", "burst", "body_bytes"):
            whole_number(name, getattr(self, name), least=1)
        whole_number("health_queries", self.health_queries)
        real_number("watch_seconds", self.watch_seconds, least=0.0)
        if real_number("health_overlap", self.health_overlap, least=0.0) > 1.0:
            raise InputError(f"health_overlap is {self.health_overlap}; wanted a share, at most 1")
        for name in ("budget_ms", "rate"):
            if getattr(self, name) is not None:
                real_number(name, getattr(self, name), above=0.0)
        if (self.certificate is None) != (self.private_key is None):
            raise InputError("TLS needs both certificate and private_key; got one of them")

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in LOOPBACK
