"""One package in memory, and one release that answers with it.

A `Model` is shared by whatever answers with the same package. A `Loaded` is what a request holds
from `pick` to its answer: a release that is replaced meanwhile stays whole until the last request
that holds it is done, and its model is closed then, because nobody refers to it any more.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from foundation.errors import InternalError, RequestError
from serving.batch import score_together
from serving.messages import ApiError, Envelope
from serving.models.pace import Pace
from serving.models.pool import ScoringPool
from serving.models.turns import too_many
from serving.requests import RequestReader, ScoringInput

if TYPE_CHECKING:
    from finetune.features import Follow
    from finetune.package import Package, ScoreRow

CHAMPION, CHALLENGER, SHADOW = "champion", "challenger", "shadow"
DESCRIBED = (
    "id", "digest", "name", "channel", "recipe", "created_at", "label", "points", "bands",
    "metrics", "backbone_fingerprint", "forecast_titles",
)  # fmt: skip
log = logging.getLogger("riskfm.serving")


class Scored:
    """A score with the request it was given for; `seconds` is the time inside the package."""

    __slots__ = ("request", "row", "seconds")

    def __init__(self, row: ScoreRow, request: ScoringInput, seconds: float) -> None:
        self.row = row
        self.request = request
        self.seconds = seconds


class Shelf(Protocol):
    """Packages by directory, in memory; `finetune.package_cache.PackageCache` is one."""

    def get(self, path: Path) -> Package:
        """The verified package of a directory, loaded if it is not in memory."""
        ...

    def drop(self, path: Path) -> None:
        """Forget a package."""
        ...


class Memory(Protocol):
    """What is stored of a channel's customers; `serving.online.histories.Memory` is one."""

    def read(
        self, reader: RequestReader, request: Envelope, now_us: int, version: int | None = None
    ) -> ScoringInput:
        """A request with the stored events it asks for."""
        ...

    def at_hand(self, request: Envelope, package: Package) -> int | None:
        """Bytes in memory of what a score reads beside the request; None where that may wait."""
        ...

    def follow(self, request: Envelope, package: Package) -> Follow | None:
        """What the package runs in place of its whole graph; None for the graph."""
        ...

    def follow_many(
        self, requests: Sequence[Envelope], package: Package
    ) -> tuple[list[int], Follow | None]:
        """Which of some requests go on from kept states, and what the package runs for them."""
        ...


