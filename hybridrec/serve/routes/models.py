"""Versions of the model."""

from __future__ import annotations

from fastapi import APIRouter

from hybridrec.serve.routes.common import TheService, errors
from hybridrec.serve.wire.schema import LoadRequest, ModelsResponse

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("", responses=errors())
async def models(service: TheService) -> ModelsResponse:
    """The versions in memory."""
    return service.loaded_models()


@router.post("/load", responses=errors(409, body=True))
async def load(asked: LoadRequest, service: TheService) -> ModelsResponse:
    """Load a version beside the one that answers, warm it, check it, and let it answer.

    Where the check fails (409) the old one goes on.
    """
    return await service.load_model(asked.version)


@router.post("/rollback", responses=errors(409, 413, 415, 408))
async def rollback(service: TheService) -> ModelsResponse:
    """Let the version before answer again, also after a restart."""
    return await service.roll_back()
