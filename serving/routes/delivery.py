"""/v1/jobs: deliveries from samples to a challenger; `riskfm worker` does the work.

Also what the other routes about deliveries share: the workspace, who hands in, how refusals read.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta
from starlette.responses import Response

from foundation.errors import UserError, listing, nearest
from foundation.shipped import start_directory
from serving.deliveries import Deliveries, told
from serving.delivery_messages import (
    GateShown,
    JobDetail,
    JobList,
    JobRequest,
    JobStarted,
    JobSummary,
    LogLine,
)
from serving.jobs import Job, shown_state
from serving.messages import ApiError
from serving.registry_tables import CHALLENGER
from serving.releases import person
from serving.routes.call import Call, answer
from serving.routes.operation import Operation, Parameter

T = TypeVar("T")
log = logging.getLogger("riskfm.serving")
_UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT)
PAGE = 1000
_Page = Annotated[int, Meta(ge=1, le=PAGE)]


_REQUEST = msgspec.json.Decoder(JobRequest)
_NAMES = tuple(field.name for field in msgspec.structs.fields(JobRequest))


def deliveries(call: Call) -> Deliveries:
    """The deliveries of the service.

    Raises:
        ApiError: 404 where it has no workspace.
    """
    found = call.runtime.deliveries
    if found is None:
        raise ApiError(
            404, "this service has no workspace: it answers from packages and delivers nothing"
        )
    return found


async def slowly(call: Call, function: Callable[..., T], *args: Any, status: int = 422) -> T:
    """Run something slow about deliveries in a thread of its own.

    Args:
        status: of a refusal whose sentence is meant for the caller.
    Raises:
        ApiError: that; 503 where the workspace is mounted for reading, or full.
    """
    pool, work = deliveries(call).pool, partial(function, *args)
    try:
        return await asyncio.get_running_loop().run_in_executor(pool, work)
    except ApiError:
        raise
    except UserError as exc:
        raise ApiError(status, told(str(exc))) from None
    except OSError as exc:
        if exc.errno not in _UNWRITABLE:
            raise
        log.error("request %s: %s", call.request_id, exc)
        raise ApiError(503, "the workspace cannot be written by this service") from None


async def permit(call: Call, action: str, channel: str) -> None:
    """Refuse a personal key whose person may not.

    Raises:
        ApiError: 403.
    """
    people = call.runtime.front.people
    await slowly(call, people.permit, call.principal, action, channel)


def maker(call: Call) -> str:
    """Who hands in: the key's person, or the key itself.

    Raises:
        ApiError: 403 for a sandbox key.
    """
    who = call.principal
    if who.sandbox:
        raise ApiError(403, "a sandbox key hands nothing in and decides nothing")
    return person(who.person or f"key {who.key_id}")


async def channel_config(call: Call, channel: str) -> dict[str, Any]:
    """How a channel of the tenant is delivered.

    Raises:
        ApiError: 404 naming the tenant's own channels; 503 where its event store or its backbone
            cannot be read from here.
    """
    known = await slowly(call, deliveries(call).channels, call.tenant)
    if channel not in known:
        raise ApiError(
            404,
            f"no such channel{nearest(channel, known)}; channels that are delivered here: "
            f"{listing(sorted(known)) or 'none'}",
            "channel",
        )
    config = known[channel]
    for what, there in (
        ("event store", Path(config["store"]) / "schema.yaml"),
        ("backbone", start_directory(config["backbone"]) / "run.json"),
    ):
        if not there.is_file():
            raise ApiError(503, f"the {what} of the channel cannot be read by this service")
    return config


async def own_job(call: Call, action: str = "read") -> Job:
    """The job the path names, if it is the tenant's and the caller may do this to it.

    Raises:
        ApiError: 404, 403.
    """
    opened = await slowly(call, lambda: deliveries(call).delivery)
    found = await slowly(call, opened.book.find, call.tenant, call.path("id"))
    if found is None:
        raise ApiError(404, "no such job", "id")
    await permit(call, action, found.channel)
    return found


async def start(call: Call) -> Response:
    """Queue a delivery, once."""
    given: JobRequest = await call.read(_REQUEST, _NAMES)
    who, found = maker(call), deliveries(call)
    await channel_config(call, given.channel)
    await permit(call, "hand_in", given.channel)
    job, new = await slowly(
        call, found.start, call.tenant, given.channel, given.samples, given.test, who
    )
    shown = await slowly(call, _shown, found, job)
    return answer(JobStarted(**shown, new=new), 202)


async def jobs(call: Call) -> Response:
    """The tenant's deliveries, as far as the caller may see them."""
    channel, limit = call.query("channel"), call.number("limit", 100, 1, PAGE)
    found, people = deliveries(call), call.runtime.front.people
    who = call.principal

    def read() -> list[JobSummary]:
        seen: list[JobSummary] = []
        for job in reversed(found.delivery.book.all(who.tenant)):
            if channel not in (None, job.channel) or len(seen) == limit:
                continue
            if who.person and not people.allowed(who.person, who.tenant, "read", job.channel):
                continue
            seen.append(JobSummary(**_shown(found, job)))
        return seen

    return answer(JobList(await slowly(call, read)))


