import itertools
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from hybridrec import InputError
from hybridrec.serve.watch.tracing import Tracing, set_up_tracing

STAGES = {"queue": 0.01, "recall": 0.02, "rerank": 0.3}
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(autouse=True)
def _no_collector(monkeypatch):
    for name in (
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        "OTEL_SDK_DISABLED",
        "OTEL_TRACES_SAMPLER",
        "OTEL_SERVICE_NAME",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def kept():
    return InMemorySpanExporter()


@pytest.fixture
def tracing(kept):
    found = Tracing(SimpleSpanProcessor(kept))
    yield found
    found.close()


def test_a_request_and_its_stages_are_spans_end_to_end(tracing, kept):
    trace = tracing.request(
        "POST", "/v1/recommend", 200, 0.5, stages=STAGES, since=0.1, model="v7", degraded=None
    )
    *stages, request = kept.get_finished_spans()
    assert request.name == "POST /v1/recommend"
    assert request.kind is SpanKind.SERVER
    assert request.parent is None
    assert f"{request.context.trace_id:032x}" == trace
    assert dict(request.attributes) == {
        "http.request.method": "POST",
        "http.route": "/v1/recommend",
        "http.response.status_code": 200,
        "hybridrec.model": "v7",
    }
    assert request.status.status_code is StatusCode.UNSET
    assert request.end_time - request.start_time == 500_000_000
    assert [span.name for span in stages] == [f"hybridrec.{name}" for name in STAGES]
    assert all(span.parent.span_id == request.context.span_id for span in stages)
    lengths = [span.end_time - span.start_time for span in stages]
    assert lengths == [10_000_000, 20_000_000, 300_000_000]
    for before, after in itertools.pairwise(stages):
        assert before.end_time == after.start_time
    assert stages[-1].end_time == request.end_time - 100_000_000
    assert stages[0].start_time > request.start_time


def test_it_is_part_of_the_callers_trace(tracing, kept):
    trace = tracing.request("GET", "/v1/items", 200, 0.1, headers={"traceparent": CALLER})
    (span,) = kept.get_finished_spans()
    assert trace == CALLER.split("-")[1]
    assert f"{span.parent.span_id:016x}" == CALLER.split("-")[2]


@pytest.mark.parametrize("headers", [None, {}, {"traceparent": "nonsense"}])
def test_without_a_caller_it_begins_a_trace_of_its_own(tracing, kept, headers):
    one, other = (tracing.request("GET", "/", 200, 0.1, headers=headers) for _ in range(2))
    assert one != other
    assert [span.parent for span in kept.get_finished_spans()] == [None, None]


def test_what_the_caller_does_not_sample_is_not_written(tracing, kept):
    unsampled = CALLER.removesuffix("01") + "00"
    tracing.request("GET", "/", 200, 0.1, stages=STAGES, headers={"traceparent": unsampled})
    assert not kept.get_finished_spans()


@pytest.mark.parametrize(
    ("status", "wanted"),
    [(404, StatusCode.UNSET), (500, StatusCode.ERROR), (503, StatusCode.ERROR)],
)
def test_only_the_services_own_errors_are_errors(tracing, kept, status, wanted):
    tracing.request("GET", "/", status, 0.1)
    assert kept.get_finished_spans()[0].status.status_code is wanted


def test_the_service_has_a_name_that_its_owner_may_change(tracing, kept, monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    named = Tracing(SimpleSpanProcessor(kept))
    for each in (tracing, named):
        each.request("GET", "/", 200, 0.1)
    names = [span.resource.attributes["service.name"] for span in kept.get_finished_spans()]
    assert names == ["hybridrec", "shop"]


@pytest.mark.parametrize("name", ["OTEL_EXPORTER_OTLP_ENDPOINT", None])
def test_it_is_off_unless_configured(monkeypatch, name):
    if name is not None:
        monkeypatch.setenv(name, "")
    assert set_up_tracing() is None
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert set_up_tracing("http://localhost:4318") is None


def test_off_it_loads_nothing():
    code = (
        "import sys\nfrom hybridrec.serve.watch.tracing import set_up_tracing\n"
        "assert set_up_tracing() is None\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_an_address_that_is_none_is_refused():
    with pytest.raises(InputError, match="http://HOST:4318"):
        set_up_tracing("collector:4318")


class _Collector(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, self.headers["Content-Type"], body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("by", ["argument", "variable"])
def test_a_collector_gets_the_spans(by, monkeypatch):
    server = HTTPServer(("127.0.0.1", 0), _Collector)
    server.got = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        if by == "variable":
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        tracing = set_up_tracing(address if by == "argument" else None)
        tracing.request("POST", "/v1/recommend", 200, 0.5, stages=STAGES)
        tracing.close()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    ((path, kind, body),) = server.got
    assert (path, kind) == ("/v1/traces", "application/x-protobuf")
    for name in ("POST /v1/recommend", "hybridrec.rerank", "service.name"):
        assert name.encode() in body, json.dumps(name)
