"""A cache within a number of bytes: what was not used longest leaves first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """Something that knows how much memory it takes."""

    @property
    def nbytes(self) -> int:
        """Memory, about."""


T = TypeVar("T", bound=Sized)
Key = tuple[str, ...]


class ByteCache(Generic[T]):
    """Values by key; safe to use from several threads.

    Args:
        max_bytes: of all values together; what is larger by itself is not kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._values: OrderedDict[Key, tuple[T, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key) -> T | None:
        """The value of a key."""
        with self._lock:
            found = self._values.get(key)
            if found is None:
                return None
            self._values.move_to_end(key)
            return found[0]

    def put(self, key: Key, value: T) -> None:
        """Keep a value in place of the key's last one."""
        size = value.nbytes
        with self._lock:
            self._drop(key)
            if size > self.max_bytes:
                return
            self._values[key] = value, size
            self.bytes += size
            while self.bytes > self.max_bytes:
                self._drop(next(iter(self._values)))

    def drop(self, key: Key) -> None:
        """Forget a key."""
        with self._lock:
            self._drop(key)

    def drop_where(self, of: Callable[[Key], bool]) -> None:
        """Forget some keys."""
        with self._lock:
            for key in [key for key in self._values if of(key)]:
                self._drop(key)

    def _drop(self, key: Key) -> None:
        found = self._values.pop(key, None)
        if found is not None:
            self.bytes -= found[1]

    def __len__(self) -> int:
        return len(self._values)
