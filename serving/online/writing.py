"""Posts as they enter the database: many customers in one transaction, each post whole or not.

A customer's events lie in blocks, each of one source. A few new events join the source's last
block while that is small, more make blocks of their own; blocks whose event times meet those of
new events are opened to see which of them are there already. Beyond `max_events` whole blocks
leave, those first whose events became known first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import sqlalchemy as sa

from serving.messages import ApiError
from serving.online.events import Events, contents, joined, repeated
from serving.online.sealing import Hasher, Sealer, seal, unseal
from serving.online.tables import blocks, entities, event_ids

# A block takes more events while it has fewer than SMALL, up to LARGE.
SMALL, LARGE = 64, 256
_AT_ONCE = 400


@dataclass(frozen=True)
class Post:
    """New events of one customer.

    Attributes:
        entity: keyed hash.
        sources: source -> events, none of them empty.
        ids: source -> an id for each event, where the caller gave any.
    """

    tenant: str
    entity: str
    sources: Mapping[str, Events]
    ids: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Posted:
    """What became of a post.

    Attributes:
        stored, repeated: events added, and events that were there already.
        version: of the customer's history after it; 0 where nothing is stored of the customer.
    """

    stored: int
    repeated: int
    version: int


@dataclass
class _Block:
    seq: int
    source: str
    version: int
    events: int
    first_event_us: int
    last_event_us: int
    last_known_us: int

    def meets(self, events: Events) -> bool:
        return (
            self.first_event_us <= int(events.event_us.max())
            and int(events.event_us.min()) <= self.last_event_us
        )


@dataclass
class _Customer:
    """A customer's history within a transaction; `opened` has the blocks that were looked into."""

    version: int = 0
    events: int = 0
    dropped: int = 0
    next_seq: int = 0
    there: bool = False
    blocks: dict[int, _Block] = field(default_factory=dict)
    opened: dict[int, Events] = field(default_factory=dict)
    kept: set[int] = field(default_factory=set)
    changed: set[int] = field(default_factory=set)
    removed: set[int] = field(default_factory=set)

    def last(self, source: str) -> _Block | None:
        """The source's last block, where it still takes events."""
        seq = max((s for s, b in self.blocks.items() if b.source == source), default=None)
        if seq is None or self.blocks[seq].events >= SMALL:
            return None
        return self.blocks[seq]

    def needed(self, source: str, events: Events) -> set[int]:
        """Blocks to look into for new events."""
        meeting = {s for s, b in self.blocks.items() if b.source == source and b.meets(events)}
        last = self.last(source)
        return meeting if last is None else meeting | {last.seq}


_Key = tuple[str, str]
_BLOCK = tuple(each.name for each in fields(_Block))


def write(
    connection: sa.Connection,
    posts: Sequence[Post],
    vault: Sealer,
    hasher: Hasher,
    max_events: int,
    now_us: int,
) -> list[Posted | ApiError]:
    """Add posts, in order; per post what became of it, or why it was refused as a whole.

    Args:
        now_us: the present, microseconds since the epoch, UTC.
    """
    ids = [_hidden_ids(post, hasher) for post in posts]
    known = _known_ids(connection, posts, ids)
    customers = _customers(connection, posts)
    _open(connection, posts, customers, vault)
    fresh: dict[tuple[str, str, str], tuple[str, int]] = {}
    out: list[Posted | ApiError] = []
    for post, hidden in zip(posts, ids, strict=True):
        customer = customers[post.tenant, post.entity]
        try:
            out.append(_add(customer, post, hidden, hasher, known, fresh, now_us))
        except ApiError as exc:
            out.append(exc)
        _bound(customer, max_events)
    _flush(connection, customers, vault, fresh)
    return out


