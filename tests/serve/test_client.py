"""The client against a real service behind a real port, and against one that has bad days."""

import asyncio
import inspect
import json
import socket
import ssl
import threading
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

import httpx2
import numpy as np
import pyarrow as pa
import pytest
from api_helper import keyed, listening, settings

import hybridrec as hr
from hybridrec.checks import InputError
from hybridrec.client import (
    AsyncClient,
    AwayError,
    BusyError,
    Client,
    ClientError,
    ContradictionError,
    NotAllowedError,
    NotFoundError,
    RefusedError,
    calls,
)
from hybridrec.serve.access.keys import create_key
from hybridrec.serve.store.by_url import open_store

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def url(model_folder, tmp_path_factory):
    with listening(settings(model_folder, tmp_path_factory.mktemp("client"))) as found:
        yield found


def test_every_call_does_what_it_says(url):
    with Client(url) as client:
        assert client.ready().model == client.models()[0].version
        assert client.find_items("heat")[0].item == "i0"
        assert client.similar("i3", k=2).items[0].rank == 1
        assert client.recommend(user="new").unknown_user
        assert client.send_event(user="new", item="i3").accepted == 1
        assert client.send_events([{"user": "new", "item": "i4", "liked": False}]).accepted == 1
        found = client.recommend(user="new", k=30, stages={"rerank": False})
        assert not found.unknown_user
        assert not {"i3", "i4"} & {item.item for item in found.items}
        assert {item.item for item in client.rank(user="new", candidates=["i5", "i6"]).items} == {
            "i5",
            "i6",
        }
        assert [event.item for event in client.user("new").events] == ["i3", "i4"]
        assert client.forget("new").events == 2
        with pytest.raises(NotFoundError):
            client.user("new")


def test_the_same_with_asyncio(url):
    async def ask():
        async with AsyncClient(url) as client:
            assert (await client.ready()).model == (await client.models())[0].version
            assert (await client.find_items("heat"))[0].item == "i0"
            assert (await client.similar("i3", k=2)).items[0].rank == 1
            await client.send_event(user="async", item="i3")
            await client.send_events([{"user": "async", "item": "i4"}])
            found = await asyncio.gather(
                *(client.recommend(user="async", k=3) for _ in range(20)),
                client.rank(user="async", candidates=["i5"]),
            )
            assert len((await client.user("async")).events) == 2
            assert (await client.forget("async")).events == 2
            with pytest.raises(NotFoundError):
                await client.user("async")
            return found

    assert all(not answer.popular for answer in asyncio.run(ask()))


def test_both_clients_offer_the_same():
    def offered(kind):
        return {
            name: inspect.signature(method)
            for name, method in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_")
        }

    assert offered(Client) == offered(AsyncClient)
    assert hr.client.Client is Client


def test_ids_may_hold_anything(url):
    with Client(url) as client:
        users = ("a/b", "../x", "ü €", "a%2Fb", "?q#f", "..", ".", "//", "x" * 256, "☃" * 256)
        for user in users:
            client.send_event(user=user, item="i1")
            assert client.user(user).user == user
            assert client.forget(user).events == 1


def test_models_are_switched(own_folder, tmp_path, save_another):
    with listening(settings(own_folder, tmp_path)) as url, Client(url) as client:
        first = client.ready().model
        with pytest.raises(ContradictionError) as told:
            client.roll_back()
        assert told.value.code == "nothing_before"
        second = save_another(own_folder)
        assert [model.version for model in client.load_model()] == [second, first]
        assert [model.version for model in client.roll_back()] == [first, second]
        assert client.load_model(second)[0].version == second


