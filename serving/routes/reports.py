"""What a delivery wrote: report, model document and numbers, for people and their programs.

Pages hold all of their scripts and pictures. A browser gets them in a sandbox: their scripts run,
load nothing, and reach nothing of this site.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.responses import Response

from serving.deliveries import LANGUAGES, Deliveries, Written
from serving.jobs import Job
from serving.messages import ApiError
from serving.releases import Release
from serving.routes.call import JSON, Call
from serving.routes.delivery import deliveries, own_job, permit, slowly
from serving.routes.operation import Handler, Operation, Parameter

HTML = "text/html; charset=utf-8"
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; sandbox allow-scripts allow-downloads"
)


async def own_release(call: Call, action: str) -> Release:
    """The release the path names, if it is the tenant's and the caller may do this to it.

    Raises:
        ApiError: 404, 403.
    """
    wanted = "/".join(call.path(part) for part in ("tenant", "channel", "number"))
    found = await slowly(call, deliveries(call).release, call.tenant, wanted)
    if found is None:
        raise ApiError(404, "no such release")
    await permit(call, action, found.channel)
    return found


async def job_report(call: Call) -> Response:
    """The report of a job's model."""
    return await _page(call, await own_job(call), Deliveries.report)


async def job_metrics(call: Call) -> Response:
    """Every number of that report."""
    job = await own_job(call)
    return _sent(await slowly(call, deliveries(call).metrics, job, status=409), JSON)


async def job_document(call: Call) -> Response:
    """The model document of a job."""
    language = _language(call)
    return await _page(call, await own_job(call), lambda d, job: d.document(job, language))


async def release_report(call: Call) -> Response:
    """The report of a release's model."""
    return await _page(call, await _job_of_release(call), Deliveries.report)


async def release_document(call: Call) -> Response:
    """The model document of a release, with its approval."""
    language = _language(call)
    job = await _job_of_release(call)
    return await _page(call, job, lambda d, job: d.document(job, language))


def _language(call: Call) -> str:
    language = call.query("language") or "en"
    if language not in LANGUAGES:
        raise ApiError(422, f"languages: {', '.join(LANGUAGES)}", "language")
    return language


async def _job_of_release(call: Call) -> Job:
    release = await own_release(call, "read")
    book = deliveries(call).delivery.book
    found = await slowly(call, book.find, call.tenant, release.job)
    if found is None:
        raise ApiError(404, "the release's delivery is not there any more")
    return found


async def _page(
    call: Call, job: Job, read: Callable[[Deliveries, Job], Written | None]
) -> Response:
    return _sent(await slowly(call, read, deliveries(call), job, status=409), HTML)


def _sent(found: Written | None, media: str) -> Response:
    if found is None:
        raise ApiError(404, "the delivery has not come to this, or it is not kept any more")
    headers = {"Content-Disposition": f'inline; filename="{found.name}"'}
    if media == HTML:
        headers |= {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer"}
    return Response(found.data, 200, headers, media)


_LANGUAGE = (Parameter(name="language", description="en or zh; en if left out."),)
_JOB = "/v1/jobs/{id}"
_RELEASE = "/v1/releases/{tenant}/{channel}/{number}"


def _written(
    path: str,
    name: str,
    handler: Handler,
    summary: str,
    kind: str = "text/html",
    parameters: tuple[Parameter, ...] = (),
) -> Operation:
    return Operation(
        method="GET",
        path=path,
        name=name,
        scope="read",
        summary=summary,
        answer=kind,
        handler=handler,
        parameters=parameters,
        errors=(409,),
    )


OPERATIONS = (
    _written(
        f"{_JOB}/report", "jobReport", job_report,
        "The report of a delivery's model: one self-contained page.",
    ),
    _written(
        f"{_JOB}/metrics", "jobMetrics", job_metrics,
        "Every number of a delivery's report.", JSON,
    ),
    _written(
        f"{_JOB}/document", "jobDocument", job_document,
        "The model document of a delivery.", parameters=_LANGUAGE,
    ),
    _written(
        f"{_RELEASE}/report", "releaseReport", release_report, "The report of a release's model."
    ),
    _written(
        f"{_RELEASE}/document", "releaseDocument", release_document,
        "The model document of a release; it names the approval once there is one.",
        parameters=_LANGUAGE,
    ),
)  # fmt: skip
