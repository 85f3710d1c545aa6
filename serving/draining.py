"""A worker that is told to stop first says so, then takes nothing new, then ends what it has.

On SIGTERM readiness turns to 503 at once and answers ask their clients to close the connection, so
that whoever balances the load goes elsewhere; for `drain_seconds` everything is still answered.
Then the server's own stop follows: it accepts no connection and ends those it has.

All workers share one listening socket, which the supervisor keeps open until the last worker is
gone. What came in between would be reset at the end. So, where the whole service stops (the file
that RISKFM_STOPPING names is there), the socket is made to drop whoever knocks first, and what was
let in before is still accepted. A worker that alone is told to stop leaves the socket to the rest.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.messages import CODES, ErrorAnswer, ErrorBody

MARKER = "RISKFM_STOPPING"
READY = ("/v1/health/ready", "/readyz")
# Long enough for every worker's loop to accept what was let in.
SETTLE_SECONDS = 0.25
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SO_ATTACH_FILTER = 26
_RETURN = 0x06
log = logging.getLogger("riskfm.serving")


class Draining:
    """How far this worker is on its way to stop.

    Attributes:
        active: it was told to.
    """

    def __init__(self) -> None:
        self.active = False

    @contextmanager
    def not_yet(self) -> Iterator[None]:
        """While it loads, which takes long for many packages, the first signal ends a worker.

        Nobody waits for it then, and whatever it writes is whole at every moment. Called in the
        main thread.
        """
        before = {number: signal.signal(number, signal.SIG_DFL) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def watch(self, seconds: float, begin: Callable[[], object] | None = None) -> None:
        """Take the signals over from the server, which gets them when the time has come.

        Called in the main thread, on the running loop, once the server listens to signals.

        Args:
            seconds: how long everything is still answered.
            begin: called when the first signal comes.
        """
        loop = asyncio.get_running_loop()
        before = {number: signal.getsignal(number) for number in _SIGNALS}

        def told(number: int, frame: FrameType | None) -> None:
            if self.active:
                # Asked twice: now.
                loop.call_soon_threadsafe(go, number)
                return
            self.active = True
            loop.call_soon_threadsafe(start, number)

        def start(number: int) -> None:
            log.info("stopping: not ready any more, answering for %g s", seconds)
            if begin is not None:
                begin()
            loop.call_later(seconds, settle, number)

        def settle(number: int) -> None:
            if _service_stops() and drop_newcomers():
                loop.call_later(SETTLE_SECONDS, go, number)
            else:
                go(number)

        def go(number: int) -> None:
            handler = before[signal.Signals(number)]
            if callable(handler):
                handler(number, None)

        for number in _SIGNALS:
            signal.signal(number, told)

    async def serve(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Let an application answer; while stopping, readiness is refused here."""
        if not self.active or scope["type"] != "http":
            await app(scope, receive, send)
            return

        async def closing(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                message = {**message, "headers": [*headers, (b"connection", b"close")]}
            await send(message)

        if scope["path"] in READY:
            await _refuse(closing)
        else:
            await app(scope, receive, closing)


async def _refuse(send: Callable[[Message], Any]) -> None:
    error = ErrorBody(CODES[503], "the service is stopping", "", "")
    headers = [(b"content-type", b"application/json"), (b"retry-after", b"1")]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": msgspec.json.encode(ErrorAnswer(error))})


def _service_stops() -> bool:
    marker = os.environ.get(MARKER, "")
    return bool(marker) and Path(marker).exists()


def drop_newcomers() -> bool:
    """Make this process's listening sockets drop packets; what waits there can be accepted still.

    Returns:
        whether there was one and the kernel (Linux) did it.
    """
    program = ctypes.create_string_buffer(struct.pack("HBBI", _RETURN, 0, 0, 0))
    filter_ = struct.pack("HP", 1, ctypes.addressof(program))
    done = False
    for listener in _listeners():
        with listener:
            try:
                listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filter_)
                done = True
            except OSError as exc:
                log.warning("the listening socket takes no filter: %s", exc.strerror)
    return done


def _listeners() -> list[socket.socket]:
    """Duplicates of the TCP sockets on which this process listens."""
    found = []
    try:
        handles = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        return []
    for handle in handles:
        try:
            copy = os.dup(handle)
        except OSError:
            continue
        try:
            each = socket.socket(fileno=copy)
        except OSError:
            # No socket. A copy left open would keep whatever lock its file has for good.
            os.close(copy)
            continue
        inet = each.family in (socket.AF_INET, socket.AF_INET6)
        if inet and each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            found.append(each)
        else:
            each.close()
    return found
