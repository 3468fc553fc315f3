"""The page at ``/``: plain files out of the package, under a policy that lets nothing else in."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

router = APIRouter(include_in_schema=False)

_KINDS = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Kept by the browser, but asked for again each time: another release is seen at once.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class _File:
    """One file of the page."""

    body: bytes
    kind: str
    etag: str


@cache
def _page() -> dict[str, _File]:
    """Every file by its name; what is not in here is not served."""
    found = {}
    for entry in (files("hybridrec.serve") / "page").iterdir():
        kind = _KINDS.get(entry.name.rpartition(".")[2])
        if kind is not None:
            body = entry.read_bytes()
            etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
            found[entry.name] = _File(body, kind, etag)
    return found


@router.api_route("/", methods=["GET", "HEAD"])
async def index(request: Request) -> Response:
    """The page itself."""
    return _served(request, "index.html")


@router.api_route("/page/{name}", methods=["GET", "HEAD"])
async def part(request: Request, name: str) -> Response:
    """A script, the style sheet or the icon."""
    return _served(request, name)


def _served(request: Request, name: str) -> Response:
    found = _page().get(name)
    if found is None:
        raise HTTPException(404, f"the page has no file {name[:100]!r}")
    headers = {**_HEADERS, "ETag": found.etag}
    known = request.headers.get("if-none-match", "")
    if found.etag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
        return Response(status_code=304, headers=headers)
    return Response(found.body, headers={**headers, "Content-Type": found.kind})
