"""Scores in shadow: another release scores the same request after the answer was given.

A worker has one shadow thread. It begins a score only while no request waits or is being scored,
and what finds no such moment is dropped and counted: shadow work is never billed, never logged as
a decision, and no answer waits for it. A request that arrives during a shadow score shares the
core with it for the rest of that score.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence

import msgspec

from serving.messages import Envelope
from serving.models.loaded import Loaded, Scored
from serving.models.pool import ScoringPool
from serving.models.table import in_share

QUEUE, PATIENCE_SECONDS, GROUP, GROUP_SECONDS = 256, 10.0, 100, 2.0
_PAUSE = 0.005
log = logging.getLogger("riskfm.serving")


@dataclasses.dataclass(frozen=True)
class ShadowScore:
    """A score in shadow beside the champion's, as it is kept.

    Attributes:
        champion, release: the release that answered, and the one in shadow.
        entity: keyed hash of the customer.
        champion_score, shadow_score: probabilities of label 1.
        champion_band, shadow_band: decision bands.
        at: ISO 8601 UTC.
    """

    tenant: str
    channel: str
    release: str
    champion: str
    request_id: str
    entity: str
    champion_score: float
    shadow_score: float
    champion_band: str
    shadow_band: str
    at: str


@dataclasses.dataclass(frozen=True)
class _Offer:
    loaded: Loaded
    champion: str
    envelope: Envelope
    scored: Scored
    request_id: str
    entity: str
    until: float


class ShadowScorer:
    """Takes answered requests and scores a share of them with the releases in shadow.

    Args:
        pool: the scoring threads whose idle moments are used.
        keep: writes a group of scores; called in the shadow thread.
        counted: called with an outcome and a number, for metrics.
    Attributes:
        counts: scored, dropped (no idle moment, or too many waited), refused (the request does not
            fit the release in shadow), failed (the release gave no score), lost (not kept).
    """

    def __init__(
        self,
        pool: ScoringPool,
        keep: Callable[[Sequence[ShadowScore]], None],
        counted: Callable[[str, int], None] | None = None,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._counted = counted or (lambda outcome, count: None)
        self._pool = pool
        self._keep = keep
        self._offers: deque[_Offer] = deque()
        self._made: list[ShadowScore] = []
        self._kept_at = time.monotonic()
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
        self._thread.start()

    def offer(
        self, loaded: Loaded, envelope: Envelope, scored: Scored, request_id: str, entity: str
    ) -> None:
        """Offer an answered request; returns at once and never raises.

        Args:
            loaded: what answered; only a champion has releases in shadow.
            entity: keyed hash of the customer.
        """
        for shadow, share in loaded.shadows:
            if not in_share(request_id, shadow.release, share):
                continue
            if len(self._offers) >= QUEUE:
                self._count("dropped", 1)
                continue
            until = time.monotonic() + PATIENCE_SECONDS
            self._offers.append(
                _Offer(shadow, loaded.release, envelope, scored, request_id, entity, until)
            )
            self._wake.set()

    def close(self) -> None:
        """Drop what waits and keep what was scored."""
        self._closing = True
        self._wake.set()
        self._thread.join()

    def _count(self, outcome: str, count: int) -> None:
        if count:
            self.counts[outcome] += count
            self._counted(outcome, count)

    def _run(self) -> None:
        while not self._closing:
            if not self._offers:
                self._wake.wait(GROUP_SECONDS)
                self._wake.clear()
            else:
                self._step()
            if self._made and (
                len(self._made) >= GROUP or time.monotonic() - self._kept_at > GROUP_SECONDS
            ):
                self._write()
        self._count("dropped", len(self._offers))
        self._offers.clear()
        self._write()

    def _step(self) -> None:
        """Score the oldest offer if nobody else needs the core."""
        if not self._pool.idle:
            while self._offers and self._offers[0].until < time.monotonic():
                self._offers.popleft()
                self._count("dropped", 1)
            time.sleep(_PAUSE)
            return
        offer = self._offers.popleft()
        given = offer.scored.request
        request = msgspec.structs.replace(offer.envelope, as_of=given.as_of, reasons=False)
        try:
            row = offer.loaded.score_now(request).row
        except Exception as exc:
            # An ApiError is about the request, such as a field this package does not know.
            refused = type(exc).__name__ == "ApiError"
            self._count("refused" if refused else "failed", 1)
            if not refused:
                log.warning("shadow_failed %s: %s", offer.loaded.release, type(exc).__name__)
            return
        self._count("scored", 1)
        answered = offer.scored.row
        self._made.append(
            ShadowScore(
                tenant=offer.loaded.tenant,
                channel=offer.loaded.channel,
                release=offer.loaded.release,
                champion=offer.champion,
                request_id=offer.request_id,
                entity=offer.entity,
                champion_score=float(answered.score),
                shadow_score=float(row.score),
                champion_band=answered.band,
                shadow_band=row.band,
                at=dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"),
            )
        )

    def _write(self) -> None:
        self._kept_at = time.monotonic()
        if not self._made:
            return
        made, self._made = self._made, []
        try:
            self._keep(made)
        except Exception as exc:
            self._count("lost", len(made))
            log.warning("shadow_lost %d scores: %s", len(made), type(exc).__name__)
