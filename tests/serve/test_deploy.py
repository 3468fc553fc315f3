"""The files in deploy/ agree with the service and with each other.

No container engine and no cluster is at hand: what can be read without one is read here, and what
Prometheus has tools for is given to them where they are installed (marker ``service``).
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import kubernetes_validate
import pytest
from deploy_helper import (
    DASHBOARD,
    DEPLOY,
    MANIFESTS,
    ROOT,
    adapter_query,
    adapter_rule,
    alert_rules,
    docker,
    docker_values,
    document,
    documents,
    groups_in,
    manifest,
    metrics_in,
    panels,
    queries,
    selectors_in,
    server,
    server_pod,
)
from metrics_helper import busy_metrics, samples

from hybridrec.cli_serve import add_serve_parsers
from hybridrec.serve.app import create_app
from hybridrec.serve.config import ServeConfig
from hybridrec.serve.running import DRAIN_SECONDS
from hybridrec.serve.watch.metrics import REASONS, STAGES

YAML = sorted([*DEPLOY.rglob("*.yaml"), *DEPLOY.rglob("*.yml")])
APP = "app.kubernetes.io/name"
PART = "app.kubernetes.io/component"
TARGET = {"job", "instance", "namespace", "pod", "pid"}
"""Labels that Prometheus or several workers add."""


@pytest.fixture(scope="module")
def exposed():
    """Name of a sample -> the labels it has."""
    found = {}
    for name, labels in samples(busy_metrics().render()[0]):
        found.setdefault(name, set()).update(dict(labels))
    return found


@pytest.fixture(scope="module")
def paths():
    """Paths of the application."""
    return set(create_app(ServeConfig(model=Path("/model"))).openapi()["paths"])


def parsed(arguments):
    """What the command line makes of arguments."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_serve_parsers(parser.add_subparsers(), argparse.ArgumentParser(add_help=False))
    return parser.parse_args(arguments)


@pytest.mark.parametrize("path", YAML, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_yaml_parses(path):
    assert all(isinstance(each, dict) and each for each in documents(path))


# -- linters --------------------------------------------------------------------------------------


def test_hadolint_finds_no_fault_in_the_dockerfile():
    linter = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    done = subprocess.run([linter, DEPLOY / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_yamllint_finds_no_fault():
    command = [sys.executable, "-m", "yamllint", "--strict", "."]
    done = subprocess.run(command, cwd=DEPLOY, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("path", sorted(MANIFESTS.glob("*.yaml")), ids=lambda path: path.name)
def test_kubernetes_knows_every_field(path):
    for each in documents(path):
        if "kind" not in each or each["kind"] == "Kustomization":
            continue  # Helm's values, and what only kubectl reads
        for version in ("1.30", kubernetes_validate.latest_version()):
            kubernetes_validate.validate(each, version, strict=True)


# -- what is asked of Prometheus ------------------------------------------------------------------


def test_the_reader_of_queries_reads():
    query = 'sum by (a, le) (rate(x_bucket{job="j", s=~"5.."}[5m] offset 1w)) / on (b) y > 0'
    assert metrics_in(query) == {"x_bucket", "y"}
    assert selectors_in(query) == [("x_bucket", [("job", "=", "j"), ("s", "=~", "5..")])]
    assert groups_in(query) == {"a", "le", "b"}


@pytest.mark.parametrize(("where", "query"), queries(), ids=lambda value: value[:60])
def test_every_metric_and_label_that_is_asked_for_is_exposed(where, query, exposed):
    asked = metrics_in(query)
    assert asked, where
    assert asked - {"up"} <= set(exposed), where
    for name, matchers in selectors_in(query):
        for label, _, _ in matchers:
            assert label in exposed.get(name, set()) | TARGET, (where, name, label)
    known = TARGET.union(*(exposed.get(name, set()) for name in asked))
    assert groups_in(query) <= known, where


@pytest.mark.parametrize(("where", "query"), queries(), ids=lambda value: value[:60])
def test_labels_are_asked_for_values_that_there_are(where, query, paths):
    known = {"route": paths, "reason": set(REASONS), "stage": set(STAGES)}
    for _, matchers in selectors_in(query):
        for label, operator, value in matchers:
            if label in known:
                found = [each for each in known[label] if re.fullmatch(value, each)]
                assert found if operator == "=~" else value in known[label], (where, label, value)


def test_the_dashboard_shows_every_metric(exposed):
    shown = set().union(*(metrics_in(query) for _, query in queries()))
    families = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in exposed}
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    missing = {name for name in families if name.startswith("hybridrec_")} - shown
    assert {name for name in missing if f"{name}_total" not in shown} == set()


def test_panels_have_places_of_their_own():
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (place["x"] + column, place["y"] + row)
            for column in range(place["w"])
            for row in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)


def test_queries_of_the_dashboard_go_where_its_variables_say():
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    for panel in panels():
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            used = set(re.findall(r"\$([a-z]\w*)", target["expr"]))
            assert used == variables - {"datasource"}, panel["title"]


def test_every_alert_says_what_is_wrong_and_is_tested():
    names = [rule["alert"] for rule in alert_rules()]
    assert len(set(names)) == len(names)
    for rule in alert_rules():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}
        assert 'job="hybridrec"' in rule["expr"]
    fired, silent = set(), set()
    for test in document("prometheus", "alerts_test.yml")["tests"]:
        for case in test["alert_rule_test"]:
            (fired if case.get("exp_alerts") else silent).add(case["alertname"])
    assert fired == silent == set(names)


def test_alerts_that_the_dashboard_names_are_there():
    named = set(re.findall(r"Hybridrec\w+", json.dumps(DASHBOARD)))
    assert named
    assert named <= {rule["alert"] for rule in alert_rules()}


def test_the_autoscaler_reads_what_the_adapter_makes():
    (metric,) = manifest("hpa")["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == adapter_rule()["name"]["as"]
    assert adapter_rule()["seriesQuery"].startswith(f"{adapter_rule()['name']['as']}{{")
    assert metrics_in(adapter_query()) == {"hybridrec_queue_waiting"}
    relabeled = {
        rule.get("target_label")
        for job in document("prometheus", "kubernetes.yml")["scrape_configs"]
        for rule in job["relabel_configs"]
    }
    assert {"namespace", "pod"} <= relabeled


# -- the image ------------------------------------------------------------------------------------


def test_the_image_installs_extras_that_there_are():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = set(docker_values("ARG")["EXTRAS"].split(","))
    assert {"serve", "postgres", "otel"} <= extras <= set(project["optional-dependencies"])
    python = docker_values("ARG")["PYTHON"]
    assert f"Programming Language :: Python :: {python}" in project["classifiers"]


def test_what_the_image_copies_is_there_and_not_ignored():
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    copied = [
        source
        for arguments in docker("COPY")
        if not arguments.startswith("--from")
        for source in arguments.split()[:-1]
    ]
    assert {"csrc", "hybridrec", "constraints.txt", "setup.py"} <= set(copied)
    for source in copied:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in allowed
    assert "*" in allowed  # all that is not named stays outside


def test_every_file_that_python_needs_is_in_the_wheel():
    # setup.py and pyproject.toml name them; the image has no others.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for name in (project["project"]["readme"], *project["project"]["license-files"]):
        assert any(name in arguments.split() for arguments in docker("COPY")), name


def test_the_image_runs_as_nobody_in_particular():
    (user,) = docker("USER")
    uid, gid = user.split(":")
    assert f"--uid {uid}" in " ".join(docker("RUN"))
    context = server_pod()["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"], context["fsGroup"]) == (
        int(uid),
        int(gid),
        int(gid),
    )
    for name in ("deployment", "first-key"):
        pod = manifest(name)["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsUser"] == int(uid)
        for container in pod["containers"]:
            own = container["securityContext"]
            assert own["readOnlyRootFilesystem"]
            assert not own["allowPrivilegeEscalation"]
            assert own["capabilities"] == {"drop": ["ALL"]}
    service = document("compose.yaml")["services"]["hybridrec"]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]