def test_errors_say_what_happened(url):
    with Client(url) as client:
        with pytest.raises(RefusedError) as told:
            client.recommend(history=["zz"])
        error = told.value
        assert (error.status, error.code) == (422, "unknown_id")
        assert "'zz'" in error.message
        assert len(error.request_id) == 16
        assert error.request_id in str(error)
        client.send_event(id="once", user="e", item="i1")
        assert client.send_event(id="other", user="e", item="i1").accepted == 1
        with pytest.raises(ContradictionError, match="conflict"):
            client.send_event(id="once", user="e", item="i2")
        for name in ("\ud800", "x" * 100_000):
            with pytest.raises(RefusedError, match="invalid"):
                client.user(name)
        for value in ({1}, b"u", float("nan"), "\ud800"):
            with pytest.raises(RefusedError, match="POST /v1/recommend cannot be sent"):
                client.recommend(user=value)
        for time in ("2024-05-01", 1714564800, datetime(2024, 5, 1)):
            with pytest.raises(RefusedError, match=r"time: .* RFC 3339|time: .* timezone"):
                client.send_event(user="e", item="i1", time=time)


def test_arrays_and_written_times_are_taken(url):
    with Client(url) as client:
        listed = client.recommend(history=["i1", "i2"], block=["i3"], k=3).items
        for kind in (np.array, pa.array, lambda ids: list(np.array(ids))):
            found = client.recommend(history=kind(["i1", "i2"]), block=kind(["i3"]), k=np.int64(3))
            assert found.items == listed
        for user, time in enumerate(("2024-05-01T12:00:00Z", NOON)):
            client.send_event(user=np.int64(user), item="i1", time=time)
            assert client.user(np.int64(user)).events[0].time == NOON
            client.forget(user)


def test_a_key_opens_what_it_is_for(model_folder, tmp_path):
    config = settings(model_folder, tmp_path)
    store = open_store(config.store)
    key = create_key(store, "shop", ("recommend",))
    store.close()
    with listening(config) as url:
        with Client(url, key=key) as client:
            assert client.recommend(history=["i1"]).items
            with pytest.raises(NotAllowedError) as told:
                client.user("u1")
            assert (told.value.status, told.value.code) == (403, "not_allowed")
            assert key not in repr(client)
        with Client(url) as client, pytest.raises(NotAllowedError) as told:
            client.recommend(history=["i1"])
        assert told.value.status == 401


