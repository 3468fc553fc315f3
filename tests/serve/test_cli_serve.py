"""The command line of the service: a real process, started, asked and stopped."""

import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import httpx2
import pytest

from hybridrec import storage
from hybridrec.cli import main
from hybridrec.client import Client


@contextmanager
def served(*arguments):
    """The URL of ``hybridrec serve ...`` in a process of its own, and the process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "hybridrec.cli", "serve", *map(str, arguments), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
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
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()
        reader.join()
        process.stderr.close()


def test_it_starts_answers_and_stops_when_it_is_told_to(own_folder, tmp_path):
    with served(own_folder, "--store", tmp_path / "s.sqlite") as (url, process, log):
        with Client(url) as client:
            assert client.send_event(user="u", item="i3").accepted == 1
            assert client.recommend(user="u", k=3).items
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert "no API key" in process.stdout.read()
    assert not [line for line in log if "Traceback" in line]
    assert any('"route": "/v1/events"' in line for line in log)
    with served(own_folder, "--store", tmp_path / "s.sqlite") as (url, process, _):
        with Client(url) as client:
            assert [event.item for event in client.user("u").events] == ["i3"]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def test_what_is_on_its_way_is_answered_before_it_stops(own_folder):
    with served(own_folder, "--batch", "1") as (url, process, _):
        found = []

        def ask():
            with httpx2.Client(base_url=url, timeout=60) as http:
                found.append(http.post("/v1/recommend", json={"history": ["i1"]}).status_code)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        while not found:
            pass
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert process.wait(60) == 0
    # Those whose connection had not been taken yet find the door shut; nobody gets half an answer.
    assert set(found) == {200}


def test_keys_open_a_service_that_runs(own_folder, capsys):
    where = ["--model", str(own_folder)]
    assert main(["keys", "create", "shop", "--scope", "recommend", *where]) == 0
    secret = capsys.readouterr().out.strip()
    assert main(["keys", "create", "operator", "--scope", "admin", "--scope", "admin", *where]) == 0
    admin = capsys.readouterr().out.strip()
    assert main(["keys", "list", *where]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[1:3] for line in lines] == [["shop", "recommend"], ["operator", "admin"]]
    assert secret not in str(lines)
    with served(own_folder) as (url, process, _):
        with Client(url, key=secret) as client:
            assert client.recommend(history=["i1"]).items
        with Client(url, key=admin) as client:
            assert client.models()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert main(["keys", "revoke", lines[0][0], *where]) == 0
    assert capsys.readouterr().out == f"Revoked {lines[0][0]}\n"
    assert main(["keys", "revoke", lines[0][0], *where]) == 2
    assert main(["keys", "list", *where]) == 0
    assert "revoked 20" in capsys.readouterr().out.splitlines()[0]


def test_mistakes_end_with_one_line_that_helps(own_folder, model_folder, tmp_path, capsys):
    import socket

    def told(*arguments):
        assert main([str(part) for part in arguments]) == 2
        error = capsys.readouterr().err
        assert "Traceback" not in error
        return error.splitlines()[-1]

    message = told("serve", own_folder, "--host", "0.0.0.0")  # noqa: S104
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


def keyed_store(path, capsys):
    assert main(["keys", "create", "x", "--scope", "admin", "--store", str(path)]) == 0
    capsys.readouterr()
    return path


def test_a_damaged_model_is_told_before_anything_is_served(own_folder, capsys):
    file = next(own_folder.glob("versions/*/popularity/*"))
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
    assert done.stderr.splitlines()[-1].startswith("hybridrec: error: ")
    assert file.name in done.stderr.splitlines()[-1]


def test_rolling_back_names_the_other_version(own_folder, save_another, capsys):
    first = storage.current(own_folder)
    second = save_another(own_folder)
    for now, before in ((first, second), (second, first)):
        assert main(["rollback", str(own_folder)]) == 0
        assert capsys.readouterr().out == (
            f"{own_folder} is at version {now} now, no longer {before}\n"
        )
        assert storage.current(own_folder) == now


def test_a_running_service_follows_a_rollback(own_folder, save_another, capsys):
    first = storage.current(own_folder)
    second = save_another(own_folder)
    with served(own_folder, "--watch-seconds", "0.2") as (url, _, _), Client(url) as client:
        assert client.ready().model == second
        assert main(["rollback", str(own_folder)]) == 0
        until = threading.Event()
        for _ in range(200):
            if client.ready().model == first:
                break
            until.wait(0.1)
        assert client.recommend(history=["i1"]).model == first


def test_tls_needs_both_files_and_speaks_it(own_folder, tmp_path):
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
        + ["-nodes", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
        + ["-keyout", str(key), "-out", str(certificate), "-days", "2"],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("openssl is not installed")
    options = ("--certificate", certificate, "--private-key", key, "--log-text")
    with served(own_folder, *options) as (url, _, _):
        assert url.startswith("https://127.0.0.1:")
        found = httpx2.get(f"{url}/healthz", verify=httpx2.create_ssl_context(str(certificate)))
        assert found.json() == {"status": "ok"}