def test_nothing_is_written_outside_of_tmp_and_the_volume():
    set_ = docker_values("ENV")
    for name in ("HOME", "NUMBA_CACHE_DIR", "HF_HOME"):
        assert set_[name].startswith("/tmp")
    assert [mount["mountPath"] for mount in server()["volumeMounts"]] == ["/model", "/tmp"]
    service = document("compose.yaml")["services"]["hybridrec"]
    assert [each.split(":")[0] for each in service["tmpfs"]] == ["/tmp"]
    assert [each.split(":")[-1] for each in service["volumes"]] == ["/model"]


# -- ports, paths, arguments ----------------------------------------------------------------------


def commands():
    """(where, arguments) of every way that hybridrec is started."""
    (command,) = docker("CMD")
    yield "Dockerfile", json.loads(command)
    yield "compose.yaml", document("compose.yaml")["services"]["hybridrec"]["command"]
    known = manifest("configmap")["data"]
    for name in ("deployment", "first-key"):
        (container,) = manifest(name)["spec"]["template"]["spec"]["containers"]
        filled = [
            re.sub(r"\$\((\w+)\)", lambda found: known[found[1]], each)
            for each in container["args"]
        ]
        yield name, filled


@pytest.mark.parametrize(("where", "arguments"), [*commands()], ids=lambda value: str(value)[:12])
def test_the_command_line_takes_what_it_is_given(where, arguments):
    chosen = vars(parsed(arguments))
    if where == "first-key":
        assert chosen["scope"] == ["admin"]
        assert chosen["store"].startswith("postgresql://")
        return
    known = set(ServeConfig.__dataclass_fields__)
    config = ServeConfig(**{name: value for name, value in chosen.items() if name in known})
    assert config.model == Path("/model")
    assert config.port == int(docker("EXPOSE")[0])
    assert not config.loopback
    if where != "Dockerfile":
        assert config.store.startswith("postgresql://")
        assert "@" in config.store
        assert ":" not in config.store.split("@")[0].removeprefix("postgresql://")  # no password
        assert "hybridrec" in config.hosts


