"""What packages of one backbone have in common, held once in a process.

Graphs are known by the sha256 of their bytes and the options they run with, everything else by what
it was made from. Whatever is shared stays as long as a package holds it; graphs stay a little
longer, up to a number of bytes, so that a package that comes back does not open its backbone anew.

Sharing skips no check: bytes are hashed before they become a session, and a package's files are
compared with its manifest whether or not their content is open already.
"""

from __future__ import annotations

import hashlib
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from pathlib import Path
from threading import Lock
from typing import Any, Generic, TypeVar

import onnxruntime as ort

from finetune.features import open_session
from foundation.errors import ArtifactError

T = TypeVar("T")
KEPT_BYTES = 256 << 20
# Memory of an open graph, measured: its weights once more beside the file's, and its operators.
PER_FILE_BYTE = 2.0
PER_GRAPH = 2 << 20


class Once(Generic[T]):
    """Values made once by however many threads ask, and held as long as somebody uses them."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._values: weakref.WeakValueDictionary[Hashable, Any] = weakref.WeakValueDictionary()
        self._making: dict[Hashable, Future[T]] = {}

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of a key; threads that ask for the same one wait for the first to make it.

        Raises:
            whatever `make` raises, to everybody who waited; the next to ask tries again.
        """
        with self._lock:
            found = self._values.get(key)
            if found is not None:
                return found
            future = self._making.get(key)
            mine = future is None
            if future is None:
                future = self._making[key] = Future()
        if not mine:
            return future.result()
        try:
            value = make()
        except BaseException as exc:
            with self._lock:
                del self._making[key]
            future.set_exception(exc)
            raise
        with self._lock:
            self._values[key] = value
            del self._making[key]
        future.set_result(value)
        return value

    def keys(self) -> list[Hashable]:
        """Keys of the values somebody uses."""
        with self._lock:
            return list(self._values.keys())


class Sessions:
    """Open graphs, and what else packages share.

    Args:
        max_bytes: memory that graphs may keep which no package uses any more.
        threads: of each session; one, where every core scores by itself.
    """

    def __init__(self, max_bytes: int = KEPT_BYTES, threads: int = 1) -> None:
        self.threads = threads
        self._max_bytes = max_bytes
        self._graphs: Once[ort.InferenceSession] = Once()
        self._grounds: Once[Any] = Once()
        self._recent: OrderedDict[str, ort.InferenceSession] = OrderedDict()
        self._sizes: dict[str, int] = {}
        self._proved: set[str] = set()
        self._lock = Lock()

    def open(self, path: Path, digest: str) -> ort.InferenceSession:
        """The session of a graph.

        Args:
            digest: sha256 of the file's bytes, in hex.
        Raises:
            ArtifactError: the file holds something else.
        """

        def make() -> ort.InferenceSession:
            size = len(read_verified(path, digest))
            with self._lock:
                self._sizes[digest] = session_bytes(size)
            return open_session(str(path), self.threads)  # of bytes it would keep a copy

        session = self._graphs.get(digest, make)
        dropped = []
        with self._lock:
            self._recent[digest] = session
            self._recent.move_to_end(digest)
            total = sum(self._sizes[d] for d in self._recent)
            while total > self._max_bytes:
                oldest, last = self._recent.popitem(last=False)
                total -= self._sizes[oldest]
                dropped.append(last)  # closed outside of the lock, if nobody uses it
        return session

    def ground(self, key: Hashable, make: Callable[[], T]) -> T:
        """What packages made of the same things share: `make()`, once as long as one is open."""
        return self._grounds.get(key, make)

    @property
    def bytes(self) -> int:
        """Memory of the graphs that are open, about."""
        return sum(self._sizes[str(digest)] for digest in self._graphs.keys())  # noqa: SIM118

    def __len__(self) -> int:
        """How many graphs are open."""
        return len(self._graphs.keys())

    def proved(self, digest: str) -> bool:
        """Whether golden rows of the package with this digest came out right in this process."""
        with self._lock:
            return digest in self._proved

    def note_proved(self, digest: str) -> None:
        """Golden rows of the package with this digest came out right."""
        with self._lock:
            self._proved.add(digest)


def open_heads(path: Path, threads: int) -> ort.InferenceSession:
    """The session of a package's heads: small, one of hundreds, so without memory held in advance.

    An arena would keep what the largest file ever scored took, in every package.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def read_verified(path: Path, digest: str) -> bytes:
    """A file's bytes, which have this sha256.

    Raises:
        ArtifactError: missing or altered.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ArtifactError(
            f"{path.parent}: file '{path.name}' of the package is missing"
        ) from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise ArtifactError(
            f"{path.parent}: file '{path.name}' was altered, its digest does not match"
        )
    return content


def session_bytes(file_bytes: int) -> int:
    """Memory of an open graph of so many bytes, about."""
    return int(PER_FILE_BYTE * file_bytes) + PER_GRAPH
