"""Scores in shadow in the hosting database: written in groups, read for a comparison."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import sqlalchemy as sa

from serving.database import Database
from serving.models.shadow import ShadowScore

metadata = sa.MetaData()
shadow_scores = sa.Table(
    "shadow_scores", metadata,
    # The service's own request ids may repeat: callers choose them.
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    *(sa.Column(name, sa.Text, nullable=False) for name in (
        "tenant", "channel", "release", "champion", "request_id", "entity",
    )),
    sa.Column("champion_score", sa.Float(53), nullable=False),
    sa.Column("shadow_score", sa.Float(53), nullable=False),
    *(sa.Column(name, sa.Text, nullable=False) for name in ("champion_band", "shadow_band", "at")),
)  # fmt: skip
sa.Index(
    "shadow_scores_of", shadow_scores.c.tenant, shadow_scores.c.channel, shadow_scores.c.release
)
sa.Index("shadow_scores_about", shadow_scores.c.tenant, shadow_scores.c.entity)


@dataclasses.dataclass(frozen=True)
class ShadowPairs:
    """Scores of one release in shadow beside the champion's (S pairs, oldest first).

    Attributes:
        champion, shadow: [S] probabilities. champion_band, shadow_band: [S] names.
        champions: releases that answered, first seen first.
        since, until: ISO 8601 UTC of the first and the last pair; empty without any.
    """

    release: str
    champions: tuple[str, ...]
    champion: np.ndarray
    shadow: np.ndarray
    champion_band: np.ndarray
    shadow_band: np.ndarray
    since: str
    until: str


class ShadowStore:
    """Keeps scores in shadow; its table is made where it is missing."""

    def __init__(self, database: Database) -> None:
        self._database = database
        database.make(metadata)

    def keep(self, scores: Sequence[ShadowScore]) -> None:
        """Write a group of scores in one transaction."""
        if not scores:
            return
        rows = [dataclasses.asdict(score) for score in scores]
        with self._database.transaction() as connection:
            connection.execute(shadow_scores.insert(), rows)

    def releases(self, tenant: str, channel: str) -> list[str]:
        """Releases with scores in shadow, last scored first."""
        table = shadow_scores
        query = (
            sa.select(table.c.release)
            .where(table.c.tenant == tenant, table.c.channel == channel)
            .group_by(table.c.release)
            .order_by(sa.func.max(table.c.seq).desc())
        )
        with self._database.transaction() as connection:
            return [str(name) for name in connection.execute(query).scalars()]

    def pairs(self, tenant: str, channel: str, release: str, since: str = "") -> ShadowPairs:
        """Every pair of a release from a moment (ISO 8601 UTC) on."""
        table = shadow_scores
        query = (
            sa.select(
                table.c.champion, table.c.champion_score, table.c.shadow_score,
                table.c.champion_band, table.c.shadow_band, table.c.at,
            )
            .where(table.c.tenant == tenant, table.c.channel == channel)
            .where(table.c.release == release, table.c.at >= since)
            .order_by(table.c.seq)
        )  # fmt: skip
        with self._database.transaction() as connection:
            rows = connection.execute(query).all()
        columns = list(zip(*rows, strict=True)) or [()] * 6
        return ShadowPairs(
            release,
            tuple(dict.fromkeys(columns[0])),
            np.array(columns[1], np.float64),
            np.array(columns[2], np.float64),
            np.array(columns[3], object),
            np.array(columns[4], object),
            min(columns[5], default=""),
            max(columns[5], default=""),
        )

    def erase(self, tenant: str, entity: str) -> int:
        """Forget everything about a customer (keyed hash); number of rows."""
        table = shadow_scores
        mine = (table.c.tenant == tenant) & (table.c.entity == entity)
        with self._database.transaction() as connection:
            return int(connection.execute(table.delete().where(mine)).rowcount)