def test_ports_are_one_port(paths):
    (port,) = docker("EXPOSE")
    services = document("compose.yaml")["services"]
    assert services["hybridrec"]["ports"] == [f"127.0.0.1:{port}:{port}"]
    (http,) = server()["ports"]
    assert http["containerPort"] == int(port)
    assert manifest("service")["spec"]["ports"][0]["targetPort"] == http["name"]
    assert manifest("networkpolicy")["spec"]["ingress"][0]["ports"][0]["port"] == http["name"]
    (job,) = document("prometheus", "prometheus.yml")["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"hybridrec:{port}"]}]
    (check,) = docker("HEALTHCHECK")
    assert f"http://127.0.0.1:{port}/healthz" in check


def test_paths_are_those_of_the_application(paths):
    container = server()
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["path"] in paths
        assert container[probe]["httpGet"]["port"] == container["ports"][0]["name"]
    for name in ("prometheus.yml", "kubernetes.yml"):
        (job,) = document("prometheus", name)["scrape_configs"]
        assert job["metrics_path"] in paths


def test_a_pod_has_time_to_answer_what_it_has():
    wait = server()["lifecycle"]["preStop"]["exec"]["command"]
    assert wait[0] == "sleep"
    needed = int(wait[1]) + DRAIN_SECONDS
    assert server_pod()["terminationGracePeriodSeconds"] > needed
    grace = document("compose.yaml")["services"]["hybridrec"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) > DRAIN_SECONDS


# -- what names what ------------------------------------------------------------------------------


def test_selectors_find_the_deployments_pods_and_no_others():
    labels = manifest("deployment")["spec"]["template"]["metadata"]["labels"]
    job = manifest("first-key")["spec"]["template"]["metadata"]["labels"]
    for name in ("deployment", "pdb", "service"):
        selector = manifest(name)["spec"]["selector"]
        wanted = selector.get("matchLabels", selector)
        assert wanted.items() <= labels.items()
        assert not wanted.items() <= job.items()
    policy = manifest("networkpolicy")["spec"]["podSelector"]["matchLabels"]
    assert policy.items() <= labels.items()
    assert policy.items() <= job.items()  # it has to reach PostgreSQL, too
    assert {APP, PART} <= set(labels)


def test_what_a_pod_refers_to_is_there():
    names = {
        (each["kind"], each["metadata"]["name"])
        for path in MANIFESTS.glob("*.yaml")
        for each in documents(path)
        if "metadata" in each
    }
    for source in server()["envFrom"]:
        ((kind, reference),) = source.items()
        expected = {"configMapRef": "ConfigMap", "secretRef": "Secret"}[kind]
        assert (expected, reference["name"]) in names
    claim = next(volume for volume in server_pod()["volumes"] if volume["name"] == "model")
    reference = ("PersistentVolumeClaim", claim["persistentVolumeClaim"]["claimName"])
    assert reference in names
    assert ("Deployment", manifest("hpa")["spec"]["scaleTargetRef"]["name"]) in names
    volumes = {volume["name"] for volume in server_pod()["volumes"]}
    assert {mount["name"] for mount in server()["volumeMounts"]} == volumes


def test_kustomize_applies_every_object_but_the_examples():
    listed = manifest("kustomization")["resources"]
    assert {*listed} == {path.name for path in MANIFESTS.glob("*.yaml")} - {
        "kustomization.yaml",
        "secret.example.yaml",
        "secret.yaml",
        "first-key.yaml",
        "prometheus-adapter.values.yaml",
    }
    (image,) = manifest("kustomization")["images"]
    assert image["name"] == server()["image"]
    (keys,) = manifest("first-key")["spec"]["template"]["spec"]["containers"]
    assert keys["image"] == f"{image['newName']}:{image['newTag']}"


def test_compose_refers_to_what_it_declares():
    compose = document("compose.yaml")
    text = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    example = (DEPLOY / ".env.example").read_text(encoding="utf-8")
    for name in re.findall(r"\$\{(\w+)", text):
        assert f"\n{name}=" in example, name
    for name, service in compose["services"].items():
        assert set(service.get("secrets", ())) <= set(compose["secrets"])
        assert set(service["networks"]) <= set(compose["networks"])
        assert set(service.get("depends_on", ())) <= set(compose["services"])
        assert ":latest" not in service["image"]
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert (DEPLOY / source).exists(), (name, source)
            elif not source.startswith("$"):
                assert source in compose["volumes"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


def test_prometheus_shows_its_key_where_it_is_mounted():
    (job,) = document("prometheus", "prometheus.yml")["scrape_configs"]
    services = document("compose.yaml")["services"]
    (secret,) = services["prometheus"]["secrets"]
    assert job["authorization"]["credentials_file"] == f"/run/secrets/{secret}"
    assert document("prometheus", "prometheus.yml")["rule_files"] == ["alerts.yml"]


def test_secrets_are_not_in_git():
    ignored = (DEPLOY / ".gitignore").read_text(encoding="utf-8").split()
    assert {".env", "secrets/", "k8s/secret.yaml"} <= set(ignored)
    for each in documents(MANIFESTS / "secret.example.yaml"):
        assert set(each["stringData"].values()) == {"change-me"}
