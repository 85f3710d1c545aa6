"""Commands of tenancy: key, tenant, person, usage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foundation.errors import UserError
from serving.delivery_commands import DIR, FILE, _by

if TYPE_CHECKING:
    from serving.database import Database
    from serving.tenancy.people import People

EVERY_SCOPE = ("score", "events", "read", "samples", "decide", "admin")


def _database(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--database",
        "url",
        help="URL of the hosted state; default as `riskfm serve` has it (RISKFM_DATABASE).",
    )(function)


def _workspace(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--workspace",
        type=DIR,
        default=Path("workspace"),
        show_default=True,
        envvar="RISKFM_WORKSPACE",
        help="Where people are declared; no workspace there, no roles (RISKFM_WORKSPACE).",
    )(function)


_tenant = click.option("--tenant", default="default", show_default=True, help="Whose.")


def add_to(cli: click.Group) -> None:
    """Add the commands to the group `riskfm`."""
    for command in (key, tenant, person, usage):
        cli.add_command(command)


@click.group()
def key() -> None:
    """API keys of tenants."""


@key.command("create")
@click.option("--name", required=True, help="Who will use it.")
@_tenant
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    default=("score", "events", "read"),
    show_default=True,
    help=f"What it may do: {', '.join(EVERY_SCOPE)}.",
)
@click.option("--sandbox", is_flag=True, help="Test entities only, never billed.")
@click.option("--person", default="", help="Makes it this person's own; their roles count.")
@click.option("--expires", help="ISO 8601 moment from which it is refused.")
@_by
@_workspace
@_database
def key_create(
    name: str,
    tenant: str,
    scopes: tuple[str, ...],
    sandbox: bool,
    person: str,
    expires: str | None,
    by: str,
    workspace: Path,
    url: str | None,
) -> None:
    """Make a key; it is shown once and stored only as a hash."""
    from serving.tenancy.keys import create_key

    _require(workspace, by, tenant, "manage_keys")
    click.echo(
        create_key(
            _open(url), name, scopes, tenant=tenant, sandbox=sandbox, person=person,
            expires=expires,
        )
    )  # fmt: skip


@key.command("list")
@click.option("--tenant", help="Its keys only.")
@_database
def key_list(tenant: str | None, url: str | None) -> None:
    """List keys without their secrets."""
    from serving.tenancy.keys import list_keys

    for each in list_keys(_open(url), tenant):
        more = [f"person {each.person}"] if each.person else []
        more += ["sandbox"] if each.sandbox else []
        more += [f"until {each.expires[:19]}"] if each.expires else []
        more += [f"for {each.rotated_from}"] if each.rotated_from else []
        click.echo(
            f"{each.id}  {each.state():<8} {each.tenant}  {each.name}  {','.join(each.scopes)}  "
            f"{', '.join(more)}".rstrip()
        )


@key.command("revoke")
@click.argument("key_id")
@_by
@_workspace
@_database
def key_revoke(key_id: str, by: str, workspace: Path, url: str | None) -> None:
    """Revoke a key; running services refuse it within a second."""
    from serving.tenancy.keys import revoke_key

    database = _open(url)
    _require(workspace, by, _owner(database, key_id), "manage_keys")
    revoke_key(database, key_id)
    click.echo(f"revoked {key_id}")


@key.command("rotate")
@click.argument("key_id")
@click.option("--grace-hours", type=float, default=24.0, show_default=True)
@_by
@_workspace
@_database
def key_rotate(key_id: str, grace_hours: float, by: str, workspace: Path, url: str | None) -> None:
    """Make a key's successor; the old one works for the grace period beside it."""
    from serving.tenancy.keys import rotate_key

    database = _open(url)
    _require(workspace, by, _owner(database, key_id), "manage_keys")
    text, old = rotate_key(database, key_id, grace_hours * 3600)
    click.echo(text)
    click.echo(f"{old.id} is valid until {str(old.expires)[:19]} UTC", err=True)


@key.command("import")
@click.argument("file", type=FILE)
@_tenant
@_database
def key_import(file: Path, tenant: str, url: str | None) -> None:
    """Take over the keys of a JSON key file, as riskfm wrote them before."""
    from serving.tenancy.keys import import_keys

    click.echo(f"{import_keys(_open(url), file, tenant)} keys taken over")


