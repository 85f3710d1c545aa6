"""Clients: one after the other, several at once, or at moments of their own."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

IDLE_SECONDS = 3.0


@dataclass
class Seen:
    """What clients saw: seconds of answered requests, and how often each status came.

    Attributes:
        hasty: refusals without Retry-After.
    """

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    hasty: int = 0
    took: float = 0.0

    def ms(self, percent: float) -> float:
        """A percentile of the answered ones, in milliseconds."""
        return float(np.percentile(self.seconds, percent)) * 1000

    @property
    def rate(self) -> float:
        """Answered requests a second."""
        return len(self.seconds) / self.took


class Client:
    """One connection that is kept; a comfortable client takes a millisecond and a half itself."""

    def __init__(self, port: int, headers: dict[str, str]) -> None:
        self._port, self._headers = port, headers
        self._connection: http.client.HTTPConnection | None = None
        self._last = 0.0

    def post(self, path: str, body: bytes) -> tuple[int, bytes, bool]:
        """Status, body and whether it says when to come again; status 0 where nothing came."""
        try:
            if time.monotonic() > self._last + IDLE_SECONDS:
                self.close()  # before the server does, which closes idle connections after five
            self._last = time.monotonic()
            if self._connection is None:
                self._connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
            self._connection.request("POST", path, body, self._headers)
            answer = self._connection.getresponse()
            return answer.status, answer.read(), "retry-after" in answer.headers
        except (OSError, http.client.HTTPException):
            self.close()
            return 0, b"", False

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def one(client: Client, path: str, body: bytes, seen: Seen, begin: float | None = None) -> None:
    """Send one request and note what came; `begin` is when it should have been sent."""
    begin = time.perf_counter() if begin is None else begin
    status, _, again = client.post(path, body)
    seen.statuses[status] += 1
    if status == 200:
        seen.seconds.append(time.perf_counter() - begin)
    elif not again:
        seen.hasty += 1


def closed(
    port: int, path: str, headers: dict[str, str], bodies: Sequence[bytes], clients: int,
    seconds: float,
) -> Seen:  # fmt: skip
    """Clients that each send the next request when the last was answered."""
    seen = Seen()
    until = time.perf_counter() + seconds

    def client(number: int) -> None:
        mine, i = Client(port, headers), number
        while time.perf_counter() < until:
            one(mine, path, bodies[i % len(bodies)], seen)
            i += clients
        mine.close()

    begin = time.perf_counter()
    threads = [threading.Thread(target=client, args=(n,)) for n in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seen.took = time.perf_counter() - begin
    return seen


def arrivals(
    port: int, path: str, headers: dict[str, str], bodies: Sequence[bytes], rate: float,
    seconds: float, clients: int = 64,
) -> Seen:  # fmt: skip
    """Requests at random moments, `rate` a second, whether or not earlier ones were answered.

    A request's time counts from the moment it was due, so that waiting for a free client counts.
    """
    seen = Seen()
    rng = np.random.default_rng(0)
    due = np.cumsum(rng.exponential(1 / rate, int(rate * seconds) + 1))
    local = threading.local()
    begin = time.perf_counter()

    def send(i: int, moment: float) -> None:
        if not hasattr(local, "client"):
            local.client = Client(port, headers)
        one(local.client, path, bodies[i % len(bodies)], seen, begin + moment)

    with ThreadPoolExecutor(clients) as pool:
        for i, moment in enumerate(due.tolist()):
            time.sleep(max(0.0, begin + moment - time.perf_counter()))
            pool.submit(send, i, moment)
    seen.took = time.perf_counter() - begin
    return seen


def turns(count: int, names: Sequence[str]) -> Iterator[str]:
    """Names in turn, the order of each round turned round by one."""
    for number in range(count):
        shift = number % len(names)
        yield from [*names[shift:], *names[:shift]]
