"""T+1: from a sample file to a challenger, as a durable workflow that survives whatever dies.

A sample file is handed in once (`serving.intake.hand_in`) and becomes a job; a worker (`run_jobs`)
takes jobs one after the other through the steps of `serving.delivery_steps`. The workflow engine
(dbos) writes down which steps are done, in SQLite or PostgreSQL; it talks to nobody else. What it
keeps is JSON.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dbos import DBOS, DBOSPortableJSONSerializer, SetWorkflowID

from foundation.errors import RiskfmError, UserError
from foundation.shipped import SHIPPED
from foundation.strict import plain
from serving.delivery_steps import STEPS, Context, JobReporter, Refused, Stopped, perform
from serving.durable import fault_point
from serving.gates import DeliverySettings, load_delivery_settings
from serving.intake import Delivery, hand_in
from serving.jobs import CANCELLED, DONE, FAILED, FINAL, REFUSED, Job
from serving.progress import Reporter

__all__ = ["Delivery", "add_channel", "deliver", "hand_in", "run_jobs", "watch"]

# Raised when the order or the meaning of the steps changes: a worker of another version does not
# continue what an older one began, it makes it again from the finished outputs.
VERSION = "delivery-1"
POLL_SECONDS = 0.2


def add_channel(
    delivery: Delivery,
    tenant: str,
    channel: str,
    store: Path,
    backbone: Path | None,
    settings: Path | None,
    by: str,
) -> bool:
    """Say where a channel's events and backbone are and how it is delivered.

    Args:
        backbone: None for the one that comes with riskfm: every delivery prepares it for the store.
    Returns:
        whether anything changed.
    Raises:
        DataError: no store; ArtifactError: no backbone, or one of another schema; ConfigError.
    """
    from finetune.file_scoring import check_same_schema
    from foundation.checkpoint import load_backbone
    from foundation.store import EventStore

    opened = EventStore.open(store)
    if backbone is not None:
        schema = load_backbone(backbone, network=False).schema
        check_same_schema(opened, schema, f"backbone {backbone}")
    chosen = load_delivery_settings(settings) if settings else DeliverySettings()
    config = {
        "store": os.path.abspath(store),
        "backbone": SHIPPED if backbone is None else os.path.abspath(backbone),
        "settings": plain(chosen),
    }
    return delivery.registry.set_channel(tenant, channel, config, by)


class _Engine:
    """What the workflow works on: one worker for each process."""

    delivery: Delivery | None = None
    reporter = Reporter(quiet=True)


@DBOS.workflow(name="delivery")
def deliver(job_id: str, attempt: int) -> dict[str, Any]:
    """Every step in order; each is written down once it is done, and not done again."""
    found: dict[str, dict[str, Any]] = {}
    for step in STEPS:
        outcome = DBOS.run_step({"name": step}, _attempt, job_id, attempt, step, found)
        fault_point(f"{step}.after")
        if "facts" not in outcome:
            return dict(outcome)
        found[step] = outcome["facts"]
    return {"state": DONE, "error": "", "exit_code": 0}


def _attempt(
    job_id: str, attempt: int, step: str, found: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """A step's facts, or the state in which the job ends here."""
    delivery, shown = _Engine.delivery, _Engine.reporter
    if delivery is None:
        raise RuntimeError("no worker is running in this process")
    if not delivery.book.begin(job_id, attempt, step):
        return {"state": CANCELLED, "error": "", "exit_code": 2}
    fault_point(f"{step}.begin")
    job = delivery.book.get(job_id)
    reporter = JobReporter(delivery.book, job_id, shown)
    context = Context(delivery.workspace, delivery.registry, delivery.book, job, reporter)
    began = time.monotonic()
    try:
        facts = perform(context, step, found)
    except Stopped:
        return {"state": CANCELLED, "error": "", "exit_code": 2}
    except Refused as exc:
        return {"state": REFUSED, "error": str(exc), "exit_code": 2}
    except RiskfmError as exc:
        return {"state": FAILED, "error": f"{step}: {exc}", "exit_code": exc.exit_code}
    except OSError as exc:
        remedy = f"riskfm jobs retry {job_id} continues"
        if exc.errno == errno.ENOSPC:
            remedy = f"make room on the disk of {delivery.workspace.root}, then {remedy}"
        return {"state": FAILED, "error": f"{step}: {exc}; {remedy}", "exit_code": 1}
    except Exception as exc:
        error = f"{step}: internal error: {type(exc).__name__}: {exc}"
        return {"state": FAILED, "error": error, "exit_code": 1}
    delivery.book.say(job_id, f"step {step}: {time.monotonic() - began:.1f} s")
    fault_point(f"{step}.end")
    return {"facts": facts}


