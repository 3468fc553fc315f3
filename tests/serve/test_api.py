"""The API against the real model and the real store."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import httpx2
import pytest
from api_helper import asking, error, listening, settings

from hybridrec.checks import StorageError
from hybridrec.serve.service import Service
from hybridrec.serve.wire.schema import RecommendResponse, UserResponse
from hybridrec.serve.wire.schema_types import MOST_EVENTS


@pytest.fixture(scope="module")
def client(model_folder, tmp_path_factory):
    with asking(settings(model_folder, tmp_path_factory.mktemp("api"))) as found:
        yield found


@pytest.fixture
def own(own_folder, tmp_path):
    """An application whose folder and store a test may change."""
    with asking(settings(own_folder, tmp_path)) as found:
        yield found


def recommend(client, status=200, **asked):
    response = client.post("/v1/recommend", json=asked)
    assert response.status_code == status, response.text
    return RecommendResponse.model_validate_json(response.content)


def send(client, *events, **event):
    return client.post("/v1/events", json={"events": events} if events else event)


# -- recommending ---------------------------------------------------------------------------------


def test_a_user_of_the_model_gets_what_the_library_recommends(client, engine):
    expected = engine.recommend(["u1"], k=5, frame="pyarrow").to_pylist()
    found = recommend(client, user="u1", k=5)
    assert [item.item for item in found.items] == [row["item"] for row in expected]
    assert [item.rank for item in found.items] == [1, 2, 3, 4, 5]
    assert [item.score for item in found.items] == pytest.approx([row["score"] for row in expected])
    assert found.user == "u1"
    assert not found.unknown_user
    assert not found.popular
    assert found.items[0].title


def test_a_history_gets_the_same_as_in_the_library(client, engine):
    expected = engine.recommend(histories=[["i3", "i4"]], k=4, frame="pyarrow").to_pylist()
    found = recommend(client, history=["i3", "i4"], k=4)
    assert [item.item for item in found.items] == [row["item"] for row in expected]
    assert found.user is None
    assert found.history is None
    assert found.seconds is None


def test_somebody_unknown_gets_popular_items_and_is_told_so(client):
    found = recommend(client, user="nobody", k=3)
    assert found.unknown_user
    assert found.popular
    assert len(found.items) == 3
    found = recommend(client, history=[], k=3)
    assert found.popular
    assert not found.unknown_user


def test_what_may_be_asked_is_obeyed(client):
    allowed = ["i1", "i2", "i9", "i10"]
    found = recommend(client, history=["i1"], allow=allowed, block=["i9"], k=10)
    assert {item.item for item in found.items} == {"i2", "i10"}
    found = recommend(client, history=["i1"], allow=allowed, exclude_seen=False)
    assert {item.item for item in found.items} == set(allowed)
    assert recommend(client, history=["i1"], allow=[]).items == []
    assert len(recommend(client, history=["i1"], k=1000).items) == 29
    found = recommend(client, history=["i1"], stages={"rerank": False})
    assert not any(item.reranked for item in found.items)


def test_reasons_are_given_where_they_are_asked_for(client):
    found = recommend(client, user="u1", k=3, explain=True)
    assert found.items[0].why.ranks["answer"] == 1
    assert found.items[0].why.signals
    assert {reason.item for reason in found.items[0].why.because} <= {
        event.item for event in found.history
    }
    assert all(reason.title for reason in found.items[0].why.because)
    assert {"queue", "recall"} <= set(found.seconds)


def test_ranking_answers_with_every_candidate_once(client):
    body = {"user": "u1", "candidates": ["i5", "i7", "i5", "i2"]}
    response = client.post("/v1/rank", json=body)
    assert response.status_code == 200
    items = response.json()["items"]
    assert sorted(item["item"] for item in items) == ["i2", "i5", "i7"]
    scores = [item["score"] for item in items if item["score"] is not None]
    assert scores == sorted(scores, reverse=True)


def test_neighbours_are_those_of_the_library(client, engine):
    expected = engine.similar_items(["i3"], k=4, frame="pyarrow").to_pylist()
    found = client.post("/v1/similar", json={"item": "i3", "k": 4}).json()
    assert [item["item"] for item in found["items"]] == [row["similar_item"] for row in expected]
    assert found["items"][0]["title"]
    assert len(client.post("/v1/similar", json={"item": "i3", "k": 1000}).json()["items"]) == 29
    message = error(client.post("/v1/similar", json={"item": "zz"}), 422, "unknown_id")
    assert "'zz'" in message


def test_items_are_found_by_id_and_by_title(client):
    def found(text, limit=10):
        response = client.get("/v1/items", params={"search": text, "limit": limit})
        return [item["item"] for item in response.json()["items"]]

    assert found("i7") == ["i7"]
    assert found("HEAT") == ["i0", "i15"]
    assert found("crime fargo") == ["i16"]
    assert found("", limit=3) == ["i0", "i1", "i2"]
    assert found("no such words") == []


@pytest.mark.parametrize(
    ("asked", "code", "message"),
    [
        ({}, "invalid", "neither"),
        ({"user": "u1", "history": []}, "invalid", "both"),
        ({"user": True}, "invalid", "user"),
        ({"user": 1.0}, "invalid", "user"),
        ({"user": "u1", "k": 0}, "invalid", "k: "),
        ({"user": "u1", "k": "5"}, "invalid", "k: "),
        ({"user": "u1", "kk": 5}, "invalid", "kk: "),
        ({"history": ["i1", "zz"]}, "unknown_id", "history[1] is 'zz'"),
        ({"user": "u1", "allow": ["zz"]}, "unknown_id", "'zz'"),
        ({"user": "u1", "block": ["zz"]}, "unknown_id", "'zz'"),
        ({"user": "u1", "budget_ms": 0}, "invalid", "budget_ms"),
        ({"user": "u1", "model": "none"}, "invalid", "none"),
        ({"user": "u1", "history": None, "context": {"a": [1]}}, "invalid", "context"),
        ({"history": ["i1"] * 1001}, "invalid", "history"),
    ],
)
def test_what_is_wrong_is_named(client, asked, code, message):
    assert message in error(client.post("/v1/recommend", json=asked), 422, code)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[" * 100_000, b'{"k": ' + b"1" * 5000 + b"}", b'{"k": NaN}', b"\xff\xfe"]
)
def test_what_is_no_json_is_refused(client, body):
    response = client.post(
        "/v1/recommend", content=body, headers={"content-type": "application/json"}
    )
    assert response.status_code in (400, 422)
    assert set(response.json()) == {"error"}


def test_what_was_sent_does_not_come_back_from_where_it_was_right(client):
    body = {"user": "a-private-name", "k": -1}
    assert "private" not in error(client.post("/v1/recommend", json=body), 422, "invalid")


def test_a_deadline_takes_off_what_there_is_no_time_for(client):
    recommend(client, history=["i1"])
    found = recommend(client, history=["i1"], budget_ms=0.001)
    assert found.degraded in ("no_reranker", "popularity")
    assert found.items


def test_the_services_own_limit_holds_for_who_names_none(model_folder, tmp_path):
    with asking(settings(model_folder, tmp_path, budget_ms=0.001)) as client:
        assert recommend(client, history=["i1"]).degraded
        assert recommend(client, history=["i1"], budget_ms=60_000).degraded


# -- events ---------------------------------------------------------------------------------------


def test_the_next_request_goes_by_the_event(client):
    assert recommend(client, user="fresh", k=30).unknown_user
    assert send(client, id="1", user="fresh", item="i3").json()["accepted"] == 1
    found = recommend(client, user="fresh", k=30)
    assert not found.unknown_user
    assert not found.popular
    assert "i3" not in {item.item for item in found.items}
    assert found.items == recommend(client, history=["i3"], k=30).items


def test_what_was_disliked_is_left_out_and_no_history(client):
    send(client, id="d1", user="picky", item="i13", liked=False)
    found = recommend(client, user="picky", k=30)
    assert found.popular
    assert not found.unknown_user
    assert "i13" not in {item.item for item in found.items}


def test_an_event_counts_once(client):
    event = {"id": "same", "user": "twice", "item": "i1"}
    for time_ in ({}, {"time": "2026-01-31T12:00:00Z"}):
        event = {**event, **time_, "id": event["id"] + "x"}
        assert send(client, **event).json() | {"request_id": ""} == {
            "request_id": "",
            "accepted": 1,
            "duplicates": 0,
        }
        assert send(client, **event).json()["duplicates"] == 1
        error(send(client, **{**event, "item": "i2"}), 409, "conflict")


def test_a_batch_is_all_or_nothing(client):
    send(client, id="taken", user="batch", item="i1")
    events = [{"id": f"b{place}", "user": "batch", "item": "i2"} for place in range(3)]
    error(send(client, *events, {"id": "taken", "user": "batch", "item": "i9"}), 409, "conflict")
    assert len(client.get("/v1/users/batch").json()["events"]) == 1
    assert send(client, *events).json()["accepted"] == 3
    many = [{"id": "x", "user": "u", "item": "i1"}] * (MOST_EVENTS + 1)
    error(send(client, *many), 422, "invalid")
    error(client.post("/v1/events", json={"events": []}), 422, "invalid")


def test_a_time_may_be_five_minutes_ahead_and_needs_its_offset(client):
    now = datetime.now(UTC)
    soon, later = now + timedelta(minutes=4), now + timedelta(minutes=6)
    assert send(client, id="s", user="t", item="i1", time=soon.isoformat()).status_code == 200
    message = error(
        send(client, id="l", user="t", item="i1", time=later.isoformat()), 422, "invalid"
    )
    assert "5 minutes" in message
    naive = send(client, id="n", user="t", item="i1", time="2026-01-31T12:00:00")
    assert "offset" in error(naive, 422, "invalid")


def test_events_of_items_that_come_with_the_next_model_are_kept(client):
    send(
        client,
        {"id": "f1", "user": "early", "item": "i999"},
        {"id": "f2", "user": "early", "item": "i4"},
    )
    found = recommend(client, user="early", k=3)
    assert found.items == recommend(client, history=["i4"], k=3).items
    events = client.get("/v1/users/early").json()["events"]
    assert [(event["item"], event["title"] is None) for event in events] == [
        ("i999", True),
        ("i4", False),
    ]


# -- users ----------------------------------------------------------------------------------------


def test_histories_that_came_with_the_model_are_there_once(model_folder, tmp_path):
    config = settings(model_folder, tmp_path)
    found = []
    for _ in range(2):
        with asking(config) as client:
            found.append(UserResponse.model_validate_json(client.get("/v1/users/u1").content))
    assert len(found[0].events) == 16
    assert found[0] == found[1]
    assert all(event.id is None and event.time is None for event in found[0].events)


def test_users_are_found_by_how_their_ids_begin(client):
    found = client.get("/v1/users", params={"prefix": "u5", "limit": 3}).json()["users"]
    assert found == ["u5", "u50", "u51"]
    assert client.get("/v1/users", params={"prefix": "zzz"}).json()["users"] == []
    for mistake in ({"limit": 0}, {"prefiks": "u"}, {"limit": "many"}):
        error(client.get("/v1/users", params=mistake), 422, "invalid")


def test_no_store_could_hold_such_an_id(client):
    for user in ("x" * 257, "%00"):
        error(client.get(f"/v1/users/{user}"), 422, "invalid")


def test_who_is_forgotten_is_gone_everywhere(own, own_folder, tmp_path):
    recommend(own, user="u7")  # kept, cached
    service = own.app.state.service
    own.portal.call(service.people.sample.settle)
    assert service.store.queries()
    response = own.delete("/v1/users/u7").json()
    assert response == {"user": "u7", "events": 16, "queries": 1}
    assert service.store.queries() == []
    error(own.get("/v1/users/u7"), 404, "not_found")
    assert recommend(own, user="u7").unknown_user
    old = "2020-01-01T00:00:00Z"
    error(send(own, id="old", user="u7", item="i1", time=old), 409, "forgotten")
    assert own.delete("/v1/users/u7").json()["events"] == 0
    for folder in (own_folder, tmp_path):
        for path in folder.rglob("*"):
            if path.is_file() and "versions" not in path.relative_to(folder).parts[:1]:
                assert b"u7\0" not in path.read_bytes(), path
                assert "u7".encode("utf-32-le") not in path.read_bytes(), path


def test_who_is_forgotten_while_his_request_waits_is_not_answered(own, monkeypatch):
    service = own.app.state.service
    held = threading.Event()
    plain = service.batcher._answers

    def slow(loaded, asks):
        held.wait(20)
        return plain(loaded, asks)

    monkeypatch.setattr(service.batcher, "_answers", slow)
    found = []

    def ask(user):
        found.append(own.post("/v1/recommend", json={"user": user}))

    threads = [threading.Thread(target=ask, args=(user,)) for user in ("u3", "u3", "u4")]
    threads[0].start()
    while not service.batcher._computed:  # so that the others find it busy
        time.sleep(0.01)
    for thread in threads[1:]:
        thread.start()
    while service.batcher.waiting < 2:
        time.sleep(0.01)
    own.delete("/v1/users/u3")
    held.set()
    for thread in threads:
        thread.join()
    assert sorted(response.status_code for response in found) == [200, 409, 409]
    refused = next(response for response in found if response.status_code == 409)
    error(refused, 409, "forgotten")


# -- models ---------------------------------------------------------------------------------------


def test_versions_are_switched_and_switched_back(own, own_folder, save_another):
    first = own.get("/v1/models").json()["models"]
    assert [model["role"] for model in first] == ["current"]
    assert first[0]["items"] == 30
    assert first[0]["stages"][-1] == "llm"
    error(own.post("/v1/models/rollback", json={}), 409, "nothing_before")
    second = save_another(own_folder)
    models = own.post("/v1/models/load", json={}).json()["models"]
    assert [(model["version"], model["role"]) for model in models] == [
        (second, "current"),
        (first[0]["version"], "previous"),
    ]
    assert recommend(own, history=["i1"]).model == second
    both = [recommend(own, history=["i1"], model=model["version"]).model for model in models]
    assert both == [model["version"] for model in models]
    models = own.post("/v1/models/rollback", json={}).json()["models"]
    assert models[0]["version"] == first[0]["version"]
    error(own.post("/v1/models/load", json={"version": "none"}), 409, "model_refused")


def test_ready_says_which_version_answers(client):
    version = client.get("/v1/models").json()["models"][0]["version"]
    assert client.get("/readyz").json() == {"status": "ready", "model": version}
    assert client.get("/healthz").json() == {"status": "ok"}


def test_a_store_that_is_away_is_told(own, caplog):
    assert own.get("/v1/models").status_code == 200
    own.app.state.service.store.close()
    asked = 0
    for response in (
        own.get("/readyz"),
        own.post("/v1/recommend", json={"user": "u1"}),
        send(own, id="a", user="u", item="i1"),
        own.delete("/v1/users/u1"),
    ):
        said = error(response, 503, "store_away")
        assert said == "the store is away: try again; the log says why"
        assert response.headers["retry-after"] == "1"
        asked += 1
    told = [each for each in caplog.records if "the store failed" in each.getMessage()]
    assert len(told) == asked
    for each in told:
        assert (each.name, each.levelname) == ("hybridrec.serve", "WARNING")
        assert "store.sqlite" in each.getMessage()
    assert own.get("/healthz").status_code == 200
    assert recommend(own, history=["i1"]).items


def test_who_was_forgotten_by_half_is_to_be_asked_for_again(own, monkeypatch, caplog):
    def refuse(folder, user):
        raise StorageError(f"cannot write {folder}/histories.npz")

    monkeypatch.setattr("hybridrec.serve.people.forget_saved", refuse)
    said = error(own.delete("/v1/users/u1"), 503, "store_away")
    assert said == "the user is gone from the store, and not from the model folder: ask again"
    assert "histories.npz" in caplog.text


def test_readiness_does_not_wait_for_those_who_read(own, monkeypatch):
    inside, go = threading.Semaphore(0), threading.Event()

    def slowly(user):
        inside.release()
        assert go.wait(30)
        return []

    monkeypatch.setattr(own.app.state.service.store, "events", slowly)
    with ThreadPoolExecutor(21) as pool:
        for _ in range(20):
            pool.submit(own.get, "/v1/users/u1")
        for _ in range(8):
            assert inside.acquire(timeout=30)
        try:
            assert pool.submit(own.get, "/readyz").result(timeout=10).status_code == 200
        finally:
            go.set()


# -- under load -----------------------------------------------------------------------------------


def test_more_than_the_queue_holds_is_turned_away(model_folder, tmp_path, monkeypatch):
    with asking(settings(model_folder, tmp_path, queue=1, batch=1)) as client:
        service = client.app.state.service
        held = threading.Event()
        plain = service.batcher._answers
        monkeypatch.setattr(
            service.batcher, "_answers", lambda *given: held.wait(20) and plain(*given)
        )
        found = []

        def ask():
            found.append(client.post("/v1/recommend", json={"history": ["i1"]}))

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for number, thread in enumerate(threads):
            thread.start()
            while service.batcher.waiting < number or not service.batcher._computed:
                time.sleep(0.01)
        response = client.post("/v1/recommend", json={"history": ["i1"]})
        error(response, 429, "queue_full")
        assert int(response.headers["retry-after"]) >= 1
        held.set()
        for thread in threads:
            thread.join()
        assert [response.status_code for response in found] == [200, 200]
        counts = client.get("/metrics").text
        assert 'hybridrec_rejected_total{reason="queue_full"} 1.0' in counts
        assert 'route="/v1/recommend",status="200"} 2.0' in counts


def test_so_many_events_at_a_time_and_no_more(model_folder, tmp_path, monkeypatch):
    with asking(settings(model_folder, tmp_path, queue=1)) as client:
        store = client.app.state.service.store
        held = threading.Event()
        plain = store.append
        monkeypatch.setattr(
            store, "append", lambda *given, **named: held.wait(20) and plain(*given, **named)
        )
        found = []
        threads = [
            threading.Thread(
                target=lambda number: found.append(
                    send(client, id=str(number), user="many", item="i1").status_code
                ),
                args=(number,),
            )
            for number in range(40)
        ]
        for thread in threads:
            thread.start()
        while len(found) < 7:
            time.sleep(0.01)
        # Who only reads hears nothing of it.
        assert recommend(client, user="u1", k=1).items
        held.set()
        for thread in threads:
            thread.join()
        assert sorted(found) == [200] * 33 + [429] * 7
        assert len(client.get("/v1/users/many").json()["events"]) == 33


def test_who_goes_away_costs_nothing(model_folder, tmp_path, monkeypatch):
    with listening(settings(model_folder, tmp_path)) as url:
        seen = []
        plain = Service.recommend

        async def slow(self, asked, visit):
            try:
                await asyncio.sleep(20)
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise
            return await plain(self, asked, visit)

        monkeypatch.setattr(Service, "recommend", slow)
        with httpx2.Client(base_url=url) as http, pytest.raises(httpx2.ReadTimeout):
            http.post("/v1/recommend", json={"history": ["i1"]}, timeout=0.3)
        until = time.monotonic() + 10
        while not seen and time.monotonic() < until:
            time.sleep(0.01)
        assert seen == ["cancelled"]


def test_a_real_port_serves_many_at_once(model_folder, tmp_path):
    with listening(settings(model_folder, tmp_path)) as url:

        async def crowd():
            async with httpx2.AsyncClient(base_url=url, timeout=60) as http:
                asked = [
                    http.post("/v1/recommend", json={"user": f"u{number % 60}", "k": 3})
                    for number in range(100)
                ]
                return await asyncio.gather(*asked)

        found = asyncio.run(crowd())
        assert {response.status_code for response in found} == {200}
        assert len({response.headers["x-request-id"] for response in found}) == 100
        alone = [
            httpx2.post(f"{url}/v1/recommend", json={"user": f"u{n}", "k": 3}) for n in range(5)
        ]
        for one, other in zip(alone, found, strict=False):
            items, same = one.json()["items"], other.json()["items"]
            assert [item["item"] for item in items] == [item["item"] for item in same]
            scores = [item["score"] for item in same]
            assert [item["score"] for item in items] == pytest.approx(scores, abs=1e-5)


# -- what is told of it ---------------------------------------------------------------------------


def test_logs_hold_no_user_and_no_item(model_folder, tmp_path, caplog):
    import logging

    from hybridrec.serve.watch.logs import JsonLines, user_mark

    caplog.set_level(logging.INFO, logger="hybridrec")
    caplog.handler.setFormatter(JsonLines())
    with asking(settings(model_folder, tmp_path)) as client:
        send(client, id="a-secret-event", user="a-secret-user", item="i3")
        recommend(client, user="a-secret-user")
        client.get("/v1/users/a-secret-user")
        client.get("/v1/users/another-secret")
        client.post("/v1/recommend", json={"user": "a-secret-user", "k": 0})
        client.delete("/v1/users/a-secret-user")
        mark = user_mark(client.app.state.service.store.secret(), "a-secret-user")
    assert "secret" not in caplog.text
    lines = [line for line in caplog.text.splitlines() if mark in line]
    assert len(lines) == 3
    assert any('"route": "/v1/users/{user}"' in line for line in lines)


def test_the_description_is_openapi_3_1_with_every_error(client):
    found = client.get("/openapi.json").json()
    assert found["openapi"].startswith("3.1")
    for path, methods in found["paths"].items():
        for operation in methods.values():
            for status, response in operation["responses"].items():
                if status == "200":
                    continue
                schema = response["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ErrorResponse"}, (path, status)
    recommend_ = found["paths"]["/v1/recommend"]["post"]
    assert {"200", "400", "401", "403", "409", "413", "415", "421", "422", "429", "503"} <= set(
        recommend_["responses"]
    )
    assert recommend_["security"] == [{"key": ["recommend"]}]
