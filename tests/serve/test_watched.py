"""The running application is seen: each request is counted once, logged once, traced once."""

import io
import json
import logging
import os
import signal
import time
import urllib.request

import pytest
from api_helper import asking, keyed, listening, settings
from metrics_helper import samples
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from test_cli_serve import served

from hybridrec.serve import opening
from hybridrec.serve.watch.logs import JsonLines, user_mark
from hybridrec.serve.watch.tracing import Tracing

ASKED = {"user": "u1", "k": 3}


@pytest.fixture
def app(model_folder, tmp_path):
    with asking(settings(model_folder, tmp_path)) as found:
        yield found


@pytest.fixture
def lines():
    """Lines of the log, parsed."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("hybridrec")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logger.removeHandler(handler)
    logger.setLevel(level)


def scraped(client):
    response = client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain")
    return samples(response.text)


def count(page, name, **labels):
    return page[f"hybridrec_{name}", tuple(sorted(labels.items()))]


def test_a_request_is_counted_once_in_every_place(app):
    for _ in range(3):
        assert app.post("/v1/recommend", json=ASKED).status_code == 200
    page = scraped(app)
    assert count(page, "request_seconds_count", route="/v1/recommend", status="200") == 3
    assert count(page, "stage_seconds_count", stage="queue") == 3
    for stage in ("recall", "fuse", "rerank"):
        assert count(page, "stage_seconds_count", stage=stage) == 3
    assert count(page, "batch_size_count") == 3  # one after the other: each is a batch of its own
    assert count(page, "batch_size_sum") == 3
    assert count(page, "queue_waiting") == 0
    for kind in ("fewer_reranked", "no_reranker", "popularity"):
        assert count(page, "degraded_total", kind=kind) == 0


def test_a_late_answer_is_counted_as_degraded_once(app):
    answer = app.post("/v1/recommend", json={**ASKED, "budget_ms": 0.01}).json()
    assert answer["degraded"]
    page = scraped(app)
    kinds = {kind: count(page, "degraded_total", kind=kind) for kind in (answer["degraded"],)}
    assert kinds == {answer["degraded"]: 1}
    total = sum(value for (name, _), value in page.items() if name == "hybridrec_degraded_total")
    assert total == 1


def test_events_and_refusals_are_counted(app):
    event = {"id": "e1", "user": "u1", "item": "i1"}
    for _ in range(2):
        assert app.post("/v1/events", json=event).status_code == 200
    assert app.post("/v1/recommend", content="{}").status_code == 415
    assert app.post("/v1/recommend", json=ASKED, headers={"host": "evil.com"}).status_code == 421
    page = scraped(app)
    assert count(page, "events_total", result="accepted") == 1
    assert count(page, "events_total", result="duplicate") == 1
    assert count(page, "rejected_total", reason="content_type") == 1
    assert count(page, "rejected_total", reason="host") == 1


def test_wrong_keys_and_scopes_are_counted(model_folder, tmp_path):
    with keyed(settings(model_folder, tmp_path)) as (_, having, _):
        assert having("recommend").get("/metrics").status_code == 403
        wrong = {"authorization": "Bearer nonsense"}
        assert having("admin").get("/metrics", headers=wrong).status_code == 401
        page = scraped(having("admin"))
    assert count(page, "rejected_total", reason="key") == 1
    assert count(page, "rejected_total", reason="scope") == 1


def test_a_full_queue_and_a_caller_in_a_hurry_are_counted(model_folder, tmp_path):
    config = settings(model_folder, tmp_path, rate=0.001, burst=2)
    with asking(config) as app:
        got = [app.post("/v1/similar", json={"item": "i1"}).status_code for _ in range(3)]
        assert got == [200, 200, 429]
        text = app.app.state.service.metrics.render()[0]
    assert count(samples(text), "rejected_total", reason="rate") == 1


def test_the_model_and_its_training_are_told(app, loaded):
    page = scraped(app)
    (version,) = [
        dict(labels)["version"]
        for (name, labels), value in page.items()
        if name == "hybridrec_model_info" and value
    ]
    assert app.post("/v1/recommend", json=ASKED).json()["model"] == version == loaded.version
    assert count(page, "training_cold_user_share") == 0  # every user of the data has events


def test_drift_is_told_of_what_the_model_recommends_and_of_nothing_else(app):
    metrics = app.app.state.service.metrics
    told = []

    def told_of(scores, items, cold_users):
        told.append((list(scores), list(items), cold_users))

    metrics.observe_answer = told_of
    usual = app.post("/v1/recommend", json=ASKED).json()["items"]
    stranger = app.post("/v1/recommend", json={"user": "nobody", "k": 2}).json()["items"]
    late = app.post("/v1/recommend", json={**ASKED, "budget_ms": 0.01}).json()
    assert late["degraded"]
    app.post("/v1/recommend", json={**ASKED, "stages": {"rerank": False}})
    app.post("/v1/rank", json={"user": "u1", "candidates": ["i1", "i2"]})
    assert told == [
        ([item["score"] for item in usual], [item["item"] for item in usual], 0),
        ([], [item["item"] for item in stranger], 1),
        ([], [item["item"] for item in late["items"]], 0),
    ]


def test_nobody_can_make_routes(app):
    for path in ("/nowhere/1", "/nowhere/2", "/v1/users/u1", "/v1/users/u2"):
        app.get(path)
    routes = {
        dict(labels)["route"]
        for name, labels in scraped(app)
        if name == "hybridrec_request_seconds_count"
    }
    assert "/v1/users/{user}" in routes
    assert not {route for route in routes if "nowhere" in route or "u1" in route}


def test_lag_of_the_loop_is_sampled(model_folder, tmp_path):
    with listening(settings(model_folder, tmp_path)) as url:
        time.sleep(0.5)
        with urllib.request.urlopen(f"{url}/metrics") as answer:
            page = samples(answer.read())
    assert count(page, "event_loop_lag_seconds_count") >= 2


def test_a_request_is_one_line_that_names_nobody(app, lines):
    app.post("/v1/recommend", json=ASKED, headers={"x-request-id": "mine"})
    app.get("/v1/users/u1")
    app.post("/v1/recommend", json={"history": ["i3"], "explain": True})
    shown = [line for line in lines() if line["logger"] == "hybridrec.serve.access"]
    assert [(line["method"], line["route"], line["status"]) for line in shown] == [
        ("POST", "/v1/recommend", 200),
        ("GET", "/v1/users/{user}", 200),
        ("POST", "/v1/recommend", 200),
    ]
    secret = app.app.state.service.store.secret()
    assert shown[0]["request_id"] == "mine"
    assert shown[0]["user"] == shown[1]["user"] == user_mark(secret, "u1")
    assert "user" not in shown[2]
    for line in lines():
        words = json.dumps({name: value for name, value in line.items() if name != "user"})
        assert '"u1"' not in words
        assert "i3" not in words


def test_what_is_broken_leaves_its_place_in_the_log_and_nothing_of_the_caller(
    app, lines, monkeypatch
):
    def broken(*_, **__):
        raise RuntimeError("u1 likes Heat")

    monkeypatch.setattr(app.app.state.service.store, "events", broken)
    response = app.get("/v1/users/u1", headers={"x-request-id": "r500"})
    assert response.status_code == 500
    assert "Heat" not in response.text
    told = [line for line in lines() if line.get("request_id") == "r500"]
    assert [line["level"] for line in told] == ["error", "warning"]
    assert told[0]["error_chain"][0]["kind"] == "RuntimeError"
    assert "broken" in told[0]["error_chain"][0]["at"][-1]
    assert "Heat" not in json.dumps(lines())
    page = scraped(app)
    assert count(page, "request_seconds_count", route="/v1/users/{user}", status="500") == 1


def test_a_request_is_a_span_with_its_stages(model_folder, tmp_path, monkeypatch, lines):
    kept = InMemorySpanExporter()
    monkeypatch.setattr(opening, "set_up_tracing", lambda: Tracing(SimpleSpanProcessor(kept)))
    trace = "0af7651916cd43dd8448eb211c80319c"
    with asking(settings(model_folder, tmp_path)) as app:
        caller = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
        app.post("/v1/recommend", json=ASKED, headers=caller)
    spans = {span.name: span for span in kept.get_finished_spans()}
    request = spans.pop("POST /v1/recommend")
    names = {"hybridrec.queue", "hybridrec.recall", "hybridrec.fuse", "hybridrec.rerank"}
    assert names <= set(spans)
    for span in spans.values():
        assert span.parent.span_id == request.context.span_id
        assert request.start_time <= span.start_time <= span.end_time <= request.end_time
    assert f"{request.context.trace_id:032x}" == trace
    told = json.dumps({name: str(value) for name, value in request.attributes.items()})
    assert '"u1"' not in told
    (line,) = [line for line in lines() if line["logger"] == "hybridrec.serve.access"]
    assert line["trace_id"] == trace
    assert line["model"] == request.attributes["hybridrec.model"]


# -- several workers ------------------------------------------------------------------------------


def ask(url, path, body=None):
    """One request over a connection of its own, so that any worker may get it."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read()