@contextlib.contextmanager
def _launched(delivery: Delivery, reporter: Reporter) -> Iterator[None]:
    """The workflow engine, on the workspace's own database and silent to everybody else."""
    DBOS(
        config={
            "name": "riskfm",
            "system_database_url": delivery.workspace.jobs_url,
            "serializer": DBOSPortableJSONSerializer(),
            "application_version": VERSION,
            # One worker for each workspace: a new one continues what the last one left.
            "executor_id": "worker",
            "log_level": "CRITICAL",
        }
    )
    _Engine.delivery, _Engine.reporter = delivery, reporter
    try:
        DBOS.launch()
        yield
    finally:
        DBOS.destroy()
        _Engine.delivery = None


def run_jobs(
    delivery: Delivery,
    reporter: Reporter,
    until: str | None = None,
    forever: bool = False,
    between: Callable[[Delivery], object] | None = None,
) -> list[Job]:
    """Work on interrupted and queued jobs, one after the other.

    Args:
        until: stop once this job has ended; None works until there is none left.
        forever: wait for new ones.
        between: called before each job and while waiting, such as a `serving.nightly.Schedule`.
    Returns:
        the jobs that ended, in that order.
    Raises:
        UserError: another worker runs in this workspace.
    """
    ended: list[Job] = []
    with delivery.workspace.working() as alone:
        if not alone:
            raise UserError(
                f"a worker is already running in {delivery.workspace.root}; it takes the jobs"
            )
        if not forever and delivery.book.next() is None:
            return ended
        with _launched(delivery, reporter):
            while until is None or delivery.book.get(until).state not in FINAL:
                if between is not None:
                    between(delivery)
                job = delivery.book.next()
                if job is not None:
                    reporter.say(f"job {job.id}: {job.tenant}/{job.channel}")
                    ended.append(_run(delivery, job))
                elif forever:
                    time.sleep(POLL_SECONDS * 5)
                else:
                    break
    return ended


def _run(delivery: Delivery, job: Job) -> Job:
    """One job to its end. Handles of a job already begun wait for its continuation."""
    with SetWorkflowID(f"{job.id}-{job.attempt}"):
        handle = DBOS.start_workflow(deliver, job.id, job.attempt)
    try:
        end = handle.get_result(polling_interval_sec=POLL_SECONDS)
    except Exception as exc:
        error = f"the workflow engine gave up: {exc}; riskfm jobs retry {job.id} continues"
        end = {"state": FAILED, "error": error, "exit_code": 1}
    delivery.book.end(job.id, job.attempt, end["state"], end["error"], end["exit_code"])
    return delivery.book.get(job.id)


def watch(delivery: Delivery, job_id: str, reporter: Reporter) -> Job | None:
    """Follow a job that another process works on; None where that process is gone."""
    told = ""
    while True:
        job = delivery.book.get(job_id)
        if job.state in FINAL:
            return job
        if job.step != told:
            told = job.step
            reporter.say(f"job {job.id}: step {told}")
        if not delivery.workspace.has_worker():
            return None
        time.sleep(POLL_SECONDS)
