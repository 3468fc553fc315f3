"""For probes and Prometheus."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from hybridrec.serve.routes.common import TheService, errors
from hybridrec.serve.wire.schema import ErrorResponse, HealthResponse, ReadyResponse

router = APIRouter(tags=["operating"])

_AWAY: dict[int | str, dict[str, Any]] = {
    503: {"model": ErrorResponse, "description": "No model, or the store is away."}
}


@router.get("/healthz")
async def healthz() -> HealthResponse:
    """The process answers."""
    return HealthResponse()


@router.get("/readyz", responses=_AWAY)
async def readyz(service: TheService) -> ReadyResponse:
    """It has a model, and its store can be reached."""
    return await service.ready()


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        **errors(),
        200: {"description": "Prometheus' text format.", "content": {"text/plain": {}}},
    },
)
def metrics(request: Request, service: TheService) -> Response:
    """Counts and times, for Prometheus. In a thread: it is milliseconds of work."""
    body, kind = service.metrics.render(request.headers.get("accept", ""))
    return Response(body, headers={"Content-Type": kind})
