"""From a scored request to its decision, from memory.

Lists and decision files of all tenants lie in memory. Every `poll` seconds one small query asks
which tenants' lists or files have a new version, and only those are read again: a change holds
everywhere within a second. While the database cannot be reached the last known state decides, and
`age` says how old it is.
"""

from __future__ import annotations

import datetime as dt
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa

from foundation.errors import ConfigError
from serving.database import Database
from serving.decisions.decision_file import stored
from serving.decisions.facts import Decision, Facts, Ruling
from serving.decisions.lists import ENTITY, SUBJECT, Entry, Hasher, ListBook, hashed
from serving.decisions.rule_book import SUBJECT as FILES
from serving.decisions.rule_book import RuleBook
from serving.decisions.rules import DEFAULT, Rules, default_ruling
from serving.decisions.tables import CHAMPION, versions
from serving.tenancy.background import Background

POLL_SECONDS = 0.4
log = logging.getLogger("riskfm.decisions")
_Entries = dict[str, dict[str, tuple[Entry, ...]]]
_Staged = dict[tuple[str, str], tuple[Rules | None, Rules | None]]


@dataclass
class _Memory:
    """What is known: tenant -> kind -> hash -> entries; (tenant, channel) -> both files."""

    entries: dict[str, _Entries] = field(default_factory=dict)
    staged: _Staged = field(default_factory=dict)
    seen: dict[tuple[str, str], int] = field(default_factory=dict)


class Decider:
    """Decides on scored requests; thread-safe.

    Args:
        hasher: (tenant, text) -> keyed hash, the one of the lists.
        poll: seconds between two looks for changes; 0: only when `refresh` is called.
    """

    def __init__(self, database: Database, hasher: Hasher, poll: float = POLL_SECONDS) -> None:
        self._database, self._hasher = database, hasher
        self._lists, self._files = ListBook(database, hasher), RuleBook(database)
        self._memory = _Memory()
        self._looked = 0.0
        self.refresh()
        self._loop = Background("decisions", poll, self.refresh) if poll else None

    def close(self) -> None:
        """Stop looking for changes."""
        if self._loop is not None:
            self._loop.close()

    @property
    def age(self) -> float:
        """Seconds since the state in memory was known to be the latest."""
        return time.monotonic() - self._looked

    def refresh(self) -> None:
        """Read what changed; the state is replaced as a whole."""
        moment = time.monotonic()
        with self._database.reading() as connection:
            rows = connection.execute(sa.select(versions)).all()
            found = {(str(r.tenant), str(r.subject)): int(r.version) for r in rows}
            old = self._memory
            changed = [key for key, version in found.items() if old.seen.get(key) != version]
            if changed:
                entries, staged = dict(old.entries), dict(old.staged)
                for tenant, subject in changed:
                    if subject == SUBJECT:
                        entries[tenant] = _indexed(self._lists.every(connection, tenant))
                    elif subject == FILES:
                        staged = {k: v for k, v in staged.items() if k[0] != tenant}
                        staged |= self._compiled(connection, tenant)
                self._memory = _Memory(entries, staged, found)
        self._looked = moment

    def decide(self, tenant: str, channel: str, facts: Facts) -> Decision:
        """The champion's decision, with the challenger's beside it; no database is asked."""
        hits = self.hits(tenant, channel, facts)
        champion, challenger = self._memory.staged.get((tenant, channel), (None, None))
        decision = _decision(*_ruled(champion, facts, hits), hits)
        if challenger is not None:
            shadow = _decision(*_ruled(challenger, facts, hits), hits)
            decision = replace(decision, shadow=shadow)
        return decision

    def hits(self, tenant: str, channel: str, facts: Facts) -> tuple[str, ...]:
        """LIST:KIND of the entries that match a request, in order, each once."""
        kinds = self._memory.entries.get(tenant)
        if not kinds:
            return ()
        found: set[str] = set()
        moment = ""
        for kind, by_hash in kinds.items():
            for value in values_of(kind, facts):
                for entry in by_hash.get(hashed(self._hasher, tenant, kind, value), ()):
                    if entry.channel not in ("", channel):
                        continue
                    if entry.expires_at is not None:
                        moment = moment or dt.datetime.now(dt.UTC).isoformat()
                        if entry.expires_at <= moment:
                            continue
                    found.add(f"{entry.list}:{kind}")
        return tuple(sorted(found))

    def keys(self, tenant: str, facts: Facts) -> dict[str, str]:
        """hash -> kind of everything in a request that an entry of the tenant could be about."""
        kinds = {ENTITY, *facts.profile, *facts.context}
        return {
            hashed(self._hasher, tenant, kind, value): kind
            for kind in kinds
            for value in values_of(kind, facts)
        }

    def effective(self, tenant: str, channel: str) -> Rules | None:
        """The champion's rules; None where the bands decide."""
        return self._memory.staged.get((tenant, channel), (None, None))[0]

    def _compiled(self, connection: sa.Connection, tenant: str) -> _Staged:
        out: dict[tuple[str, str], list[Rules | None]] = {}
        for version, content in self._files.staged(connection, tenant):
            pair = out.setdefault((tenant, version.channel), [None, None])
            try:
                rules = Rules(stored(content), version.digest)
            except ConfigError as exc:
                # Files are checked when they are handed in: only another version of zen-engine
                # could refuse one now. What it decided goes to review.
                log.error("decision file %s does not compile: %s", version.id, exc)
                rules = _Broken(version.digest)
            pair[0 if version.stage == CHAMPION else 1] = rules
        return {key: (pair[0], pair[1]) for key, pair in out.items()}


class _Broken(Rules):
    """A file that compiled once and does not any more."""

    def __init__(self, version: str) -> None:
        self.version = version

    def rule(self, facts: Facts, hits: Sequence[str]) -> Ruling:
        return Ruling("review", ("the decision file does not compile",), ("failed",), failed=True)


def values_of(kind: str, facts: Facts) -> list[Any]:
    """Values of a request that entries of a kind are compared with."""
    if kind == ENTITY:
        return [facts.entity_id] if facts.entity_id else []
    found: list[Any] = []
    for fields in (facts.context, facts.profile):
        value = _plain(fields, kind)
        if value is not None and value not in found:
            found.append(value)
    return found


def _plain(fields: Mapping[str, Any], kind: str) -> Any:
    value = fields.get(kind)
    return value if isinstance(value, (str, int, float)) and value != "" else None


def _ruled(rules: Rules | None, facts: Facts, hits: Sequence[str]) -> tuple[Ruling, str]:
    if rules is None:
        return default_ruling(facts, hits), DEFAULT
    return rules.rule(facts, hits), rules.version


def _decision(ruling: Ruling, version: str, hits: tuple[str, ...]) -> Decision:
    return Decision(
        ruling.outcome, ruling.reasons, ruling.rules, ruling.actions, version, ruling.limit,
        ruling.price, hits,
    )  # fmt: skip


def _indexed(entries: list[Entry]) -> _Entries:
    out: dict[str, dict[str, list[Entry]]] = {}
    for entry in entries:
        out.setdefault(entry.kind, {}).setdefault(entry.hash, []).append(entry)
    return {kind: {h: tuple(e) for h, e in found.items()} for kind, found in out.items()}
