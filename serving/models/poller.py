"""The thread of a worker that looks whether other releases should answer."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from pathlib import Path

from serving.champions import CHAMPIONS
from serving.models.deployments import Deployments

RETRY_SECONDS, LONGEST_RETRY = 5.0, 60.0
log = logging.getLogger("riskfm.serving")


class Poller:
    """Looks at `champions.json` again and again; a change of its content is applied.

    A release that could not be loaded is tried again after 5 seconds, then ever later, at the
    latest after a minute: its directory may be complete by then.

    Args:
        workspace: directory with `champions.json`.
        seconds: between two looks.
    """

    def __init__(self, deployments: Deployments, workspace: str | Path, seconds: float) -> None:
        self._deployments = deployments
        self._path = Path(workspace) / CHAMPIONS
        self._seconds = seconds
        self._stamp: tuple[int, int, int] | None = None
        self._digest = b""
        self._wait = RETRY_SECONDS
        self._retry_at = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="releases", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def close(self) -> None:
        """Stop; a load that runs is finished first."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self, now: float | None = None) -> bool:
        """Look once; whether anything was read.

        Args:
            now: seconds of a clock that only grows; None for this moment.
        """
        now = time.monotonic() if now is None else now
        retry = bool(self._deployments.failed) and now >= self._retry_at
        try:
            found = os.stat(self._path)
            stamp = (found.st_mtime_ns, found.st_ino, found.st_size)
            if stamp == self._stamp and not retry:
                return False
            data = self._path.read_bytes()
        except OSError:
            self._stamp = None
            self._deployments.refresh()
            return False
        digest = hashlib.sha256(data).digest()
        if digest != self._digest:
            self._wait = RETRY_SECONDS
        elif not retry:
            self._stamp = stamp
            return False
        # A file that cannot be read is looked at again every time.
        whole = self._deployments.apply_text(data)
        self._stamp = stamp if whole else None
        self._digest = digest if whole else b""
        self._retry_at = now + self._wait
        self._wait = min(2 * self._wait, LONGEST_RETRY)
        return True

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            try:
                self.look()
            except Exception:
                # The next look may succeed; a service never ends for its poller.
                log.exception("poller_failed")
