"""What the backbone made of customers' histories, kept between scores of one worker.

A state is known by tenant, customer and encoder (the bytes of the graph and how many events it
reads), so that every package whose backbone stayed frozen shares it. Whether it still holds is not
asked of the version but of the events themselves (`IncrementalEncoder.follow`): what arrived late,
was corrected, erased, or slid out of the window makes it anew, and the answer equals that of the
whole history within the tolerance stated in `finetune.incremental`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from serving.online.cache import ByteCache, Key

if TYPE_CHECKING:
    from finetune.features import Follow
    from finetune.incremental import EntityState, IncrementalEncoder, Kept

USED, REBUILT, FULL = "used", "rebuilt", "full"
# Events of a state from which a row of a batch takes less time than in the graph with the others.
LONG = 64


class Frozen(Protocol):
    """A package that may stand on a frozen backbone; `finetune.package.Package` is one."""

    @property
    def encoder(self) -> IncrementalEncoder | None:
        """Goes on from a kept state; None where the package cannot."""


class EntityStates:
    """States of this worker's customers; safe to share between threads.

    Args:
        max_bytes: memory for them.
        count: told of every score by stored history whether a state was `used`, `rebuilt`, or
            whether the history was encoded in `full` because there was none.
    """

    def __init__(
        self, max_bytes: int = 128 << 20, count: Callable[[str], None] = lambda result: None
    ) -> None:
        self.cache: ByteCache[EntityState] = ByteCache(max_bytes)
        self._count = count

    def follow(self, package: Frozen, tenant: str, entity: str) -> Follow | None:
        """What the package runs for one sample in place of its whole graph; None for the graph.

        Args:
            entity: keyed hash of the customer.
        """
        encoder = package.encoder
        if encoder is None:
            self._count(FULL)
            return None
        from finetune.incremental import Following

        return Following(encoder, [self._kept((tenant, entity, encoder.backbone))])

    def at_hand(self, package: Frozen, tenant: str, entity: str) -> bool:
        """Whether a score by stored history makes no state anew, as far as is known before."""
        encoder = package.encoder
        return encoder is None or self.cache.get((tenant, entity, encoder.backbone)) is not None

    def follow_many(
        self, package: Frozen, tenant: str, entities: Sequence[str]
    ) -> tuple[list[int], Follow | None]:
        """Samples that go on from long kept states, and what the package runs for them together.

        No state is made here: many samples through the graph at once take less than one after the
        other, and so do short histories whose state is kept.

        Args:
            entities: keyed hashes of the customers, one for each sample.
        """
        encoder = package.encoder
        rows: list[int] = []
        kept: list[Kept] = []
        for row, entity in enumerate(entities):
            if encoder is not None:
                state, keep = self._kept((tenant, entity, encoder.backbone))
                if state is not None and len(state) >= LONG:
                    rows.append(row)
                    kept.append((state, keep))
                    continue
            self._count(FULL)
        if encoder is None or not kept:
            return [], None
        from finetune.incremental import Following

        return rows, Following(encoder, kept)

    def _kept(self, key: Key) -> Kept:
        """The state of a customer, and what replaces it."""
        state = self.cache.get(key)

        def keep(fresh: EntityState, rebuilt: bool) -> None:
            self.cache.put(key, fresh)
            self._count(FULL if state is None else REBUILT if rebuilt else USED)

        return state, keep

    def drop(self, tenant: str, entity: str) -> None:
        """Forget a customer."""
        self.cache.drop_where(lambda key: key[:2] == (tenant, entity))

    def drop_all(self) -> None:
        """Forget every customer."""
        self.cache.drop_where(lambda key: True)
