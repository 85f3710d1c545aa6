"""Hundreds of packages in one process: the least recently used are dropped and loaded again.

What packages share (`finetune.sessions`) is held once. A package is loaded by the thread that asks
for it; others ask for other packages meanwhile, and score, and whoever asks for the same one waits
for that load.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from finetune.package import Package
from finetune.sessions import Sessions


@dataclass(frozen=True)
class CacheUse:
    """How full a cache is, and what it did.

    Attributes:
        packages, own_bytes: packages held, and what they cost by themselves.
        graphs, shared_bytes: graphs open, and what they cost.
        loads, hits, dropped: since the cache was made.
    """

    packages: int
    own_bytes: int
    graphs: int
    shared_bytes: int
    loads: int
    hits: int
    dropped: int

    @property
    def bytes(self) -> int:
        """Both together, about."""
        return self.own_bytes + self.shared_bytes


class PackageCache:
    """Packages by directory, within a number of bytes.

    Directories are taken not to change while a package is held, as those of a workspace never do;
    `drop` one that was replaced. A package somebody still scores with lives until they are done.

    Args:
        max_bytes: of all packages and what they share; one package is held in any case.
        sessions: what they share; None makes one, of single-thread sessions.
    """

    def __init__(self, max_bytes: int, sessions: Sessions | None = None) -> None:
        self.sessions = Sessions() if sessions is None else sessions
        self._max_bytes = max_bytes
        self._lock = Lock()
        self._held: OrderedDict[Path, Package] = OrderedDict()
        self._loading: dict[Path, Future[Package]] = {}
        self._loads = self._hits = self._dropped = 0

    def get(self, path: str | Path, load: Callable[..., Package] = Package.load) -> Package:
        """The verified package of a directory, loaded if it is not held.

        Args:
            load: opens a directory, as `Package.load` does.
        Raises:
            ArtifactError, ParityError: it cannot be loaded; the next to ask tries again.
        """
        path = Path(path).absolute()
        with self._lock:
            found = self._held.get(path)
            if found is not None:
                self._held.move_to_end(path)
                self._hits += 1
                return found
            future = self._loading.get(path)
            mine = future is None
            if future is None:
                future = self._loading[path] = Future()
        if not mine:
            return future.result()
        try:
            package = load(path, verify=True, sessions=self.sessions)
        except BaseException as exc:
            with self._lock:
                self._forget(path, future)
            future.set_exception(exc)
            raise
        with self._lock:
            self._loads += 1
            if self._forget(path, future):
                self._held[path] = package
        future.set_result(package)
        self._shrink()
        return package

    def drop(self, path: str | Path) -> None:
        """Forget a package, also one being loaded: who asks from now on gets it from the disk."""
        path = Path(path).absolute()
        with self._lock:
            self._loading.pop(path, None)
            dropped = self._held.pop(path, None)
        del dropped  # outside of the lock: closing sessions takes a while

    def use(self) -> CacheUse:
        """How full the cache is, and what it did."""
        with self._lock:
            held = list(self._held.values())
            loads, hits, dropped = self._loads, self._hits, self._dropped
        own = sum(package.own_bytes for package in held)
        shared = self.sessions
        return CacheUse(len(held), own, len(shared), shared.bytes, loads, hits, dropped)

    def __len__(self) -> int:
        """Packages held."""
        return len(self._held)

    def __contains__(self, path: str | Path) -> bool:
        """Whether a package is held."""
        return Path(path).absolute() in self._held

    def _forget(self, path: Path, future: Future[Package]) -> bool:
        """End a load; False where it was dropped meanwhile. The lock is held."""
        if self._loading.get(path) is not future:
            return False
        del self._loading[path]
        return True

    def _shrink(self) -> None:
        """Drop the least recently used until everything fits, but never the last one."""
        while True:
            with self._lock:
                own = sum(package.own_bytes for package in self._held.values())
                if len(self._held) < 2 or own + self.sessions.bytes <= self._max_bytes:
                    return
                _, dropped = self._held.popitem(last=False)
                self._dropped += 1
            del dropped  # outside of the lock; what only it used goes with it
