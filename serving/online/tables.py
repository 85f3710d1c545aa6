"""Tables of the stored histories: customers, blocks of their events, ids, erasures, bounds.

Customers are keyed hashes, events sealed; in clear stand counts and moments. Moments of events and
versions are microseconds since the epoch, UTC.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

metadata = sa.MetaData()


def _text(name: str, **more: Any) -> sa.Column[str]:
    return sa.Column(name, sa.Text, **({"nullable": False} | more))


def _whole(name: str, **more: Any) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, **({"nullable": False} | more))


# `version` changes with everything that is stored of a customer and never comes back, not even
# after an erasure: it is the moment of the change. `next_seq` numbers the blocks.
entities = sa.Table(
    "online_entities", metadata, _text("tenant", primary_key=True),
    _text("entity", primary_key=True), _whole("version"), _whole("events"), _whole("dropped"),
    _whole("next_seq"),
)  # fmt: skip

# `version` is that of the customer when the block was written last.
blocks = sa.Table(
    "online_blocks", metadata, _text("tenant", primary_key=True),
    _text("entity", primary_key=True), _whole("seq", primary_key=True, autoincrement=False),
    _text("source"), _whole("version"), _whole("events"), _whole("first_event_us"),
    _whole("last_event_us"), _whole("last_known_us"),
    sa.Column("blob", sa.LargeBinary, nullable=False),
)  # fmt: skip

# Keyed hashes of ids and contents, of events posted with an id.
event_ids = sa.Table(
    "online_event_ids", metadata, _text("tenant", primary_key=True),
    _text("entity", primary_key=True), _text("id", primary_key=True), _text("content"),
    _whole("seq"),
)  # fmt: skip

# Who was erased lately, by a number that grows: what workers still hold in memory is dropped by it.
erasures = sa.Table(
    "online_erasures", metadata, _whole("number", primary_key=True, autoincrement=False),
    _text("tenant"), _text("entity"), _whole("at"),
)  # fmt: skip
sa.Index("online_erasures_tenant", erasures.c.tenant, erasures.c.entity)

bounds = sa.Table(
    "online_bounds", metadata, _text("tenant", primary_key=True),
    _text("channel", primary_key=True), sa.Column("max_age_seconds", sa.Float),
    _text("fallback"), _text("changed_at"), _text("changed_by"),
)  # fmt: skip
