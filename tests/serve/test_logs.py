import hashlib
import hmac
import io
import json
import logging
import re
import threading
import warnings

import pytest

from hybridrec import InputError
from hybridrec.serve.watch.logs import (
    UVICORN,
    JsonLines,
    TextLines,
    log_request,
    request_id,
    set_up_logs,
    user_mark,
)

SECRET = b"0123456789abcdef0123456789abcdef"
HARM = 'Heat\n{"level":"critical"}\r\x1b[31m\u2028\x85 end'
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@pytest.fixture(params=[True, False], ids=["json", "text"])
def json_lines(request):
    return request.param


@pytest.fixture
def lines(json_lines):
    """What the service writes from here on, line by line; logging is put back afterwards."""
    names = ["", "hybridrec", "uvicorn", "uvicorn.error", "uvicorn.access"]
    loggers = [logging.getLogger(name) for name in names]
    before = [(each.handlers[:], each.level, each.propagate, each.disabled) for each in loggers]
    raising = logging.raiseExceptions
    stream = io.StringIO()
    set_up_logs(json_lines=json_lines, stream=stream)
    yield lambda: stream.getvalue().removesuffix("\n").split("\n")
    for each, (handlers, level, propagate, disabled) in zip(loggers, before, strict=True):
        each.handlers[:], each.propagate, each.disabled = handlers, propagate, disabled
        each.setLevel(level)
    logging.captureWarnings(False)
    logging.raiseExceptions = raising


def test_a_request_is_one_line(lines, json_lines):
    token = request_id.set("abc123")
    try:
        log_request("POST", "/v1/recommend", 200, 0.01234, key="k1", user=None, model="v7")
    finally:
        request_id.reset(token)
    (line,) = lines()
    if json_lines:
        told = json.loads(line)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", told.pop("time"))
        assert told == {
            "level": "info",
            "logger": "hybridrec.serve.access",
            "message": "request",
            "request_id": "abc123",
            "method": "POST",
            "route": "/v1/recommend",
            "status": 200,
            "ms": 12.34,
            "key": "k1",
            "model": "v7",
        }
    else:
        assert line.endswith(
            "Z INFO hybridrec.serve.access request method=POST route=/v1/recommend status=200 "
            "ms=12.34 key=k1 model=v7 request_id=abc123"
        )


def test_an_error_of_the_service_is_louder(lines):
    log_request("GET", "/readyz", 503, 0.001)
    logging.getLogger("hybridrec").setLevel(logging.WARNING)
    log_request("GET", "/readyz", 200, 0.001)
    log_request("GET", "/readyz", 500, 0.001)
    shown = lines()
    assert len(shown) == 2
    assert all("warning" in line.lower() for line in shown)


def test_no_value_can_begin_a_line_of_its_own(lines, json_lines):
    logging.getLogger("hybridrec").warning("got %s", HARM)
    log_request("GET", HARM, 200, 0.0, error=HARM)
    shown = lines()
    assert len(shown) == 2
    for line in shown:
        assert not CONTROL.search(line)
        if json_lines:
            assert json.loads(line)["level"] in ("warning", "info")
    if json_lines:
        assert json.loads(shown[0])["message"] == f"got {HARM}"


def fail_with(words):
    raise ValueError(words)


def test_an_error_leaves_its_place_and_none_of_its_words(lines, json_lines):
    try:
        try:
            fail_with("user 4711 likes Heat; postgresql://me:hunter2@db")
        except ValueError as error:
            raise OSError(28, "No space left for user 4711", "/secret/4711") from error
    except OSError:
        logging.getLogger("hybridrec.serve").exception("a request failed")
    (line,) = lines()
    for word in ("4711", "Heat", "hunter2"):
        assert word not in line
    assert "fail_with" in line
    assert "test_logs.py" in line
    if json_lines:
        chain = json.loads(line)["error_chain"]
        assert [error["kind"] for error in chain] == ["OSError", "ValueError"]
        assert chain[0]["errno"] == "ENOSPC"
    else:
        assert "OSError" in line
        assert "ValueError" in line


def test_errors_that_lead_to_each_other_end(lines):
    first, second = ValueError("a"), KeyError("b")
    first.__cause__, second.__cause__ = second, first
    logging.getLogger("hybridrec").error("both", exc_info=first)
    (line,) = lines()
    assert line.count("ValueError") == 1


def test_arguments_that_do_not_fit_are_not_printed(lines, capsys):
    logging.getLogger("hybridrec").error("%d of them", "user 4711")
    logging.getLogger("hybridrec").info("done")
    shown = lines()
    assert len(shown) == 2
    assert "%d of them" in shown[0]
    assert "4711" not in shown[0] + capsys.readouterr().err


def test_uvicorn_speaks_through_the_service_and_never_of_paths(lines):
    logging.getLogger("uvicorn.error").info("Started server process")
    logging.getLogger("uvicorn.access").info("GET /v1/users/4711")
    logging.getLogger("someone.else").info("chatter")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    shown = lines()
    assert len(shown) == 2
    assert "Started server process" in shown[0]
    assert "old" in shown[1]
    assert UVICORN == {"log_config": None, "access_log": False}


def test_setting_up_twice_writes_every_line_once(lines, json_lines):
    stream = io.StringIO()
    set_up_logs(json_lines=json_lines, stream=stream)
    logging.getLogger("hybridrec").info("once")
    assert stream.getvalue().count("once") == 1
    assert lines() == [""]


def test_the_request_of_one_thread_is_not_that_of_another(lines):
    def work():
        logging.getLogger("hybridrec").info("background")

    token = request_id.set("mine")
    try:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        logging.getLogger("hybridrec").info("foreground")
    finally:
        request_id.reset(token)
    background, foreground = lines()
    assert "mine" not in background
    assert "mine" in foreground


def test_a_mark_is_the_keyed_hash_of_the_text_of_the_id():
    whole = hmac.new(SECRET, b"4711", hashlib.sha256).hexdigest()
    assert user_mark(SECRET, "4711") == user_mark(SECRET, 4711) == whole[:16]
    assert user_mark(SECRET[::-1], 4711) != whole[:16]
    assert user_mark(SECRET, "4712") != whole[:16]
    assert len(user_mark(SECRET, "\ud800")) == 16  # JSON can hold half a surrogate pair
    with pytest.raises(InputError, match="secret has 3 bytes"):
        user_mark(b"abc", 1)


def test_a_value_that_json_does_not_know_is_still_a_line():
    given = {"name": "a", "msg": "x", "hybridrec_fields": {"path": set}}
    record = logging.makeLogRecord(given)
    assert json.loads(JsonLines().format(record))["path"] == "<class 'set'>"
    assert "path=<class 'set'>" in TextLines().format(record)
