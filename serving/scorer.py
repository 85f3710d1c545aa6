"""Packages loaded and verified, and scoring with them off the event loop.

Every package has one thread of its own: its rows are scored one after another, so a score never
depends on what else is being scored, and the event loop stays free. The queue before that thread
is bounded; what does not fit is refused at once.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation.errors import (
    ArtifactError,
    ConfigError,
    InternalError,
    RiskfmError,
    listing,
    nearest,
)
from serving.messages import ApiError, Envelope
from serving.requests import RequestReader, ScoringInput
from serving.settings import Settings

if TYPE_CHECKING:
    from finetune.package import Package, ScoreRow

MANIFEST = "manifest.json"
log = logging.getLogger("riskfm.serving")


@dataclass(frozen=True)
class Scored:
    """A score with the request it was given for; `seconds` is the time inside the package."""

    row: ScoreRow
    request: ScoringInput
    seconds: float


class Loaded:
    """One package, its request reader, its thread and its bounded queue."""

    def __init__(self, package: Package, settings: Settings) -> None:
        self.package = package
        self.id = str(package.manifest["id"])
        self.waiting = 0
        self._limit = settings.queue
        self._timeout = settings.timeout_seconds
        self._reader = RequestReader(package.schema, settings.max_events, settings.future_seconds)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"score-{self.id[:24]}")

    async def score(self, request: Envelope) -> Scored:
        """Score one request.

        Raises:
            ApiError: the request is at fault (422, 413), the queue is full (429) or the answer
                did not come in time (503).
            InternalError: the package gave something that is no score.
        """
        if self.waiting >= self._limit:
            raise ApiError(
                429, "too many requests are waiting for this package", headers={"Retry-After": "1"}
            )
        self.waiting += 1
        loop = asyncio.get_running_loop()
        work = self._thread.submit(self.score_now, request)
        # Counted until the work itself ends: a timed-out request still occupies the thread.
        work.add_done_callback(lambda _: _soon(loop, self._done))
        answer = asyncio.wrap_future(work)
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.wait({answer}, timeout=self._timeout)
        if not answer.done():
            work.cancel()
            raise ApiError(503, "the score was not ready in time", headers={"Retry-After": "1"})
        return answer.result()

    def score_now(self, request: Envelope) -> Scored:
        """Score one request in the calling thread."""
        given = self._reader.read(request, time.time_ns() // 1000)
        begin = time.perf_counter()
        rows = self.package.score(given.frames, given.profile, given.samples, request.reasons)
        seconds = time.perf_counter() - begin
        if len(rows) != 1:
            raise InternalError(f"package '{self.id}' gave {len(rows)} scores for one row")
        check_row(rows[0], self.id)
        return Scored(rows[0], given, seconds)

    def warm(self) -> None:
        """Run the package once on a customer without history, with reasons."""
        self.score_now(Envelope(entity_id="warm-up", reasons=True))

    def close(self) -> None:
        """Stop the thread; what waits is dropped."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _done(self) -> None:
        self.waiting -= 1


class Scorer:
    """Every package of the service by id.

    Args:
        settings: where packages are and how much may wait.
        load: opens and verifies one package directory; `finetune.package.Package.load` if None.
    Raises:
        ArtifactError: a package named by its own path is damaged, or none could be loaded.
        ConfigError: a path without packages, or a default that is not there.
    """

    def __init__(self, settings: Settings, load: Callable[..., Package] | None = None) -> None:
        if load is None:
            from finetune.package import Package as Real

            load = Real.load
        self.packages: dict[str, Loaded] = {}
        self.refused: dict[str, str] = {}
        first = ""
        for path, named in package_paths(settings.packages):
            try:
                loaded = Loaded(load(path, verify=True, threads=settings.threads), settings)
                loaded.warm()
                self._add(loaded, path)
                first = first or (loaded.id if named else "")
            except RiskfmError as exc:
                if named:
                    self.close()
                    raise
                self.refused[path.name] = str(exc)
                log.error("package %s refused: %s", path.name, exc)
        if not self.packages:
            reasons = "; ".join(f"{name}: {text}" for name, text in self.refused.items())
            raise ArtifactError(f"no package could be loaded ({reasons})")
        self.default = self._choose(settings.default_package or first)

    def pick(self, package_id: str | None) -> Loaded:
        """The package a request asks for.

        Raises:
            ApiError: 404 for an unknown id, 422 where none is named and there is no default.
        """
        if package_id is None:
            if self.default is None:
                raise ApiError(
                    422, f"name one of the packages: {listing(self.packages)}", "package"
                )
            return self.packages[self.default]
        found = self.packages.get(package_id)
        if found is None:
            raise ApiError(
                404,
                f"no such package{nearest(package_id, self.packages)}; "
                f"packages: {listing(self.packages)}",
                "package",
            )
        return found

    def close(self) -> None:
        """Stop every package's thread."""
        for loaded in self.packages.values():
            loaded.close()

    def _add(self, loaded: Loaded, path: Path) -> None:
        twin = self.packages.get(loaded.id)
        if twin is None:
            self.packages[loaded.id] = loaded
        elif twin.package.manifest.get("digest") != loaded.package.manifest.get("digest"):
            raise ArtifactError(f"{path}: another package with the id '{loaded.id}' is loaded")

    def _choose(self, wanted: str) -> str | None:
        if wanted and wanted not in self.packages:
            raise ConfigError(
                f"default_package '{wanted}' is not loaded{nearest(wanted, self.packages)}; "
                f"packages: {listing(self.packages)}"
            )
        only = next(iter(self.packages)) if len(self.packages) == 1 else None
        return wanted or only


def package_paths(paths: tuple[str, ...]) -> list[tuple[Path, bool]]:
    """Package directories among `paths`, each with whether it was named itself.

    Raises:
        ConfigError: a path that is neither a package nor a directory of packages.
    """
    out: list[tuple[Path, bool]] = []
    for text in paths:
        path = Path(text)
        if (path / MANIFEST).is_file():
            out.append((path, True))
            continue
        if not path.is_dir():
            raise ConfigError(f"{path}: no such directory; expected a package or a folder of them")
        inside = sorted(child for child in path.iterdir() if (child / MANIFEST).is_file())
        if not inside:
            raise ConfigError(f"{path}: holds no package (a directory with a {MANIFEST})")
        out += [(child, False) for child in inside]
    if not out:
        raise ConfigError("no package is named; set packages (RISKFM_PACKAGES)")
    return out


def check_row(row: ScoreRow, package_id: str) -> None:
    """Refuse an answer that is no probability or holds anything but finite numbers.

    Raises:
        InternalError: names the package and the part, never a value.
    """
    if not (math.isfinite(row.score) and 0.0 <= row.score <= 1.0):
        raise InternalError(f"package '{package_id}' gave a score outside 0 to 1")
    numbers: dict[str, Any] = {"points": row.points, **row.forecasts}
    numbers |= {reason.name: reason.effect for reason in row.reasons}
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise InternalError(f"package '{package_id}' gave '{name}' that is not finite")


def _soon(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(call)
