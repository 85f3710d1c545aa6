"""Work repeated in a thread of its own for as long as the service runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger("riskfm.tenancy")


class Background:
    """Calls `work` every so often; a failure is logged by its type and tried again.

    Args:
        seconds: between the end of one call and the beginning of the next.
    """

    def __init__(self, name: str, seconds: float, work: Callable[[], object]) -> None:
        self._seconds, self._work, self._name = seconds, work, name
        self._stop = threading.Event()
        self._failed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop, after the call that is running."""
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            try:
                self._work()
            except Exception as exc:
                if not self._failed:
                    log.error("%s: %s; it is tried again", self._name, type(exc).__name__)
                self._failed = True
            else:
                self._failed = False