def serving(page):
    """Workers that answer with some version."""
    return sum(value for (name, _), value in page.items() if name == "hybridrec_model_info")


def until(url, ready):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            page = samples(ask(url, "/metrics"))
        except OSError:
            page = {}  # a worker was killed under the connection
        if ready(page):
            return page
        time.sleep(0.2)
    raise AssertionError(page)


def workers(page):
    return {int(dict(labels)["pid"]) for name, labels in page if name == "hybridrec_drift_answers"}


@pytest.mark.service
def test_any_worker_answers_for_all_and_a_new_one_for_a_killed_one(own_folder, postgres_server):
    request = ("hybridrec_request_seconds_count", (("route", "/v1/recommend"), ("status", "200")))
    store = postgres_server.database()
    with served(own_folder, "--store", store, "--workers", 2) as (url, process, _):
        before = workers(until(url, lambda page: serving(page) == 2))
        assert len(before) == 2
        for number in range(20):
            ask(url, "/v1/recommend", {**ASKED, "user": f"u{number}"})
        for _ in range(6):
            assert samples(ask(url, "/metrics"))[request] == 20
        os.kill(min(before), signal.SIGKILL)
        after = until(url, lambda page: serving(page) == 2 and workers(page) != before)
        assert after[request] == 20  # what the killed one had counted is not lost
        assert workers(after) & before == {max(before)}
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
