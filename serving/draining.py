"""A worker that is told to stop first says so, then takes nothing new, then ends what it has.

On SIGTERM readiness turns to 503 at once and answers ask their clients to close the connection, so
that whoever balances the load goes elsewhere; for `drain_seconds` everything is still answered.
Then the server's own stop follows: it accepts no connection and ends those it has.

All workers share one listening socket, which the supervisor keeps open until the last worker is
gone. What came in between would be reset at the end. So, where the whole service stops (the file
that RISKFM_STOPPING names is there), the socket is made to drop whoever knocks first, and what was
let in before is still accepted. A worker that alone is told to stop leaves the socket to the rest.

The server's stop resets connections whose request it has not read yet. So a worker accepts no more
itself first, and gives those that it accepted last a moment to ask.
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
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.messages import CODES, ErrorAnswer, ErrorBody

if TYPE_CHECKING:
    from uvicorn import Server

MARKER = "RISKFM_STOPPING"
READY = ("/v1/health/ready", "/readyz")
# Long enough for a handshake that has begun.
SETTLE_SECONDS = 0.25
# Longest that a stop waits for who was let in to be accepted, and then to ask.
LAST_SECONDS = 2.0
_LOOK_SECONDS = 0.02
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SO_ATTACH_FILTER = 26
# Of a listening socket this field of `struct tcp_info` counts who waits to be accepted.
_TCPI_UNACKED = 24
# A classic packet filter, which sees the TCP header: where SYN is set and ACK is not, somebody
# knocks. The last word of a handshake that has begun passes.
_ONLY_OLD = (
    (0x30, 0, 0, 13),  # load the byte of the flags
    (0x54, 0, 0, 0x12),  # of it, SYN and ACK
    (0x15, 0, 1, 0x02),  # SYN alone?
    (0x06, 0, 0, 0),  # drop it
    (0x06, 0, 0, 0xFFFFFFFF),  # take it whole
)
log = logging.getLogger("riskfm.serving")


class Draining:
    """How far this worker is on its way to stop.

    Attributes:
        active: it was told to.
    """

    def __init__(self) -> None:
        self.active = False
        self._ending: asyncio.Task[None] | None = None

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
            self._ending = loop.create_task(end(number))

        async def end(number: int) -> None:
            await asyncio.sleep(seconds)
            try:
                await _hear_the_last(before[signal.Signals(number)])
            except Exception as exc:
                # Who was told to stop stops all the same.
                log.error("stopping without hearing the last: %s", type(exc).__name__)
            go(number)

        def go(number: int) -> None:
            handler = before[signal.Signals(number)]
            if callable(handler):
                handler(number, None)

        for number in _SIGNALS:
            signal.signal(number, told)

    async def serve(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Let an application answer; while stopping, readiness is refused here."""
        if scope["type"] != "http":
            await app(scope, receive, send)
            return

        async def closing(message: Message) -> None:
            # A request may have come before the signal.
            if self.active and message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                message = {**message, "headers": [*headers, (b"connection", b"close")]}
            await send(message)

        if self.active and scope["path"] in READY:
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


async def _hear_the_last(handler: object) -> None:
    """Let nobody in any more; accept and read whoever was let in before.

    Args:
        handler: of the signal, as the server set it: one of its methods.
    """
    from uvicorn import Server

    if _service_stops() and drop_newcomers():
        await asyncio.sleep(SETTLE_SECONDS)
        await _until(lambda: not _waiting())
    server = getattr(handler, "__self__", None)
    if isinstance(server, Server):
        for each in server.servers:
            each.close()
        await _until(lambda: not _silent(server))


async def _until(true: Callable[[], bool]) -> None:
    """Wait until something is true, LAST_SECONDS at most."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + LAST_SECONDS
    while not true() and loop.time() < deadline:
        await asyncio.sleep(_LOOK_SECONDS)


def _waiting() -> bool:
    """Whether a connection is made that no worker has accepted yet."""
    counts: list[int] = []
    for listener in _listeners():
        with listener:
            info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCPI_UNACKED + 4)
            counts += struct.unpack_from("I", info, _TCPI_UNACKED)
    return any(counts)


def _silent(server: Server) -> bool:
    """Whether there is a connection of which no request was read."""
    return any(getattr(each, "cycle", each) is None for each in server.server_state.connections)


def drop_newcomers() -> bool:
    """Make this process's listening sockets take no connection; who waits there is accepted still.

    Returns:
        whether there was one and the kernel (Linux) did it.
    """
    words = b"".join(struct.pack("HBBI", *word) for word in _ONLY_OLD)
    program = ctypes.create_string_buffer(words)
    filter_ = struct.pack("HP", len(_ONLY_OLD), ctypes.addressof(program))
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
