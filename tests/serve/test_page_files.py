"""The page's files as they are served: types, policy, tags; nothing else gets out."""

import fnmatch
import re
import tomllib
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from hybridrec.serve.routes import page

ROOT = Path(page.__file__).parents[3]
FILES = sorted((ROOT / "hybridrec/serve/page").iterdir())
SCRIPTS = [path for path in FILES if path.suffix == ".js"]
KINDS = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}


@pytest.fixture(scope="module")
def client():
    app = FastAPI()
    app.include_router(page.router)
    return TestClient(app)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_is_served_as_what_it_is(client, path):
    answer = client.get(f"/page/{path.name}")
    assert answer.status_code == 200
    assert answer.content == path.read_bytes()
    assert answer.headers["content-type"].partition(";")[0] == KINDS[path.suffix]
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_page_is_at_the_root_under_a_policy_that_lets_nothing_else_in(client):
    answer = client.get("/")
    assert answer.content == (ROOT / "hybridrec/serve/page/index.html").read_bytes()
    policy = dict(
        rule.strip().split(" ", 1) for rule in answer.headers["content-security-policy"].split(";")
    )
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "connect-src": "'self'",
        "img-src": "'self' data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }


def test_a_file_that_has_not_changed_is_not_sent_again(client):
    tag = client.get("/page/app.js").headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}'):
        again = client.get("/page/app.js", headers={"if-none-match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == tag
    assert client.get("/page/app.js", headers={"if-none-match": '"other"'}).status_code == 200
    assert client.get("/page/app.js").headers["cache-control"] == "no-cache"
    assert client.get("/page/style.css").headers["etag"] != tag


def test_head_is_answered_without_a_body(client):
    answer = client.head("/")
    assert (answer.status_code, answer.content) == (200, b"")
    assert int(answer.headers["content-length"]) > 0


@pytest.mark.parametrize(
    "name", ["nothing.js", "..%2froutes%2fpage.py", "%2e%2e/schema.py", "page.py", "index.html%00"]
)
def test_nothing_else_is_served(client, name):
    assert client.get(f"/page/{name}").status_code == 404


def test_the_schema_of_the_api_does_not_hold_the_page(client):
    assert client.app.openapi()["paths"] == {}


def test_every_file_is_packaged():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["hybridrec"]
    for path in FILES:
        name = str(path.relative_to(ROOT / "hybridrec"))
        assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns), name


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_make_no_markup_of_text_and_ask_nobody_else(path):
    source = path.read_text(encoding="utf-8")
    banned = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|DOMParser"
    )
    assert not re.findall(banned, source)
    assert not re.findall(r"https?://|//cdn", source)
    assert not re.findall(r"localStorage|indexedDB|document\.cookie", source)


def test_every_module_that_is_imported_is_there():
    names = {path.name for path in FILES}
    imported = {
        name
        for path in SCRIPTS
        for name in re.findall(r'from "\./([\w.]+)"', path.read_text(encoding="utf-8"))
    }
    assert imported
    assert imported <= names
    assert names - imported == {"app.js", "index.html", "style.css", "icon.svg"}
