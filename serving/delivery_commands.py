"""Commands of the delivery: channel, deliver, worker, jobs, approve, reject, releases, rollback."""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foundation.errors import InternalError, UserError
from serving.progress import Reporter

if TYPE_CHECKING:
    from serving.delivery import Delivery
    from serving.jobs import Job
    from serving.releases import Release

FILE = click.Path(path_type=Path, dir_okay=False)
DIR = click.Path(path_type=Path, file_okay=False)


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""


def _workspace(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--workspace",
        type=DIR,
        default=Path("workspace"),
        show_default=True,
        envvar="RISKFM_WORKSPACE",
        help="Directory of the delivery (RISKFM_WORKSPACE).",
    )(function)


def _by(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--by", default=_login, help="Who you are; the login name if left out.")(
        function
    )


def _population(required: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        function = click.option("--channel", required=required, help="The channel.")(function)
        return click.option("--tenant", required=required, help="Whose channel.")(function)

    return decorate


_note = click.option("--note", default="", help="Why; kept in the history.")
_quiet = click.option("--quiet", is_flag=True, help="No progress.")


def add_to(cli: click.Group) -> None:
    """Add the commands to the group `riskfm`."""
    for command in (channel, deliver, worker, jobs, approve, reject, releases, rollback):
        cli.add_command(command)


@click.group()
def channel() -> None:
    """Channels of tenants: where their events and backbone are, which gates hold."""


@channel.command("add")
@_population(required=True)
@click.option("--store", type=DIR, required=True, help="The event store.")
@click.option(
    "--backbone", type=DIR, help="The backbone directory; the shipped one, prepared, if left out."
)
@click.option("--gates", type=FILE, help="A YAML such as configs/delivery/default.yaml.")
@_by
@_workspace
def channel_add(
    tenant: str,
    channel: str,
    store: Path,
    backbone: Path | None,
    gates: Path | None,
    by: str,
    workspace: Path,
) -> None:
    """Add a channel, or change how it is delivered; makes the workspace where there is none."""
    from serving.delivery import Delivery, add_channel

    opened = Delivery.open(workspace, create=True)
    _require(opened, by, tenant, "manage_channels", channel)
    changed = add_channel(opened, tenant, channel, store, backbone, gates, by)
    click.echo(f"channel {tenant}/{channel}: {'written' if changed else 'nothing changed'}")


@channel.command("list")
@_workspace
def channel_list(workspace: Path) -> None:
    """List channels and their champions."""
    opened = _open(workspace)
    for tenant, name, config in opened.registry.channels():
        champion = opened.registry.champion(tenant, name)
        answers = "no champion" if champion is None else f"champion {champion.id}"
        click.echo(f"{tenant}/{name}  {answers}  store {config['store']}")


@click.command()
@_population(required=True)
@click.option("--samples", type=FILE, required=True, help="entity_id, as_of, label, ...")
@click.option("--test", type=FILE, help="Labelled samples to measure on.")
@_by
@_workspace
@click.option("--wait/--no-wait", default=True, help="Work on it now, or leave it to a worker.")
@_quiet
def deliver(
    tenant: str,
    channel: str,
    samples: Path,
    test: Path | None,
    by: str,
    workspace: Path,
    wait: bool,
    quiet: bool,
) -> None:
    """From a sample file to a challenger; a different person's approval makes it champion."""
    from serving.delivery import hand_in

    opened = _open(workspace)
    _require(opened, by, tenant, "hand_in", channel)
    job, new = hand_in(opened, tenant, channel, samples, test, by)
    if not new:
        click.echo(f"job {job.id}: handed in before, {job.state}")
    if not wait:
        click.echo(f"job {job.id}: {job.state}; riskfm worker takes it, riskfm jobs shows it")
        return
    with _resumable():
        job = _finish(opened, job, Reporter(quiet))
    click.echo(f"job {job.id}: {job.state} in {job.seconds:.0f} s")
    _complain(job)
    release = opened.registry.release(job.release)
    report = opened.workspace.runs / job.id / "adapted" / "report.html"
    click.echo(f"report  {report}")
    click.echo(f"release {release.id}: {release.stage}, package {release.package_name}")
    if release.stage == "challenger":
        click.echo(f"next: a different person runs  riskfm approve {release.id} --by NAME")


@click.command()
@_workspace
@click.option("--forever", is_flag=True, help="Wait for new jobs instead of ending.")
@click.option("--daily-at", help="With --forever: run yesterday's day from this time on, UTC.")
@_quiet
def worker(workspace: Path, forever: bool, daily_at: str | None, quiet: bool) -> None:
    """Continue interrupted jobs and work on queued ones."""
    from serving.delivery import run_jobs

    opened, schedule = _open(workspace), None
    reporter = _worker_reporter() if forever and not quiet else Reporter(quiet)
    if daily_at is not None:
        from serving.daily import read_time
        from serving.nightly import Schedule

        if not forever:
            raise UserError("--daily-at needs --forever; one day runs with riskfm daily --date DAY")
        schedule = Schedule(read_time(daily_at), reporter)
    from serving.release_documents import DocumentKeeper

    documents = DocumentKeeper(reporter.say)
    documents(opened)

    def between(delivery: Delivery) -> None:
        documents(delivery)
        if schedule is not None:
            schedule(delivery)

    with _resumable():
        ended = run_jobs(opened, reporter, forever=forever, between=between)
    for job in ended:
        click.echo(f"job {job.id}: {job.state} {job.release or job.error}".rstrip())
    click.echo(f"{len(ended)} jobs ended")


def _worker_reporter() -> Reporter:
    """Logs as the service has them; progress goes there too where a machine reads it."""
    from serving.logs import configure
    from serving.progress import LoggedReporter
    from serving.settings import load_settings

    settings = load_settings()
    configure(settings)
    return LoggedReporter() if settings.log_format == "json" else Reporter()


@click.group()
def jobs() -> None:
    """Deliveries: what runs, what failed and why."""


@jobs.command("list")
@_workspace
def jobs_list(workspace: Path) -> None:
    """List jobs: state, step, seconds and what came of them."""
    from serving.jobs import shown_state

    opened = _open(workspace)
    alive = opened.workspace.has_worker()
    for job in opened.book.all():
        step = "" if job.state == "done" else job.step
        click.echo(
            f"{job.id}  {shown_state(job, alive):<11} {step:<10} {job.seconds:7.0f} s  "
            f"{job.tenant}/{job.channel}  {job.release or job.error}".rstrip()
        )


@jobs.command("show")
@click.argument("job")
@_workspace
def jobs_show(job: str, workspace: Path) -> None:
    """Show one job: progress, gates, error; JOB may be the beginning of its id."""
    from serving.gates import Verdict, verdict_lines
    from serving.jobs import shown_state

    opened = _open(workspace)
    found = opened.book.get(job)
    makers = ", ".join(sorted(opened.registry.makers(found.id)))
    far = f"{found.done} of {found.total} " if found.total else ""
    rows = {
        "job": found.id,
        "channel": f"{found.tenant}/{found.channel}",
        "state": shown_state(found, opened.workspace.has_worker()),
        "step": f"{found.step} {far}{found.note}".strip(),
        "seconds": f"{found.seconds:.0f}, attempt {found.attempt}",
        "handed in": f"{found.created_at} by {makers}",
        "samples": found.request["samples"]["file"],
        "release": found.release,
        "error": found.error,
    }
    for name, text in rows.items():
        if text:
            click.echo(f"{name:<10} {text}")
    verdicts = found.facts.get("judged", {}).get("verdicts", [])
    for line in verdict_lines([Verdict(**v) for v in verdicts]):
        click.echo(line)


@jobs.command("cancel")
@click.argument("job")
@_by
@_workspace
def jobs_cancel(job: str, by: str, workspace: Path) -> None:
    """Stop a job; what its steps finished is kept."""
    opened = _open(workspace)
    found = opened.book.get(job)
    _require(opened, by, found.tenant, "hand_in", found.channel)
    found = opened.book.cancel(job, by)
    click.echo(f"job {found.id}: {found.state}")


@jobs.command("retry")
@click.argument("job")
@_by
@_workspace
def jobs_retry(job: str, by: str, workspace: Path) -> None:
    """Queue a failed or cancelled job again."""
    opened = _open(workspace)
    found = opened.book.get(job)
    _require(opened, by, found.tenant, "hand_in", found.channel)
    found = opened.book.retry(job, by)
    opened.registry.add_maker(found.id, by)
    click.echo(f"job {found.id}: {found.state}; riskfm worker takes it")


@jobs.command("log")
@click.argument("job")
@_workspace
def jobs_log(job: str, workspace: Path) -> None:
    """Print everything a job said."""
    for at, text in _open(workspace).book.log(job):
        click.echo(f"{at[:19]}  {text}")


@click.command()
@click.argument("release")
@click.option("--other-points", is_flag=True, help="Accept another scale of points.")
@_by
@_note
@_workspace
def approve(release: str, other_points: bool, by: str, note: str, workspace: Path) -> None:
    """Make a challenger the champion; who handed in its samples may not."""
    opened = _open(workspace)
    before = opened.registry.release(release)
    _require(opened, by, before.tenant, "approve", before.channel)
    now = opened.registry.champion(before.tenant, before.channel)
    if now is not None and now.id not in (before.incumbent, release):
        click.echo(
            f"note: {release} was compared with {before.incumbent or 'no champion'}, the champion "
            f"is {now.id} today"
        )
    _say(opened.registry.approve(release, by, note, other_points))
    _document(opened, release)


@click.command()
@click.argument("release")
@_by
@_note
@_workspace
def reject(release: str, by: str, note: str, workspace: Path) -> None:
    """Retire a challenger."""
    from serving.releases import person

    opened = _open(workspace)
    found = opened.registry.release(release)
    # Makers may withdraw their own.
    own = person(by) in opened.registry.makers(found.job)
    _require(opened, by, found.tenant, "hand_in" if own else "reject", found.channel)
    _say(opened.registry.reject(release, by, note))


@click.command()
@_population(required=False)
@click.option("--history", is_flag=True, help="Every change of the channel: who, when, why.")
@_workspace
def releases(tenant: str | None, channel: str | None, history: bool, workspace: Path) -> None:
    """List releases and their stages."""
    from serving.release_documents import documents_of

    opened = _open(workspace)
    if history:
        if tenant is None or channel is None:
            raise UserError("--history needs --tenant and --channel")
        opened.registry.channel(tenant, channel)
        for row in opened.registry.history(tenant, channel):
            stages = f"{row['before']} -> {row['after']}" if row["after"] else ""
            click.echo(
                f"{row['at'][:19]}  {row['who']:<12} {row['action']:<15} {row['release']} "
                f"{stages} {row['why']}".rstrip()
            )
        return
    for each in opened.registry.releases(tenant, channel):
        approved = f"approved by {each.approved_by}" if each.approved_by else ""
        document = "".join(f"  document {d[:12]}" for d in documents_of(opened, each)[-1:])
        click.echo(
            f"{each.id}  {each.stage:<10} {each.package_name}  {each.at[:19]}  "
            f"{approved}{document}".rstrip()
        )


@click.command()
@_population(required=True)
@click.option("--to", help="The release; the champion before the last approval if left out.")
@_by
@_note
@_workspace
def rollback(
    tenant: str, channel: str, to: str | None, by: str, note: str, workspace: Path
) -> None:
    """Make an earlier champion the champion again."""
    opened = _open(workspace)
    _require(opened, by, tenant, "rollback", channel)
    _say(opened.registry.rollback(tenant, channel, to, by, note))


def _open(workspace: Path) -> Delivery:
    from serving.delivery import Delivery

    return Delivery.open(workspace)


def _require(opened: Delivery, by: str, tenant: str, action: str, channel: str) -> None:
    """Refuse who has no role for it, where people are declared."""
    from serving.tenancy.people import require

    require(opened.registry.database, by, tenant, action, channel)


def _finish(opened: Delivery, job: Job, reporter: Reporter) -> Job:
    """Work on a job, or watch the worker that does, until it has ended."""
    from serving.delivery import run_jobs, watch
    from serving.jobs import FINAL

    found: Job | None = job
    while found is None or found.state not in FINAL:
        if opened.workspace.has_worker():
            found = watch(opened, job.id, reporter)
            continue
        try:
            run_jobs(opened, reporter, until=job.id)
        except UserError:
            # Another worker was quicker: it is watched instead.
            if not opened.workspace.has_worker():
                raise
        found = opened.book.get(job.id)
    return found


def _complain(job: Job) -> None:
    """Leave with the sentence and exit code of a job that did not end well."""
    if job.state == "done":
        return
    again = "" if job.state == "refused" else f"; riskfm jobs retry {job.id} queues it again"
    text = f"job {job.id} {job.state}: {job.error}{again}"
    raise InternalError(text) if job.exit_code == 1 else UserError(text)


def _document(opened: Delivery, release: str) -> None:
    """The document that names the approval; where it cannot be made the approval stands."""
    from foundation.errors import RiskfmError
    from serving.release_documents import document_release

    try:
        path = document_release(opened, opened.registry.release(release))
    except RiskfmError as exc:
        click.echo(f"note: no document with the approval: {exc}", err=True)
        return
    click.echo(f"document {path / 'model_document.en.html'}")


def _say(release: Release) -> None:
    click.echo(f"release {release.id}: {release.stage}, package {release.package_name}")


@contextmanager
def _resumable() -> Iterator[None]:
    """Ctrl-C ends the process at once: a step in the making leaves nothing behind."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo("interrupted; riskfm worker continues", err=True)
        os._exit(130)
