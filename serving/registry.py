"""The registry: which package stands at which stage of a tenant's channel, by whose word.

A release is a package on its way through the stages of a channel:

    shadow -> challenger -> champion -> retired, and by a rollback from retired to champion again

Rules, kept here and nowhere else: at most one champion for each channel; who handed in the samples
or asked for the delivery may not approve it (maker is not checker); only what a different person
once approved can be champion; a package that is damaged on the disk is not promoted; every change
is one row of an append-only history. The same request twice changes nothing. A challenger may
answer a part of the customers before (a rollout, decided on like an approval), and any release may
score in shadow, where nobody sees its scores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from foundation.errors import ArtifactError, UserError, listing, nearest
from serving import registry_tables as tables
from serving.champions import PACKAGES, write_champions
from serving.database import Database, now
from serving.models.trials import (
    ROLLOUT,
    compare_scale,
    end_trials,
    put_trial,
    require_champion,
    require_other_person,
    require_stage,
    rolled_out,
    standings,
)
from serving.registry_tables import CHALLENGER, CHAMPION, RETIRED, SHADOW
from serving.releases import (
    Release,
    as_release,
    name,
    person,
    read_makers,
    read_release,
    record,
    release_query,
)


class Registry:
    """Channels, packages, releases, approvals and their history.

    Args:
        database: the registry's tables.
        workspace: directory that holds `packages/` and gets `champions.json`.
    """

    def __init__(self, database: Database, workspace: Path) -> None:
        self.database = database
        self.workspace = workspace
        self.publish()

    # channels

    def set_channel(self, tenant: str, channel: str, config: Mapping[str, Any], by: str) -> bool:
        """Add a channel or change how it is delivered; whether anything changed."""
        tenant, channel, by = name("tenant", tenant), name("channel", channel), person(by)
        text = json.dumps(config, sort_keys=True)
        with self.database.transaction() as connection:
            table = tables.channels
            mine = (table.c.tenant == tenant) & (table.c.channel == channel)
            before = connection.execute(sa.select(table.c.config).where(mine)).scalar()
            if before == text:
                return False
            row = {"tenant": tenant, "channel": channel, "config": text, "at": now(), "who": by}
            if before is None:
                connection.execute(table.insert().values(**row))
            else:
                connection.execute(table.update().where(mine).values(**row))
            action = "channel added" if before is None else "channel changed"
            record(connection, by, action, tenant, channel, why=text)
        return True

    def channel(self, tenant: str, channel: str) -> dict[str, Any]:
        """How a channel is delivered.

        Raises:
            UserError: no such channel, with the nearest name.
        """
        with self.database.transaction() as connection:
            table = tables.channels
            found = {(r.tenant, r.channel): r.config for r in connection.execute(sa.select(table))}
        if (tenant, channel) not in found:
            known = [f"{t}/{c}" for t, c in sorted(found)]
            raise UserError(
                f"no channel {tenant}/{channel}{nearest(f'{tenant}/{channel}', known)}; channels: "
                f"{listing(known) or 'none yet, add one with riskfm channel add'}"
            )
        return dict(json.loads(found[tenant, channel]))

    def channels(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Tenant, channel and how it is delivered, of every channel."""
        with self.database.transaction() as connection:
            table = tables.channels
            rows = connection.execute(
                sa.select(table).order_by(table.c.tenant, table.c.channel)
            ).all()
        return [(r.tenant, r.channel, json.loads(r.config)) for r in rows]

    # releases

    def submit(
        self,
        tenant: str,
        channel: str,
        package: Mapping[str, Any],
        job: str,
        by: str,
        incumbent: str | None = None,
    ) -> Release:
        """Put an installed package into a channel, as shadow; again gives the same release.

        Args:
            package: its manifest.
            job: the delivery it comes from, whose makers may not approve it.
            incumbent: release it was compared with.
        """
        by, digest = person(by), str(package["digest"])
        kept = ("id", "recipe", "why", "created_at", "points", "backbone_fingerprint")
        summary = json.dumps({k: package.get(k) for k in kept})
        with self.database.transaction() as connection:
            self.database.insert_missing(
                connection, tables.packages, digest=digest, name=str(package["id"]), at=now(),
                summary=summary,
            )  # fmt: skip
            self._make(connection, job, by)
            table = tables.releases
            mine = (table.c.tenant == tenant) & (table.c.channel == channel)
            found = connection.execute(
                sa.select(table.c.id).where(mine, table.c.package == digest)
            ).scalar()
            if found is None:
                last = connection.execute(sa.select(sa.func.max(table.c.number)).where(mine))
                number = (last.scalar() or 0) + 1
                found = f"{tenant}/{channel}/{number}"
                connection.execute(
                    table.insert().values(
                        id=found, tenant=tenant, channel=channel, number=number, package=digest,
                        job=job, stage=SHADOW, at=now(), incumbent=incumbent,
                    )
                )  # fmt: skip
                record(
                    connection, by, "submitted", tenant, channel, found, "", SHADOW, f"job {job}"
                )
            return read_release(connection, found)

    def challenge(self, release: str, by: str, why: str = "") -> Release:
        """A shadow that proved itself where it is installed waits for approval."""
        with self.database.transaction() as connection:
            found = read_release(connection, release)
            if found.stage == SHADOW:
                self._move(connection, found, CHALLENGER, by, "challenger", why)
            return read_release(connection, release)

    def approve(self, release: str, by: str, note: str = "", other_points: bool = False) -> Release:
        """Make a challenger the champion; the champion before it retires.

        Args:
            other_points: its points may be on another scale than the champion's.
        Raises:
            UserError: no such release, a maker approves, it is no challenger, or its points are
                on another scale.
            ArtifactError: its package is damaged on the disk.
        """
        by = person(by)
        with self.database.transaction() as connection:
            found = read_release(connection, release)
            require_other_person(connection, found, by)
            if found.stage == CHAMPION and found.approved_at:
                return found
            if found.stage != CHALLENGER:
                raise UserError(
                    f"{release} is {found.stage}; only a challenger can be approved"
                    + ("; bring it back with riskfm rollback" if found.approved_at else "")
                )
            self._require_whole(found)
            note = compare_scale(connection, self.workspace, found, note, other_points)
            self._decide(connection, release, by, "approve", note)
            connection.execute(
                tables.releases.update()
                .where(tables.releases.c.id == release)
                .values(approved_at=now(), approved_by=by)
            )
            self._crown(connection, found, by, "approved", note)
        self.publish()
        return self.release(release)

    def reject(self, release: str, by: str, note: str = "") -> Release:
        """Retire a shadow or a challenger; makers may withdraw their own.

        Raises:
            UserError: no such release, or it is or was champion.
        """
        by = person(by)
        with self.database.transaction() as connection:
            found = read_release(connection, release)
            if found.approved_at:
                raise UserError(
                    f"{release} was approved and is {found.stage}; riskfm rollback brings an "
                    "earlier release back"
                )
            if found.stage != RETIRED:
                self._decide(connection, release, by, "reject", note)
                end_trials(connection, found, by, "rejected", rollouts=False)
                self._move(connection, found, RETIRED, by, "rejected", note)
        self.publish()
        return self.release(release)

    def rollout(
        self, release: str, percent: float, by: str, note: str = "", other_points: bool = False
    ) -> Release:
        """Let a challenger answer a part of its channel's customers; 0 ends it.

        The same customer always gets the same side, and a growing percentage moves nobody back.

        Raises:
            UserError: no such release or no challenger, no champion beside it, a maker decides,
                another release is rolled out, not 0 to 99 percent, or another scale of points.
            ArtifactError: its package is damaged on the disk.
        """
        by = person(by)
        if not 0 <= percent <= 99:
            raise UserError(
                f"{percent:g} percent: give 0 to 99; riskfm approve lets it answer everybody"
            )
        with self.database.transaction() as connection:
            found = read_release(connection, release)
            if percent > 0:
                require_other_person(connection, found, by)
                require_stage(found, ROLLOUT)
                require_champion(connection, found)
                other = rolled_out(connection, found.tenant, found.channel)
                if other not in (None, release):
                    raise UserError(
                        f"{other} is rolled out in {found.tenant}/{found.channel}; end that with "
                        "--percent 0 first"
                    )
                self._require_whole(found)
                note = compare_scale(connection, self.workspace, found, note, other_points)
            why = ", ".join(filter(None, (f"{percent:g} percent", note)))
            if put_trial(connection, found, ROLLOUT, float(percent), by, now(), why):
                self._decide(connection, release, by, ROLLOUT, why)
        self.publish()
        return self.release(release)

    def shadow(self, release: str, share: float | None, by: str, note: str = "") -> Release:
        """Let a release score along for a share of the requests, seen by nobody; 0 ends it.

        Args:
            share: 0 to 1; None: what the service is set to.
        Raises:
            UserError: no such release, the champion itself, a rejected release, no champion beside
                it, or no share.
            ArtifactError: its package is damaged on the disk.
        """
        by = person(by)
        if share is not None and not 0 <= share <= 1:
            raise UserError(f"a share of {share:g}: give 0 to 1")
        with self.database.transaction() as connection:
            found = read_release(connection, release)
            if share != 0:
                require_stage(found, SHADOW)
                require_champion(connection, found)
                self._require_whole(found)
            said = "share of the service" if share is None else f"share {share:g}"
            why = ", ".join(filter(None, (said, note)))
            put_trial(connection, found, SHADOW, share, by, now(), why)
        self.publish()
        return self.release(release)

    def rollback(
        self, tenant: str, channel: str, to: str | None, by: str, note: str = ""
    ) -> Release:
        """Make an earlier champion the champion again.

        Args:
            to: the release; None for the champion before the last approval. After a rollback None
                changes nothing: naming none twice goes back once.
        Raises:
            UserError: no such release, or it never was champion.
            ArtifactError: its package is damaged on the disk.
        """
        by = person(by)
        self.channel(tenant, channel)
        with self.database.transaction() as connection:
            target = self._earlier(connection, tenant, channel) if to is None else to
            found = read_release(connection, target)
            if (found.tenant, found.channel) != (tenant, channel):
                raise UserError(f"{target} is no release of {tenant}/{channel}")
            if not found.approved_at:
                raise UserError(f"{target} never was champion; riskfm approve decides on it")
            if found.stage != CHAMPION:
                self._require_whole(found)
                self._crown(connection, found, by, "rolled back", note)
        self.publish()
        return self.release(target)

    # reading

    def release(self, release: str) -> Release:
        """One release.

        Raises:
            UserError: no such release, with the nearest name.
        """
        with self.database.transaction() as connection:
            return read_release(connection, release)

    def releases(self, tenant: str | None = None, channel: str | None = None) -> list[Release]:
        """Releases, oldest first."""
        with self.database.transaction() as connection:
            query = release_query().order_by("tenant", "channel", "number")
            if tenant is not None:
                query = query.where(tables.releases.c.tenant == tenant)
            if channel is not None:
                query = query.where(tables.releases.c.channel == channel)
            return [as_release(row) for row in connection.execute(query)]

    def champion(self, tenant: str, channel: str) -> Release | None:
        """The champion of a channel."""
        found = [r for r in self.releases(tenant, channel) if r.stage == CHAMPION]
        return found[0] if found else None

    def makers(self, job: str) -> set[str]:
        """Who handed in the samples of a job."""
        with self.database.transaction() as connection:
            return read_makers(connection, job)

    def add_maker(self, job: str, by: str) -> None:
        """Somebody handed in the samples of a job, the first time or again."""
        with self.database.transaction() as connection:
            self._make(connection, job, person(by))

    def history(self, tenant: str, channel: str) -> list[dict[str, Any]]:
        """Every change of a channel, oldest first: seq, at, who, action, release, why, ..."""
        with self.database.transaction() as connection:
            table = tables.history
            mine = (table.c.tenant == tenant) & (table.c.channel == channel)
            rows = connection.execute(sa.select(table).where(mine).order_by(table.c.seq))
            return [dict(row) for row in rows.mappings()]

    def publish(self) -> None:
        """Bring `champions.json` up to date; under the lock, so the latest state is the last.

        A registry that never had a champion has nothing to say, and writes nothing: the file may
        be one that was placed without it.
        """
        with self.database.transaction() as connection:
            found = standings(connection, self.workspace)
            if found:
                write_champions(self.workspace, found)

    # inside a transaction

    def _make(self, connection: sa.Connection, job: str, by: str) -> None:
        self.database.insert_missing(connection, tables.makers, job=job, person=by, at=now())

    def _move(
        self,
        connection: sa.Connection,
        found: Release,
        stage: str,
        by: str,
        action: str,
        why: str,
    ) -> None:
        table = tables.releases
        connection.execute(table.update().where(table.c.id == found.id).values(stage=stage))
        record(
            connection, by, action, found.tenant, found.channel, found.id, found.stage, stage, why
        )

    def _crown(
        self, connection: sa.Connection, found: Release, by: str, action: str, why: str
    ) -> None:
        table = tables.releases
        reigning = release_query().where(
            table.c.tenant == found.tenant, table.c.channel == found.channel,
            table.c.stage == CHAMPION,
        )  # fmt: skip
        for row in connection.execute(reigning).all():
            self._move(connection, as_release(row), RETIRED, by, "retired", f"for {found.id}")
        # What was decided about a rollout was decided beside the champion before.
        end_trials(connection, found, by, f"{found.id} is champion", rollouts=True)
        self._move(connection, found, CHAMPION, by, action, why)

    def _decide(
        self, connection: sa.Connection, release: str, by: str, decision: str, note: str
    ) -> None:
        connection.execute(
            tables.approvals.insert().values(
                at=now(), who=by, release=release, decision=decision, note=note
            )
        )

    def _earlier(self, connection: sa.Connection, tenant: str, channel: str) -> str:
        """The champion before the last approval."""
        table = tables.history
        crowned = connection.execute(
            sa.select(table.c.release, table.c.action)
            .where(table.c.tenant == tenant, table.c.channel == channel)
            .where(table.c.after == CHAMPION)
            .order_by(table.c.seq)
        ).all()
        if crowned and crowned[-1].action == "rolled back":
            return str(crowned[-1].release)
        if len(crowned) < 2:
            raise UserError(
                f"{tenant}/{channel} has no earlier champion to go back to; riskfm releases "
                "lists what there is"
            )
        return str(crowned[-2].release)

    def _require_whole(self, found: Release) -> None:
        from finetune.package import read_manifest, verify_files

        path = self.workspace / PACKAGES / found.package
        manifest = read_manifest(path)
        if manifest["digest"] != found.package:
            raise ArtifactError(f"{path}: holds another package than {found.id}")
        verify_files(path, manifest)