@click.group()
def tenant() -> None:
    """Tenants: who may use the service, how fast and how much."""


@tenant.command("add")
@click.argument("name")
@_by
@_workspace
@_database
def tenant_add(name: str, by: str, workspace: Path, url: str | None) -> None:
    """Add a tenant."""
    from serving.tenancy.tenants import add_tenant

    _require(workspace, by, "*", "manage_tenants")
    found, new = add_tenant(_open(url), name)
    click.echo(f"tenant {found.name}: {'added' if new else 'nothing changed'}, {found.state}")


@tenant.command("list")
@_database
def tenant_list(url: str | None) -> None:
    """List tenants, their state and limits."""
    from foundation.strict import plain
    from serving.tenancy.tenants import list_tenants

    for each in list_tenants(_open(url)):
        limits = plain(each.limits)
        click.echo(f"{each.name}  {each.state}  {_flat(limits) or 'no limits'}")


def _state_command(verb: str, text: str) -> click.Command:
    @tenant.command(verb, help=text)
    @click.argument("name")
    @_by
    @_workspace
    @_database
    def command(name: str, by: str, workspace: Path, url: str | None) -> None:
        from serving.tenancy.tenants import resume_tenant, suspend_tenant

        _require(workspace, by, "*", "manage_tenants")
        change = suspend_tenant if verb == "suspend" else resume_tenant
        found = change(_open(url), name)
        click.echo(f"tenant {found.name}: {found.state}")

    return command


_state_command("suspend", "Refuse every key of a tenant, within a second.")
_state_command("resume", "Let a suspended tenant in again.")


@tenant.command("limit")
@click.argument("name")
@click.option("--rate", type=float, help="Requests per second of the tenant, for a long time.")
@click.option("--burst", type=int, help="Requests at once.")
@click.option("--key-rate", type=float, help="Requests per second of each key.")
@click.option("--key-burst", type=int, help="Requests at once of each key.")
@click.option("--day", type=int, help="Scores in a UTC day.")
@click.option("--month", type=int, help="Scores in a UTC month.")
@click.option("--channel", help="The quotas are of this channel.")
@click.option("--clear", is_flag=True, help="Forget the limits there were.")
@_by
@_workspace
@_database
def tenant_limit(
    name: str,
    rate: float | None,
    burst: int | None,
    key_rate: float | None,
    key_burst: int | None,
    day: int | None,
    month: int | None,
    channel: str | None,
    clear: bool,
    by: str,
    workspace: Path,
    url: str | None,
) -> None:
    """Change limits and quotas; what is not named stays."""
    import msgspec

    from foundation.strict import plain
    from serving.tenancy.tenants import NO_LIMITS, Quota, limit_tenant, list_tenants

    _require(workspace, by, "*", "manage_tenants")
    database = _open(url)
    before = {t.name: t.limits for t in list_tenants(database)}
    limits = NO_LIMITS if clear else before.get(name, NO_LIMITS)
    rates = {"rate": rate, "burst": burst, "key_rate": key_rate, "key_burst": key_burst}
    changes: dict[str, Any] = {k: v for k, v in rates.items() if v is not None}
    counts = {k: v for k, v in (("day", day), ("month", month)) if v is not None}
    if counts and channel:
        quota = msgspec.structs.replace(limits.channels.get(channel, Quota()), **counts)
        changes["channels"] = limits.channels | {channel: quota}
    elif counts:
        changes["quota"] = msgspec.structs.replace(limits.quota, **counts)
    found = limit_tenant(database, name, msgspec.structs.replace(limits, **changes))
    click.echo(f"tenant {found.name}: {_flat(plain(found.limits)) or 'no limits'}")


@click.group()
def person() -> None:
    """People and their roles; where none are declared, nobody is asked for one."""


def _role_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--channel", default="*", help="For this channel; all of them if left out."),
        click.option("--tenant", required=True, help="The tenant; '*' for an operator."),
        click.option(
            "--role", required=True,
            help="viewer, analyst, approver, admin, auditor, or operator of the platform.",
        ),
        click.argument("name"),
    ):  # fmt: skip
        function = option(function)
    return function


