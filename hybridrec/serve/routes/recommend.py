"""Ranked lists: for people, for the caller's own candidates, and beside an item."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from hybridrec.serve.routes.common import TheService, TheVisit, errors, unless_gone
from hybridrec.serve.wire.schema import (
    ItemsQuery,
    ItemsResponse,
    RankRequest,
    RecommendRequest,
    RecommendResponse,
    SimilarRequest,
    SimilarResponse,
)

router = APIRouter(prefix="/v1", tags=["recommending"])


@router.post("/recommend", responses=errors(409, body=True))
async def recommend(
    asked: RecommendRequest, request: Request, service: TheService, visit: TheVisit
) -> RecommendResponse:
    """The best items for a user, or for a history of somebody the service does not know.

    A user of whom nothing is known gets popular items, and `unknown_user` says so.
    """
    return await unless_gone(request, service.recommend(asked, visit))


@router.post("/rank", responses=errors(409, body=True))
async def rank(
    asked: RankRequest, request: Request, service: TheService, visit: TheVisit
) -> RecommendResponse:
    """The caller's own candidates in order, all of them."""
    return await unless_gone(request, service.rank(asked, visit))


@router.post("/similar", responses=errors(body=True))
async def similar(asked: SimilarRequest, service: TheService, visit: TheVisit) -> SimilarResponse:
    """The items nearest to one, by the cosine of their vectors."""
    return await service.similar(asked, visit)


@router.get("/items", responses=errors(422))
async def items(asked: Annotated[ItemsQuery, Query()], service: TheService) -> ItemsResponse:
    """Items of the catalogue: by id, by the beginning of the title, by every word of it."""
    return await service.find_items(asked.search, asked.limit)
