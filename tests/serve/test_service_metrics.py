import inspect
import itertools
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
from metrics_helper import samples
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from hybridrec import InputError
from hybridrec.serve.watch.drift import DriftConfig
from hybridrec.serve.watch.metrics import SCORES, SECONDS, Metrics
from hybridrec.serve.watch.metrics_folder import VARIABLE, metrics_folder
from hybridrec.serve.watch.metrics_protocol import Meter

SMALL = DriftConfig(reference=2, window=4, step=2, bins=2)


def value(metrics, name, **labels):
    return samples(metrics.render()[0])[name, tuple(sorted(labels.items()))]


def test_every_count_is_where_its_name_says():
    metrics = Metrics()
    metrics.observe_stage("recall", 0.004)
    metrics.observe_batch(3)
    metrics.set_queue(7)
    metrics.observe_request("/v1/recommend", 200, 0.3)
    metrics.observe_request("/v1/recommend", 429, 0.001)
    metrics.count_degraded("no_reranker")
    metrics.count_rejected("queue_full")
    metrics.count_cache(5, 2)
    metrics.count_events(10, 1)
    metrics.observe_lag(0.02)
    page = samples(metrics.render()[0])
    told = {
        ("hybridrec_stage_seconds_bucket", (("le", "0.003"), ("stage", "recall"))): 0,
        ("hybridrec_stage_seconds_bucket", (("le", "0.005"), ("stage", "recall"))): 1,
        ("hybridrec_batch_size_sum", ()): 3,
        ("hybridrec_queue_waiting", ()): 7,
        ("hybridrec_request_seconds_count", (("route", "/v1/recommend"), ("status", "200"))): 1,
        ("hybridrec_request_seconds_count", (("route", "/v1/recommend"), ("status", "429"))): 1,
        ("hybridrec_degraded_total", (("kind", "no_reranker"),)): 1,
        ("hybridrec_degraded_total", (("kind", "popularity"),)): 0,
        ("hybridrec_rejected_total", (("reason", "queue_full"),)): 1,
        ("hybridrec_prefix_cache_hits_total", ()): 5,
        ("hybridrec_prefix_cache_misses_total", ()): 2,
        ("hybridrec_events_total", (("result", "accepted"),)): 10,
        ("hybridrec_events_total", (("result", "duplicate"),)): 1,
        ("hybridrec_event_loop_lag_seconds_count", ()): 1,
    }
    assert {key: page[key] for key in told} == told


def test_it_takes_what_the_parts_are_typed_to_tell():
    for name, method in inspect.getmembers(Meter, inspect.isfunction):
        if name.startswith("_"):
            continue
        assert inspect.signature(method) == inspect.signature(getattr(Metrics, name)), name


def test_drift_is_of_the_model_that_answers():
    metrics = Metrics(SMALL)
    metrics.set_model("a", items=10, cold_users=0.25)
    assert value(metrics, "hybridrec_training_cold_user_share") == 0.25
    assert math.isnan(value(metrics, "hybridrec_catalogue_coverage"))
    for item in range(4):
        metrics.observe_answer([0.5, None, math.inf], [item], cold_users=item % 2)
    assert value(metrics, "hybridrec_catalogue_coverage") == 0.4
    assert value(metrics, "hybridrec_cold_user_share") == 0.5
    assert value(metrics, "hybridrec_score_drift") == 0
    assert value(metrics, "hybridrec_drift_answers") == 4
    assert value(metrics, "hybridrec_score_bucket", le="+Inf") == 4
    assert value(metrics, "hybridrec_model_info", version="a") == 1
    metrics.set_model("b")
    assert value(metrics, "hybridrec_model_info", version="a") == 0
    assert value(metrics, "hybridrec_model_info", version="b") == 1
    assert value(metrics, "hybridrec_drift_answers") == 0
    for name in ("catalogue_coverage", "score_drift", "cold_user_share"):
        assert math.isnan(value(metrics, f"hybridrec_{name}"))
    assert math.isnan(value(metrics, "hybridrec_training_cold_user_share"))


def test_a_catalogue_of_unknown_size_has_no_coverage():
    metrics = Metrics(SMALL)
    metrics.set_model("a")
    for _ in range(4):
        metrics.observe_answer([1.0], ["x"], 0)
    assert math.isnan(value(metrics, "hybridrec_catalogue_coverage"))
    assert value(metrics, "hybridrec_cold_user_share") == 0


def test_scores_in_bulk_are_counted_as_one_by_one():
    # Bounds themselves are in: "le" is less or equal.
    given = [*SCORES, *(bound + 0.004 for bound in SCORES), -1e9, 1e9]
    bulk, single = Metrics(), Metrics()
    bulk._score.observe_all(np.array(given))
    for one in given:
        single._score.observe(one)
    pages = [samples(each.render()[0]) for each in (bulk, single)]
    counted = [
        {key: count for key, count in page.items() if key[0].startswith("hybridrec_score_bucket")}
        for page in pages
    ]
    assert len(counted[0]) == len(SCORES) + 1
    assert counted[0] == counted[1]
    bulk._score.observe_all(np.zeros(0))
    assert value(bulk, "hybridrec_score_bucket", le="+Inf") == len(given)


