"""What stands before every route, asked as a browser, a stranger or a mistake would."""

import asyncio
import json

import pytest
from api_helper import LOCAL, asking, error, keyed, listening, settings
from starlette.testclient import TestClient

import hybridrec.serve.access.security as security
from hybridrec.checks import InputError
from hybridrec.cli import _parser
from hybridrec.serve.access.callers import needed
from hybridrec.serve.app import create_app
from hybridrec.serve.config import ServeConfig
from hybridrec.serve.opening import key_command

ASKED = {"history": ["i1", "i2"], "k": 2}


@pytest.fixture(scope="module")
def open_client(model_folder, tmp_path_factory):
    with asking(settings(model_folder, tmp_path_factory.mktemp("open"))) as client:
        yield client


@pytest.fixture(scope="module")
def with_keys(model_folder, tmp_path_factory):
    with keyed(settings(model_folder, tmp_path_factory.mktemp("keyed"))) as found:
        yield found


def test_every_answer_carries_an_id_and_closes_the_windows(open_client):
    for path in ("/healthz", "/v1/items?search=heat", "/none", "/openapi.json"):
        headers = open_client.get(path).headers
        assert len(headers["x-request-id"]) == 16
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["cache-control"] == "no-store"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert not [name for name in headers if name.startswith("access-control")]


def test_a_sane_request_id_is_kept_and_no_other(open_client):
    for given, kept in (("Order-7.a_b", True), ("a b", False), ("x" * 65, False), ("", False)):
        response = open_client.get("/healthz", headers={"x-request-id": given})
        assert (response.headers["x-request-id"] == given) is kept
    response = open_client.post("/v1/recommend", json=ASKED, headers={"x-request-id": "mine"})
    assert response.json()["request_id"] == "mine"


def test_a_name_that_somebody_else_points_here_is_refused(open_client):
    for path in ("/", "/v1/items?search=", "/metrics", "/openapi.json"):
        response = open_client.get(path, headers={"host": "evil.example"})
        assert "'evil.example'" in error(response, 421, "wrong_host")
    assert open_client.get("/healthz", headers={"host": "10.1.2.3:80"}).status_code == 200


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "json"])
def test_what_a_form_of_another_site_can_send_is_refused(open_client, kind):
    headers = {"content-type": kind} if kind else {}
    for path in ("/v1/recommend", "/v1/events", "/v1/models/rollback"):
        response = open_client.post(path, content=json.dumps(ASKED), headers=headers)
        error(response, 415, "content_type")
    error(open_client.post("/v1/models/rollback", headers=headers), 415, "content_type")
    error(open_client.put("/v1/events", content="x", headers=headers), 415, "content_type")
    error(open_client.put("/v1/events"), 405, "method_not_allowed")


def test_another_method_is_told_which_there_are(open_client):
    for path, methods in (("/v1/users/u1", "DELETE, GET"), ("/v1/recommend", "POST")):
        response = open_client.put(path)
        error(response, 405, "method_not_allowed")
        assert response.headers["allow"] == methods


def test_json_may_say_its_character_set(open_client):
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    response = open_client.post("/v1/recommend", content=json.dumps(ASKED), headers=headers)
    assert response.status_code == 200


def test_another_origin_is_told_nothing(open_client):
    headers = {"origin": "https://evil.example", "access-control-request-method": "DELETE"}
    response = open_client.options("/v1/users/u1", headers=headers)
    error(response, 405, "method_not_allowed")
    assert "access-control-allow-origin" not in response.headers


def test_a_body_ends_somewhere(model_folder, tmp_path):
    with asking(settings(model_folder, tmp_path, body_bytes=1000)) as client:
        response = client.post("/v1/recommend", json={"history": ["i1"] * 500})
        assert "1000 bytes" in error(response, 413, "too_large")

        def endless():
            for _ in range(3):
                yield b" " * 400

        headers = {"content-type": "application/json"}
        response = client.post("/v1/recommend", content=endless(), headers=headers)
        error(response, 413, "too_large")
        assert client.post("/v1/recommend", json=ASKED).status_code == 200


