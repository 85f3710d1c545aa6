"""Where a worker scores: on a few threads, and short scores on the event loop itself.

A worker has as many scoring threads as its settings say, however many packages it holds. Handing a
call to a thread and back costs half a millisecond of two waking threads that share one interpreter;
a call that is expected to take little more than that is made on the event loop. Either way each
tenant has a bounded queue of its own, and the queues take turns: a tenant that floods the service
waits for itself. What does not fit is refused at once; what waited too long is dropped without
being scored.

On the event loop scores take turns with everything else: one score, then what arrived meanwhile;
where arriving and refusing take longer than scoring, scores have half of the time.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

from serving.models.turns import Turns, Work, stopping, too_late, too_many

T = TypeVar("T")
# Longest that waiting short calls keep the event loop at a stretch, seconds.
_STRETCH = 0.05


class ScoringPool:
    """Threads that take one call after the other, tenant by tenant in turn.

    Args:
        threads: scoring threads; each runs single-thread sessions.
        queue: calls a tenant may have waiting or running before the next is refused.
        timeout: seconds from the call to its answer.
        short: calls expected to take this many seconds at most run on the event loop; 0: none.
    """

    def __init__(
        self, threads: int = 1, queue: int = 64, timeout: float = 30.0, short: float = 0.0
    ) -> None:
        self.queue = queue
        self._timeout = timeout
        self._short = short
        self._lock = threading.Lock()
        self._held: dict[str, int] = {}
        self._closed = False
        self._long, self._brief = Turns(), Turns()
        # The loop that will come to the short calls that wait, when its other work began, and
        # whether it has made one since it last looked for what arrived.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._elsewhere = 0.0
        self._made: asyncio.AbstractEventLoop | None = None
        # One token for each call: its C implementation wakes a thread faster than a condition.
        self._tokens: SimpleQueue[bool] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"score-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    async def run(
        self, tenant: str, call: Callable[..., T], *arguments: Any, seconds: float = float("inf")
    ) -> T:
        """Call a function when the tenant's turn comes.

        Args:
            seconds: how long it is expected to take; short ones run on the event loop.
        Raises:
            ApiError: the tenant's queue is full (429) or the answer did not come in time (503).
        """
        loop = asyncio.get_running_loop()
        brief = seconds <= self._short
        if brief and not self._brief and self._made is not loop:
            return self._at_once(loop, tenant, call, arguments)
        work = Work(loop, tenant, call, arguments, time.monotonic() + self._timeout)
        self._enter(work, self._brief if brief else self._long)
        if not brief:
            self._tokens.put(True)
        elif self._loop is not loop:
            self._loop, self._elsewhere = loop, time.monotonic()
            loop.call_soon(self._take_turns, loop)
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
            left = [*self._long.clear(), *self._brief.clear()]
            for work in left:
                self._release(work.tenant)
        for work in left:
            work.deliver(None, stopping())
        for _ in self._threads:
            self._tokens.put(False)
        for thread in self._threads:
            thread.join()

    def _at_once(
        self,
        loop: asyncio.AbstractEventLoop,
        tenant: str,
        call: Callable[..., T],
        arguments: tuple[Any, ...],
    ) -> T:
        """Make a short call here and now; the next one after what arrived meanwhile."""
        with self._lock:
            self._take(tenant)
        self._made = loop
        loop.call_soon(self._looked)
        try:
            return call(*arguments)
        finally:
            with self._lock:
                self._release(tenant)

    def _looked(self) -> None:
        self._made = None

    def _take_turns(self, loop: asyncio.AbstractEventLoop) -> None:
        """Make short calls that wait: one, or for as long as the loop did something else."""
        begin = time.monotonic()
        until = begin + min(begin - self._elsewhere, _STRETCH)
        while True:
            with self._lock:
                work = self._brief.pop()
            if work is None:
                break
            late = work.deadline <= time.monotonic()
            outcome = (None, too_late()) if late else work.run()
            with self._lock:
                self._release(work.tenant)
            work.settle(*outcome)
            if time.monotonic() >= until:
                break
        self._elsewhere = time.monotonic()
        if self._brief:
            loop.call_soon(self._take_turns, loop)
        else:
            self._loop = None

    def _enter(self, work: Work, turns: Turns) -> None:
        with self._lock:
            self._take(work.tenant)
            turns.push(work)

    def _leave(self, work: Work) -> None:
        """Give the place of a call up that was not begun: it is late or its caller went away."""
        with self._lock:
            if self._long.remove(work) or self._brief.remove(work):
                self._release(work.tenant)

    def _take(self, tenant: str) -> None:
        """Count one call more; under the lock.

        Raises:
            ApiError: as `run`.
        """
        if self._closed:
            raise stopping()
        held = self._held.get(tenant, 0)
        if held >= self.queue:
            raise too_many()
        self._held[tenant] = held + 1

    def _release(self, tenant: str) -> None:
        """Count one call less; under the lock."""
        held = self._held[tenant] - 1
        if held:
            self._held[tenant] = held
        else:
            del self._held[tenant]

    def _work(self) -> None:
        while self._tokens.get():
            with self._lock:
                work = self._long.pop()
            # None where a caller gave up.
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
