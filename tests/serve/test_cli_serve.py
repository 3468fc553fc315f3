"""The command line of the service: a real process, started, asked and stopped."""

import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

import httpx2
import pytest

from hybridrec import storage
from hybridrec.cli import main
from hybridrec.client import Client, NotAllowedError
from hybridrec.serve.store.by_url import open_store


@contextmanager
def served(*arguments):
    """The URL of ``hybridrec serve ...`` in a process of its own, and the process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "hybridrec.cli", "serve", *map(str, arguments), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    log = []
    reader = threading.Thread(target=lambda: log.extend(process.stderr))
    reader.start()
    try:
        line = process.stdout.readline()
        found = re.search(r"https?://\S+", line)
        if found is None:
            reader.join(10)
            raise AssertionError(f"{line!r}, {log}")
        yield found[0], process, log
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its workers, too
        process.wait()
        process.stdout.close()
        reader.join()
        process.stderr.close()


def test_it_starts_answers_follows_and_stops_when_it_is_told_to(own_folder, tmp_path, save_another):
    first = storage.current(own_folder)
    second = save_another(own_folder)
    store = tmp_path / "s.sqlite"
    with served(own_folder, "--store", store, "--watch-seconds", "0.2") as (url, process, log):
        with Client(url) as client:
            assert client.send_event(user="u", item="i3").accepted == 1
            assert client.recommend(user="u", k=3).model == second
            assert main(["rollback", str(own_folder)]) == 0
            wait_until(lambda: client.ready().model == first)

        with begun(url, {"user": "u"}) as finish:
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: any("Shutting down" in line for line in log))
            # What had come in is answered before it stops.
            assert finish().startswith("HTTP/1.1 200")
        assert process.wait(60) == 0
        assert "no API key" in process.stdout.read()
    assert not [line for line in log if "Traceback" in line]
    assert any('"route": "/v1/events"' in line for line in log)
    kept = open_store(store)
    assert [event.item for event in kept.events("u")] == ["i3"]
    kept.close()


@contextmanager
def begun(url, asked):
    """A request that the service has begun to read; a function that sends the rest of it."""
    where, body = urlsplit(url), json.dumps(asked).encode()
    with socket.create_connection((where.hostname, where.port), timeout=30) as connection:
        connection.sendall(
            b"POST /v1/recommend HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        assert connection.recv(1000).startswith(b"HTTP/1.1 100")

        def finish():
            connection.sendall(body)
            return connection.recv(10_000).decode()

        yield finish


def wait_until(done, seconds=30):
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_service_with_keys_and_a_certificate(own_folder, tmp_path, capsys):
    where = ["--model", str(own_folder)]
    assert main(["keys", "create", "shop", "--scope", "recommend", *where]) == 0
    secret = capsys.readouterr().out.strip()
    assert main(["keys", "create", "operator", "--scope", "admin", "--scope", "admin", *where]) == 0
    assert main(["keys", "list", *where]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()[1:]]
    assert [line[1:3] for line in lines] == [["shop", "recommend"], ["operator", "admin"]]
    assert secret not in str(lines)
    files = certificate(tmp_path)
    options = ("--certificate", files[0], "--private-key", files[1], "--log-text")
    with served(own_folder, *options) as (url, process, log):
        assert url.startswith("https://127.0.0.1:")
        trusting = ssl.create_default_context(cafile=str(files[0]))
        with Client(url, key=secret, transport=httpx2.HTTPTransport(verify=trusting)) as client:
            assert client.recommend(history=["i1"]).items
            with pytest.raises(NotAllowedError):
                client.models()
            assert main(["keys", "revoke", lines[0][0], *where]) == 0
            wait_until(lambda: refused(client))
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert "no API key" not in process.stdout.read()
    assert any("route=/v1/recommend status=200" in line for line in log)
    assert capsys.readouterr().out == f"Revoked {lines[0][0]}\n"
    assert main(["keys", "revoke", lines[0][0], *where]) == 2
    assert main(["keys", "list", *where]) == 0
    assert "revoked 20" in capsys.readouterr().out.splitlines()[0]


def refused(client):
    try:
        client.recommend(history=["i1"])
    except NotAllowedError as error:
        return error.status == 401
    return False


def certificate(folder):
    """A certificate of ours for 127.0.0.1, and its key."""
    files = (folder / "c.pem", folder / "k.pem")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    command += " -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    command += f" -keyout {files[1]} -out {files[0]}"
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    subprocess.run(command.split(), capture_output=True, check=True)
    return files


def test_mistakes_end_with_one_line_that_helps(own_folder, model_folder, tmp_path, capsys):
    def told(*arguments):
        assert main([str(part) for part in arguments]) == 2
        error = capsys.readouterr().err
        assert "Traceback" not in error
        return error.splitlines()[-1]

    message = told("serve", own_folder, "--host", "0.0.0.0")
    assert f"hybridrec keys create NAME --scope recommend --model {own_folder}" in message
    assert "postgresql://" in told("serve", own_folder, "--workers", "2")
    store = tmp_path / "s.sqlite"
    assert "no saved model" in told("serve", tmp_path / "none", "--store", store)
    assert "no saved model" in told("keys", "list", "--model", tmp_path)
    assert "port is 99999" in told("serve", own_folder, "--port", "99999")
    assert "certificate" in told("serve", own_folder, "--certificate", "x.pem")
    assert "such.invalid" in told(
        "serve", own_folder, "--host", "such.invalid", "--store", keyed_store(store, capsys)
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert "in use" in told("serve", own_folder, "--port", port).lower()
    assert "nothing before" in told("rollback", own_folder)


def test_a_mistake_leaves_nothing_behind(own_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    empty, log, text = tmp_path / "empty", tmp_path / "log.csv", tmp_path / "text.pem"
    empty.mkdir()
    for file in (log, text):
        file.write_text("user,item\n" * 100)
    log.chmod(0o644)
    before = sorted(tmp_path.rglob("*"))

    def told(*arguments):
        assert main([str(part) for part in arguments]) == 2
        assert sorted(tmp_path.rglob("*")) == before
        return capsys.readouterr().err.splitlines()[-1]

    for model in (empty, tmp_path / "nowhere"):
        assert f"{model} holds no saved model" in told("serve", model)
    for command in (["serve", own_folder], ["keys", "list"], ["keys", "revoke", "x"]):
        assert "not a database" in told(*command, "--store", log)
    assert log.stat().st_mode & 0o777 == 0o644
    for action in (["list"], ["revoke", "x"]):
        assert "there is no store typo.sqlite" in told("keys", *action, "--store", "typo.sqlite")
        assert f"there is no store {own_folder}" in told("keys", *action, "--model", own_folder)
    tls = ("serve", own_folder, "--certificate", text, "--private-key")
    assert "private_key is no.pem, which cannot be read: No such file" in told(*tls, "no.pem")
    assert f"certificate is {text} and private_key {text}; wanted PEM" in told(*tls, text)
    assert "health_overlap is 2.0; wanted a share, at most 1" in told(
        "serve", own_folder, "--health-overlap", "2"
    )


def test_that_there_is_no_key_is_said_beside_the_list(tmp_path, capsys):
    store = tmp_path / "s.sqlite"
    open_store(store).close()
    assert main(["keys", "list", "--store", str(store)]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "There is no API key" in err


def keyed_store(path, capsys):
    assert main(["keys", "create", "x", "--scope", "admin", "--store", str(path)]) == 0
    capsys.readouterr()
    return path


@pytest.mark.slow
@pytest.mark.parametrize("damaged", ["versions/*/popularity/*", "CURRENT"])
def test_a_damaged_model_is_told_before_anything_is_served(own_folder, damaged):
    file = next(own_folder.glob(damaged))
    file.write_bytes(b"x")
    done = subprocess.run(
        [sys.executable, "-m", "hybridrec.cli", "serve", str(own_folder), "--port", "0"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    *before, line = done.stderr.splitlines()
    assert line.startswith("hybridrec: error: ")
    assert ("no version 'x'" if damaged == "CURRENT" else file.name) in line
    assert {json.loads(each)["level"] for each in before} == {"info"}


def test_rolling_back_names_the_other_version(own_folder, save_another, capsys):
    first = storage.current(own_folder)
    second = save_another(own_folder)
    for now, before in ((first, second), (second, first)):
        assert main(["rollback", str(own_folder)]) == 0
        assert capsys.readouterr().out == (
            f"{own_folder} is at version {now} now, no longer {before}\n"
        )
        assert storage.current(own_folder) == now


@pytest.mark.service
def test_two_workers_are_one_service(own_folder, postgres_server):
    options = ("--store", postgres_server.database(), "--workers", "2", "--watch-seconds", "0.2")
    with served(own_folder, *options) as (url, process, log):
        wait_until(lambda: sum("Application startup complete" in line for line in log) == 2, 120)
        for number in range(20):
            with Client(url, timeout=60) as client:  # a connection each: either worker may take it
                user = f"new{number}"
                assert client.recommend(user=user).unknown_user
                assert client.send_event(id=user, user=user, item="i3").accepted == 1
        for number in range(20):
            with Client(url, timeout=60) as client:
                user = f"new{number}"
                assert not client.recommend(user=user).unknown_user
                assert client.send_event(id=user, user=user, item="i3").duplicates == 1
        counts = httpx2.get(f"{url}/metrics").text
        told = 'hybridrec_request_seconds_count{route="/v1/recommend",status="200"} 40.0'
        assert told in counts
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert not [line for line in log if "Traceback" in line]


@pytest.mark.service
def test_workers_that_cannot_start_are_a_failure(own_folder, postgres_server):
    (own_folder / "CURRENT").write_text("x")
    options = ("--store", postgres_server.database(), "--workers", "2")
    with served(own_folder, *options) as (_, process, log):
        assert process.wait(60) == 2
        wait_until(lambda: log[-1].startswith("hybridrec: error: a worker cannot start"))
    assert any("no version 'x'" in line for line in log)


@pytest.mark.service
def test_workers_end_with_the_process_that_was_killed(own_folder, postgres_server):
    options = ("--store", postgres_server.database(), "--workers", "2")
    with served(own_folder, *options) as (url, process, log):
        wait_until(lambda: sum("Application startup complete" in line for line in log) == 2, 120)
        process.kill()
        process.wait(10)
        where = urlsplit(url)

        def is_free():
            with socket.socket() as tried:
                return tried.connect_ex((where.hostname, where.port)) != 0

        wait_until(is_free, 60)
