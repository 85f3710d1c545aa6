"""Releases on trial in the registry: a challenger for some customers, releases in shadow.

A trial is a row of the registry's table `trials`; who decided on it stands in the history. These
functions take the connection of a running transaction, as those of `serving.releases` do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from foundation.errors import UserError
from serving import registry_tables as tables
from serving.champions import PACKAGES
from serving.registry_tables import CHALLENGER, CHAMPION, SHADOW
from serving.releases import Release, as_release, read_makers, record, release_query

ROLLOUT = "rollout"
_SCALE = ("base", "pdo", "odds")


def put_trial(
    connection: sa.Connection,
    found: Release,
    kind: str,
    share: float | None,
    by: str,
    at: str,
    why: str,
) -> bool:
    """Begin, change or (with a share of 0) end a trial; whether anything changed.

    Args:
        kind: `ROLLOUT` or `SHADOW`.
        share: percent of the customers, or share of the requests; None: the service's setting.
    """
    table = tables.trials
    mine = (table.c.release == found.id) & (table.c.kind == kind)
    row = connection.execute(sa.select(table).where(mine)).first()
    if (row is None and share == 0) or (row is not None and row.share == share):
        return False
    if share == 0:
        connection.execute(table.delete().where(mine))
    elif row is None:
        connection.execute(
            table.insert().values(
                tenant=found.tenant, channel=found.channel, release=found.id, kind=kind,
                share=share, at=at, who=by,
            )
        )  # fmt: skip
    else:
        # A rollout that grows is as old as its beginning.
        connection.execute(table.update().where(mine).values(share=share, who=by))
    action = kind if share != 0 else f"{kind} ended"
    record(connection, by, action, found.tenant, found.channel, found.id, why=why)
    return True


def end_trials(
    connection: sa.Connection, found: Release, by: str, why: str, rollouts: bool
) -> None:
    """End the trials of a release, and every rollout of its channel if `rollouts`."""
    table = tables.trials
    mine = table.c.release == found.id
    if rollouts:
        channel = (table.c.tenant == found.tenant) & (table.c.channel == found.channel)
        mine |= channel & (table.c.kind == ROLLOUT)
    for row in connection.execute(sa.select(table).where(mine).order_by(table.c.release)).all():
        connection.execute(
            table.delete().where((table.c.release == row.release) & (table.c.kind == row.kind))
        )
        action = f"{row.kind} ended"
        record(connection, by, action, row.tenant, row.channel, row.release, why=why)


def rolled_out(connection: sa.Connection, tenant: str, channel: str) -> str | None:
    """Release that a part of a channel's customers gets."""
    table = tables.trials
    mine = (table.c.tenant == tenant) & (table.c.channel == channel) & (table.c.kind == ROLLOUT)
    found = connection.execute(sa.select(table.c.release).where(mine)).scalar()
    return None if found is None else str(found)


def require_stage(found: Release, kind: str) -> None:
    """Refuse a trial of a release whose stage does not allow it.

    Raises:
        UserError: only a challenger is rolled out; a champion does not shadow itself, and a
            release that was rejected stays out.
    """
    if kind == ROLLOUT and found.stage != CHALLENGER:
        raise UserError(f"{found.id} is {found.stage}; only a challenger can be rolled out")
    if found.stage == CHAMPION:
        raise UserError(f"{found.id} is the champion; a shadow is another release")
    if found.stage not in (CHALLENGER, SHADOW) and not found.approved_at:
        raise UserError(f"{found.id} was rejected; it may not score in shadow")


def require_other_person(connection: sa.Connection, found: Release, by: str) -> None:
    """Maker is not checker.

    Raises:
        UserError: `by` handed in the samples of the release.
    """
    if by in read_makers(connection, found.job):
        raise UserError(
            f"{by} handed in the samples of {found.id} and may not approve it; a different "
            "person must"
        )


def reigning(connection: sa.Connection, found: Release) -> Release | None:
    """The champion of a release's channel."""
    table = tables.releases
    mine = (table.c.tenant == found.tenant) & (table.c.channel == found.channel)
    row = connection.execute(release_query().where(mine, table.c.stage == CHAMPION)).first()
    return None if row is None else as_release(row)


def require_champion(connection: sa.Connection, found: Release) -> None:
    """A trial needs a champion beside it.

    Raises:
        UserError: the channel has none.
    """
    if reigning(connection, found) is None:
        raise UserError(
            f"{found.tenant}/{found.channel} has no champion to stand beside; riskfm approve "
            "makes the first one"
        )