class Model:
    """A verified package on its shelf, and the reader of requests to it.

    The shelf may take a package out of memory that was not used for long; it comes back when it is
    asked for.

    Attributes:
        manifest: what of the package's manifest describes it: `DESCRIBED`.
        schema: what it reads.
    Raises:
        ArtifactError, ParityError: it cannot be loaded.
    """

    def __init__(
        self, path: Path, shelf: Shelf, reader: Callable[[Package], RequestReader]
    ) -> None:
        self._path = path
        self._shelf = shelf
        package = shelf.get(path)
        self._seen = weakref.ref(package)
        self.manifest = {k: package.manifest[k] for k in DESCRIBED if k in package.manifest}
        self.id = str(self.manifest["id"])
        self.digest = str(self.manifest["digest"])
        self.schema = package.schema
        self.reader = reader(package)
        # What a byte of history costs differs by where it comes from.
        self._paces: defaultdict[str, Pace] = defaultdict(Pace)
        weakref.finalize(self, _closed, shelf, path, self.id).atexit = False

    @property
    def package(self) -> Package:
        """The package, from the disk where it is not in memory.

        Raises:
            ApiError: 503 where it cannot be loaded again.
        """
        try:
            package = self._shelf.get(self._path)
        except Exception as exc:
            log.error("package_lost %s: %s: %s", self.id, type(exc).__name__, exc,
                      extra={"event": "package_lost"})  # fmt: skip
            raise ApiError(
                503, "the model could not be loaded again", headers={"Retry-After": "5"}
            ) from None
        self._seen = weakref.ref(package)
        return package

    @property
    def at_hand(self) -> bool:
        """Whether the package is in memory."""
        return self._seen() is not None

    def score(
        self,
        request: Envelope,
        memory: Memory | None = None,
        version: int | None = None,
        size: int | None = None,
    ) -> Scored:
        """Score one request in the calling thread.

        Args:
            memory: what is stored of the customers; None where nothing is.
            version: of the stored history to score by; None for the latest.
            size: what `size` said before; None teaches nothing about the next score like this.
        Raises:
            ApiError: the request is at fault (422, 413), its stored history is too old or missing
                (409), or the package is lost (503).
            InternalError: the package gave something that is no score.
        """
        own = time.thread_time()
        given = self._given(request, time.time_ns() // 1000, memory, version)
        package = self.package
        begin = time.perf_counter()
        follow = None if memory is None else memory.follow(request, package)
        more: dict[str, Any] = {} if follow is None else {"follow": follow}
        rows = package.score_population(given.population(), request.reasons, **more)
        seconds = time.perf_counter() - begin
        if len(rows) != 1:
            raise InternalError(f"package '{self.id}' gave {len(rows)} scores for one row")
        check_row(rows[0], self.id)
        if size is not None:
            pace = self._paces[request.history]
            pace.note(size, request.reasons, time.thread_time() - own)
        return Scored(rows[0], given, seconds)

    def size(self, request: Envelope, memory: Memory | None = None) -> int | None:
        """Bytes of the history a score reads; None where they, or the package, are not at hand."""
        package = self._seen()
        if package is None:
            return None
        given = sum(memoryview(events).nbytes for events in request.events.values())
        if memory is None:
            return given if request.history == "inline" else None
        kept = memory.at_hand(request, package)
        return None if kept is None else given + kept

    def expected(self, request: Envelope, size: int | None) -> float:
        """Seconds a score is expected to take in its thread; infinite where nobody can tell."""
        if size is None:
            return math.inf
        return self._paces[request.history].expected(size, request.reasons)

    def score_many(
        self, requests: Sequence[Envelope], memory: Memory | None = None
    ) -> list[Scored | Exception]:
        """Score requests that all ask for reasons or all do not, together in the calling thread.

        Long stored histories go on from the states that are kept of them.

        Returns:
            per request its score, or what was wrong with it alone.
        """
        moment = time.time_ns() // 1000
        given = [self._read(request, moment, memory) for request in requests]
        pairs = zip(requests, given, strict=True)
        asked = [(one, each) for one, each in pairs if isinstance(each, ScoringInput)]
        read = [each for _, each in asked]
        package = self.package
        begin = time.perf_counter()
        reasons = bool(requests) and requests[0].reasons
        kept = ((), None) if memory is None else memory.follow_many([r for r, _ in asked], package)
        rows = score_together(package, read, reasons, *kept)
        seconds = (time.perf_counter() - begin) / max(1, len(read))
        scored = iter([self._checked(*pair, seconds) for pair in zip(rows, read, strict=True)])
        return [each if isinstance(each, Exception) else next(scored) for each in given]

    def _given(
        self, request: Envelope, now_us: int, memory: Memory | None, version: int | None = None
    ) -> ScoringInput:
        if memory is not None:
            return memory.read(self.reader, request, now_us, version)
        if request.history != "inline":
            raise ApiError(422, "nothing is stored here; send the history inline", "history")
        return self.reader.read(request, now_us)

    def _read(
        self, request: Envelope, moment: int, memory: Memory | None
    ) -> ScoringInput | Exception:
        try:
            return self._given(request, moment, memory)
        except RequestError as exc:
            return exc

    def _checked(
        self, row: ScoreRow | Exception, given: ScoringInput, seconds: float
    ) -> Scored | Exception:
        if isinstance(row, Exception):
            return row
        try:
            check_row(row, self.id)
        except InternalError as exc:
            return exc
        return Scored(row, given, seconds)

    def warm(self) -> None:
        """Run the package once on a customer without history, with reasons."""
        self.score(Envelope(entity_id="warm-up", reasons=True))


class Loaded:
    """A release that answers: its package, whose it is, and since when.

    Attributes:
        manifest: what describes the package (`DESCRIBED`), at hand even where the package is not.
        tenant, channel: whose requests it answers.
        release: id of the release; empty for a package served by its path.
        stage: champion, challenger (a rollout) or shadow.
        since: moment it became what it is, ISO 8601 UTC; empty where nobody decided it.
        announced_until: until then (seconds since the epoch) its backbone counts as new.
        shadows: releases that score along when this one has answered, each with its share.
        memory: what is stored of the channel's customers, or None.
        waiting: requests that wait for it or are being scored.
    """

    def __init__(
        self,
        model: Model,
        pool: ScoringPool,
        tenant: str,
        channel: str,
        release: str = "",
        stage: str = CHAMPION,
        since: str = "",
        announced_until: float = 0.0,
        shadows: tuple[tuple[Loaded, float], ...] = (),
        memory: Memory | None = None,
    ) -> None:
        self.model = model
        self.manifest = model.manifest
        self.pool = pool
        self.tenant = tenant
        self.channel = channel
        self.release = release
        self.stage = stage
        self.since = since
        self.announced_until = announced_until
        self.shadows = shadows
        self.memory = memory
        self.waiting = 0

    @property
    def package(self) -> Package:
        """The package, from the disk where it is not in memory."""
        return self.model.package

    @property
    def id(self) -> str:
        """Readable id of the package, such as `cards-1f0c2a9b`."""
        return self.model.id

    @property
    def digest(self) -> str:
        """Digest of the package, 64 hex digits."""
        return self.model.digest

    @property
    def backbone(self) -> str:
        """Fingerprint of the backbone the package was made with; empty where it names none."""
        return str(self.manifest.get("backbone_fingerprint") or "")

    async def score(self, request: Envelope) -> Scored:
        """Score one request when its turn comes.

        Raises:
            ApiError: the request is at fault (422, 413, 409), the tenant's queue is full (429) or
                the answer did not come in time (503).
            InternalError: the package gave something that is no score.
        """
        self.waiting += 1
        try:
            await self._fetch()
            size = self.model.size(request, self.memory)
            seconds = self.model.expected(request, size)
            return await self.pool.run(
                self.tenant, self.model.score, request, self.memory, None, size, seconds=seconds
            )
        finally:
            self.waiting -= 1

    async def score_many(self, requests: Sequence[Envelope]) -> list[Scored | Exception]:
        """Score some requests together in a scoring thread.

        Raises:
            ApiError: the tenant's queue is full (429) or the answer did not come in time (503).
        """
        self.waiting += 1
        try:
            await self._fetch()
            return await self.pool.run(self.tenant, self.model.score_many, requests, self.memory)
        finally:
            self.waiting -= 1

    async def _fetch(self) -> None:
        """Have the package in memory; reading it takes no scoring thread away from the others."""
        if self.model.at_hand:
            return
        if self.waiting > self.pool.queue:
            raise too_many()
        await asyncio.to_thread(getattr, self.model, "package")

    def score_now(self, request: Envelope) -> Scored:
        """Score one request in the calling thread; raises what `score` raises but 429 and 503."""
        return self.model.score(request, self.memory)

    def again(self, envelope: Envelope, version: int | None = None) -> tuple[ScoreRow, list[str]]:
        """Score for a replay, in the calling thread: the row, and the flags of row and request.

        Args:
            version: of the stored history then; None for the latest.
        """
        scored = self.model.score(envelope, self.memory, version)
        return scored.row, list(dict.fromkeys((*scored.row.flags, *scored.request.flags)))


def _closed(shelf: Shelf, path: Path, name: str) -> None:
    shelf.drop(path)
    log.info("package_closed %s", name)


def announce(loaded: Loaded, now: float | None = None) -> tuple[str, ...]:
    """Flags an answer carries because of the release that gave it.

    Args:
        now: seconds since the epoch; None for this moment.
    Returns:
        `backbone_changed` for some days after a release whose backbone differs from that of its
        predecessor, and for as long as such a release is rolled out to some customers only.
    """
    moment = time.time() if now is None else now
    return ("backbone_changed",) if moment < loaded.announced_until else ()


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