def test_a_body_that_does_not_come_is_not_waited_for(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(security, "BODY_SECONDS", 0.05)
    app = create_app(settings(model_folder, tmp_path))
    sent = []

    async def receive():
        await asyncio.sleep(60)

    async def send(message):
        sent.append(message)

    async def ask():
        headers = [(b"host", b"localhost"), (b"content-length", b"9")]
        headers.append((b"content-type", b"application/json"))
        scope = {"type": "http", "method": "POST", "path": "/v1/recommend", "headers": headers}
        await app(scope | {"query_string": b"", "client": ("1.2.3.4", 5)}, receive, send)

    with TestClient(app, base_url=LOCAL) as client:
        client.portal.call(ask)
    assert sent[0]["status"] == 408
    assert json.loads(sent[1]["body"])["error"]["code"] == "slow_body"


def test_without_a_key_the_way_is_closed_as_soon_as_there_is_one(with_keys):
    client, _, _ = with_keys
    client.headers.pop("authorization", None)
    for header in (None, "", "Bearer", "Bearer ", "Basic YTpi", "Bearer nonsense", "Bearer é"):
        headers = {} if header is None else {"authorization": header.encode("latin-1")}
        response = client.post("/v1/recommend", json=ASKED, headers=headers)
        error(response, 401, "unauthorized")
        assert response.headers["www-authenticate"] == "Bearer"
    assert client.get("/healthz").status_code == 200
    assert client.get("/readyz").status_code == 200


CALLS = [
    ("POST", "/v1/recommend", ASKED, "recommend"),
    ("POST", "/v1/rank", {"history": ["i1"], "candidates": ["i2"]}, "recommend"),
    ("POST", "/v1/similar", {"item": "i1"}, "recommend"),
    ("GET", "/v1/items?search=heat", None, "recommend"),
    ("POST", "/v1/events", {"id": "a", "user": "new", "item": "i1"}, "events"),
    ("GET", "/v1/users", None, "admin"),
    ("GET", "/v1/users/u1", None, "admin"),
    ("GET", "/v1/models", None, "admin"),
    ("POST", "/v1/models/load", {}, "admin"),
    ("POST", "/v1/models/rollback", {}, "admin"),
    ("GET", "/metrics", None, "admin"),
    ("DELETE", "/v1/users/nobody", None, "admin"),
    ("POST", "/v1/recommend", {"user": "u1", "explain": True}, "admin"),
    ("POST", "/v1/recommend", {**ASKED, "model": "x"}, "admin"),
    ("POST", "/v1/rank", {"user": "u1", "explain": True, "candidates": ["i2"]}, "admin"),
]


@pytest.mark.parametrize(("method", "path", "body", "scope"), CALLS)
def test_every_call_needs_its_scope(with_keys, method, path, body, scope):
    _, having, _ = with_keys
    for key in ("recommend", "events", "admin"):
        if (method, key) in (("DELETE", "admin"), ("POST", "admin")) and "model" in path:
            continue  # would be done
        response = having(key).request(method, path, json=body)
        if key in (scope, "admin"):
            assert response.status_code not in (401, 403), (key, response.text)
        else:
            message = error(response, 403, "not_allowed")
            assert f"needs the scope {scope}" in message or scope == "admin"
            assert "u1" not in message


def test_every_route_is_closed_or_meant_to_be_open(with_keys):
    client, _, _ = with_keys
    described = client.get("/openapi.json").json()["paths"]
    free = {
        path
        for path, methods in described.items()
        for one in methods
        if not needed(one.upper(), path)
    }
    assert free == {"/healthz", "/readyz"}
    tried = {
        (method, path.partition("?")[0].replace("/u1", "/{user}")) for method, path, *_ in CALLS
    }
    tried = {(method, path.replace("/nobody", "/{user}")) for method, path in tried}
    there = {
        (method.upper(), path) for path, methods in described.items() for method in methods
    } - {("GET", "/healthz"), ("GET", "/readyz")}
    assert there == tried


def test_a_revoked_key_opens_nothing(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("hybridrec.serve.access.callers.FRESH", 0.0)
    with keyed(settings(model_folder, tmp_path)) as (_, having, store):
        assert having("recommend").post("/v1/recommend", json=ASKED).status_code == 200
        keys = store.keys()
        assert all(store.revoke_key(key.id) for key in keys)
        response = having("recommend").post("/v1/recommend", json=ASKED)
        error(response, 401, "unauthorized")
        assert having("admin").get("/v1/users/u1").status_code == 401


def test_a_key_that_is_made_later_closes_the_open_door(model_folder, tmp_path, monkeypatch):
    from hybridrec.serve.access.keys import create_key
    from hybridrec.serve.store.by_url import open_store

    monkeypatch.setattr("hybridrec.serve.access.callers.FRESH", 0.0)
    config = settings(model_folder, tmp_path)
    store = open_store(config.store)
    with asking(config, store=store) as client:
        assert client.get("/v1/models").status_code == 200
        create_key(store, "first", ("recommend",))
        error(client.get("/v1/models"), 401, "unauthorized")


def test_the_network_is_not_let_in_without_a_key(model_folder, tmp_path):
    config = settings(model_folder, tmp_path, host="0.0.0.0")
    with pytest.raises(InputError, match="hybridrec keys create"), asking(config):
        pass


@pytest.mark.parametrize(
    ("store", "where"),
    [
        (None, "--model m"),
        ("keys.sqlite", "--store keys.sqlite"),
        ("postgresql://me:secret@host/db", "--store postgresql://..."),
    ],
)
def test_the_first_key_is_made_where_the_service_looks_for_it(store, where, capsys):
    command = key_command(ServeConfig(model="m", store=store), "admin")
    assert command == f"hybridrec keys create NAME --scope admin {where}"
    assert _parser().parse_args(command.split()[1:]).name == "NAME"


def test_several_processes_need_a_store_that_they_can_share(model_folder, tmp_path):
    config = settings(model_folder, tmp_path, workers=2)
    with pytest.raises(InputError, match="postgresql"), asking(config):
        pass


def test_who_asks_too_often_is_told_when_to_come_back(model_folder, tmp_path):
    with asking(settings(model_folder, tmp_path, rate=0.5, burst=3)) as client:
        for _ in range(3):
            assert client.get("/v1/items?search=heat").status_code == 200
        response = client.get("/v1/items?search=heat")
        error(response, 429, "rate")
        assert 1 <= int(response.headers["retry-after"]) <= 6
        assert client.get("/healthz").status_code == 200
        assert 'hybridrec_rejected_total{reason="rate"} 1.0' in counts(client)


def counts(client):
    return client.app.state.service.metrics.render()[0].decode()


def test_wrong_keys_are_limited_by_address_and_each_key_by_itself(model_folder, tmp_path):
    with keyed(settings(model_folder, tmp_path, rate=0.5, burst=2)) as (client, having, _):
        wrong = {"authorization": "Bearer nonsense"}
        found = [client.get("/v1/models", headers=wrong).status_code for _ in range(3)]
        assert found == [401, 401, 429]
        for scope in ("recommend", "admin"):
            asked = [having(scope).get("/v1/items?search=").status_code for _ in range(3)]
            assert asked == [200, 200, 429]


def test_a_broken_part_is_told_in_the_same_shape_and_nothing_else_is(open_client, monkeypatch):
    async def broken(*_):
        raise ZeroDivisionError("secret words")

    service = open_client.app.state.service
    monkeypatch.setattr(service, "recommend", broken)
    response = open_client.post("/v1/recommend", json=ASKED)
    assert "secret" not in error(response, 500, "internal")


def test_over_a_real_connection_a_large_body_is_cut_short(model_folder, tmp_path):
    import socket
    from urllib.parse import urlsplit

    with listening(settings(model_folder, tmp_path, body_bytes=10_000)) as url:
        where = urlsplit(url)
        with socket.create_connection((where.hostname, where.port), timeout=20) as connection:
            connection.sendall(
                b"POST /v1/recommend HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json"
                b"\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            for _ in range(20):
                connection.sendall(b"400\r\n" + b" " * 0x400 + b"\r\n")
            answer = connection.recv(10_000).decode()
    assert answer.startswith("HTTP/1.1 413")
    assert '"too_large"' in answer
