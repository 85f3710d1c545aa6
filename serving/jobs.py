"""The book of jobs: what was asked for, how far it is, what it said, how it ended.

States: queued -> running -> done | refused | failed | cancelled; `retry` queues a failed or a
cancelled job again. A running job without a living worker is shown as interrupted; the next worker
continues it. A job's id is the digest of everything that decides its outcome, so that the same
samples handed in twice, one after the other or at once, are one job.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from foundation.errors import UserError, listing, nearest
from serving.database import Database, now
from serving.registry_tables import job_log, jobs

QUEUED, RUNNING, INTERRUPTED = "queued", "running", "interrupted"
DONE, REFUSED, FAILED, CANCELLED = "done", "refused", "failed", "cancelled"
FINAL = (DONE, REFUSED, FAILED, CANCELLED)
# From here on a job registers its package; cancelling would leave half of that behind.
REGISTERING = ("packaged", "shadow")


@dataclass(frozen=True)
class Job:
    """One row of the book.

    Attributes:
        request: what was handed in; see `serving.intake.hand_in`.
        created_at: when it was handed in first, ISO 8601 UTC; goes into its artefacts.
        attempt: 1, and one more for each retry.
        step, done, total, note: how far it is.
        error, exit_code: one sentence, and what a command that waits exits with.
        facts: what the steps found, by step.
    """

    id: str
    tenant: str
    channel: str
    request: dict[str, Any]
    who: str
    created_at: str
    state: str
    attempt: int
    step: str
    done: int
    total: int
    note: str
    began_at: str | None
    ended_at: str | None
    updated_at: str
    error: str
    exit_code: int
    release: str
    facts: dict[str, Any]

    @property
    def seconds(self) -> float:
        """From the beginning of the first attempt to the end, or to now; 0 where the clock went
        back in between."""
        if self.began_at is None:
            return 0.0
        end = dt.datetime.fromisoformat(self.ended_at) if self.ended_at else dt.datetime.now(dt.UTC)
        return max(0.0, (end - dt.datetime.fromisoformat(self.began_at)).total_seconds())


class JobBook:
    """Jobs and their log in the registry's database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def add(
        self,
        tenant: str,
        channel: str,
        request: Mapping[str, Any],
        who: str,
        created_at: str | None = None,
    ) -> tuple[Job, bool]:
        """Queue a job, or find the one that was queued for the same; whether it is new."""
        text = json.dumps([tenant, channel, request], sort_keys=True)
        job = hashlib.sha256(text.encode()).hexdigest()[:12]
        moment = now()
        with self.database.transaction() as connection:
            new = self.database.insert_missing(
                connection, jobs, id=job, tenant=tenant, channel=channel,
                request=json.dumps(request, sort_keys=True), who=who,
                created_at=created_at or moment, state=QUEUED, attempt=1, step="", done=0, total=0,
                note="", updated_at=moment, error="", exit_code=0, release="", facts="{}",
            )  # fmt: skip
            if new:
                self._say(connection, job, f"handed in by {who}")
            return self._read(connection, job), new

    def get(self, job: str) -> Job:
        """One job by its id or the unambiguous beginning of it.

        Raises:
            UserError: no such job, with the nearest id.
        """
        with self.database.transaction() as connection:
            return self._read(connection, job)

    def find(self, tenant: str, job: str) -> Job | None:
        """A tenant's job by its whole id; None where it has none of this id."""
        query = sa.select(jobs).where(jobs.c.tenant == tenant, jobs.c.id == job)
        with self.database.reading() as connection:
            row = connection.execute(query).first()
        return None if row is None else _job(row)

    def all(self, tenant: str | None = None) -> list[Job]:
        """Every job, or those of a tenant, in the order of handing in, whatever the clock said."""
        first = sa.select(job_log.c.job, sa.func.min(job_log.c.seq).label("seq"))
        came = first.group_by(job_log.c.job).subquery()
        query = sa.select(jobs).join(came, came.c.job == jobs.c.id).order_by(came.c.seq)
        if tenant is not None:
            query = query.where(jobs.c.tenant == tenant)
        with self.database.transaction() as connection:
            return [_job(row) for row in connection.execute(query)]

    def next(self) -> Job | None:
        """The job to work on: what was interrupted before what is queued, oldest first."""
        open_ = [j for j in self.all() if j.state in (RUNNING, QUEUED)]
        return min(open_, key=lambda j: j.state != RUNNING, default=None)

    def begin(self, job: str, attempt: int, step: str) -> bool:
        """A step begins; False where the job was cancelled, has ended or was tried again since."""
        with self.database.transaction() as connection:
            found = self._read(connection, job)
            if found.attempt != attempt or found.state not in (QUEUED, RUNNING):
                return False
            values = {"state": RUNNING, "step": step, "done": 0, "total": 0, "note": ""}
            values["began_at"] = found.began_at or now()
            self._set(connection, job, **values)
            self._say(connection, job, f"step {step}")
            return True

    def progress(self, job: str, done: int, total: int, note: str) -> bool:
        """How far the step is; False where the job was cancelled meanwhile."""
        with self.database.transaction() as connection:
            changed = connection.execute(
                jobs.update()
                .where(jobs.c.id == job, jobs.c.state == RUNNING)
                .values(done=done, total=total, note=note, updated_at=now())
            )
            return changed.rowcount == 1

    def say(self, job: str, text: str) -> None:
        """Append a line to the job's log."""
        with self.database.transaction() as connection:
            self._say(connection, job, text)

    def note_facts(self, job: str, step: str, facts: Mapping[str, Any], release: str = "") -> None:
        """Keep what a step found."""
        with self.database.transaction() as connection:
            found = self._read(connection, job)
            values = {"facts": json.dumps(found.facts | {step: dict(facts)})}
            self._set(connection, job, **values, **({"release": release} if release else {}))

    def end(self, job: str, attempt: int, state: str, error: str, exit_code: int) -> None:
        """The attempt is over; again, or after a cancellation or a retry, changes nothing."""
        with self.database.transaction() as connection:
            found = self._read(connection, job)
            if found.attempt != attempt or found.state in FINAL:
                return
            self._set(
                connection, job, state=state, error=error, exit_code=exit_code, ended_at=now()
            )
            self._say(connection, job, f"{state}: {error}" if error else state)

    def cancel(self, job: str, by: str) -> Job:
        """Stop a job at its next sign of life; a cancelled one stays cancelled.

        Raises:
            UserError: it has ended, or is registering its package.
        """
        with self.database.transaction() as connection:
            found = self._read(connection, job)
            if found.state == CANCELLED:
                return found
            if found.state in FINAL:
                raise UserError(f"job {found.id} is {found.state}; there is nothing to cancel")
            if found.step in REGISTERING:
                raise UserError(
                    f"job {found.id} is registering its package; reject its release instead: "
                    "riskfm reject RELEASE"
                )
            self._set(
                connection, found.id, state=CANCELLED, error=f"cancelled by {by}", exit_code=2,
                ended_at=now(),
            )  # fmt: skip
            self._say(connection, found.id, f"cancelled by {by}")
            return self._read(connection, found.id)

    def retry(self, job: str, by: str) -> Job:
        """Queue a failed or cancelled job again; what its steps finished is not done again.

        Raises:
            UserError: it did not fail; says what to do instead.
        """
        with self.database.transaction() as connection:
            found = self._read(connection, job)
            if found.state in (QUEUED, RUNNING):
                return found
            if found.state == REFUSED:
                raise UserError(
                    f"job {found.id} was refused by its gates and would be again: {found.error}; "
                    "hand in other samples, or change the gates with riskfm channel add"
                )
            if found.state == DONE:
                raise UserError(f"job {found.id} is done: {found.release}")
            self._set(
                connection, found.id, state=QUEUED, attempt=found.attempt + 1, error="",
                exit_code=0, ended_at=None, step="",
            )  # fmt: skip
            self._say(connection, found.id, f"queued again by {by}")
            return self._read(connection, found.id)

    def log(self, job: str) -> list[tuple[str, str]]:
        """Moment and text of every line, oldest first."""
        found = self.get(job)
        with self.database.transaction() as connection:
            query = sa.select(job_log.c.at, job_log.c.text).where(job_log.c.job == found.id)
            return [(r.at, r.text) for r in connection.execute(query.order_by(job_log.c.seq))]

    def _read(self, connection: sa.Connection, job: str) -> Job:
        rows = connection.execute(
            sa.select(jobs).where(jobs.c.id.startswith(job, autoescape=True))
        ).all()
        if len(rows) != 1 or not job:
            known = list(connection.execute(sa.select(jobs.c.id)).scalars())
            what = f"'{job}' begins {len(rows)} jobs" if rows and job else f"no job '{job}'"
            raise UserError(f"{what}{nearest(job, known)}; jobs: {listing(known) or 'none yet'}")
        return _job(rows[0])

    def _set(self, connection: sa.Connection, job: str, **values: Any) -> None:
        connection.execute(jobs.update().where(jobs.c.id == job).values(updated_at=now(), **values))

    def _say(self, connection: sa.Connection, job: str, text: str) -> None:
        connection.execute(job_log.insert().values(job=job, at=now(), text=text))


def shown_state(job: Job, worker_alive: bool) -> str:
    """A job's state as people should read it."""
    return INTERRUPTED if job.state == RUNNING and not worker_alive else job.state


def _job(row: Any) -> Job:
    values = {f: getattr(row, f) for f in Job.__dataclass_fields__}
    return Job(**values | {k: json.loads(values[k]) for k in ("request", "facts")})