async def job(call: Call) -> Response:
    """One delivery with its log."""
    return answer(await slowly(call, _detail, deliveries(call), await own_job(call)))


async def cancel(call: Call) -> Response:
    """Stop a delivery; what its steps finished is kept."""
    who, mine = maker(call), await own_job(call, "hand_in")
    found = deliveries(call)
    after = await slowly(call, found.delivery.book.cancel, mine.id, who, status=409)
    return answer(await slowly(call, _detail, found, after))


async def retry(call: Call) -> Response:
    """Queue a failed or cancelled delivery again."""
    who, mine = maker(call), await own_job(call, "hand_in")
    found = deliveries(call)
    after = await slowly(call, found.delivery.book.retry, mine.id, who, status=409)
    await slowly(call, found.delivery.registry.add_maker, mine.id, who)
    return answer(await slowly(call, _detail, found, after))


def _shown(found: Deliveries, job: Job) -> dict[str, Any]:
    """A job as the members of `JobSummary`."""
    alive = job.state != "running" or found.has_worker()
    return {
        "id": job.id,
        "channel": job.channel,
        "state": shown_state(job, alive),
        "step": job.step,
        "done": job.done,
        "total": job.total,
        "note": told(job.note),
        "attempt": job.attempt,
        "seconds": round(job.seconds, 1),
        "created_at": job.created_at,
        "ended_at": job.ended_at,
        "error": told(job.error),
        "release": job.release,
    }


def _detail(found: Deliveries, job: Job) -> JobDetail:
    opened = found.delivery
    lines = [LogLine(at, told(text)) for at, text in opened.book.log(job.id)[-PAGE:]]
    gates = [GateShown(**v) for v in job.facts.get("judged", {}).get("verdicts", [])]
    base = f"/v1/jobs/{job.id}"
    links: dict[str, str] = {}
    if (opened.workspace.runs / job.id / "adapted").is_dir():
        links |= {"report": f"{base}/report", "metrics": f"{base}/metrics"}
    if any((opened.workspace.runs / job.id).glob("documented-*")):
        links["document"] = f"{base}/document"
    if job.release:
        links["release"] = f"/v1/releases/{job.release}"
        if (release := found.release(job.tenant, job.release)) and release.stage == CHALLENGER:
            links["approve"] = f"/v1/releases/{job.release}/approve"
    return JobDetail(
        **_shown(found, job),
        makers=sorted(opened.registry.makers(job.id)),
        gates=gates,
        log=lines,
        links=links,
    )


OPERATIONS = (
    Operation(
        method="POST",
        path="/v1/jobs",
        name="startJob",
        scope="samples",
        summary="Deliver a channel: from samples to a tested, documented challenger.",
        answer=JobStarted,
        handler=start,
        request=JobRequest,
        status=202,
        errors=(404,),
    ),
    Operation(
        method="GET",
        path="/v1/jobs",
        name="jobs",
        scope="read",
        summary="Deliveries, the latest first: state, step, progress, release or error.",
        answer=JobList,
        handler=jobs,
        parameters=(
            Parameter(name="channel", description="Only of this channel."),
            Parameter(name="limit", description="How many at most; 100.", kind=_Page),
        ),
        errors=(404,),
    ),
    Operation(
        method="GET",
        path="/v1/jobs/{id}",
        name="job",
        scope="read",
        summary="One delivery: progress, gates with their numbers, log.",
        answer=JobDetail,
        handler=job,
    ),
    Operation(
        method="POST",
        path="/v1/jobs/{id}/cancel",
        name="cancelJob",
        scope="samples",
        summary="Stop a delivery; what its steps finished is kept.",
        answer=JobDetail,
        handler=cancel,
        errors=(409,),
    ),
    Operation(
        method="POST",
        path="/v1/jobs/{id}/retry",
        name="retryJob",
        scope="samples",
        summary="Queue a failed or cancelled delivery again.",
        answer=JobDetail,
        handler=retry,
        errors=(409,),
    ),
)
