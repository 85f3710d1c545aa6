"""`riskfm serve`."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from foundation.errors import UserError

DIR = click.Path(path_type=Path, file_okay=False)


def add_to(cli: click.Group) -> None:
    """Add the command to the group `riskfm`."""
    cli.add_command(serve)


@click.command()
@click.option(
    "--package",
    "packages",
    type=DIR,
    multiple=True,
    help="A package directory; several may be given, the first answers by default.",
)
@click.option("--workspace", type=DIR, help="Serve the champions of this delivery workspace.")
@click.option("--port", default=3000, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--state", type=DIR, help="Folder of the service's own state (RISKFM_STATE).")
@click.option("--workers", type=int, help="Processes, one core each (RISKFM_WORKERS).")
def serve(
    packages: tuple[Path, ...],
    workspace: Path | None,
    port: int,
    host: str,
    state: Path | None,
    workers: int | None,
) -> None:
    """Serve packages or a workspace over HTTP.

    In development it makes a first API key and prints it once if there is none. What no option
    says comes from RISKFM_* variables or the file RISKFM_CONFIG (`riskfm settings`).
    """
    from serving.launch import serve as run
    from serving.settings import load_settings

    settings = load_settings()
    given: dict[str, object] = {
        "workspace": str(workspace) if workspace else None,
        "state": str(state) if state else None,
        "workers": workers,
    }
    if packages:
        given["packages"] = tuple(str(path) for path in packages)
    settings = msgspec.structs.replace(
        settings, **{name: value for name, value in given.items() if value is not None}
    )
    if not (settings.packages or settings.workspace):
        raise UserError("name what to serve: --package DIR, or --workspace DIR for its champions")
    code = run(settings, port=port, host=host)
    if code:
        raise SystemExit(code)
