"""Replay of a past decision: it is reproduced, or what changed is named.

The body that was kept is scored again, by the package that answered then where it is still there,
and decided twice: by the decision file and the list hits of then, which must give the same outcome,
and by what is effective now.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from serving.database import Database
from serving.decisions.decider import Decider
from serving.decisions.facts import Decision, Facts, Ruling
from serving.decisions.inputs import Inputs
from serving.decisions.lists import ListBook
from serving.decisions.projection import Given, find
from serving.decisions.rule_book import RuleBook
from serving.decisions.rules import DEFAULT, Rules, default_ruling

# Scores of one package on one body may differ by this much between machines.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Rescored:
    """A body scored again.

    Attributes:
        digest: of the package that did it.
        notes: what was different from then, such as stored history that has grown.
    """

    facts: Facts
    digest: str
    notes: tuple[str, ...] = ()


# (tenant, body, the decision of then) -> the body scored as of then, by the same package if it can.
Score = Callable[[str, bytes, Given], Rescored]


@dataclass(frozen=True)
class Change:
    """Something that is not as it was: `before` then, `after` now."""

    what: str
    before: str
    after: str


@dataclass(frozen=True)
class Replayed:
    """A decision replayed.

    Attributes:
        reproduced: the same score and the same outcome came out of what was there then; None
            where it could not be tried.
        now: outcome of the same request today; empty where it could not be tried.
        changes: what is different between then and now.
    """

    given: Given
    reproduced: bool | None
    now: str = ""
    changes: tuple[Change, ...] = field(default=())


class Replay:
    """Replays decisions.

    Args:
        inputs: None where bodies are not kept.
        score: scores a body again.
    """

    def __init__(
        self,
        database: Database,
        decider: Decider,
        lists: ListBook,
        files: RuleBook,
        inputs: Inputs | None,
        score: Score,
    ) -> None:
        self._database, self._decider, self._inputs = database, decider, inputs
        self._lists, self._files, self._score = lists, files, score

    def replay(self, tenant: str, request_id: str) -> Replayed:
        """Replay the last decision on a request.

        Raises:
            UserError: the tenant has no such decision.
        """
        given = find(self._database, tenant, request_id)
        version = str(given.detail.get("version", DEFAULT))
        changes = self._file_changes(tenant, given, version)
        body = None if self._inputs is None else self._inputs.body(tenant, request_id)
        if body is None:
            why = "bodies are not kept" if self._inputs is None else "not kept, too old or erased"
            return Replayed(given, None, "", (*changes, Change("inputs", "there", why)))
        scored = self._score(tenant, body, given)
        facts = scored.facts
        changes += [Change("input", "", note) for note in scored.notes]
        if scored.digest != given.digest:
            changes.append(Change("package", given.digest, scored.digest))
        close = given.score is not None and math.isclose(
            facts.score, given.score, rel_tol=0.0, abs_tol=TOLERANCE
        )
        if not close:
            changes.append(Change("score", _shown(given.score), _shown(facts.score)))
        keys = self._decider.keys(tenant, facts)
        for row in self._lists.changes(tenant, keys, given.time):
            if row["channel"] in ("", given.channel):
                changes.append(
                    Change(f"{row['list']} list", "", f"{row['kind']} {row['action']} {row['at']}")
                )
        then = self._ruled_as_then(tenant, given, version, facts)
        if then is None and given.outcome:
            changes.append(Change("decision file", version, "no longer there"))
        # A decision logged without an outcome was a score alone.
        same = (then.outcome if then is not None else "") == given.outcome or not given.outcome
        if then is not None and given.outcome and not same:
            changes.append(Change("outcome", given.outcome, then.outcome))
        today: Decision = self._decider.decide(tenant, given.channel, facts)
        if list(today.lists) != list(given.detail.get("lists", [])):
            changes.append(
                Change("list hits", _joined(given.detail.get("lists", [])), _joined(today.lists))
            )
        return Replayed(given, close and same, today.outcome, tuple(changes))

    def _file_changes(self, tenant: str, given: Given, version: str) -> list[Change]:
        effective = self._decider.effective(tenant, given.channel)
        digest = DEFAULT if effective is None else effective.version
        return [] if digest == version else [Change("decision file", version, digest)]

    def _ruled_as_then(
        self, tenant: str, given: Given, version: str, facts: Facts
    ) -> Ruling | None:
        hits = [str(hit) for hit in given.detail.get("lists", [])]
        if version == DEFAULT:
            return default_ruling(facts, hits)
        file = self._files.file(tenant, given.channel, version)
        return None if file is None else Rules(file, version).rule(facts, hits)


def replay_lines(found: Replayed) -> list[str]:
    """A replay in words."""
    given = found.given
    lines = [
        f"decision {given.id} of {given.time}: {given.outcome or 'a score alone'}, "
        f"score {_shown(given.score)}"
    ]
    if found.reproduced is None:
        lines.append("it cannot be replayed")
    elif found.reproduced:
        lines.append(f"reproduced; today it would be {found.now}")
    else:
        lines.append(f"not reproduced; today it would be {found.now}")
    for change in found.changes:
        before = f" (was {change.before})" if change.before else ""
        lines.append(f"changed: {change.what}: {change.after}{before}")
    return lines


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.6f}"


def _joined(values: Iterable[Any]) -> str:
    return ", ".join(str(v) for v in values) or "none"