def compare_scale(
    connection: sa.Connection, workspace: Path, found: Release, note: str, accepted: bool
) -> str:
    """Hold the points scale of a release against that of its channel's champion.

    Returns:
        the note, with what was accepted.
    Raises:
        UserError: the scales differ and nobody accepted it.
    """
    champion = reigning(connection, found)
    if champion is None:
        return note
    table = tables.packages
    facts = []
    for package in (champion.package, found.package):
        query = sa.select(table.c.summary).where(table.c.digest == package)
        summary = str(connection.execute(query).scalar())
        facts.append(package_facts(summary, workspace / PACKAGES / package))
    return ", ".join(filter(None, (note, require_scale(facts[0], facts[1], accepted))))


def require_scale(champion: dict[str, Any], challenger: dict[str, Any], accepted: bool) -> str:
    """Compare the points of two packages; words for the history where they differ.

    Args:
        champion, challenger: what `package_facts` found.
        accepted: a person accepts that points change their meaning.
    Raises:
        UserError: the scales differ and nobody accepted it.
    """
    old, new = champion.get("points"), challenger.get("points")
    if not old or not new or all(old.get(k) == new.get(k) for k in _SCALE):
        return ""
    words = f"points {_scale(new)} instead of {_scale(old)}"
    if not accepted:
        raise UserError(
            f"{words}: the same points would mean another risk than the champion's; adapt again "
            "with the champion's scale, or accept it with --other-points"
        )
    return f"{words}, accepted"


def package_facts(summary: str, path: Path) -> dict[str, Any]:
    """Backbone and points scale of a package, from the registry's summary or its manifest.

    Returns:
        `backbone` (fingerprint, empty where unknown) and `points`.
    """
    facts = json.loads(summary)
    if "points" not in facts:
        # Registered before the registry kept them.
        try:
            facts = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            facts = {}
    return {"backbone": facts.get("backbone_fingerprint") or "", "points": facts.get("points")}


def standings(connection: sa.Connection, workspace: Path) -> dict[str, dict[str, Any]]:
    """What stands in every channel that has a champion: the content of `champions.json`."""
    releases, table = tables.releases, tables.history
    crowned: dict[tuple[str, str], list[Any]] = {}
    query = sa.select(table).where(table.c.after == CHAMPION).order_by(table.c.seq)
    for row in connection.execute(query):
        crowned.setdefault((row.tenant, row.channel), []).append(row)
    trials: dict[tuple[str, str], list[Any]] = {}
    for row in connection.execute(sa.select(tables.trials).order_by(tables.trials.c.release)):
        trials.setdefault((row.tenant, row.channel), []).append(row)
    used = {r.release for rows in (*crowned.values(), *trials.values()) for r in rows}
    known = {
        row.id: as_release(row) for row in connection.execute(release_query()) if row.id in used
    }
    summaries = {row.digest: row.summary for row in connection.execute(sa.select(tables.packages))}
    facts = {
        name: package_facts(summaries[r.package], workspace / PACKAGES / r.package)
        for name, r in known.items()
    }
    out = {}
    champions = connection.execute(sa.select(releases.c.id).where(releases.c.stage == CHAMPION))
    for name in champions.scalars():
        champion = known[name]
        key = (champion.tenant, champion.channel)
        rows = crowned[key]
        entry = _named(champion) | {
            "since": rows[-1].at,
            "backbone": facts[name]["backbone"],
            "backbone_since": _backbone_since(rows, facts),
            "before": None,
            "rollout": None,
            "shadows": [],
        }
        if rows[-1].action == "approved" and len(rows) > 1:
            entry["before"] = _named(known[rows[-2].release])
        for trial in trials.get(key, []):
            named = _named(known[trial.release])
            if trial.kind == ROLLOUT:
                backbone = facts[trial.release]["backbone"]
                more = {"percent": trial.share, "since": trial.at, "backbone": backbone}
                entry["rollout"] = named | more
            else:
                entry["shadows"].append(named | {"share": trial.share})
        out["/".join(key)] = entry
    return out


def _backbone_since(rows: list[Any], facts: dict[str, dict[str, Any]]) -> str | None:
    """When the champions of a channel last changed their backbone."""
    since, before = None, ""
    for row in rows:
        backbone = facts[row.release]["backbone"]
        if before and backbone and backbone != before:
            since = str(row.at)
        before = backbone or before
    return since


def _named(found: Release) -> dict[str, Any]:
    return {"release": found.id, "package": found.package, "name": found.package_name}


def _scale(points: dict[str, Any]) -> str:
    return ", ".join(f"{k} {points.get(k)}" for k in _SCALE)
