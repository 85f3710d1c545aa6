"""The scoring threads of a worker: few, shared by every package, with fair turns for tenants.

A score never runs on the event loop, and a worker has as many scoring threads as its settings say,
however many packages it holds. Each tenant has a bounded queue of its own, and the queues take
turns: a tenant that floods the service waits for itself. What does not fit is refused at once;
what waited too long is dropped without being scored.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

from serving.messages import ApiError

T = TypeVar("T")
_AGAIN = {"Retry-After": "1"}


class _Work:
    """One call that waits for a thread, and the future that takes its result."""

    __slots__ = ("answer", "arguments", "call", "deadline", "loop", "started", "tenant")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        tenant: str,
        call: Callable[..., Any],
        arguments: tuple[Any, ...],
        deadline: float,
    ) -> None:
        self.loop = loop
        self.answer: asyncio.Future[Any] = loop.create_future()
        self.tenant = tenant
        self.call = call
        self.arguments = arguments
        self.deadline = deadline
        self.started = False

    def run(self) -> tuple[Any, BaseException | None]:
        """Do it in the calling thread: its result, or what went wrong."""
        try:
            return self.call(*self.arguments), None
        except BaseException as exc:
            return None, exc

    def deliver(self, result: Any, error: BaseException | None) -> None:
        """Hand the outcome over; nobody may be waiting any more."""
        # A loop that was closed meanwhile has nobody who waits.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(_settle, self.answer, result, error)

    def expire(self) -> None:
        """Answer for the work that it was too late; called on the event loop."""
        _settle(self.answer, None, too_late())


class ScoringPool:
    """Threads that take one call after the other, tenant by tenant in turn.

    Args:
        threads: scoring threads; each runs single-thread sessions.
        queue: calls a tenant may have waiting or running before the next is refused.
        timeout: seconds from the call to its answer.
    """

    def __init__(self, threads: int = 1, queue: int = 64, timeout: float = 30.0) -> None:
        self.queue = queue
        self._timeout = timeout
        self._lock = threading.Lock()
        self._waiting: dict[str, deque[_Work]] = {}
        self._turns: deque[str] = deque()
        self._held: dict[str, int] = {}
        self._closed = False
        # One token for each call: its C implementation wakes a thread faster than a condition.
        self._tokens: SimpleQueue[bool] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"score-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    async def run(self, tenant: str, call: Callable[..., T], *arguments: Any) -> T:
        """Call a function in a scoring thread when the tenant's turn comes.

        Raises:
            ApiError: the tenant's queue is full (429) or the answer did not come in time (503).
        """
        loop = asyncio.get_running_loop()
        work = _Work(loop, tenant, call, arguments, time.monotonic() + self._timeout)
        self._enter(work)
        timer = loop.call_later(self._timeout, work.expire)
        try:
            answer: T = await work.answer
            return answer
        finally:
            timer.cancel()
            if not work.started:
                self._leave(work)

    def held(self, tenant: str) -> int:
        """Calls of a tenant that wait or run."""
        return self._held.get(tenant, 0)

    def require_room(self, tenant: str) -> None:
        """Refuse early what would be refused later, before its body is read.

        Raises:
            ApiError: 429, the tenant's queue is full.
        """
        if self._held.get(tenant, 0) >= self.queue:
            raise too_many()

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._held

    def close(self) -> None:
        """Stop the threads; what waits is refused, what runs is finished."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            left = [work for queue in self._waiting.values() for work in queue]
            self._waiting.clear()
            self._turns.clear()
            for work in left:
                self._release(work.tenant)
        for work in left:
            work.deliver(None, stopping())
        for _ in self._threads:
            self._tokens.put(False)
        for thread in self._threads:
            thread.join()

    def _enter(self, work: _Work) -> None:
        with self._lock:
            if self._closed:
                raise stopping()
            held = self._held.get(work.tenant, 0)
            if held >= self.queue:
                raise too_many()
            self._held[work.tenant] = held + 1
            queue = self._waiting.get(work.tenant)
            if queue is None:
                queue = self._waiting[work.tenant] = deque()
                self._turns.append(work.tenant)
            queue.append(work)
        self._tokens.put(True)

    def _leave(self, work: _Work) -> None:
        """Give the place of a call up that was not begun: it is late or its caller went away."""
        with self._lock:
            queue = self._waiting.get(work.tenant)
            if work.started or queue is None or work not in queue:
                return
            queue.remove(work)
            if not queue:
                del self._waiting[work.tenant]
                self._turns.remove(work.tenant)
            self._release(work.tenant)

    def _next(self) -> _Work | None:
        """The first call of the tenant whose turn it is; None where its caller gave up."""
        with self._lock:
            if not self._turns:
                return None
            tenant = self._turns.popleft()
            queue = self._waiting[tenant]
            work = queue.popleft()
            work.started = True
            if queue:
                self._turns.append(tenant)
            else:
                del self._waiting[tenant]
            return work

    def _release(self, tenant: str) -> None:
        """Count one call less; under the lock."""
        held = self._held[tenant] - 1
        if held:
            self._held[tenant] = held
        else:
            del self._held[tenant]

    def _work(self) -> None:
        while self._tokens.get():
            work = self._next()
            if work is None:
                continue
            late = work.deadline <= time.monotonic()
            outcome = (None, too_late()) if late else work.run()
            # Before the answer: who has it may send the next request at once.
            with self._lock:
                self._release(work.tenant)
            work.deliver(*outcome)
            # An idle thread holds no package: what was replaced can be closed.
            del work, outcome


def too_many() -> ApiError:
    """The refusal of a request whose tenant has as many waiting as it may."""
    return ApiError(429, "too many of your requests are waiting", headers=_AGAIN, shed="queue")


def too_late() -> ApiError:
    """The refusal of a score that was not ready in time."""
    return ApiError(503, "the score was not ready in time", headers=_AGAIN, shed="timeout")


def stopping() -> ApiError:
    """The refusal of a score that the worker does not come to before it ends."""
    return ApiError(503, "the service is stopping", headers=_AGAIN, shed="stopping")


def _settle(answer: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if answer.done():
        return
    if error is None:
        answer.set_result(result)
    else:
        answer.set_exception(error)
