"""A worker on its way to stop looks at its sockets and leaves everything else as it was."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

from serving.draining import _listeners


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
