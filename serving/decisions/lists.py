"""Black, grey and white lists of a tenant: keyed hashes of customers, devices, phones and so on.

An entry is about a kind: `entity`, the customer of a request, or the name of a profile or context
field such as `device` or `phone`. Only its keyed hash is kept. Entries count in one channel, or in
all where the channel is empty. Every change is a row of an append-only history.
"""

from __future__ import annotations

import csv
import datetime as dt
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from foundation.errors import DataError, UserError, listing, nearest
from serving.database import Database, now
from serving.decisions.facts import LISTS
from serving.decisions.tables import bump, list_entries, list_history, metadata
from serving.releases import name as checked_name
from serving.releases import person

ENTITY = "entity"
SUBJECT = "lists"
MAX_VALUE, MAX_REASON = 256, 500
COLUMNS = ("kind", "value", "reason", "source", "expires_at", "channel")
Hasher = Callable[[str, str], str]
_KIND = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a list; `hash` stands for the customer or the value.

    Attributes:
        list: black, grey or white.
        channel: empty: every channel.
        expires_at: ISO 8601 UTC; None: never.
    """

    list: str
    kind: str
    hash: str
    channel: str = ""
    reason: str = ""
    source: str = ""
    expires_at: str | None = None
    added_at: str = ""
    added_by: str = ""


def hashed(hasher: Hasher, tenant: str, kind: str, value: Any) -> str:
    """The keyed hash of a customer or of an identifier's value; blanks around it do not count."""
    text = spelled(value)
    return hasher(tenant, text if kind == ENTITY else f"{kind}:{text}")


def spelled(value: Any) -> str:
    """A value of a request as text: 1 and 1.0 are "1", true is "true"."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


class ListBook:
    """Entries of the lists in the database.

    Args:
        hasher: (tenant, text) -> keyed hash, the one of the decision log.
    """

    def __init__(self, database: Database, hasher: Hasher) -> None:
        self.database = database
        self._hasher = hasher
        database.make(metadata)

    def entry(
        self,
        tenant: str,
        which: str,
        kind: str,
        value: str,
        *,
        channel: str = "",
        reason: str = "",
        source: str = "",
        expires_at: str | None = None,
    ) -> Entry:
        """A checked entry, not yet in a list.

        Raises:
            UserError: no such list or kind, an empty or overlong value, a time that is none.
        """
        if which not in LISTS:
            raise UserError(f"no list '{which}'{nearest(which, LISTS)}; lists: {listing(LISTS)}")
        if not _KIND.fullmatch(kind):
            raise UserError(
                f"kind '{kind[:80]}': write entity, or the name of a profile or context field"
            )
        if not spelled(value) or len(value) > MAX_VALUE:
            raise UserError(f"the value should have 1 to {MAX_VALUE} characters")
        if len(reason) > MAX_REASON or len(source) > MAX_REASON:
            raise UserError(f"reason and source have at most {MAX_REASON} characters")
        if channel:
            checked_name("channel", channel)
        return Entry(
            which, kind, hashed(self._hasher, tenant, kind, value), channel, reason, source,
            _moment(expires_at),
        )  # fmt: skip

    def add(self, tenant: str, entries: Iterable[Entry], by: str) -> int:
        """Add entries, replacing those of the same list, channel and value; how many changed."""
        return self.change(tenant, entries, (), by)[0]

    def change(
        self, tenant: str, add: Iterable[Entry], remove: Iterable[Entry], by: str
    ) -> tuple[int, int]:
        """Add entries and take entries off, all or none.

        Returns:
            how many were added or changed, and how many were taken off. What stands there already,
            or is not there, does not count.
        """
        tenant, by = checked_name("tenant", tenant), person(by)
        wanted = {_key(entry): entry for entry in add}
        gone = {_key(entry): entry for entry in remove}
        with self.database.transaction() as connection:
            there = {_key(entry): entry for entry in _read(connection, tenant, wanted | gone)}
            removed = [entry for key, entry in gone.items() if there.pop(key, None) is not None]
            added = [
                entry
                for key, entry in wanted.items()
                if key not in there or _said(there[key]) != _said(entry)
            ]
            old = [there[_key(entry)] for entry in added if _key(entry) in there]
            for entry in (*removed, *old):
                connection.execute(list_entries.delete().where(_is(tenant, entry)))
            moment = now()
            rows = [_row(entry, tenant) for entry in added]
            stamp = {"added_at": moment, "added_by": by}
            _insert(connection, list_entries, [row | stamp for row in rows])
            noted = [_row(entry, tenant) | {"action": "removed"} for entry in removed]
            noted += [
                row | {"action": "changed" if _key(entry) in there else "added"}
                for entry, row in zip(added, rows, strict=True)
            ]
            _insert(connection, list_history, [r | {"at": moment, "who": by} for r in noted])
            if noted:
                bump(connection, tenant, SUBJECT)
        return len(added), len(removed)

    def read_csv(self, tenant: str, which: str, path: Path) -> tuple[list[Entry], list[str]]:
        """Entries of a CSV file with the columns kind, value and optionally the other `COLUMNS`.

        Returns:
            the good rows, and a sentence for each bad one that names its line.
        Raises:
            DataError: the file cannot be read, or its columns are others.
        """
        entries, errors = [], []
        try:
            with open(path, encoding="utf-8-sig", newline="") as handle:
                reader = csv.DictReader(handle)
                names = list(reader.fieldnames or [])
                unknown = [n for n in names if n not in COLUMNS]
                if unknown or not {"kind", "value"} <= set(names):
                    hint = nearest(unknown[0], COLUMNS) if unknown else ""
                    raise DataError(
                        f"{path}: columns are {listing(names) or 'none'}{hint}; expected kind and "
                        f"value, and optionally {listing(COLUMNS[2:])}"
                    )
                for row in reader:
                    try:
                        entries.append(self._from_row(tenant, which, row))
                    except UserError as exc:
                        errors.append(f"{path}, line {reader.line_num}: {exc}")
        except OSError as exc:
            raise DataError(f"{path}: cannot be read ({type(exc).__name__})") from None
        except (UnicodeDecodeError, csv.Error) as exc:
            raise DataError(f"{path}: not a CSV file in UTF-8 ({type(exc).__name__})") from None
        return entries, errors

    def _from_row(self, tenant: str, which: str, row: dict[str, Any]) -> Entry:
        if None in row or None in row.values():
            raise UserError("has another number of columns than the first line")
        return self.entry(
            tenant, which, row["kind"].strip(), row["value"].strip(),
            channel=(row.get("channel") or "").strip(), reason=(row.get("reason") or "").strip(),
            source=(row.get("source") or "").strip(),
            expires_at=(row.get("expires_at") or "").strip() or None,
        )  # fmt: skip

    def entries(
        self, tenant: str, which: str | None = None, kind: str | None = None,
        after: str = "", limit: int = 1000,
    ) -> tuple[list[Entry], str]:  # fmt: skip
        """A page of entries in the order of their hashes, expired ones too.

        Args:
            after: where the last page said the next one starts.
        Returns:
            the entries, and where the next page starts; empty at the end.
        """
        query = sa.select(list_entries).where(list_entries.c.tenant == tenant)
        order = [list_entries.c[n] for n in ("hash", "list", "channel", "kind")]
        if after:
            # Missing parts are empty: they come before everything.
            last = [*after.split("|"), "", "", ""][:4]
            query = query.where(sa.tuple_(*order) > sa.tuple_(*map(sa.literal, last)))
        if which is not None:
            query = query.where(list_entries.c.list == which)
        if kind is not None:
            query = query.where(list_entries.c.kind == kind)
        with self.database.reading() as connection:
            rows = connection.execute(query.order_by(*order).limit(limit + 1))
            found = [_entry(row) for row in rows]
        more = len(found) > limit
        last_one = found[limit - 1] if more else None
        end = "" if last_one is None else "|".join(
            (last_one.hash, last_one.list, last_one.channel, last_one.kind)
        )  # fmt: skip
        return found[:limit], end

    def every(self, connection: sa.Connection, tenant: str) -> list[Entry]:
        """All entries of a tenant."""
        rows = connection.execute(sa.select(list_entries).where(list_entries.c.tenant == tenant))
        return [_entry(row) for row in rows]

    def changes(self, tenant: str, hashes: Iterable[str], since: str) -> list[dict[str, Any]]:
        """Changes of the entries about some hashes after a moment, oldest first."""
        wanted = sorted(set(hashes))
        with self.database.reading() as connection:
            rows = connection.execute(
                sa.select(list_history)
                .where(list_history.c.tenant == tenant, list_history.c.at > since)
                .where(list_history.c.hash.in_(wanted))
                .order_by(list_history.c.seq)
            )
            return [dict(row) for row in rows.mappings()]

    def history(self, tenant: str, limit: int = 1000) -> list[dict[str, Any]]:
        """The last changes of a tenant's lists, newest first."""
        with self.database.reading() as connection:
            rows = connection.execute(
                sa.select(list_history).where(list_history.c.tenant == tenant)
                .order_by(list_history.c.seq.desc()).limit(limit)
            )  # fmt: skip
            return [dict(row) for row in rows.mappings()]


