"""What an import is asked to do: which files into which tables, allowed by whom; and its summary.

The digest of an import covers the bytes of its files and the meaning of the schema; equal digests
are the same import.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import polars as pl
from deltalake import DeltaTable

from foundation.errors import ConfigError, SchemaError, listing, nearest
from foundation.schema import ProfileTable, Schema, Source, fingerprint, schema_to_dict
from foundation.tables import table_files

PROFILE = "_profile"
FilesArgument = Mapping[str, str | Path] | Sequence[str | Path] | None


@dataclass(frozen=True)
class TableSummary:
    """What one table contributed to an import; row counts.

    Attributes:
        already: rows that stood in the store from an earlier import and were not added again.
        quarantined: reason to number of rows.
        ignored: undeclared columns of the file.
    """

    name: str
    files: tuple[str, ...]
    read: int
    stored: int
    already: int
    quarantined: dict[str, int]
    ignored: tuple[str, ...]
    entities: int


@dataclass(frozen=True)
class ImportSummary:
    """What an import did.

    Attributes:
        version: the store's version after it.
        repeated: this very import had been made before, nothing changed.
        warnings: such as a source without an authorization.
    """

    digest: str
    version: int
    repeated: bool
    tables: tuple[TableSummary, ...]
    warnings: tuple[str, ...] = ()

    @property
    def stored(self) -> int:
        """Rows added, over all tables."""
        return 0 if self.repeated else sum(table.stored for table in self.tables)

    @property
    def quarantined(self) -> int:
        """Rows set aside, over all tables."""
        return sum(sum(table.quarantined.values()) for table in self.tables)

    def lines(self) -> list[str]:
        """The summary in words, one line each."""
        if self.repeated:
            return [f"already imported as version {self.version}; nothing changed"]
        out = [f"version {self.version}: {self.stored:,} rows added"]
        for table in self.tables:
            line = f"{table.name}: {table.read:,} rows read, {table.stored:,} added"
            line += f" ({table.entities:,} entities)"
            line += f", {table.already:,} were there already" if table.already else ""
            out.append(line)
            out += [f"  quarantined {n:,}: {reason}" for reason, n in table.quarantined.items()]
            if table.ignored:
                out.append(f"  undeclared columns ignored: {listing(table.ignored)}")
        return out + [f"warning: {warning}" for warning in self.warnings]


def table_paths(
    schema: Schema, files: FilesArgument, base: Path, files_base: Path
) -> dict[str, Path]:
    """Table name to the path it is imported from, in schema order.

    Args:
        base: where relative paths of the schema start; `files_base`: where those of files do.
    Raises:
        ConfigError: a file for a source that does not exist.
        SchemaError: no file at all. DataError: a file is not there.
    """
    names = [*schema.source_names, *(["profile"] if schema.profile else [])]
    given: dict[str, str | Path] = {}
    if files:
        given |= _given_files(names, files, files_base)
    else:
        given |= {name: source.path for name, source in schema.sources.items() if source.path}
        if schema.profile and schema.profile.path:
            given["profile"] = schema.profile.path
        if not given:
            raise SchemaError("the schema names no file; give 'path' to a source, or name files")
    tables = {name: PROFILE if name == "profile" else name for name in names}
    out = {tables[name]: base / given[name] for name in names if name in given}
    for name, path in out.items():
        table_files(path, f"source '{name.lstrip('_')}'")
    return out


def _given_files(
    names: list[str], files: Mapping[str, str | Path] | Sequence[str | Path], base: Path
) -> dict[str, Path]:
    """Files by the table they are named for."""
    pairs: list[tuple[str, str]] = []
    if isinstance(files, Mapping):
        pairs = [(name, str(path)) for name, path in files.items()]
    else:
        for item in files:
            name, sign, path = str(item).partition("=")
            pairs.append((name, path) if sign else (Path(name).name.split(".")[0], name))
    for name, _ in pairs:
        if name not in names:
            raise ConfigError(
                f"no source is called '{name}'{nearest(name, names)}; write source=path with one "
                f"of: {listing(names)}"
            )
    return {name: base / path for name, path in pairs}


def check_authorized(schema: Schema, paths: dict[str, Path], today: dt.date) -> tuple[str, ...]:
    """Warnings for tables without a note of who allowed their use; refuses what ran out."""
    warnings = []
    for name in paths:
        table, label = declared_table(schema, name), name.lstrip("_")
        note = table.authorization
        if note is None:
            warnings.append(f"'{label}' has no authorization (by, use, until) in the schema")
        elif note.until is not None and note.until < today:
            raise SchemaError(
                f"'{label}' may not be imported: its authorization by '{note.by}' ran out on "
                f"{note.until}; renew it and state the new date under 'authorization: until'"
            )
    return tuple(warnings)


def authorizations(schema: Schema, paths: dict[str, Path]) -> dict[str, Any]:
    notes = {name: declared_table(schema, name).authorization for name in paths}
    return {
        name: {"by": note.by, "use": note.use, "until": str(note.until or "")}
        for name, note in notes.items()
        if note is not None
    }


def declared_authorizations(schema: Schema) -> dict[str, Any]:
    """Table to its note (by, use, until) as the schema declares it; the profile is `profile`."""
    names = [*schema.source_names, *([PROFILE] if schema.profile else [])]
    return {
        name.lstrip("_"): note
        for name, note in authorizations(schema, dict.fromkeys(names, Path())).items()
    }


def import_digest(schema: Schema, paths: dict[str, Path]) -> str:
    """Digest of an import: meaning of the schema, tables, bytes of their files."""
    total = hashlib.sha256(fingerprint(schema).encode())
    for name, path in sorted(paths.items()):
        total.update(f"\n{name}".encode())
        for file in table_files(path):
            for piece in _delta_files(file) if file.is_dir() else [file]:
                with piece.open("rb") as handle:
                    total.update(hashlib.file_digest(handle, "sha256").digest())
    return total.hexdigest()[:32]


def _delta_files(path: Path) -> list[Path]:
    """Data files of a Delta table's latest version."""
    added = pl.DataFrame(DeltaTable(str(path)).get_add_actions(flatten=True))
    return sorted(path / unquote(file) for file in added["path"]) if len(added) else []


def declared_table(schema: Schema, name: str) -> Source | ProfileTable:
    if name == PROFILE:
        return schema.profile or ProfileTable()
    return schema.sources[name]


def summary_from(data: dict[str, Any]) -> TableSummary:
    values = data | {"files": tuple(data["files"]), "ignored": tuple(data["ignored"])}
    return TableSummary(**values)


def require_same(old: Schema, new: Schema, directory: Path) -> None:
    """Refuse a schema that means something else than the store's."""
    if fingerprint(old) == fingerprint(new):
        return
    before, after = _flat(schema_to_dict(old)), _flat(schema_to_dict(new))
    meaning = [
        key
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
        and not (key.endswith(".path") or ".authorization" in key)
    ]
    shown = [f"{k}: {before.get(k, 'absent')} -> {after.get(k, 'absent')}" for k in meaning[:5]]
    raise SchemaError(
        f"{directory}: the store was made with another schema ({'; '.join(shown)}"
        f"{'; …' if len(meaning) > 5 else ''}); import into a new store directory"
    )


def _flat(data: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(data, dict) or not data:
        return {path: data}
    out: dict[str, Any] = {}
    for key, value in data.items():
        out |= _flat(value, f"{path}.{key}" if path else str(key))
    return out