class Days:
    """A transport that answers as it is told, and remembers what it was asked."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.bodies = []

    def __call__(self, request):
        self.bodies.append(request.content)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def refused(status, code="x", **headers):
    error = {"error": {"code": code, "message": "m", "request_id": "r"}}
    return httpx2.Response(status, json=error, headers=headers)


def fine():
    return httpx2.Response(200, json={"request_id": "r", "accepted": 1, "duplicates": 0})


@pytest.fixture
def waits(monkeypatch):
    found = []
    monkeypatch.setattr("hybridrec.client.blocking.time.sleep", found.append)
    return found


def with_days(*answers, **options):
    days = Days(*answers)
    return days, Client("http://service", transport=httpx2.MockTransport(days), **options)


def test_who_is_busy_or_away_is_asked_again_with_the_same_ids(waits):
    days, client = with_days(
        refused(429, **{"retry-after": "7"}), refused(503), httpx2.ConnectError("no"), fine()
    )
    assert client.send_event(user="u", item="i").accepted == 1
    assert 7.0 <= waits[0] <= 8.75
    assert all(0 < wait <= 0.4 for wait in waits[1:])
    assert len(days.bodies) == 4
    assert len(set(days.bodies)) == 1
    event = json.loads(days.bodies[0])["events"][0]
    assert len(event["id"]) == 32
    assert event["time"].endswith("+00:00")


def test_an_event_with_the_callers_id_may_be_sent_again_by_the_caller(waits):
    days, client = with_days(fine(), fine())
    for _ in range(2):
        client.send_event(id="mine", user="u", item="i")
    assert json.loads(days.bodies[0]) == {"events": [{"id": "mine", "user": "u", "item": "i"}]}
    assert days.bodies[0] == days.bodies[1]


def test_patience_ends(waits):
    _, client = with_days(*[refused(429, "rate", **{"retry-after": "1"})] * 3, retries=2)
    with pytest.raises(BusyError) as told:
        client.recommend(user="u")
    assert told.value.retry_after == 1.0
    assert len(waits) == 2
    assert all(1.0 <= wait <= 1.25 for wait in waits)
    _, client = with_days(httpx2.ConnectError("refused"), retries=0)
    with pytest.raises(AwayError, match="http://service") as told:
        client.models()
    assert (told.value.status, told.value.code) == (None, "unreachable")


def test_nobody_waits_for_what_takes_too_long(waits):
    _, client = with_days(refused(503, **{"retry-after": "3600"}))
    with pytest.raises(AwayError):
        client.recommend(user="u")
    assert waits == []


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_url_that_is_none_is_refused_at_once(kind):
    for wrong in ("127.0.0.1:8765", "localhost:8000", "", "//host", "http://", "ftp://h", "http:h"):
        with pytest.raises(InputError, match=f"url is '{wrong}'; wanted http:// or https://"):
            kind(wrong)
    with pytest.raises(InputError, match="Invalid port"):
        kind("http://host:port")


@contextmanager
def answering(reply):
    """The port of somebody who answers every connection with the same bytes, and who came."""
    came = []

    def answer():
        with suppress(OSError):
            while True:
                connection, _ = server.accept()
                with connection, suppress(OSError):
                    came.append(connection.recv(1000))
                    connection.sendall(reply)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer)
        thread.start()
        yield server.getsockname()[1], came
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_what_cannot_get_better_is_asked_for_once(waits):
    def once(error, says):
        days, client = with_days(error)
        with pytest.raises(ClientError, match=says) as told:
            client.recommend(user="u")
        assert not isinstance(told.value, AwayError)
        assert told.value.code == "unreachable"
        assert (len(days.bodies), waits) == (1, [])

    untrusted = httpx2.ConnectError("certificate verify failed")
    untrusted.__cause__ = ssl.SSLCertVerificationError()
    once(untrusted, "certificate verify failed")
    once(httpx2.LocalProtocolError("Illegal header value"), "Illegal header")
    with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as (port, came):
        with Client(f"https://127.0.0.1:{port}") as client, pytest.raises(ClientError, match="SSL"):
            client.ready()
        assert (len(came), waits) == (1, [])
    zipped = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc"
    with answering(zipped) as (port, came):
        with Client(f"http://127.0.0.1:{port}") as client, pytest.raises(ClientError):
            client.ready()
        assert (len(came), waits) == (1, [])
    stopped = httpx2.ConnectError("EOF occurred in violation of protocol")
    stopped.__cause__ = ssl.SSLEOFError()
    _, client = with_days(stopped, fine())
    assert client.send_event(user="u", item="i").accepted == 1


def test_rolling_back_is_asked_for_once(waits):
    days, client = with_days(refused(503))
    with pytest.raises(AwayError):
        client.roll_back()
    assert len(days.bodies) == 1


def test_a_stranger_is_told_from_the_service(waits):
    page = httpx2.Response(200, text="<html>")
    with pytest.raises(ClientError, match="no RecommendResponse"):
        with_days(page)[1].recommend(user="u")
    proxy = httpx2.Response(502, text="<html>Bad Gateway")
    with pytest.raises(AwayError, match="HTTP 502"):
        with_days(proxy, retries=0)[1].recommend(user="u")
    with pytest.raises(ClientError, match="HTTP 500"):
        with_days(httpx2.Response(500))[1].recommend(user="u")


def test_calls_are_what_the_api_has(model_folder, tmp_path):
    with keyed(settings(model_folder, tmp_path)) as (client, *_):
        paths = client.get("/openapi.json").json()["paths"]
    made = [
        calls.recommend(user="u"),
        calls.rank(user="u", candidates=["i"]),
        calls.similar("i", 1),
        calls.items("x", 1),
        calls.send_events([]),
        calls.user("u"),
        calls.forget("u"),
        calls.models(),
        calls.load_model(None),
        calls.roll_back(),
        calls.ready(),
    ]
    for call in made:
        path = call.path.replace("/users/u", "/users/{user}")
        answer = paths[path][call.method.lower()]["responses"]["200"]
        schema = answer["content"]["application/json"]["schema"]
        assert schema["$ref"].rpartition("/")[2] == call.answer.__name__