def _insert(connection: sa.Connection, table: sa.Table, rows: list[dict[str, Any]]) -> None:
    if rows:
        connection.execute(table.insert(), rows)


def _key(entry: Entry) -> tuple[str, str, str, str]:
    return entry.channel, entry.list, entry.kind, entry.hash


def _moment(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        raise UserError("expires_at: expected an ISO 8601 time such as 2027-01-31") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    return moment.astimezone(dt.UTC).isoformat(timespec="microseconds")


def _row(entry: Entry, tenant: str) -> dict[str, Any]:
    return {
        "tenant": tenant, "channel": entry.channel, "list": entry.list, "kind": entry.kind,
        "hash": entry.hash, "reason": entry.reason, "source": entry.source,
        "expires_at": entry.expires_at,
    }  # fmt: skip


def _entry(row: Any) -> Entry:
    return Entry(**{name: getattr(row, name) for name in Entry.__dataclass_fields__})


def _said(entry: Entry) -> Entry:
    return replace(entry, added_at="", added_by="")


def _is(tenant: str, entry: Entry) -> sa.ColumnElement[bool]:
    c = list_entries.c
    return sa.and_(
        c.tenant == tenant, c.channel == entry.channel, c.list == entry.list,
        c.kind == entry.kind, c.hash == entry.hash,
    )  # fmt: skip


def _read(connection: sa.Connection, tenant: str, wanted: Iterable[Any]) -> list[Entry]:
    """What is there of some keys, asked in parts that every database takes."""
    hashes = sorted({key[3] for key in wanted})
    out: list[Entry] = []
    for start in range(0, len(hashes), 500):
        part = hashes[start : start + 500]
        rows = connection.execute(
            sa.select(list_entries).where(
                list_entries.c.tenant == tenant, list_entries.c.hash.in_(part)
            )
        )
        out += [_entry(row) for row in rows]
    return out
