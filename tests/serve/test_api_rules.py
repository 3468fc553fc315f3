"""Hosts, rates, scopes and errors, without an application around them."""

import ast
import json
from dataclasses import replace
from pathlib import Path

import pytest

import hybridrec.serve
from hybridrec.checks import InputError, UnknownIdError
from hybridrec.serve.access.callers import ANYBODY, Caller, needed
from hybridrec.serve.access.hosts import Hosts
from hybridrec.serve.access.rates import Rates
from hybridrec.serve.config import ServeConfig
from hybridrec.serve.people import _named
from hybridrec.serve.store.contract import ConflictError, StoreError
from hybridrec.serve.versions.models import NoModelError
from hybridrec.serve.wire.errors import HalfForgottenError, RefusalError, refusal_of
from hybridrec.serve.wire.schema import ErrorResponse, Event


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost", True),
        ("LOCALHOST:1234", True),
        ("localhost.:80", True),
        ("127.0.0.1:8000", True),
        ("[::1]:8000", True),
        ("shop.example", True),
        ("shop.example:443", True),
        ("", False),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("evil.example#localhost", False),
        ("10.0.0.7:8000", False),
    ],
)
def test_a_loopback_service_answers_to_its_own_names(host, allowed):
    hosts = Hosts(ServeConfig(model=Path("m"), hosts=("shop.example",)))
    assert hosts.allow(host) is allowed


def test_behind_an_address_any_number_is_a_name_and_no_other_is():
    hosts = Hosts(ServeConfig(model=Path("m"), host="0.0.0.0"))
    assert hosts.allow("10.0.0.7:8000")
    assert hosts.allow("[fd00::1]:8000")
    assert not hosts.allow("evil.example")


def test_a_rate_lets_a_burst_through_and_says_when_to_come_back():
    rates = Rates(2.0, 4)
    assert [rates.wait("a") for _ in range(4)] == [None] * 4
    wait = rates.wait("a")
    assert wait is not None
    assert 0 < wait <= 4
    assert rates.wait("b") is None
    assert Rates(None, 1).wait("a") is None


def test_a_rate_above_its_burst_is_not_cut_down_to_it():
    rates = Rates(20.0, 1)
    assert [rates.wait("a") for _ in range(20)] == [None] * 20
    assert rates.wait("a") is not None


@pytest.mark.parametrize(
    ("rate", "burst", "most"), [(26.0, 50, 52), (49.0, 50, 98), (10.0, 15, 20), (0.3, 1, 1)]
)
def test_a_rate_is_kept_on_average_whatever_the_burst(rate, burst, most):
    """In the window that the burst takes, rounded up to seconds: 26 a second had become 25 in 2."""
    rates = Rates(rate, burst)
    let_through = [rates.wait("a") for _ in range(most + 5)].count(None)
    assert burst <= let_through == most


def test_what_is_not_listed_needs_admin():
    assert needed("POST", "/v1/recommend") == "recommend"
    assert needed("POST", "/v1/events") == "events"
    assert needed("GET", "/v1/users/anybody") == "admin"
    assert needed("DELETE", "/v1/users/anybody") == "admin"
    assert needed("GET", "/metrics") == "admin"
    assert needed("GET", "/v1/recommend") == "admin"
    assert needed("POST", "//v1/recommend") == "admin"
    assert needed("GET", "/whatever") == "admin"
    for path in ("/", "/page/app.js", "/healthz", "/readyz", "/openapi.json"):
        assert needed("GET", path) is None


def test_admin_includes_the_other_scopes():
    assert ANYBODY.may("admin")
    assert Caller("k", ("admin",)).may("events")
    assert not Caller("k", ("events",)).may("recommend")
    with pytest.raises(RefusalError, match="needs the scope admin; this key has events") as told:
        Caller("k", ("events",)).require("admin", "GET /metrics")
    assert told.value.status == 403


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (UnknownIdError("x"), 422, "unknown_id"),
        (InputError("x"), 422, "invalid"),
        (ConflictError("x"), 409, "conflict"),
        (NoModelError("x"), 503, "no_model"),
    ],
)
def test_an_error_of_the_library_has_a_status_and_a_shape(error, status, code):
    refusal = refusal_of(error)
    assert (refusal.status, refusal.code) == (status, code)
    assert ("Retry-After" in refusal.headers) is (status == 503)
    told = ErrorResponse.model_validate_json(refusal.body("id")).error
    assert (told.code, told.message, told.request_id) == (code, "x", "id")


@pytest.mark.parametrize(
    ("kind", "said"),
    [(StoreError, "the store is away: try again"), (HalfForgottenError, "ask again")],
)
def test_a_store_that_is_away_is_told_in_our_own_words(kind, said):
    refusal = refusal_of(kind("cannot read the store db.internal/shop: FATAL: ..."))
    assert (refusal.status, refusal.code, refusal.retry_after) == (503, "store_away", 1.0)
    assert said in refusal.message
    assert "internal" not in refusal.message


def test_a_message_ends_somewhere():
    body = RefusalError(422, "invalid", "x" * 10_000).body("id")
    assert len(json.loads(body)["error"]["message"]) == 2000


@pytest.mark.parametrize(
    "time",
    [
        "2026-01-31T12:00:00",
        "2026-01-31",
        "1700000000",
        1_700_000_000,
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-01:00",
        "2026-13-01T00:00:00Z",
        "\uff12026-01-31T12:00:00Z",
    ],
)
def test_a_time_that_is_no_rfc3339_moment_is_refused(time):
    with pytest.raises(ValueError, match="time"):
        Event(id="a", user="u", item="i", time=time)


def test_times_are_kept_in_utc():
    event = Event(id="a", user="u", item="i", time="2026-01-31t12:00:00.5+02:00")
    assert event.time.isoformat() == "2026-01-31T10:00:00.500000+00:00"


@pytest.mark.parametrize("text", ["", "a\0b", "x" * 257, "\ud800", True, 1.5, None, 2**63])
def test_what_no_store_can_keep_is_no_id(text):
    with pytest.raises(ValueError, match="user"):
        Event(id="a", user=text, item="i")


def test_there_is_no_way_to_allow_another_origin():
    for path in Path(hybridrec.serve.__file__).parent.rglob("*.py"):
        words = {
            node.value.lower()
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert not [word for word in words if word.startswith("access-control-")], path


def test_users_from_before_a_model_of_other_ids_can_still_be_named(loaded):
    numbers = replace(loaded, user_ids="int")
    assert _named(numbers, "7") == 7
    assert _named(numbers, "alice") == "alice"
    assert _named(numbers, "07") == "07"
    assert _named(loaded, "7") == "7"