def _add(
    customer: _Customer,
    post: Post,
    hidden: Mapping[str, list[str]],
    hasher: Hasher,
    known: dict[tuple[str, str, str], str],
    fresh: dict[tuple[str, str, str], tuple[str, int]],
    now_us: int,
) -> Posted:
    """Add one post to a customer in memory."""
    version = max(customer.version + 1, now_us)
    new: dict[str, Events] = {}
    names: dict[str, list[str]] = {}
    noted: dict[str, str] = {}
    for source, events in post.sources.items():
        if source in hidden:
            rows = _unseen(post, source, hidden[source], hasher, known, noted)
            names[source] = [hidden[source][row] for row in rows]
        else:
            old = [
                e for s, e in customer.opened.items()
                if s in customer.blocks and customer.blocks[s].source == source
            ]  # fmt: skip
            rows = np.flatnonzero(~repeated(old, events))
        new[source] = events.take(rows).stamped(version)
    # Nothing of a refused post is kept: from here on nothing refuses.
    total = sum(map(len, post.sources.values()))
    stored = sum(map(len, new.values()))
    if stored:
        for source, events in new.items():
            if len(events):
                places = _put(customer, source, events, version)
                for name, place in zip(names.get(source, ()), places, strict=False):
                    key = post.tenant, post.entity, name
                    known[key], fresh[key] = noted[name], (noted[name], place)
        customer.version, customer.events = version, customer.events + stored
    return Posted(stored, total - stored, customer.version)


def _unseen(
    post: Post,
    source: str,
    hidden: Sequence[str],
    hasher: Hasher,
    known: Mapping[tuple[str, str, str], str],
    noted: dict[str, str],
) -> np.ndarray:
    """Rows whose ids are new.

    Args:
        noted: hidden id -> hidden content of the post's new events; added to.
    Raises:
        ApiError: 409, an id was given to another event before.
    """
    texts = contents(post.sources[source], range(len(hidden)))
    rows: list[int] = []
    for row, (name, text) in enumerate(zip(hidden, texts, strict=True)):
        content = hasher.hash(post.tenant, f"event content:{source}:{text.decode()}")
        before = noted.get(name) or known.get((post.tenant, post.entity, name))
        if before is None:
            noted[name] = content
            rows.append(row)
        elif before != content:
            raise ApiError(
                409,
                "the id belongs to an event that says something else; a correction is an event "
                "with an id and a known_at of its own",
                f"ids.{source}[{row}]",
            )
    return np.array(rows, dtype=np.int64)


def _put(customer: _Customer, source: str, events: Events, version: int) -> list[int]:
    """Put events into the last block or into new ones; the number of the block of each."""
    last = customer.last(source)
    if last is not None and last.events + len(events) <= LARGE:
        held = customer.opened[last.seq]
        if held.fits(events):
            _set(customer, last.seq, source, joined([held, events]), version)
            return [last.seq] * len(events)
    places: list[int] = []
    for begin in range(0, len(events), LARGE):
        part = events.take(np.arange(begin, min(begin + LARGE, len(events))))
        _set(customer, customer.next_seq, source, part, version)
        places += [customer.next_seq] * len(part)
        customer.next_seq += 1
    return places


def _set(customer: _Customer, seq: int, source: str, events: Events, version: int) -> None:
    customer.opened[seq] = events
    customer.changed.add(seq)
    customer.blocks[seq] = _Block(
        seq, source, version, len(events), int(events.event_us.min()),
        int(events.event_us.max()), int(events.known_us.max()),
    )  # fmt: skip


def _bound(customer: _Customer, max_events: int) -> None:
    """Let blocks leave while more than `max_events` events stay without them."""
    while customer.events > max_events:
        oldest = min(customer.blocks.values(), key=lambda b: (b.last_known_us, b.seq))
        if customer.events - oldest.events < max_events:
            return
        del customer.blocks[oldest.seq]
        customer.removed.add(oldest.seq)
        customer.events -= oldest.events
        customer.dropped += oldest.events


# what is read before


def _hidden_ids(post: Post, hasher: Hasher) -> dict[str, list[str]]:
    return {
        source: [hasher.hash(post.tenant, f"event id:{name}") for name in names]
        for source, names in post.ids.items()
        if source in post.sources
    }


def _known_ids(
    connection: sa.Connection, posts: Sequence[Post], ids: Sequence[Mapping[str, list[str]]]
) -> dict[tuple[str, str, str], str]:
    """Hidden contents of ids the database knows."""
    wanted = [
        (post.tenant, post.entity, name)
        for post, mine in zip(posts, ids, strict=True)
        for names in mine.values()
        for name in names
    ]
    c = event_ids.c
    rows = _found(connection, [c.tenant, c.entity, c.id], wanted, [c.content])
    return {(row[0], row[1], row[2]): row[3] for row in rows}


