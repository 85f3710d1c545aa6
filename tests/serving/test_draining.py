"""A worker on its way to stop looks at its sockets and leaves everything else as it was."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from serving.draining import MARKER, Draining, _listeners
from serving.launch import MARKED, _stop, _workers

# A supervisor whose worker has a session of its own and hears no signal that asks.
SUPERVISOR = """
import subprocess, sys, time
deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); "
worker = subprocess.Popen([sys.executable, "-c", deaf + "time.sleep(60)"], start_new_session=True)
time.sleep(60)
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
