"""Commands about decisions: `riskfm lists`, `riskfm rules`, `riskfm replay`, `riskfm cases`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foundation.errors import ArtifactError, DataError, UserError, listing
from serving.decisions.rule_commands import (
    by_option,
    database_option,
    need,
    note_option,
    open_database,
    rules,
    tenant_option,
)

if TYPE_CHECKING:
    from serving.decisions.lists import ListBook
    from serving.decisions.rescoring import PackageAgain

FILE = click.Path(path_type=Path, dir_okay=False)
_SHOWN = 20


def add_to(cli: click.Group) -> None:
    """Add the commands to the group `riskfm`."""
    for command in (lists, rules, replay, cases):
        cli.add_command(command)


@click.group()
def lists() -> None:
    """Black, grey and white lists of customers, devices, phones and so on."""


def _entry_options(function: Any) -> Any:
    for option in (
        click.option("--source", default="", help="Where it comes from."),
        click.option("--reason", default="", help="Why; kept with the entry."),
        click.option("--channel", default="", help="Only in this channel; all if left out."),
        click.option("--value", required=True, help="The customer's id or the field's value."),
        click.option("--kind", default="entity", show_default=True,
                     help="entity, or a profile or context field such as phone."),
        click.option("--list", "which", required=True, help="black, grey or white."),
    ):  # fmt: skip
        function = option(function)
    return function


@lists.command("add")
@tenant_option
@_entry_options
@click.option("--expires", help="Until when, such as 2027-01-31; for ever if left out.")
@by_option
@database_option
def lists_add(
    tenant: str, which: str, kind: str, value: str, channel: str, reason: str, source: str,
    expires: str | None, by: str, database: str | None,
) -> None:  # fmt: skip
    """Put a customer or a value on a list; only its keyed hash is kept."""
    book = _lists(database)
    need(book.database, by, tenant, "edit_lists", channel)
    entry = book.entry(
        tenant, which, kind, value, channel=channel, reason=reason, source=source,
        expires_at=expires,
    )  # fmt: skip
    done = book.add(tenant, [entry], by)
    click.echo(f"{which} list of {tenant}: {'written' if done else 'nothing changed'}")


@lists.command("remove")
@tenant_option
@_entry_options
@by_option
@database_option
def lists_remove(
    tenant: str, which: str, kind: str, value: str, channel: str, reason: str, source: str,
    by: str, database: str | None,
) -> None:  # fmt: skip
    """Take a customer or a value off a list."""
    book = _lists(database)
    need(book.database, by, tenant, "edit_lists", channel)
    entry = book.entry(
        tenant, which, kind, value, channel=channel, reason=reason, source=source
    )  # fmt: skip
    _, done = book.change(tenant, [], [entry], by)
    click.echo(f"{which} list of {tenant}: {'removed' if done else 'was not on it'}")


@lists.command("import")
@tenant_option
@click.option("--list", "which", required=True, help="black, grey or white.")
@click.option("--file", "path", type=FILE, required=True, help="CSV: kind, value, reason, ...")
@click.option("--skip-bad", is_flag=True, help="Take the good rows although others are bad.")
@by_option
@database_option
def lists_import(
    tenant: str, which: str, path: Path, skip_bad: bool, by: str, database: str | None
) -> None:
    """Add the rows of a CSV file; nothing is added if one row is bad, unless --skip-bad."""
    book = _lists(database)
    need(book.database, by, tenant, "edit_lists", "")
    entries, errors = book.read_csv(tenant, which, path)
    for line in errors[:_SHOWN]:
        click.echo(line, err=True)
    if errors and not skip_bad:
        more = f" ({len(errors) - _SHOWN} not shown)" if len(errors) > _SHOWN else ""
        raise DataError(
            f"{path}: {len(errors)} of {len(errors) + len(entries)} rows are bad{more}; nothing "
            "was imported"
        )
    done = book.add(tenant, entries, by)
    click.echo(
        f"{which} list of {tenant}: {done:,} written, {len(entries) - done:,} were there, "
        f"{len(errors):,} bad"
    )


@lists.command("show")
@tenant_option
@click.option("--list", "which", help="Only black, grey or white.")
@click.option("--kind", help="Only of this kind.")
@click.option("--history", is_flag=True, help="The last changes instead.")
@database_option
def lists_show(
    tenant: str, which: str | None, kind: str | None, history: bool, database: str | None
) -> None:
    """Show entries; hashes stand for the values."""
    book = _lists(database)
    if history:
        for row in reversed(book.history(tenant)):
            click.echo(
                f"{row['at'][:19]}  {row['who']}  {row['action']}  {row['list']}  {row['kind']}  "
                f"{row['hash'][:12]}  {row['reason']}"
            )
        return
    after, count = "", 0
    while True:
        found, after = book.entries(tenant, which, kind, after)
        for e in found:
            until = f"until {e.expires_at[:10]}" if e.expires_at else "for ever"
            click.echo(
                f"{e.list}  {e.kind}  {e.hash[:12]}  {e.channel or 'every channel'}  {until}  "
                f"{e.added_by}  {e.reason}"
            )
        count += len(found)
        if not after:
            break
    click.echo(f"{count:,} entries")


@click.command()
@click.argument("request_id")
@tenant_option
@database_option
def replay(request_id: str, tenant: str, database: str | None) -> None:
    """Replay a decision: it is reproduced, or what changed is named.

    Needs the service's settings: packages or workspace, and its secrets.
    """
    from serving.decisions.desk import Desk
    from serving.decisions.replay import replay_lines
    from serving.decisions.rescoring import rescorer
    from serving.safety.vault import Vault

    settings, secrets, hasher = _safety()
    desk = Desk(
        open_database(database), hasher, vault=Vault(secrets, settings.cipher),
        score=rescorer(_find_package), background=False,
    )  # fmt: skip
    try:
        click.echo("\n".join(replay_lines(desk.replay.replay(tenant, request_id))))
    finally:
        desk.close()


@click.group()
def cases() -> None:
    """The review queue."""


@cases.command("list")
@tenant_option
@click.option("--state", help="open, claimed, second_look, decided or expired.")
@click.option("--channel", help="Only of this channel.")
@click.option("--claimed-by", help="Only claimed by this person.")
@database_option
def cases_list(
    tenant: str, state: str | None, channel: str | None, claimed_by: str | None,
    database: str | None,
) -> None:  # fmt: skip
    """List cases, oldest first."""
    from serving.decisions.cases import CaseBook

    book, after = CaseBook(open_database(database)), ""
    while True:
        found, after = book.cases(tenant, state, channel, claimed_by, after)
        for case in found:
            who = f"  {case.claimed_by}" if case.claimed_by else ""
            said = f"  {case.outcome}" if case.outcome else ""
            click.echo(
                f"{case.id}  {case.channel}  {case.opened_at[:16]}  {case.state}{who}{said}  "
                f"{listing(case.rules)}"
            )
        if not after:
            return


@cases.command("claim")
@click.argument("case")
@tenant_option
@by_option
@database_option
def cases_claim(case: str, tenant: str, by: str, database: str | None) -> None:
    """Take a case on."""
    from serving.decisions.cases import CaseBook

    opened = open_database(database)
    books = CaseBook(opened)
    need(opened, by, tenant, "decide", books.case(tenant, case).channel)
    found = books.claim(tenant, case, by)
    click.echo(f"case {found.id}: {found.state}, {found.claimed_by}")


@cases.command("decide")
@click.argument("case")
@click.option("--outcome", required=True, help="approve or refuse.")
@tenant_option
@by_option
@note_option
@database_option
def cases_decide(
    case: str, outcome: str, tenant: str, by: str, note: str, database: str | None
) -> None:
    """Decide a case one has claimed, or take the second look."""
    from serving.decisions.cases import CaseBook

    opened = open_database(database)
    books = CaseBook(opened)
    need(opened, by, tenant, "decide", books.case(tenant, case).channel)
    found = books.decide(tenant, case, outcome, by, note)
    click.echo(f"case {found.id}: {found.state} {found.outcome}".rstrip())


def _lists(database: str | None) -> ListBook:
    from serving.decisions.lists import ListBook

    _, _, hasher = _safety()
    return ListBook(open_database(database), hasher)


def _safety() -> tuple[Any, Any, Any]:
    """Settings and secrets of the service, and how it hashes."""
    from serving.safety.hashing import EntityHasher
    from serving.safety.secrets import open_secrets
    from serving.settings import load_settings

    settings = load_settings()
    secrets = open_secrets(settings.master_key_path, settings.environment)
    return settings, secrets, EntityHasher(secrets, settings.entity_hash).hash


def _find_package(tenant: str, channel: str, digest: str) -> PackageAgain:
    """The package with a digest among those of the settings."""
    from finetune.package import Package, read_manifest
    from serving.decisions.rescoring import PackageAgain
    from serving.settings import load_settings

    settings = load_settings()
    folders = [Path(path) for path in settings.packages]
    if settings.workspace:
        folders.append(Path(settings.workspace) / "packages")
    places = [p for folder in folders for p in (folder, *sorted(folder.glob("*")))]
    for place in places:
        if not (place / "manifest.json").is_file():
            continue
        try:
            found = read_manifest(place)["digest"] == digest
        except ArtifactError:
            continue  # another one, damaged or of another version
        if found:
            package = Package.load(place)
            return PackageAgain(package, settings.max_events, settings.future_seconds)
    raise UserError(
        f"the package {digest[:12]} is not among {listing(map(str, folders))}; name its folder in "
        "RISKFM_PACKAGES or its workspace in RISKFM_WORKSPACE"
    )
