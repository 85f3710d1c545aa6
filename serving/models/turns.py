"""Calls that wait for their turn, and the fair order between tenants."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any

from serving.messages import ApiError

_AGAIN = {"Retry-After": "1"}


class Work:
    """One call that waits, and the future that takes its result."""

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
        """Hand the outcome over from another thread; nobody may be waiting any more."""
        # A loop that was closed meanwhile has nobody who waits.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.settle, result, error)

    def settle(self, result: Any, error: BaseException | None) -> None:
        """Hand the outcome over on the event loop."""
        if self.answer.done():
            return
        if error is None:
            self.answer.set_result(result)
        else:
            self.answer.set_exception(error)

    def expire(self) -> None:
        """Answer that it was too late; called on the event loop."""
        self.settle(None, too_late())


class Turns:
    """Queues of the tenants that wait, one call of each in turn; locked by its owner."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[Work]] = {}
        self._order: deque[str] = deque()

    def __bool__(self) -> bool:
        return bool(self._order)

    def push(self, work: Work) -> None:
        """Put a call at the end of its tenant's queue."""
        queue = self._queues.get(work.tenant)
        if queue is None:
            queue = self._queues[work.tenant] = deque()
            self._order.append(work.tenant)
        queue.append(work)

    def pop(self) -> Work | None:
        """The first call of the tenant whose turn it is, begun; None where nobody waits."""
        if not self._order:
            return None
        tenant = self._order.popleft()
        queue = self._queues[tenant]
        work = queue.popleft()
        work.started = True
        if queue:
            self._order.append(tenant)
        else:
            del self._queues[tenant]
        return work

    def remove(self, work: Work) -> bool:
        """Take a call out that was not begun; False where it does not wait here."""
        queue = self._queues.get(work.tenant)
        if work.started or queue is None or work not in queue:
            return False
        queue.remove(work)
        if not queue:
            del self._queues[work.tenant]
            self._order.remove(work.tenant)
        return True

    def clear(self) -> list[Work]:
        """Take everything out."""
        left = [work for queue in self._queues.values() for work in queue]
        self._queues.clear()
        self._order.clear()
        return left


def too_many() -> ApiError:
    """The refusal of a request whose tenant has as many waiting as it may."""
    return ApiError(429, "too many of your requests are waiting", headers=_AGAIN, shed="queue")


def too_late() -> ApiError:
    """The refusal of a score that was not ready in time."""
    return ApiError(503, "the score was not ready in time", headers=_AGAIN, shed="timeout")


def stopping() -> ApiError:
    """The refusal of a score that the worker does not come to before it ends."""
    return ApiError(503, "the service is stopping", headers=_AGAIN, shed="stopping")
