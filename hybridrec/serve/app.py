"""The application: routes behind the guard, the service for as long as it runs."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from hybridrec import __version__
from hybridrec.serve.access.callers import needed
from hybridrec.serve.access.security import Guard
from hybridrec.serve.opening import open_service
from hybridrec.serve.routes import events, health, page, recommend, users
from hybridrec.serve.routes import models as versions
from hybridrec.serve.visits import VISIT
from hybridrec.serve.wire.errors import RefusalError, of_status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from hybridrec.serve.config import ServeConfig
    from hybridrec.serve.store.contract import Store
    from hybridrec.serve.versions.models import Models

_MOST_MISTAKES = 3


def create_app(
    config: ServeConfig, *, store: Store | None = None, models: Models | None = None
) -> FastAPI:
    """The service as an ASGI application.

    Args:
        config: its settings.
        store: an open one; None opens what the settings name.
        models: loaded; None loads what the settings name. Either is opened when the application
            starts, and closed when it ends, whoever opened it.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            service = await open_service(config, store=store, models=models)
        except Exception as error:
            app.state.failed = error  # for whoever started it to tell
            raise
        app.state.service = service
        try:
            yield
        finally:
            await service.close()

    app = FastAPI(
        title="hybridrec",
        version=__version__,
        description="Recommendations, feedback and models.",
        lifespan=lifespan,
        docs_url=None,  # they load their scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        # Where OpenTelemetry is set up globally, FastAPI's own spans hold paths, and so users' ids.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        exception_handlers={
            HTTPException: _refused_by_status,
            RequestValidationError: _refused_by_schema,
        },
    )
    for part in (recommend, events, users, versions, health, page):
        app.include_router(part.router)
    app.add_middleware(Guard, config=config, state=app.state)
    _describe_keys(app)
    return app


async def _refused_by_status(request: Request, error: HTTPException) -> Response:
    refusal = of_status(error.status_code, error.detail, error.headers)
    if refusal.status == 405:
        # The framework names the methods of the one route that it met first.
        path = getattr(request.scope.get("route"), "path_format", None)
        methods = request.app.openapi()["paths"].get(path)
        if methods:
            refusal.headers["Allow"] = ", ".join(sorted(method.upper() for method in methods))
    return _answered(request, refusal)


async def _refused_by_schema(request: Request, error: RequestValidationError) -> Response:
    mistakes = error.errors()
    if mistakes and mistakes[0]["type"] == "json_invalid":
        said = mistakes[0].get("ctx", {}).get("error", "")
        return _answered(request, RefusalError(400, "malformed", f"the body is no JSON: {said}"))
    # Of what was sent only where it is wrong: the rest may be somebody's.
    listed = [_mistake(each) for each in mistakes[:_MOST_MISTAKES]]
    if len(mistakes) > _MOST_MISTAKES:
        listed.append(f"and {len(mistakes) - _MOST_MISTAKES} more")
    return _answered(request, RefusalError(422, "invalid", "; ".join(listed)))


def _mistake(error: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in error["loc"][1:]) or str(error["loc"][0])
    return f"{where[:100]}: {error['msg']}"


def _answered(request: Request, refusal: RefusalError) -> Response:
    visit = request.scope[VISIT]
    visit.code = refusal.code
    return Response(
        refusal.body(visit.request_id),
        refusal.status,
        headers=refusal.headers,
        media_type="application/json",
    )


def _describe_keys(app: FastAPI) -> None:
    """Let the OpenAPI description say which paths need a key."""
    plain = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = plain()
            kinds = found.setdefault("components", {}).setdefault("securitySchemes", {})
            kinds["key"] = {"type": "http", "scheme": "bearer"}
            for path, methods in found["paths"].items():
                for method, operation in methods.items():
                    scope = needed(method.upper(), path)
                    if scope is not None:
                        operation["security"] = [{"key": [scope]}]
        return app.openapi_schema or found

    app.openapi = described  # type: ignore[method-assign]
