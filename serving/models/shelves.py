"""Where packages lie in memory: within a number of bytes, or all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finetune.package import Package
    from finetune.package_cache import PackageCache


class Shelves:
    """Every package that was asked for, each loaded once.

    Args:
        load: opens and verifies a directory, as `Package.load` does.
    """

    bytes = 0

    def __init__(self, load: Callable[..., Package]) -> None:
        self._load = load
        self._held: dict[Path, Package] = {}

    def get(self, path: Path) -> Package:
        """The package of a directory; raises what loading raises."""
        found = self._held.get(path)
        if found is None:
            found = self._held.setdefault(path, self._load(path, verify=True, threads=1))
        return found

    def drop(self, path: Path) -> None:
        """Forget a package."""
        self._held.pop(path, None)


class SharedShelf:
    """Packages within a number of bytes, what they have in common held once."""

    def __init__(self, cache: PackageCache) -> None:
        self._cache = cache

    def get(self, path: Path) -> Package:
        """The package of a directory, read again where it made room for others."""
        return self._cache.get(path)

    def drop(self, path: Path) -> None:
        """Forget a package."""
        self._cache.drop(path)

    @property
    def bytes(self) -> int:
        """Memory of everything held, about."""
        return self._cache.use().bytes


def shared_shelf(max_bytes: int) -> SharedShelf:
    """A shelf of real packages.

    Args:
        max_bytes: of all packages and what they share.
    """
    from finetune.package_cache import PackageCache
    from finetune.sessions import Sessions

    # Graphs nobody uses any more go at once: what is worth keeping is kept as a package.
    return SharedShelf(PackageCache(max_bytes, Sessions(0)))
