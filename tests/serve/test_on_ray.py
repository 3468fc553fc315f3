"""The service as a Ray Serve deployment: two replicas over one store, on a Ray of this machine."""

import os
import shutil
import socket
import time
from contextlib import closing

import httpx2
import pytest

from hybridrec.checks import InputError
from hybridrec.serve.access.keys import create_key
from hybridrec.serve.config import ServeConfig
from hybridrec.serve.on_ray import application, deployment
from hybridrec.serve.store.by_url import open_store

pytestmark = [
    pytest.mark.service,
    pytest.mark.timeout(240),
    # Ray's own, while it is imported and when it lets go of its processes.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


PORT = free_port()


@pytest.fixture(scope="module")
def ray_here():
    """A Ray of two cores without a dashboard, that reports to nobody; gone afterwards."""
    told = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    import ray
    from ray import serve

    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20
    )
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    yield serve
    serve.shutdown()
    ray.shutdown()
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


@pytest.fixture(scope="module")
def folder(model_folder, tmp_path_factory):
    """A copy of the model that may get another version."""
    return shutil.copytree(model_folder, tmp_path_factory.mktemp("ray") / "model")


@pytest.fixture(scope="module")
def service(ray_here, postgres_server, folder, tmp_path_factory):
    """A client of two replicas, with the keys' secrets by scope."""
    url = postgres_server.database()
    with closing(open_store(url)) as store:
        keys = {scope: create_key(store, scope, (scope,)) for scope in ("recommend", "admin")}
    counts = tmp_path_factory.mktemp("counts")
    ray_here.run(
        deployment(
            ServeConfig(model=folder, store=url, watch_seconds=0.2),
            replicas=2,
            ray_actor_options={
                "num_cpus": 0.5,
                "runtime_env": {"env_vars": {"PROMETHEUS_MULTIPROC_DIR": str(counts)}},
            },
        ),
        name="hybridrec",
    )
    with httpx2.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=30) as client:
        client.headers["authorization"] = f"Bearer {keys['admin']}"
        yield client, keys


def recommended(client, user="u1", **more):
    answer = client.post("/v1/recommend", json={"user": user, "k": 5, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def items(answer):
    return [found["item"] for found in answer["items"]]


def test_answers_as_the_engine(service, engine):
    client, _ = service
    wanted = engine.recommend(["u1", "u2"], 5, frame="pyarrow").to_pylist()
    for user in ("u1", "u2"):
        # Often enough that both replicas have their turn.
        for _ in range(6):
            mine = [row["item"] for row in wanted if row["user"] == user]
            assert items(recommended(client, user)) == mine


def test_needs_a_key_though_it_listens_to_this_machine_alone(service):
    client, keys = service
    for wrong in ({}, {"authorization": "Bearer x"}):
        url = f"http://127.0.0.1:{PORT}/v1/recommend"
        assert httpx2.post(url, json={"user": "u1"}, headers=wrong).status_code == 401
    limited = client.get("/v1/users/u1", headers={"authorization": f"Bearer {keys['recommend']}"})
    assert limited.status_code == 403


def test_every_answer_has_one_request_id(service):
    client, _ = service
    answer = client.get("/healthz", headers={"x-request-id": "mine-1"})
    assert answer.headers.get_list("x-request-id") == ["mine-1"]


def test_an_event_told_to_one_is_seen_by_all(service):
    client, _ = service
    first = items(recommended(client, "u3"))[0]
    event = {"id": "ray-1", "user": "u3", "item": first}
    assert client.post("/v1/events", json=event).json()["accepted"] == 1
    assert client.post("/v1/events", json=event).json()["duplicates"] == 1
    for _ in range(8):
        assert first not in items(recommended(client, "u3"))


def test_replicas_of_a_machine_count_together(service):
    client, _ = service

    def answered():
        name = 'hybridrec_request_seconds_count{route="/v1/recommend",status="200"}'
        text = client.get("/metrics").text
        found = [line for line in text.splitlines() if line.startswith(name)]
        return float(found[0].rpartition(" ")[2]) if found else 0.0

    before = answered()
    for _ in range(10):
        recommended(client)
    assert answered() == before + 10


def test_all_take_over_a_new_version(service, folder, save_another):
    client, _ = service
    before = recommended(client)
    save_another(folder, retire=items(before)[:1])
    until = time.monotonic() + 60
    while time.monotonic() < until:
        # Of twelve some come from either: that one was never asked happens once in 2,000 times.
        told = [recommended(client) for _ in range(12)]
        if before["model"] not in {answer["model"] for answer in told}:
            break
        time.sleep(0.2)
    assert len({answer["model"] for answer in told}) == 1
    assert all(items(before)[0] not in items(answer) for answer in told)


# -- what is refused before Ray is asked for anything ---------------------------------------------


@pytest.fixture
def config(model_folder, tmp_path):
    config = ServeConfig(model=model_folder, store=str(tmp_path / "store.sqlite"))
    with closing(open_store(config.store)) as store:
        create_key(store, "shop", ("recommend",))
    return config


def test_several_replicas_need_a_store_that_they_can_share(config):
    with pytest.raises(InputError, match="replicas is 2, and SQLite serves one process: pass a po"):
        deployment(config, replicas=2)
    with pytest.raises(InputError, match="autoscaling_config is set, and SQLite serves one"):
        deployment(config, autoscaling_config={"min_replicas": 1, "max_replicas": 3})
    deployment(config)


def test_a_key_is_needed(model_folder, tmp_path):
    with pytest.raises(InputError, match="there is no API key, and whoever reaches Ray's proxies"):
        deployment(ServeConfig(model=model_folder, store=str(tmp_path / "store.sqlite")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 2}, "workers is 2, and on Ray there is one a replica: pass replicas="),
        (
            {"certificate": "cert.pem", "private_key": "key.pem"},
            "certificate is set, and Ray's proxies speak plain HTTP: end TLS before them",
        ),
    ],
)
def test_what_is_rays_to_decide(config, options, message):
    given = {"model": config.model, "store": config.store, **options}
    with pytest.raises(InputError, match=message):
        deployment(ServeConfig(**given))


def test_replicas_are_told_in_one_place(config):
    with pytest.raises(InputError, match="num_replicas is told by replicas="):
        deployment(config, num_replicas=4)


def test_a_config_file(config):
    args = {"model": str(config.model), "store": config.store, "hosts": ["films.example"]}
    assert application(args) is not None
    with pytest.raises(InputError, match="args has 'modle'; wanted replicas or one of model, "):
        application({"modle": "x"})
    with pytest.raises(InputError, match="args lacks model"):
        application({"store": config.store})
    with pytest.raises(InputError, match="replicas is 2"):
        application({**args, "replicas": 2})
