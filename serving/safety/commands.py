"""Commands around safety: `riskfm secret`, `riskfm audit`, `riskfm erase`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from foundation.errors import ArtifactError, ConfigError, UserError

if TYPE_CHECKING:
    from serving.safety.hashing import EntityHasher
    from serving.safety.secrets import Secrets

FILE = click.Path(path_type=Path, dir_okay=False)
DIR = click.Path(path_type=Path, file_okay=False)
SECRETS = click.option(
    "--secrets",
    "secrets_path",
    type=FILE,
    help="File of the master secrets; otherwise RISKFM_MASTER_KEY or RISKFM_MASTER_KEY_FILE.",
)
HASH = click.option(
    "--entity-hash",
    type=click.Choice(["hmac-sha256", "hmac-sm3"]),
    default="hmac-sha256",
    show_default=True,
    envvar="RISKFM_ENTITY_HASH",
    help="As the service's settings say.",
)


def add_to(cli: click.Group) -> None:
    """Register the commands."""
    cli.add_command(secret)
    cli.add_command(audit)
    cli.add_command(erase)


@click.group()
def secret() -> None:
    """The master secrets of the service."""


@secret.command("make")
@click.argument("file", type=FILE)
def secret_make(file: Path) -> None:
    """Make a file of fresh secrets, readable by its owner alone; nothing is overwritten."""
    from serving.safety.secrets import FILE_VARIABLE, make_secrets

    make_secrets(file)
    click.echo(f"wrote {file}; keep a copy at a safe place, and start services with it:")
    click.echo(f"  {FILE_VARIABLE}={file}")


@secret.command("rotate")
@click.argument("file", type=FILE)
def secret_rotate(file: Path) -> None:
    """Add a sealing key: it seals from now on, the old ones go on opening."""
    from serving.safety.secrets import rotate_secrets

    click.echo("\n".join(rotate_secrets(file).lines()))


@secret.command("reseal")
@click.option(
    "--database", envvar="RISKFM_DATABASE", required=True, help="URL of the service's database."
)
@SECRETS
@click.option(
    "--cipher",
    type=click.Choice(["aes-gcm", "sm4-gcm"]),
    default="aes-gcm",
    show_default=True,
    envvar="RISKFM_CIPHER",
    help="As the service's settings say.",
)
def secret_reseal(database: str, secrets_path: Path | None, cipher: str) -> None:
    """Move every sealed value to the newest key; goes on where it was stopped."""
    from serving.database import Database
    from serving.safety.resealing import reseal_all
    from serving.safety.vault import Vault

    secrets = _secrets(secrets_path)
    found = reseal_all(Database(database), Vault(secrets, cipher))
    click.echo("\n".join(result.line() for result in found))
    left = sum(sum(result.left.values()) for result in found)
    if left:
        raise ArtifactError(f"{left:,} values do not open and stay as they are; keep every old key")
    newest = secrets.sealing[-1].id
    click.echo(f"everything is sealed under {newest}; older keys may leave the file")


@secret.command("status")
@click.argument("file", type=FILE, required=False)
def secret_status(file: Path | None) -> None:
    """Where the secrets come from and which keys there are; never what they are."""
    from serving.safety.secrets import load_secrets

    found = load_secrets(file) if file else _secrets(None)
    click.echo("\n".join(found.lines()))


@click.group()
def audit() -> None:
    """The decision log: verify it, note its end, export a tenant's part."""


@audit.command("head")
@click.argument("log", type=FILE)
@SECRETS
@HASH
@click.option("-o", "--output", type=FILE, help="Write it to a file as well.")
def audit_head(log: Path, secrets_path: Path | None, entity_hash: str, output: Path | None) -> None:
    """Print number and hash of the last line, to be noted elsewhere; signed where secrets are."""
    from serving.safety.audit_export import make_head

    head = make_head(log, _hasher(secrets_path, entity_hash) if _given(secrets_path) else None)
    text = msgspec.json.encode(head).decode()
    if output is not None:
        output.write_text(text + "\n", encoding="utf-8")
    click.echo(text)