def _customers(connection: sa.Connection, posts: Sequence[Post]) -> dict[_Key, _Customer]:
    wanted = list({(post.tenant, post.entity): None for post in posts})
    customers = {key: _Customer() for key in wanted}
    c, b = entities.c, blocks.c
    about = [c.version, c.events, c.dropped, c.next_seq]
    for row in _found(connection, [c.tenant, c.entity], wanted, about):
        customers[row[0], row[1]] = _Customer(*row[2:], there=True)
    for row in _found(connection, [b.tenant, b.entity], wanted, [b[name] for name in _BLOCK]):
        customer = customers[row[0], row[1]]
        customer.blocks[row.seq] = _Block(**dict(zip(_BLOCK, row[2:], strict=True)))
        customer.kept.add(row.seq)
    return customers


def _open(
    connection: sa.Connection,
    posts: Sequence[Post],
    customers: Mapping[_Key, _Customer],
    vault: Sealer,
) -> None:
    """Open the blocks that the posts may meet or join."""
    wanted: dict[tuple[str, str, int], None] = {}
    for post in posts:
        customer = customers[post.tenant, post.entity]
        for source, events in post.sources.items():
            for seq in customer.needed(source, events):
                wanted[post.tenant, post.entity, seq] = None
    b = blocks.c
    for row in _found(connection, [b.tenant, b.entity, b.seq], list(wanted), [b.blob]):
        opened = unseal(vault, row.tenant, row.entity, row.seq, bytes(row.blob))
        customers[row.tenant, row.entity].opened[row.seq] = opened


def _found(
    connection: sa.Connection,
    key: Sequence[sa.Column[Any]],
    wanted: Sequence[tuple[Any, ...]],
    about: Sequence[sa.Column[Any]],
) -> Iterable[sa.Row[Any]]:
    """Rows of some keys: the key, then the columns asked for."""
    for begin in range(0, len(wanted), _AT_ONCE):
        part = wanted[begin : begin + _AT_ONCE]
        yield from connection.execute(sa.select(*key, *about).where(sa.tuple_(*key).in_(part)))


# what is written after


def _flush(
    connection: sa.Connection,
    customers: Mapping[_Key, _Customer],
    vault: Sealer,
    fresh: Mapping[tuple[str, str, str], tuple[str, int]],
) -> None:
    gone: list[dict[str, Any]] = []
    made: list[dict[str, Any]] = []
    rows: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for (tenant, entity), customer in customers.items():
        if not customer.changed:
            continue
        key = {"tenant": tenant, "entity": entity}
        outdated = customer.kept & (customer.changed | customer.removed)
        gone += [key | {"seq": seq} for seq in outdated]
        for seq in customer.changed - customer.removed:
            blob = seal(vault, tenant, entity, seq, customer.opened[seq])
            made.append(key | vars(customer.blocks[seq]) | {"blob": blob})
        about = {n: getattr(customer, n) for n in ("version", "events", "dropped", "next_seq")}
        rows[customer.there].append(key | about)
    _each(connection, blocks, gone, delete=True)
    _each(connection, entities, rows[True], delete=True)
    _each(connection, blocks, made)
    _each(connection, entities, rows[True] + rows[False])
    removed = {(*key, seq) for key, customer in customers.items() for seq in customer.removed}
    places = [(t, e, name, content, seq) for (t, e, name), (content, seq) in fresh.items()]
    names = ("tenant", "entity", "id", "content", "seq")
    kept = [dict(zip(names, p, strict=True)) for p in places if (p[0], p[1], p[4]) not in removed]
    _each(connection, event_ids, kept)
    left = [dict(zip(("tenant", "entity", "seq"), key, strict=True)) for key in removed]
    _each(connection, event_ids, left, delete=True)


def _each(
    connection: sa.Connection, table: sa.Table, rows: list[dict[str, Any]], delete: bool = False
) -> None:
    """Insert rows, or delete those that have the same key (or part of one)."""
    if not rows:
        return
    if not delete:
        connection.execute(table.insert(), rows)
        return
    names = [n for n in ("tenant", "entity", "seq") if n in rows[0] and n in table.c]
    condition = sa.and_(*(table.c[n] == sa.bindparam(f"of_{n}") for n in names))
    given = [{f"of_{n}": row[n] for n in names} for row in rows]
    connection.execute(table.delete().where(condition), given)
