"""Everything sealed in the service's database under the newest key, so that old keys can go.

Values move in groups, each in a transaction of its own and nothing else: a run that is stopped goes
on where it was, because what has moved is passed over. Services may go on meanwhile, once they were
started with the newest key; one that still has the old secrets can neither open what has moved nor
stop sealing under the old key.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from foundation.errors import ArtifactError, ConfigError
from serving.database import Database
from serving.safety.ciphers import HEADER_BYTES, read_header
from serving.safety.vault import Vault

TOGETHER = 200


@dataclass(frozen=True)
class SealedColumn:
    """A column of sealed values.

    Attributes:
        name: for people.
        purpose: of the value in a row, as whoever seals it says.
    """

    name: str
    column: sa.Column[Any]
    purpose: Callable[[Any], str]


@dataclass
class Resealed:
    """What came of one column.

    Attributes:
        moved: values that are under the newest key now.
        left: id of the key -> values that could not be opened; `?` where it cannot be told.
    """

    name: str
    moved: int = 0
    left: Counter[str] = field(default_factory=Counter)

    def line(self) -> str:
        """For a terminal."""
        left = "".join(f", {n:,} under {key} do not open" for key, n in sorted(self.left.items()))
        return f"{self.name}: {self.moved:,} moved{left}"


def sealed_columns() -> tuple[SealedColumn, ...]:
    """Every place of the service's database with sealed values."""
    from serving.decisions.inputs import purpose as of_input
    from serving.decisions.tables import inputs
    from serving.online.sealing import purpose as of_block
    from serving.online.tables import blocks
    from serving.tenancy.idempotency import PURPOSE
    from serving.tenancy.tables import idempotency

    return (
        SealedColumn("stored events", blocks.c.blob, lambda r: of_block(r.entity, r.seq)),
        SealedColumn("kept requests", inputs.c.blob, lambda r: of_input(r.request_id)),
        SealedColumn("kept answers", idempotency.c.answer, lambda r: PURPOSE),
    )


def reseal_all(
    database: Database,
    vault: Vault,
    columns: tuple[SealedColumn, ...] | None = None,
    together: int = TOGETHER,
) -> list[Resealed]:
    """Move every sealed value to the newest key and the vault's algorithm.

    Args:
        columns: None: all there are.
        together: values in one transaction.
    Returns:
        what came of each column; a value that does not open stays as it is and is counted.
    """
    found = []
    for place in sealed_columns() if columns is None else columns:
        database.make(place.column.table.metadata)
        found.append(_reseal(database, vault, place, together))
    return found


def _reseal(database: Database, vault: Vault, place: SealedColumn, together: int) -> Resealed:
    table, column, result = place.column.table, place.column, Resealed(place.name)
    keys = list(table.primary_key)
    # The first bytes of a value name its algorithm and key: what has moved is not even read.
    header = sa.func.substr(column, 1, HEADER_BYTES, type_=sa.LargeBinary())
    query = (
        sa.select(*keys, column.label("sealed"))
        .where(column.is_not(None), header != sa.literal(vault.newest, sa.LargeBinary()))
        .order_by(*keys)
        .limit(together)
    )
    last: tuple[Any, ...] | None = None
    while True:
        following = query if last is None else query.where(sa.tuple_(*keys) > sa.tuple_(*last))
        with database.transaction() as connection:
            rows = connection.execute(following).all()
            for row in rows:
                blob = bytes(row.sealed)
                try:
                    moved = vault.reseal(row.tenant, place.purpose(row), blob)
                except (ArtifactError, ConfigError):
                    result.left[_key_of(blob)] += 1
                    continue
                here = sa.and_(*(key == row._mapping[key.name] for key in keys))
                connection.execute(table.update().where(here).values({column.name: moved}))
                result.moved += 1
        if len(rows) < together:
            return result
        last = tuple(rows[-1]._mapping[key.name] for key in keys)


def _key_of(blob: bytes) -> str:
    try:
        return read_header(blob).key_id
    except ArtifactError:
        return "?"
