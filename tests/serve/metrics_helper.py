"""Metrics that have something to tell, and a reader of what they tell."""

from prometheus_client.parser import text_string_to_metric_families

from hybridrec.serve.watch.drift import DriftConfig
from hybridrec.serve.watch.metrics import STAGES, Metrics


def samples(body):
    """(name, labels) -> value, of a rendered page."""
    text = body.decode() if isinstance(body, bytes) else body
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def busy_metrics():
    """Metrics of which every one has been told something."""
    metrics = Metrics(DriftConfig(reference=2, window=2, step=1, bins=2))
    metrics.set_model("v1", items=10, cold_users=0.1)
    tell(metrics)
    return metrics


def tell(metrics):
    """A few requests' worth of everything."""
    for stage in STAGES:
        metrics.observe_stage(stage, 0.02)
    metrics.observe_batch(4)
    metrics.set_queue(2)
    for route in ("/v1/recommend", "/v1/rank"):
        for status in (200, 429, 503):
            metrics.observe_request(route, status, 0.05)
    metrics.count_degraded("no_reranker")
    metrics.count_rejected("queue_full")
    metrics.count_cache(3, 1)
    metrics.count_events(2, 1)
    metrics.observe_lag(0.001)
    for score in range(4):
        metrics.observe_answer([score, score - 1.0], [score], cold_users=score % 2)
