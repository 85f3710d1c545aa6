"""Real PostgreSQL and Valkey servers for tests, from the distribution's binaries.

Fixtures, each server started at its first use, once for each test process:
    postgres_url  SQLAlchemy URL of a new, empty database, dropped with its server
    valkey_url    URL of an emptied Valkey (or Redis)
    database_url  both kinds of database in turn: SQLite, then PostgreSQL

A test that asks for a server that is not installed is skipped. PostgreSQL refuses to run as root:
there it runs as `postgres` or `nobody`. Both listen on sockets in temporary folders only and keep
nothing on the disk that a crash should survive.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_START_SECONDS = 60.0
_DIES_WITH_PARENT = 1
_NUMBERS = itertools.count(1)
_LIBC = ctypes.CDLL(None)
# Fast instead of durable: the data live as long as the tests.
_POSTGRES = {
    "listen_addresses": "",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "shared_buffers": "16MB",
    "max_connections": "80",
}


def program(*names: str) -> Path | None:
    """The first of some programs that is installed; PostgreSQL's may lie beside the path."""
    beside = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for name in names:
        for folder in (None, *beside):
            found = shutil.which(name, path=folder)
            if found:
                return Path(found)
    return None


def unprivileged() -> dict[str, Any]:
    """Arguments of Popen that leave root behind; empty for everybody else."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            found = pwd.getpwnam(name)
            return {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": []}
    pytest.skip("PostgreSQL does not run as root, and there is no user postgres or nobody")


@contextlib.contextmanager
def _folder(owner: dict[str, Any]) -> Iterator[Path]:
    """A short path: socket names end at 107 characters."""
    path = Path(tempfile.mkdtemp(prefix="rfm-"))
    try:
        if owner:
            os.chown(path, owner["user"], owner["group"])
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _running(command: list[str], folder: Path, **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A server for the time of a with block; it does not outlive this process either."""

    def die_with_parent() -> None:
        _LIBC.prctl(_DIES_WITH_PARENT, signal.SIGINT)

    with open(folder / "server.log", "wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=die_with_parent,
            **more,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await(socket: Path, process: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not socket.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            words = (folder / "server.log").read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{process.args[0]} did not start:\n{words}")  # type: ignore[index]
        time.sleep(0.05)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Path]:
    """Folder with the socket of a PostgreSQL whose superuser is `riskfm`."""
    pytest.importorskip("psycopg", reason="the extra `postgres` is not installed")
    initdb, postgres = program("initdb"), program("postgres")
    if initdb is None or postgres is None:
        pytest.skip("PostgreSQL is not installed")
    user = unprivileged()
    with _folder(user) as folder:
        data = str(folder / "data")
        made = subprocess.run(
            [
                str(initdb), "-D", data, "-U", "riskfm", "-A", "trust", "-E", "UTF8",
                "--no-locale", "--no-sync", "--no-instructions",
            ],
            cwd=folder, capture_output=True, text=True, **user,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        options = [f"--{name}={value}" for name, value in _POSTGRES.items()]
        command = [str(postgres), "-D", data, "-k", str(folder), *options]
        with _running(command, folder, **user) as process:
            _await(folder / ".s.PGSQL.5432", process, folder)
            _await_answer(folder)
            yield folder


def _await_answer(folder: Path) -> None:
    import psycopg

    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            psycopg.connect(host=str(folder), user="riskfm", dbname="postgres").close()
            return
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@pytest.fixture
def postgres_url(postgres_server: Path) -> str:
    """SQLAlchemy URL of a new, empty PostgreSQL database."""
    import psycopg

    name = f"test_{next(_NUMBERS)}"
    with psycopg.connect(
        host=str(postgres_server), user="riskfm", dbname="postgres", autocommit=True
    ) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"postgresql+psycopg://riskfm@/{name}?host={postgres_server}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a new, empty database: SQLite, then PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/test.db"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[str]:
    """URL of a Valkey (or Redis) that keeps nothing."""
    pytest.importorskip("valkey", reason="the extra `valkey` is not installed")
    server = program("valkey-server", "redis-server")
    if server is None:
        pytest.skip("neither valkey-server nor redis-server is installed")
    with _folder({}) as folder:
        socket = folder / "valkey.sock"
        command = [
            str(server), "--port", "0", "--unixsocket", str(socket), "--save", "",
            "--appendonly", "no", "--dir", str(folder),
        ]  # fmt: skip
        with _running(command, folder) as process:
            _await(socket, process, folder)
            yield f"unix://{socket}"


@pytest.fixture
def valkey_url(valkey_server: str) -> str:
    """URL of an emptied Valkey."""
    import valkey

    with valkey.Valkey.from_url(valkey_server) as client:
        client.flushall()
    return valkey_server
