"""A real PostgreSQL server for a session of tests, run by an unprivileged user in its folder."""

from __future__ import annotations

import itertools
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

HOMES = "/usr/lib/postgresql/*/bin"
PASSWORD = "s3cret-of-the-test"


class PostgresServer:
    """Started when it is made; :meth:`database` gives the URL of an empty one."""

    def __init__(self):
        self._programs = programs()
        # The server refuses root, and needs a path that another user may walk.
        self._root = os.geteuid() == 0
        self.home = Path(tempfile.mkdtemp(prefix="hybridrec-postgres-", dir="/tmp"))
        self._user = account() if self._root else None
        if self._user:
            os.chown(self.home, self._user.pw_uid, self._user.pw_gid)
        self.port = free_port()
        self._numbers = itertools.count()
        self._process = None
        try:
            self._make()
            self.start()
        except BaseException:
            self.stop()
            raise

    def _options(self):
        if not self._user:
            return {}
        return {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}

    def _make(self):
        secret = self.home / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        subprocess.run(
            [
                *(self._programs / "initdb", "-D", self.home / "data", "-U", "tester"),
                *("-E", "UTF8", "--locale=C", "--auth=scram-sha-256", f"--pwfile={secret}"),
            ],
            check=True,
            capture_output=True,
            cwd=self.home,
            **self._options(),
        )

    def start(self):
        with (self.home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(self._programs / "postgres", "-D", self.home / "data", "-k", self.home),
                    *("-p", str(self.port), "-c", "listen_addresses=127.0.0.1"),
                ],
                stdout=log,
                stderr=log,
                cwd=self.home,
                **self._options(),
            )
        deadline = time.monotonic() + 60
        while True:
            try:
                self.run("postgres", "SELECT 1")
                return
            except Exception:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self.home / "log").read_text()) from None
            time.sleep(0.05)

    def kill(self):
        """As a failing machine would: no time to tidy up."""
        for child in children(self._process.pid):
            os.kill(child, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        (self.home / "data" / "postmaster.pid").unlink(missing_ok=True)

    def stop(self):
        if self._process is not None and self._process.poll() is None:
            # At once: nothing of this has to be on the disk.
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(timeout=60)
        shutil.rmtree(self.home)

    def url(self, database):
        return f"postgresql://tester:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def run(self, database, statement):
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else None

    def database(self, options=""):
        """The URL of a database that nobody has used."""
        name = f"test{next(self._numbers)}_{secrets.token_hex(4)}"
        self.run("postgres", f"CREATE DATABASE {name} {options}")
        return self.url(name)


def programs():
    """The folder of the newest PostgreSQL that is installed."""
    folders = sorted(
        (path for path in Path("/").glob(HOMES.lstrip("/")) if (path / "initdb").exists()),
        key=lambda path: float(path.parent.name),
    )
    found = shutil.which("initdb")
    if not folders and found is None:
        raise RuntimeError(
            f"there is no PostgreSQL server in {HOMES} nor an initdb on the PATH; install one with "
            "apt-get install postgresql, or leave these tests out with -m 'not service'"
        )
    return folders[-1] if folders else Path(found).parent


def account():
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise RuntimeError("root has to run PostgreSQL as another user; make one named postgres")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def children(process):
    tasks = Path(f"/proc/{process}/task/{process}/children")
    return [int(child) for child in tasks.read_text().split()]


@pytest.fixture(scope="session")
def postgres_server():
    server = PostgresServer()
    yield server
    server.stop()
