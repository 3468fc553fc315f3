"""What users did."""

from __future__ import annotations

from fastapi import APIRouter

from hybridrec.serve.routes.common import TheService, TheVisit, errors
from hybridrec.serve.wire.schema import Events, EventsResponse

router = APIRouter(prefix="/v1", tags=["events"])


@router.post("/events", responses=errors(409, body=True))
async def events(asked: Events, service: TheService, visit: TheVisit) -> EventsResponse:
    """Store one event, or `{"events": [...]}`, of which all are stored or none.

    When this answers they are on the disk, and the user's next request goes by them. An id that
    was sent before with the same content counts once; with another content it is a conflict.
    """
    return await service.people.append(asked, visit)
