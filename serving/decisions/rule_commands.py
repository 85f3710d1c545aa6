"""Commands about decision files: `riskfm rules`."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from foundation.errors import UserError

if TYPE_CHECKING:
    from serving.database import Database
    from serving.decisions.rule_book import FileVersion, RuleBook

FILE = click.Path(path_type=Path, dir_okay=False)
DIR = click.Path(path_type=Path, file_okay=False)


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""


by_option = click.option("--by", default=_login, help="Who you are; the login name if left out.")
note_option = click.option("--note", default="", help="Why; kept in the history.")
tenant_option = click.option("--tenant", default="default", show_default=True, help="Whose.")
database_option = click.option(
    "--database", help="URL of the service's database; as the service's settings say if left out."
)
_channel = click.option("--channel", required=True, help="The channel.")


def open_database(url: str | None) -> Database:
    """The service's database."""
    from serving.database import Database
    from serving.settings import load_settings

    return Database(url or load_settings().database_url)


def need(database: Database, by: str, tenant: str, action: str, channel: str) -> None:
    """Refuse who may not, where people are declared.

    Raises:
        UserError: says which roles may.
    """
    from serving.tenancy.people import require

    require(database, by, tenant, action, channel or "*")


def _book(database: str | None) -> RuleBook:
    from serving.decisions.rule_book import RuleBook

    return RuleBook(open_database(database))


@click.group()
def rules() -> None:
    """Decision files: from scores and facts to approve, review or refuse."""


@rules.command("check")
@click.argument("file", type=FILE)
def rules_check(file: Path) -> None:
    """Compile a decision file and run its test cases; nothing is stored."""
    from serving.decisions.decision_file import read_decision_file
    from serving.decisions.rules import check_file

    found = read_decision_file(file)
    for line in check_file(found):
        click.echo(line)
    click.echo(f"{file}: good, digest {found.digest[:12]}")


@rules.command("add")
@click.argument("file", type=FILE)
@tenant_option
@_channel
@click.option("--draft", is_flag=True, help="Only keep it; do not evaluate it in shadow yet.")
@by_option
@note_option
@database_option
def rules_add(
    file: Path, tenant: str, channel: str, draft: bool, by: str, note: str, database: str | None
) -> None:
    """Hand a decision file in: evaluated in shadow until a different person approves it."""
    from serving.decisions.decision_file import read_decision_file

    found, book = read_decision_file(file), _book(database)
    need(book.database, by, tenant, "edit_rules", channel)
    version = book.add(tenant, channel, found, by)
    if not draft and version.stage == "draft":
        version = book.challenge(tenant, channel, version.number, by, note)
    click.echo(_line(version))


@rules.command("approve")
@click.argument("number", type=click.IntRange(1))
@tenant_option
@_channel
@by_option
@note_option
@database_option
def rules_approve(
    number: int, tenant: str, channel: str, by: str, note: str, database: str | None
) -> None:
    """Make the challenger the champion; refused for who handed it in."""
    book = _book(database)
    need(book.database, by, tenant, "approve", channel)
    click.echo(_line(book.approve(tenant, channel, number, by, note)))


@rules.command("rollback")
@tenant_option
@_channel
@click.option("--to", "number", type=click.IntRange(1), help="The version to go back to.")
@by_option
@note_option
@database_option
def rules_rollback(
    tenant: str, channel: str, number: int | None, by: str, note: str, database: str | None
) -> None:
    """Make an earlier champion the champion again."""
    book = _book(database)
    need(book.database, by, tenant, "rollback", channel)
    click.echo(_line(book.rollback(tenant, channel, number, by, note)))


@rules.command("retire")
@click.argument("number", type=click.IntRange(1))
@tenant_option
@_channel
@by_option
@note_option
@database_option
def rules_retire(
    number: int, tenant: str, channel: str, by: str, note: str, database: str | None
) -> None:
    """Retire a version; without a champion the bands decide."""
    book = _book(database)
    need(book.database, by, tenant, "approve", channel)
    click.echo(_line(book.retire(tenant, channel, number, by, note)))


@rules.command("list")
@tenant_option
@click.option("--channel", help="Only of this channel.")
@click.option("--history", is_flag=True, help="Every change of the channel instead.")
@database_option
def rules_list(tenant: str, channel: str | None, history: bool, database: str | None) -> None:
    """List versions, their stages and who approved them."""
    book = _book(database)
    if history:
        if channel is None:
            raise UserError("--history is about one channel; name it with --channel")
        for row in book.history(tenant, channel):
            click.echo(
                f"{row['at'][:19]}  {row['who']}  {row['action']}  {row['number']}  "
                f"{row['before'] or '-'} -> {row['after']}  {row['why']}"
            )
        return
    for version in book.versions(tenant, channel):
        click.echo(_line(version))


@rules.command("report")
@tenant_option
@_channel
@click.option("--from", "since", required=True, help="First day, UTC, such as 2027-01-01.")
@click.option("--until", required=True, help="The day after the last.")
@click.option("-o", "--output", type=DIR, help="Also write tables and a page here.")
@database_option
def rules_report(
    tenant: str, channel: str, since: str, until: str, output: Path | None, database: str | None
) -> None:
    """How often each rule hit, outcomes by day, the challenger against the champion."""
    from serving.decisions.report import report_lines, rule_report, write_rule_report

    numbers = rule_report(open_database(database), tenant, channel, since, until)
    click.echo("\n".join(report_lines(numbers)))
    if output is not None:
        page = write_rule_report(numbers, output)[-1]
        click.echo(f"page {page}")


def _line(version: FileVersion) -> str:
    approved = f", approved by {version.approved_by}" if version.approved_by else ""
    return (
        f"{version.id}  {version.digest[:12]}  {version.stage}, handed in by {version.maker}"
        f"{approved}"
    )