@person.command("add")
@_role_options
@_by
@_workspace
def person_add(name: str, role: str, tenant: str, channel: str, by: str, workspace: Path) -> None:
    """Give a person a role."""
    held, new = _people(workspace).add(name, role, tenant, by, channel)
    state = "added" if new else "nothing changed"
    click.echo(f"{held.person}: {held.role} of {held.tenant}/{held.channel}, {state}")


@person.command("remove")
@_role_options
@_by
@_workspace
def person_remove(
    name: str, role: str, tenant: str, channel: str, by: str, workspace: Path
) -> None:
    """Take a role away; the last who can manage people stays."""
    held = _people(workspace).remove(name, role, tenant, by, channel)
    click.echo(f"{held.person}: no longer {held.role} of {held.tenant}/{held.channel}")


@person.command("list")
@click.option("--tenant", help="Who counts for this tenant.")
@_workspace
def person_list(tenant: str | None, workspace: Path) -> None:
    """List people and their roles."""
    held = _people(workspace).held(tenant)
    for each in held:
        click.echo(f"{each.person}  {each.role}  {each.tenant}/{each.channel}")
    if not held:
        click.echo("nobody is declared: everybody may do everything")


@click.command()
@click.option("--tenant", default="default", show_default=True, help="Whose usage.")
@click.option("--month", required=True, help="Such as 2027-01; days and months are UTC.")
@click.option("--csv", "csv_file", type=FILE, help="Write every day as CSV.")
@click.option("--prices", type=FILE, help="YAML: currency, score, row, sample, label.")
@click.option("--log", type=FILE, help="Count this decision log first; a service does so itself.")
@click.option("--node", help="Whose log it is; as the file beside it says if left out.")
@_by
@_workspace
@_database
def usage(
    tenant: str,
    month: str,
    csv_file: Path | None,
    prices: Path | None,
    log: Path | None,
    node: str | None,
    by: str,
    workspace: Path,
    url: str | None,
) -> None:
    """What a tenant used in a month, by channel and kind; failures are never counted."""
    from serving.audit import node_name
    from serving.tenancy.invoice import csv_text, load_prices, month_days, month_lines, table
    from serving.tenancy.metering import Meter, count_jobs, read_usage

    begin, until = month_days(month)
    _require(workspace, by, tenant, "see_usage")
    charged = load_prices(prices) if prices else None
    database = _open(url)
    if log is not None:
        Meter(database, log, node or node_name(log)).advance()
    if _is_workspace(workspace):
        from serving.delivery import Delivery

        opened = Delivery.open(workspace)
        count_jobs(database, opened.workspace, opened.registry.database)
    used = read_usage(database, tenant, begin, until)
    click.echo(f"usage of {tenant} in {month}, UTC")
    click.echo("\n".join(table(month_lines(used, charged), charged)))
    if csv_file is not None:
        csv_file.write_text(csv_text(used, tenant), encoding="utf-8")
        click.echo(f"days  {csv_file}")


def _open(url: str | None) -> Database:
    from serving.database import Database
    from serving.settings import load_settings
    from serving.tenancy.tables import open_tables

    database = Database(url or load_settings().database_url)
    open_tables(database)
    return database


def _is_workspace(workspace: Path) -> bool:
    return (workspace / "samples").is_dir()


def _people(workspace: Path) -> People:
    from serving.database import Database
    from serving.tenancy.people import People
    from serving.workspace import Workspace

    return People(Database(Workspace.open(workspace).registry_url))


def _require(workspace: Path, by: str, tenant: str, action: str) -> None:
    if _is_workspace(workspace):
        _people(workspace).require(by, tenant, action)


def _owner(database: Database, key_id: str) -> str:
    from serving.tenancy.keys import list_keys

    found = {record.id: record.tenant for record in list_keys(database)}
    if key_id not in found:
        raise UserError(f"no key '{key_id}'; riskfm key list shows them")
    return found[key_id]


def _flat(limits: dict[str, Any], head: str = "") -> str:
    parts = []
    for name, value in limits.items():
        inner = isinstance(value, dict)
        parts.append(_flat(value, f"{head}{name}.") if inner else f"{head}{name} {value:g}")
    return ", ".join(parts)
