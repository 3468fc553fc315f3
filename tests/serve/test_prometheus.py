"""Prometheus itself reads the metrics, the rules and every query of the dashboard."""

import json
import math
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml
from deploy_helper import DEPLOY, adapter_query, alert_rules, dashboard_queries, document
from metrics_helper import busy_metrics, tell

from hybridrec.serve.watch.drift import DriftConfig

PROMTOOL, PROMETHEUS = shutil.which("promtool"), shutil.which("prometheus")
RULES = DEPLOY / "prometheus"
KEY = "a-key-of-this-test"

pytestmark = [
    pytest.mark.service,
    pytest.mark.skipif(
        PROMTOOL is None or PROMETHEUS is None, reason="needs Debian's package prometheus"
    ),
]


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "rules", "alerts.yml"],
        ["test", "rules", "alerts_test.yml"],
        ["check", "config", "--syntax-only", "prometheus.yml"],
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_promtool_passes(arguments):
    done = subprocess.run([PROMTOOL, *arguments], cwd=RULES, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_finds_no_fault_in_the_names():
    page = busy_metrics().render()[0]
    done = subprocess.run([PROMTOOL, "check", "metrics"], input=page, capture_output=True)
    # prometheus_client's own times of making are no counters.
    found = [line for line in done.stderr.decode().splitlines() if "_created" not in line]
    assert [line for line in found if line.startswith("hybridrec_")] == []


class _Page(BaseHTTPRequestHandler):
    def do_GET(self):
        allowed = self.headers["Authorization"] == f"Bearer {KEY}" and self.path == "/metrics"
        tell(self.server.metrics)
        body, kind = self.server.metrics.render(self.headers.get("Accept", ""))
        self.send_response(200 if allowed else 401)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def target():
    """The address of something that answers /metrics as the service does."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Page)
    server.metrics = busy_metrics()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def ask(target, tmp_path_factory):
    """Asks a Prometheus with deploy/'s configuration that has scraped a few times."""
    folder = tmp_path_factory.mktemp("prometheus")
    config = document("prometheus", "prometheus.yml")
    (folder / "key").write_text(KEY)
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(RULES / "alerts.yml")]
    (job,) = config["scrape_configs"]
    job["authorization"]["credentials_file"] = str(folder / "key")
    job["static_configs"] = [{"targets": [target]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = (folder / "log").open("w")
    process = subprocess.Popen(
        [
            PROMETHEUS,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=log,
        stderr=subprocess.STDOUT,
    )

    def get(path, **query):
        address = f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(address, timeout=10) as answer:
            return json.load(answer)["data"]

    try:
        _wait(lambda: len(_values(get, "hybridrec_queue_waiting[1m]")) >= 5, folder / "log")
        yield get
    finally:
        process.terminate()
        process.wait(timeout=30)
        log.close()


def _values(get, query):
    result = get("query", query=query)["result"]
    return result[0]["values"] if result else []


def _wait(ready, log):
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            if ready():
                return
        except OSError:
            pass  # it is not listening yet
        time.sleep(0.5)
    pytest.fail(f"Prometheus scraped nothing: {log.read_text()[-2000:]}")


def _filled(expression):
    for name, value in (("$job", "hybridrec"), ("$instance", ".*"), ("$__rate_interval", "10s")):
        expression = expression.replace(name, value)
    return expression


@pytest.mark.parametrize(("title", "expression"), dashboard_queries())
def test_every_query_of_the_dashboard_shows_something(ask, title, expression):
    result = ask("query", query=_filled(expression))["result"]
    if "offset 1w" in expression:
        assert result == []  # this Prometheus is seconds old
        return
    assert result, title
    assert all(math.isfinite(float(each["value"][1])) for each in result), title


def test_the_adapters_query_finds_the_queue(ask):
    query = adapter_query().replace('namespace="hybridrec",pod=~"a|b"', 'job="hybridrec"')
    (found,) = ask("query", query=query.replace("pod", "instance"))["result"]
    assert float(found["value"][1]) == 2


def test_the_alerts_are_evaluated(ask):
    _wait_for_rules(ask)
    (group,) = ask("rules")["groups"]
    assert [rule["name"] for rule in group["rules"]] == [rule["alert"] for rule in alert_rules()]
    assert {rule["health"] for rule in group["rules"]} == {"ok"}


def _wait_for_rules(ask):
    until = time.monotonic() + 20
    while time.monotonic() < until:
        if all(rule["health"] == "ok" for rule in ask("rules")["groups"][0]["rules"]):
            return
        time.sleep(0.5)


def test_figures_that_are_not_there_yet_alarm_nobody(ask, target):
    from hybridrec.serve.watch.metrics import Metrics

    fresh = Metrics(DriftConfig())
    fresh.set_model("v1")
    page = fresh.render()[0].decode()
    assert "hybridrec_score_drift NaN" in page
    # What Prometheus makes of NaN, which promtool's test series cannot hold.
    for comparison in ("> 0.25", ">= 0"):
        assert ask("query", query=f"vector(NaN) {comparison}")["result"] == []