def test_paths_cannot_make_metrics_without_end():
    metrics = Metrics()
    for number in range(2000):
        metrics.observe_request(f"/{number}", 404, 0.001)
    page = samples(metrics.render()[0])
    counts = {key: count for key, count in page.items() if key[0].endswith("request_seconds_count")}
    assert sum(counts.values()) == 2000
    assert len(counts) < 600
    other = ("hybridrec_request_seconds_count", (("route", "other"), ("status", "404")))
    assert counts[other] > 1400


def test_names_and_times_follow_the_conventions():
    body, content_type = Metrics().render()
    assert content_type.startswith("text/plain")
    for family in text_string_to_metric_families(body.decode()):
        assert family.documentation
        if family.name.startswith("hybridrec_") and family.type == "counter":
            assert all(sample.name.endswith(("_total", "_created")) for sample in family.samples)
    assert SECONDS[0] < 0.001
    assert SECONDS[-1] == 10
    # A quantile is found within its bucket: neighbours at most twice as large keep it honest.
    assert max(high / low for low, high in itertools.pairwise(SECONDS)) <= 2.01


def test_whoever_asks_for_openmetrics_gets_it():
    body, content_type = Metrics().render("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert len(list(openmetrics.text_string_to_metric_families(body.decode()))) > 15  # it is strict


def test_two_registries_do_not_mix():
    one, other = Metrics(), Metrics()
    one.count_cache(3, 0)
    assert value(other, "hybridrec_prefix_cache_hits_total") == 0


def test_threads_lose_nothing():
    metrics = Metrics(DriftConfig(reference=100, window=1000, step=100))
    metrics.set_model("a", items=50)

    def work(place):
        for number in range(1000):
            metrics.observe_answer([float(number)], [place], 0)
            metrics.observe_request("/r", 200, 0.01)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert value(metrics, "hybridrec_score_bucket", le="+Inf") == 4000
    assert value(metrics, "hybridrec_request_seconds_count", route="/r", status="200") == 4000


# -- several workers ---------------------------------------------------------------------------

WORKER = textwrap.dedent(
    """
    import sys
    from hybridrec.serve.watch.drift import DriftConfig
    from hybridrec.serve.watch.metrics import Metrics

    metrics = Metrics(DriftConfig(reference=1, window=1, step=1))
    metrics.set_model(sys.argv[1], items=10)
    metrics.observe_request("/v1/recommend", 200, 0.1)
    metrics.set_queue(int(sys.argv[2]))
    metrics.observe_answer([0.5], ["x"], 1)
    metrics.count_degraded("popularity")
    print("up", flush=True)
    for line in sys.stdin:
        sys.stdout.write(metrics.render()[0].decode() + "END\\n")
        sys.stdout.flush()
    """
)


class Worker:
    def __init__(self, version, queue):
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, version, str(queue)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout.readline() == "up\n"

    def page(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        lines = iter(self.process.stdout.readline, "END\n")
        return samples("".join(lines))

    def end(self, how=signal.SIGKILL):
        self.process.send_signal(how)
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def test_each_worker_answers_for_all_and_the_dead_are_buried():
    request = ("hybridrec_request_seconds_count", (("route", "/v1/recommend"), ("status", "200")))
    queue = ("hybridrec_queue_waiting", ())
    degraded = ("hybridrec_degraded_total", (("kind", "popularity"),))

    def workers(page, version):
        return page.get(("hybridrec_model_info", (("version", version),)), 0)

    with metrics_folder() as folder:
        assert os.environ[VARIABLE] == str(folder)
        one, other = Worker("a", 3), Worker("b", 4)
        try:
            page = one.page()
            assert (page[request], page[queue], page[degraded]) == (2, 7, 2)
            assert (workers(page, "a"), workers(page, "b")) == (1, 1)
            cold = [labels for name, labels in page if name == "hybridrec_cold_user_share"]
            pids = {str(worker.process.pid) for worker in (one, other)}
            assert {dict(labels)["pid"] for labels in cold} == pids
            assert other.page()[request] == 2
            other.end()
            page = one.page()
            # What was counted stays counted; what waited there waits no more.
            assert (page[request], page[queue]) == (2, 3)
            assert (workers(page, "a"), workers(page, "b")) == (1, 0)
        finally:
            one.end()
            if other.process.returncode is None:
                other.end()
    assert VARIABLE not in os.environ
    assert not folder.exists()


def test_a_folder_of_the_operators_is_emptied_and_stays(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "new"))
    with metrics_folder() as folder:
        (folder / "counter_1.db").write_bytes(b"left")
        (folder / "README").write_text("mine")
    with metrics_folder() as folder:
        assert [path.name for path in folder.iterdir()] == ["README"]
    assert Path(os.environ[VARIABLE]) == folder


def test_a_folder_that_was_named_too_late_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(InputError, match="metrics_folder"):
        Metrics()
