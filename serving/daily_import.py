"""A day's event files into the store: whichever of the schema's tables lie in the day's folder."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foundation.errors import DataError
from foundation.importing import check_authorized
from foundation.schema import Schema, load_schema
from foundation.store import EventStore, import_events
from foundation.tables import table_files

_ENDINGS = (".parquet", ".csv")


def import_day(
    store: Path, folder: Path, end: dt.datetime, progress: Callable[[int, int, str], None]
) -> dict[str, Any]:
    """Append a day's events; the same files again, or after a kill, change nothing.

    Files lie where the folder's `schema.yaml` says, else where the store's does, both relative to
    the folder, else as SOURCE.parquet or SOURCE.csv (`profile` for the profile).

    Args:
        end: naive UTC; the moment of import, so that a day is checked as it would have been then.
    Returns:
        the store's `version` after it, rows by table, and the tables without a file.
    Raises:
        SchemaError: another schema than the store's, or an authorization that has run out by now.
        DataError: a file that cannot be read.
    """
    own = folder / "schema.yaml"
    path = own if own.is_file() else store / "schema.yaml"
    schema = load_schema(path)
    found = day_files(schema, folder)
    names = [*schema.source_names, *(["profile"] if schema.profile else [])]
    facts: dict[str, Any] = {"absent": [n for n in names if n not in found], "tables": {}}
    if not found:
        return facts | {"version": EventStore.open(store).version, "warnings": []}
    tables = {("_profile" if n == "profile" else n): p for n, p in found.items()}
    check_authorized(schema, tables, dt.datetime.now(dt.UTC).date())
    summary = import_events(
        path, store, files=found, progress=progress, now=end.replace(tzinfo=dt.UTC)
    )
    for table in summary.tables:
        facts["tables"][table.name] = {
            "read": table.read, "stored": table.stored, "already": table.already,
            "quarantined": table.quarantined,
        }  # fmt: skip
    return facts | {"version": summary.version, "warnings": list(summary.warnings)}


def day_files(schema: Schema, folder: Path) -> dict[str, Path]:
    """Source to the file, glob or directory of a day's folder that holds it."""
    declared = {name: source.path for name, source in schema.sources.items()}
    if schema.profile:
        declared["profile"] = schema.profile.path
    out = {}
    for name, path in declared.items():
        inside = path and not Path(path).is_absolute() and ".." not in Path(path).parts
        choices = [folder / path] if inside else []
        choices += [folder / f"{name}{ending}" for ending in _ENDINGS]
        for choice in choices:
            try:
                table_files(choice)
            except DataError:
                continue
            out[name] = choice
            break
    return out
