"""A worker on its way to stop looks at its sockets and leaves everything else as it was."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serving.draining import MARKER, Draining, _listeners
from serving.launch import MARKED, _stop, _workers

# A supervisor whose worker has a session of its own and hears no signal that asks.
SUPERVISOR = """
import subprocess, sys, time
deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); "
worker = subprocess.Popen([sys.executable, "-c", deaf + "time.sleep(60)"], start_new_session=True)
time.sleep(60)
"""

# A server that answers /slow once it was told to stop.
SERVER = """
import asyncio, uvicorn
from serving.draining import Draining
draining = Draining()
async def answer(scope, receive, send):
    if scope["path"] == "/slow":
        print("asked", flush=True)
        while not draining.active:
            await asyncio.sleep(0.01)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
    else:
        await draining.serve(answer, scope, receive, send)
async def main():
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    serving = asyncio.ensure_future(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    draining.watch(0.6)
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)
    await serving
asyncio.run(main())
"""


def test_looking_for_listeners_leaves_no_lock_held(tmp_path: Path) -> None:
    """Of a locked file no copy stays open: its lock would outlive it and stop the stop."""
    with socket.socket() as listening, socket.socket() as other:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        with open(tmp_path / "lock", "w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            before = set(os.listdir("/proc/self/fd"))
            found = _listeners()
            names = [each.getsockname() for each in found]
            for each in found:
                each.close()
            assert listening.getsockname() in names and other.fileno() > 0
            assert set(os.listdir("/proc/self/fd")) == before
        with open(tmp_path / "lock", "w") as again:
            fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_workers_that_outlive_their_supervisor_end_too(tmp_path: Path) -> None:
    """As one that still loads its packages does."""
    environment = os.environ | {MARKER: str(tmp_path / MARKED)}
    process = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR],
        env=environment,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdout.readline() == b"deaf\n"
    supervisor, worker = sorted(_workers(str(tmp_path)), key=lambda each: each.pid != process.pid)
    assert supervisor.pid == process.pid and os.getpgid(worker.pid) != os.getpgid(process.pid)
    _stop(process, str(tmp_path))
    worker.wait(60)
    assert not worker.is_running() and not _workers(str(tmp_path))
    process.stdout.close()


def test_the_first_signal_ends_a_worker_that_still_loads() -> None:
    """Also where the server took the signals over before, to end when it has started."""
    program = """
import signal, time
from serving.draining import Draining
signal.signal(signal.SIGTERM, lambda *_: None)
with Draining().not_yet():
    print("loading", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"loading\n"
    process.terminate()
    assert process.wait(60) == -signal.SIGTERM
    process.stdout.close()


def test_afterwards_the_signals_are_the_servers_again() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Draining().not_yet():
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_was_let_in_is_accepted_and_newcomers_are_not() -> None:
    """In a process of its own: it concerns every socket that listens there."""
    program = """
import socket
from serving.draining import _waiting, drop_newcomers
with socket.create_server(("127.0.0.1", 0)) as listening:
    early = socket.create_connection(listening.getsockname())
    assert _waiting()
    assert drop_newcomers()
    early.sendall(b"early")
    try:
        socket.create_connection(listening.getsockname(), timeout=0.3)
        raise SystemExit("it was let in")
    except TimeoutError:
        pass
    accepted, _ = listening.accept()
    assert not _waiting()
    assert accepted.recv(5) == b"early"
    accepted.sendall(b"late")
    assert early.recv(4) == b"late"
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout


def test_who_was_let_in_last_may_still_ask() -> None:
    """A connection that has asked nothing when the stop comes, and one that asked before it."""
    process = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    port = int(process.stdout.readline())
    with (
        socket.create_connection(("127.0.0.1", port)) as silent,
        socket.create_connection(("127.0.0.1", port)) as kept,
    ):
        kept.sendall(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        assert process.stdout.readline() == "asked\n"
        process.terminate()
        # Its request came before the signal, its answer after: it is told to go elsewhere.
        assert b"connection: close" in _all(kept)
        with pytest.raises(ConnectionError):
            while True:
                socket.create_connection(("127.0.0.1", port), timeout=20).close()
                time.sleep(0.01)
        silent.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"200 OK" in _all(silent)
    assert process.wait(60) in (0, -signal.SIGTERM)
    process.stdout.close()


def test_a_stop_that_fails_halfway_is_a_stop_all_the_same() -> None:
    broken = "import serving.draining\nserving.draining._service_stops = lambda: 1 / 0\n"
    process = subprocess.Popen(
        [sys.executable, "-c", broken + SERVER],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert int(process.stdout.readline())
    process.terminate()
    assert process.wait(60) in (0, -signal.SIGTERM)
    assert "ZeroDivisionError" in process.communicate()[1]


def _all(connection: socket.socket) -> bytes:
    """What comes until the other side closes the connection."""
    connection.settimeout(20)
    return b"".join(iter(lambda: connection.recv(4096), b""))
