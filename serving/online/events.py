"""Events of one source as they are kept: columns with their kinds, and the bytes of a block.

A field is kept by its name and by what its values are (`GROUPS`), not by the schema that read it:
any schema that has the field with the same kind of values reads it again.

Shapes: n events.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from foundation.errors import ArtifactError
from foundation.row_table import RowTable, Words
from foundation.schema import Field

GROUPS = {
    "category": "words",
    "text": "words",
    "number": "number",
    "money": "number",
    "boolean": "truth",
    "timestamp": "moment",
    "identifier": "hidden",
}
_NAN = np.float64("nan")


@dataclass(frozen=True)
class Events:
    """Events of one source, in the order in which they were stored.

    Attributes:
        event_us, known_us: [n] int64, UTC.
        added: [n] int64 version of the customer with which each was stored.
        groups: field -> one of the values of `GROUPS`.
        rows: the fields.
    """

    event_us: np.ndarray
    known_us: np.ndarray
    added: np.ndarray
    groups: Mapping[str, str]
    rows: RowTable

    def __len__(self) -> int:
        return len(self.event_us)

    @property
    def nbytes(self) -> int:
        """Memory, about."""
        columns = sum(
            c.code.nbytes + 80 * len(c.values) if isinstance(c, Words) else c.nbytes
            for c in self.rows.columns.values()
        )
        return 1024 + 3 * self.event_us.nbytes + columns

    @classmethod
    def read(
        cls, table: tuple[np.ndarray, np.ndarray, RowTable], fields: Mapping[str, Field]
    ) -> Events:
        """Events of a request, decoded by a schema with these fields; not yet stored."""
        event_us, known_us, rows = table
        groups = {name: GROUPS[fields[name].kind] for name in rows.columns}
        return cls(event_us, known_us, np.zeros(len(event_us), np.int64), groups, rows)

    def take(self, rows: np.ndarray) -> Events:
        """Some of the events."""
        return Events(
            self.event_us[rows], self.known_us[rows], self.added[rows], self.groups, self.rows[rows]
        )

    def stamped(self, version: int) -> Events:
        """The same events as stored with a version."""
        added = np.full(len(self), version, np.int64)
        return Events(self.event_us, self.known_us, added, self.groups, self.rows)

    def fits(self, other: Events) -> bool:
        """Whether fields of the same name hold the same kind of values."""
        return all(other.groups.get(name, kind) == kind for name, kind in self.groups.items())

    def of(self, fields: Mapping[str, Field]) -> tuple[Events, bool]:
        """What a schema with these fields reads of the events.

        Returns:
            the events, and whether a field was left out because it holds another kind of values.
        """
        wanted = {n: self.rows.columns[n] for n in self.rows.columns if n in fields}
        fitting = {n: c for n, c in wanted.items() if GROUPS[fields[n].kind] == self.groups[n]}
        groups = {n: self.groups[n] for n in fitting}
        rows = RowTable(fitting, len(self))
        found = Events(self.event_us, self.known_us, self.added, groups, rows)
        return found, len(fitting) < len(wanted)

    def to_bytes(self) -> bytes:
        """A block."""
        columns = {}
        for name, column in self.rows.columns.items():
            if isinstance(column, Words):
                used, code = np.unique(column.code, return_inverse=True)
                values = [column.values[i] for i in used.tolist() if i >= 0]
                data = (code.reshape(-1) - (used[:1] < 0).sum()).astype(np.int32)
                columns[name] = _Column(self.groups[name], data.tobytes(), values)
            else:
                columns[name] = _Column(self.groups[name], column.astype(np.float64).tobytes())
        event, known, added = (t.tobytes() for t in (self.event_us, self.known_us, self.added))
        return msgspec.msgpack.encode(_Block(event, known, added, columns))

    @classmethod
    def from_bytes(cls, data: bytes) -> Events:
        """What `to_bytes` wrote.

        Raises:
            ArtifactError: anything else.
        """
        try:
            block = _BLOCK.decode(data)
            event, known, added = (
                np.frombuffer(part, np.int64) for part in (block.event, block.known, block.added)
            )
            columns: dict[str, Words | np.ndarray] = {}
            for name, column in block.columns.items():
                if column.values is None:
                    columns[name] = np.frombuffer(column.data, np.float64)
                else:
                    code = np.frombuffer(column.data, np.int32).astype(np.int64)
                    columns[name] = Words(code, tuple(column.values))
        except (msgspec.DecodeError, ValueError):
            raise ArtifactError("a block of stored events is damaged") from None
        groups = {name: column.group for name, column in block.columns.items()}
        return cls(event, known, added, groups, RowTable(columns, len(event)))


class _Column(msgspec.Struct, array_like=True):
    group: str
    data: bytes
    values: list[str] | None = None


class _Block(msgspec.Struct, array_like=True):
    event: bytes
    known: bytes
    added: bytes
    columns: dict[str, _Column]


_BLOCK = msgspec.msgpack.Decoder(_Block)


def joined(parts: Sequence[Events]) -> Events:
    """Events one after another; fields of the same name hold the same kind of values."""
    if len(parts) == 1:
        return parts[0]
    return Events(
        np.concatenate([part.event_us for part in parts]),
        np.concatenate([part.known_us for part in parts]),
        np.concatenate([part.added for part in parts]),
        {name: kind for part in parts for name, kind in part.groups.items()},
        RowTable.joined([part.rows for part in parts]),
    )


def repeated(there: Sequence[Events], new: Events) -> np.ndarray:
    """[n] bool: events of `new` of which `there` holds as many equal ones already.

    The rule of an import: what differs in anything, be it only in when it was known, is another
    event, and so a correction is one; two equal events in one post are two.
    """
    out = np.zeros(len(new), dtype=bool)
    wanted = np.unique(new.event_us)
    near = [(part, np.isin(part.event_us, wanted)) for part in there if part.fits(new)]
    old = [part.take(np.flatnonzero(mask)) for part, mask in near if mask.any()]
    if not old or not all(part.fits(old[0]) for part in old):
        # Parts that do not fit each other fit `new` in different fields; each stands for itself.
        for part in old:
            out |= repeated([part], new)
        return out
    count = sum(map(len, old))
    some = np.flatnonzero(np.isin(new.event_us, np.concatenate([part.event_us for part in old])))
    group = _equal(joined([*old, new.take(some)]))
    held = np.bincount(group[:count], minlength=int(group.max(initial=0)) + 1)
    mine = group[count:]
    out[some] = _nth(mine) < held[mine]
    return out


def contents(events: Events, rows: Sequence[int]) -> list[bytes]:
    """Some events as canonical bytes: equal events give equal ones; fields left out are missing."""
    columns: dict[str, list[str | float | None]] = {}
    for name in sorted(events.groups):
        column = events.rows.columns[name]
        if isinstance(column, Words):
            values: list[str | float | None] = [*column.values, None]
            columns[name] = [values[int(column.code[i])] for i in rows]
        else:
            columns[name] = [None if np.isnan(column[i]) else float(column[i]) + 0.0 for i in rows]
    return [
        msgspec.json.encode(
            [
                int(events.event_us[row]),
                int(events.known_us[row]),
                [[name, c[place]] for name, c in columns.items() if c[place] is not None],
            ]
        )
        for place, row in enumerate(rows)
    ]


def _equal(events: Events) -> np.ndarray:
    """[n] int64: the same number for events that are equal in everything."""
    keys = [events.event_us, events.known_us]
    for column in events.rows.columns.values():
        if isinstance(column, Words):
            keys.append(column.code)
        else:
            # One NaN and one zero for all.
            keys.append((np.where(np.isnan(column), _NAN, column) + 0.0).view(np.int64))
    table = np.stack(keys, axis=1)
    whole = table.view(f"V{8 * table.shape[1]}").reshape(-1).tolist()
    place = {row: n for n, row in enumerate(dict.fromkeys(whole))}
    return np.fromiter(map(place.__getitem__, whole), np.int64, len(whole))


def _nth(group: np.ndarray) -> np.ndarray:
    """[n] int64: how many of the same group stand before each."""
    order = np.argsort(group, kind="stable")
    ranked = group[order]
    start = np.searchsorted(ranked, ranked)
    out = np.empty(len(group), dtype=np.int64)
    out[order] = np.arange(len(group)) - start
    return out
