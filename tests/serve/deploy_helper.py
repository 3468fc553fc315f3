"""What the files in deploy/ say, read for the tests."""

import json
import re
import shlex
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
MANIFESTS = DEPLOY / "k8s"
DASHBOARD = json.loads((DEPLOY / "grafana" / "hybridrec.json").read_text(encoding="utf-8"))

_WORDS = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_STRING = re.compile(r'"[^"]*"')
_MATCHERS = re.compile(r"\{[^{}]*\}")
_SELECTOR = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\s*\{([^{}]*)\}")
_MATCHER = re.compile(r'([a-z_]+)\s*(=~|!=|!~|=)\s*"([^"]*)"')
_GROUP = re.compile(r"\b(?:by|on|ignoring|group_left|without)\s*\(([^()]*)\)")
_RANGE = re.compile(r"\[[^\]]*\]|\boffset\s+\S+")
_SYNTAX = {
    *("sum", "avg", "max", "min", "count", "rate", "increase", "histogram_quantile", "vector"),
    *("by", "on", "ignoring", "group_left", "unless", "and", "or", "avg_over_time"),
}


def documents(path):
    """The YAML documents of a file."""
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def document(*parts):
    """The one document of a file in deploy/."""
    (found,) = documents(DEPLOY.joinpath(*parts))
    return found


def panels():
    """The dashboard's panels that show something."""
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def dashboard_queries():
    """(title, expression) of every query of the dashboard."""
    found = [(panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]]
    notes = DASHBOARD["annotations"]["list"]
    return found + [(note["name"], note["expr"]) for note in notes]


def alert_rules():
    """The alerts."""
    (group,) = document("prometheus", "alerts.yml")["groups"]
    return group["rules"]


def adapter_rule():
    """The rule by which a pod's queue becomes a metric of Kubernetes."""
    (rule,) = document("k8s", "prometheus-adapter.values.yaml")["rules"]["custom"]
    return rule


def adapter_query():
    """The adapter's query as it asks it of Prometheus."""
    query = adapter_rule()["metricsQuery"].replace("<<.Series>>", "hybridrec_queue_waiting")
    query = query.replace("<<.LabelMatchers>>", 'namespace="hybridrec",pod=~"a|b"')
    return query.replace("<<.GroupBy>>", "pod")


def queries():
    """(where, expression) of everything that is asked of Prometheus."""
    found = [(f"dashboard: {title}", text) for title, text in dashboard_queries()]
    found += [(f"alert: {rule['alert']}", rule["expr"]) for rule in alert_rules()]
    return [*found, ("adapter", adapter_query())]


def metrics_in(expression):
    """Names of metrics in an expression of PromQL."""
    bare = _GROUP.sub(" ", _RANGE.sub(" ", _MATCHERS.sub(" ", _STRING.sub(" ", expression))))
    return set(_WORDS.findall(bare)) - _SYNTAX


def selectors_in(expression):
    """(metric, [(label, operator, value)]) of an expression."""
    return [(name, _MATCHER.findall(inner)) for name, inner in _SELECTOR.findall(expression)]


def groups_in(expression):
    """Labels that an expression groups or matches by."""
    return {
        label.strip()
        for inner in _GROUP.findall(expression)
        for label in inner.split(",")
        if label.strip()
    }


def manifest(name):
    """A Kubernetes object by its file."""
    return document("k8s", f"{name}.yaml")


def server_pod():
    """The pod that the Deployment makes."""
    return manifest("deployment")["spec"]["template"]["spec"]


def server():
    """Its container."""
    (found,) = server_pod()["containers"]
    return found


def instructions(name="Dockerfile"):
    """[(instruction, arguments)] of the Dockerfile, continued lines joined, no comments."""
    text = (DEPLOY / name).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [tuple(line.split(maxsplit=1)) for line in joined if line.strip()]


def docker(instruction):
    """The arguments of every use of an instruction."""
    return [arguments for name, arguments in instructions() if name == instruction]


def docker_values(*kinds):
    """What ARG and ENV set: name -> value, the last one."""
    found = {}
    for kind in kinds:
        for arguments in docker(kind):
            for part in shlex.split(arguments):
                name, _, value = part.partition("=")
                found[name] = value
    return found