@audit.command("verify")
@click.argument("log", type=FILE)
@click.option("--head", help="A hash noted before, or a file that riskfm audit head wrote.")
@click.option("--export", "exported", is_flag=True, help="LOG is an export of one tenant.")
@SECRETS
@HASH
def audit_verify(
    log: Path, head: str | None, exported: bool, secrets_path: Path | None, entity_hash: str
) -> None:
    """Recompute the chain over all segments; ends with 2 and the first broken line."""
    from serving.safety.audit_export import noted_head, verify_export
    from serving.safety.chain import verify_log

    hasher = _hasher(secrets_path, entity_hash) if _given(secrets_path) and not exported else None
    noted = noted_head(head, hasher) if head else None
    if exported:
        click.echo(f"whole: {verify_export(log, noted).line()}")
        return
    found = verify_log(log, noted)
    click.echo(f"whole: lines {found.first} to {found.last}, ends at {found.head}")
    if found.first > 1:
        click.echo(f"older segments are not here; they must end at {found.before}")
    if found.noted is not None:
        click.echo(f"the noted head is line {found.noted}")


@audit.command("export")
@click.argument("log", type=FILE)
@click.option("--tenant", required=True)
@click.option("--from", "since", default="", help="From this day or moment on, UTC.")
@click.option("--until", default="", help="Before this day or moment, UTC.")
@SECRETS
@HASH
@click.option("-o", "--output", type=FILE, required=True)
def audit_export(
    log: Path,
    tenant: str,
    since: str,
    until: str,
    secrets_path: Path | None,
    entity_hash: str,
    output: Path,
) -> None:
    """Write a tenant's lines, and of others only digests: the tenant can verify the chain."""
    from serving.safety.audit_export import export_tenant

    hasher = _hasher(secrets_path, entity_hash)
    click.echo(export_tenant(log, hasher, tenant, since, until, output).line())


@click.command()
@click.option("--tenant", default="default", show_default=True)
@click.option("--store", "stores", type=DIR, multiple=True, help="An event store.")
@click.option("--workspace", type=DIR, help="Stores, samples, deliveries, daily runs in it.")
@click.option("--set", "sets", multiple=True, help="A sample set of this tenant.")
@click.option("--database", envvar="RISKFM_DATABASE", help="URL of the service's database.")
@click.option("--log", type=FILE, help="The decision log, which notes the erasure.")
@click.option("--by", default="", help="Who does it; goes into the log.")
@SECRETS
@HASH
@click.option("--yes", is_flag=True, help="Erase; without it, only say what would be removed.")
@click.argument("entity")
def erase(
    tenant: str,
    stores: tuple[Path, ...],
    workspace: Path | None,
    sets: tuple[str, ...],
    database: str | None,
    log: Path | None,
    by: str,
    secrets_path: Path | None,
    entity_hash: str,
    yes: bool,
    entity: str,
) -> None:
    """Erase one person from every store named; ENTITY is the id, or - to read it from stdin."""
    from serving.audit import DecisionLog
    from serving.database import Database
    from serving.safety.erasure import Erasure
    from serving.safety.places import disk_erasers, hosted_erasers
    from serving.safety.vault import Vault

    if entity == "-":
        entity = sys.stdin.readline().rstrip("\r\n")
    if not (stores or workspace or database):
        raise UserError("name where to erase: --store, --workspace, --database")
    if yes and log is None:
        raise UserError("an erasure is written into the decision log: name it with --log")
    hasher = _hasher(secrets_path, entity_hash)
    places = disk_erasers(tenant, stores, workspace, sets)
    if database:
        places |= hosted_erasers(Database(database), Vault(_secrets(secrets_path)))
    erasure = Erasure(hasher)
    for name, eraser in places.items():
        erasure.register(name, eraser)
    if not yes:
        found = erasure.look(tenant, entity)
        click.echo("\n".join(found.lines()))
        click.echo(f"{found.rows:,} rows in all; nothing was removed, --yes removes them")
    else:
        assert log is not None
        written = DecisionLog(log, hasher)
        try:
            found = erasure.erase(tenant, entity, by, written)
        finally:
            written.close()
        click.echo("\n".join(found.lines()))
        click.echo(f"{found.rows:,} rows in all; noted in {log}")
    if found.failed:
        raise ArtifactError(f"not everything is erased: {', '.join(found.failed)}")


def _given(path: Path | None) -> bool:
    from serving.safety.secrets import FILE_VARIABLE, VARIABLE

    return bool(path or os.environ.get(VARIABLE) or os.environ.get(FILE_VARIABLE))


def _secrets(path: Path | None) -> Secrets:
    from serving.safety.secrets import FILE_VARIABLE, VARIABLE, given_secrets, load_secrets

    found = load_secrets(path) if path else given_secrets(os.environ)
    if found is None:
        raise ConfigError(f"name the master secrets: --secrets FILE, {VARIABLE} or {FILE_VARIABLE}")
    return found


def _hasher(path: Path | None, algorithm: str) -> EntityHasher:
    from serving.safety.hashing import EntityHasher

    return EntityHasher(_secrets(path), algorithm)
