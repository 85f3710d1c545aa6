"""The event store: append-only Delta tables behind atomic, repeat-safe imports.

    DIR/schema.yaml          the schema, written last when a store is made
    DIR/tables/SOURCE/       Delta, bucketed by entity, sorted by (entity, known_at)
    DIR/tables/_profile/     the profile, likewise
    DIR/quarantine/          Delta: import, source, file, row, reason
    DIR/imports/DIGEST.json  one per import: pins the version of every table
    DIR/rewrites/NUMBER.json the same rows written anew (`foundation.compaction`), where they lie
    DIR/index/               made on demand: rows of some entities (`foundation.event_index`)

An import exists once its record does, and the record appears by one rename. Readers read tables at
the versions the latest record pins; what an interrupted import appended is never read. The digest
covers the bytes of the files and the meaning of the schema, so that the same import happens once.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from foundation import history, identifiers, lakehouse, validate
from foundation.errors import DataError, SchemaError
from foundation.event_index import keep_up
from foundation.importing import (
    PROFILE,
    FilesArgument,
    ImportSummary,
    TableSummary,
    authorizations,
    check_authorized,
    declared_table,
    import_digest,
    require_same,
    summary_from,
    table_paths,
)
from foundation.schema import Field, Schema, fingerprint, load_schema, schema_to_dict
from foundation.slots import SHARED_SUFFIX
from foundation.tables import Part, read_parts
from foundation.whole_files import locked, write_whole

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class EventStore:
    """A store at one version; `open` gives the latest.

    Attributes:
        records: the import records up to this version, oldest first.
        rewritten: the latest rewrite of the tables: `version` of the store it was made of, `tables`
            with the version and rows of each; None without.
    """

    directory: Path
    schema: Schema
    records: tuple[dict[str, Any], ...] = field(repr=False)
    rewritten: dict[str, Any] | None = field(default=None, repr=False)

    @staticmethod
    def create(directory: str | Path, schema: Schema) -> EventStore:
        """Make an empty store, or open the one that is there.

        Raises:
            SchemaError: a store with another schema is there, or a field name is reserved.
            ConfigError: the directory has a name that cannot be used.
        """
        directory = Path(directory)
        if (directory / "schema.yaml").is_file():
            store = EventStore.open(directory)
            require_same(store.schema, schema, directory)
            return store
        _refuse_reserved(schema)
        lakehouse.require_nameable(directory)
        (directory / "imports").mkdir(parents=True, exist_ok=True)
        for name in _table_names(schema):
            lakehouse.create_table(directory / "tables" / name, _columns(schema, name))
        columns = {"import": pl.String(), "entity_id": pl.String(), "known_at": pl.Datetime("us")}
        columns |= {name: dtype() for name, dtype in validate.QUARANTINE_SCHEMA.items()}
        lakehouse.create_table(directory / "quarantine", columns)
        text = yaml.safe_dump(schema_to_dict(schema), sort_keys=False, allow_unicode=True)
        write_whole(directory / "schema.yaml", text)
        return EventStore.open(directory)

    @staticmethod
    def open(directory: str | Path) -> EventStore:
        """Open a store at its latest version.

        Raises:
            DataError: there is no store.
        """
        directory = Path(directory)
        if not (directory / "schema.yaml").is_file():
            raise DataError(
                f"{directory}: no event store here; make one with: riskfm events import "
                "--schema schema.yaml --store DIR"
            )
        records = [json.loads(p.read_text()) for p in (directory / "imports").glob("*.json")]
        records.sort(key=lambda record: record["version"])
        rewrites = sorted((directory / "rewrites").glob("*.json"))
        rewritten = json.loads(rewrites[-1].read_text()) if rewrites else None
        # A rewrite later than these records holds their rows too: one order of reading is enough.
        return EventStore(
            directory, _schema_of(directory / "schema.yaml"), tuple(records), rewritten
        )

    @property
    def version(self) -> int:
        """Number of committed imports."""
        return len(self.records)

    def at(self, version: int) -> EventStore:
        """The store as it stood after `version` imports.

        Raises:
            DataError: there is no such version.
        """
        if not 0 <= version <= self.version:
            raise DataError(
                f"{self.directory}: no version {version}; versions 0 to {self.version} exist"
            )
        return EventStore(self.directory, self.schema, self.records[:version], self.rewritten)

    def frames(
        self,
        version: int | None = None,
        entities: pl.Series | Sequence[str] | None = None,
        until_us: int | None = None,
    ) -> dict[str, pl.DataFrame]:
        """Events per source, as `history.build_timeline` takes them.

        Args:
            version: of this many imports; default this store's.
            entities: only these.
            until_us: only events with known_at < until_us (UTC microseconds).
        Returns:
            source -> `entity_id`, `event_time`, `known_at` (naive UTC us), fields; sorted by
            (entity, known_at, event_time, import order), so ties keep the order of import.
        """
        at = self if version is None else self.at(version)
        return {name: at._read(name, entities, until_us) for name in self.schema.source_names}

    def profile(
        self,
        version: int | None = None,
        entities: pl.Series | Sequence[str] | None = None,
        until_us: int | None = None,
    ) -> pl.DataFrame:
        """Profile rows: `entity_id`, `known_at` (null: always known), fields; order as `frames`."""
        at = self if version is None else self.at(version)
        if self.schema.profile is None:
            return pl.DataFrame(schema={"entity_id": pl.String, "known_at": pl.Datetime("us")})
        return at._read(PROFILE, entities, until_us)

    def timeline(
        self, entities: pl.Series | Sequence[str] | None = None, until_us: int | None = None
    ) -> history.Timeline:
        """The merged timeline of all sources."""
        return history.build_timeline(self.schema, self.frames(None, entities, until_us))

    def profile_history(
        self, entities: pl.Series | Sequence[str] | None = None, until_us: int | None = None
    ) -> history.ProfileHistory:
        """The profile ready for `history.latest_profile`."""
        return history.build_profile(self.profile(None, entities, until_us))

    def entity_ids(self) -> pl.Series:
        """Every entity with an event or a profile, sorted strings."""
        columns = [
            self._scan(name).select("entity_id").unique() for name in _table_names(self.schema)
        ]
        if not columns:
            return pl.Series("entity_id", [], dtype=pl.String)
        return pl.concat(columns).unique().sort("entity_id").collect()["entity_id"]

    def quarantine(self) -> pl.DataFrame:
        """Rows set aside so far: `import`, `source`, `file`, `row`, `reason`."""
        rows = lakehouse.scan(self.directory / "quarantine", self.pin("quarantine")[0])
        frame = rows.sort(lakehouse.ROW).collect()
        return frame.select("import", *validate.QUARANTINE_SCHEMA)

    def files(self, name: str) -> pl.DataFrame:
        """The Parquet files of a source at this version: `bucket`, `file`, `rows`.

        Of the rows in them only those below `below(name)` belong to this version.
        """
        return lakehouse.bucket_files(self._path(name), self.pin(name)[0])

    def below(self, name: str) -> int | None:
        """Number of the first row that came after this version; None where files hold none."""
        if self.rewritten is None or name not in self.rewritten["tables"]:
            return None
        rows = self.pin(name)[1]
        held = self.rewritten["tables"][name]["rows"]
        return rows if self.version <= self.rewritten["version"] and rows < held else None

    def table_names(self) -> list[str]:
        """The tables of events and, where there is one, of the profile."""
        return _table_names(self.schema)

    def pin(self, name: str) -> tuple[int, int]:
        """Delta version and number of rows of a table at this version.

        Rows are numbered as they come, so what a version held is found in any later rewrite of the
        table; the files of its own time may be gone.
        """
        pins = self.records[-1]["tables"] if self.records else {}
        pin = pins.get(name, {"version": 0, "rows": 0})
        rewritten = self.rewritten
        if rewritten and self.version <= rewritten["version"] and name in rewritten["tables"]:
            return rewritten["tables"][name]["version"], pin["rows"]
        return pin["version"], pin["rows"]

    def _scan(
        self, name: str, entities: pl.Series | None = None, until_us: int | None = None
    ) -> pl.LazyFrame:
        path, version = self._path(name), self.pin(name)[0]
        return lakehouse.scan(path, version, entities, until_us, self.below(name))

    def _path(self, name: str) -> Path:
        return self.directory / (name if name == "quarantine" else f"tables/{name}")

    def _read(
        self, name: str, entities: pl.Series | Sequence[str] | None, until_us: int | None
    ) -> pl.DataFrame:
        wanted = None if entities is None else pl.Series(entities, dtype=pl.String)
        rows = self._scan(name, wanted, until_us).collect()
        times = ["known_at", *(["event_time"] if name != PROFILE else [])]
        return lakehouse.naive(lakehouse.in_order(rows, *times))


def import_events(
    schema_path: str | Path,
    store_dir: str | Path,
    files: FilesArgument = None,
    progress: Progress | None = None,
    data_dir: str | Path | None = None,
    now: dt.datetime | None = None,
) -> ImportSummary:
    """Import the tables of a schema into a store; makes the store where there is none.

    Args:
        files: other files than the schema names: `{source: path}`, or `source=path` items, or
            paths whose stem is a source (`profile` for the profile). Only these are imported.
        progress: called with (tables done, tables in all, what).
        data_dir: where relative paths start; default the folder of the schema file.
        now: the moment of import, for checks of absurd times and of authorizations.
    Raises:
        SchemaError: the schema differs from the store's, a declared column is missing, or an
            authorization has run out.
        DataError: a file that cannot be read; nothing is imported then.
        ConfigError: the store's directory has a name that cannot be used.
    """
    now = now or dt.datetime.now(dt.UTC)
    schema = load_schema(schema_path)
    base = Path(data_dir) if data_dir is not None else Path(schema_path).parent
    files_base = base if data_dir is not None else Path.cwd()
    paths = table_paths(schema, files, base, files_base)
    warnings = check_authorized(schema, paths, now.date())
    store = EventStore.create(store_dir, schema)
    with locked(store.directory):
        store = EventStore.open(store_dir)
        digest = import_digest(schema, paths)
        for record in store.records:
            if record["digest"] == digest:
                tables = tuple(summary_from(t) for t in record["summary"])
                return ImportSummary(digest, record["version"], True, tables, warnings)
        summary = _Import(store, digest, now, progress).run(paths, warnings)
        keep_up(EventStore.open(store_dir))
        return summary


class _Import:
    """One import under the store's lock: append every table, then commit by one rename."""

    def __init__(
        self, store: EventStore, digest: str, now: dt.datetime, progress: Progress | None
    ) -> None:
        self.store, self.schema, self.digest, self.now = store, store.schema, digest, now
        self.progress = progress
        self.pins = dict(store.records[-1]["tables"]) if store.records else {}
        if store.rewritten and store.rewritten["version"] == store.version:
            self.pins |= store.rewritten["tables"]
        self.bad: list[pl.DataFrame] = []

    def run(self, paths: dict[str, Path], warnings: tuple[str, ...]) -> ImportSummary:
        summaries = []
        for done, (name, path) in enumerate(paths.items()):
            if self.progress:
                self.progress(done, len(paths), name.lstrip("_"))
            summaries.append(self._table(name, path))
        self._append("quarantine", _as_rows(self.bad, self.digest))
        version = self.store.version + 1
        record = {
            "digest": self.digest,
            "version": version,
            "imported_at": self.now.astimezone(dt.UTC).isoformat(),
            "schema": fingerprint(self.schema),
            "tables": self.pins,
            "authorizations": authorizations(self.schema, paths),
            "summary": [vars(summary) for summary in summaries],
        }
        target = self.store.directory / "imports" / f"{self.digest}.json"
        write_whole(target, json.dumps(record, indent=1))
        if self.progress:
            self.progress(len(paths), len(paths), "done")
        return ImportSummary(self.digest, version, False, tuple(summaries), warnings)

    def _table(self, name: str, path: Path) -> TableSummary:
        owner = "profile" if name == PROFILE else f"source '{name}'"
        parts = read_parts(path, owner)
        files = tuple(part.file for part in parts)
        checked = self._check(name, parts)
        del parts
        self.bad.append(checked.bad)
        good = self._hide_identifiers(name, checked.good)
        fresh = self._without_stored(name, good)
        already = len(good) - len(fresh)
        fresh = self._stamp_sharing(name, fresh)
        self._append(name, fresh)
        return TableSummary(
            name=name.lstrip("_"),
            files=files,
            read=checked.rows,
            stored=len(fresh),
            already=already,
            quarantined=checked.reasons(),
            ignored=checked.ignored,
            entities=fresh["entity_id"].n_unique(),
        )

    def _check(self, name: str, parts: list[Part]) -> validate.Checked:
        now_us = int(self.now.timestamp() * 1_000_000)
        if name == PROFILE:
            return validate.check_profile(self.schema, parts, now_us)
        return validate.check_events(self.schema, name, parts, now_us)

    def _identifier_fields(self, name: str) -> list[str]:
        fields = _fields(self.schema, name)
        return [key for key, spec in fields.items() if spec.kind == "identifier"]

    def _hide_identifiers(self, name: str, good: pl.DataFrame) -> pl.DataFrame:
        """Replace identifier values by their keyed hashes."""
        fields = self._identifier_fields(name)
        if not fields:
            return good
        key = identifiers.identifier_key(self.store.directory)
        return good.with_columns(identifiers.hashed(good[f], key).alias(f) for f in fields)

    def _without_stored(self, name: str, good: pl.DataFrame) -> pl.DataFrame:
        """Rows of which the store does not hold as many equal ones already; order kept."""
        version, rows = self.pin(name)
        if not rows or not len(good):
            return good
        keys = good.columns
        stored = lakehouse.scan(self.store._path(name), version, good["entity_id"])
        if "event_time" in keys:
            zoned = good["event_time"].dt.replace_time_zone("UTC")
            stored = stored.filter(pl.col("event_time").is_between(zoned.min(), zoned.max()))
        nth = pl.int_range(pl.len()).over(keys).alias("_nth")
        old = lakehouse.naive(stored.select(keys).collect()).with_columns(nth)
        return (
            good.with_columns(nth)
            .join(old, on=[*keys, "_nth"], how="anti", nulls_equal=True, maintain_order="left")
            .drop("_nth")
        )

    def _stamp_sharing(self, name: str, fresh: pl.DataFrame) -> pl.DataFrame:
        """Add, per identifier of an event, how many others had it before."""
        for key in self._identifier_fields(name) if name != PROFILE else []:
            columns = [pl.col(key).alias("value"), "entity_id", "known_at"]
            values = fresh[key].drop_nulls().unique().alias("value").to_frame().lazy()
            stored = (
                lakehouse.scan(self.store._path(name), self.pin(name)[0])
                .select(columns)
                .join(values, on="value", how="semi")
                .collect()
            )
            shared = identifiers.shared_with(fresh.select(columns), lakehouse.naive(stored))
            fresh = fresh.with_columns(shared.alias(key + SHARED_SUFFIX))
        return fresh

    def pin(self, name: str) -> tuple[int, int]:
        return self.store.pin(name)

    def _append(self, name: str, rows: pl.DataFrame) -> None:
        version, count = self.pin(name)
        if len(rows):
            version = lakehouse.append(self.store._path(name), version, rows, count)
        self.pins[name] = {"version": version, "rows": count + len(rows)}


def _schema_of(path: Path) -> Schema:
    """The schema of a file, read once for each content: its identity, time and size tell."""
    found = path.stat()
    return _read_schema(path, found.st_ino, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=32)
def _read_schema(path: Path, inode: int, mtime_ns: int, size: int) -> Schema:
    return load_schema(path)


def _fields(schema: Schema, name: str) -> dict[str, Field]:
    return dict(declared_table(schema, name).fields)


def _table_names(schema: Schema) -> list[str]:
    return [*schema.source_names, *([PROFILE] if schema.profile else [])]


def _columns(schema: Schema, name: str) -> dict[str, pl.DataType]:
    """Columns of a table with their storage types."""
    out: dict[str, pl.DataType] = {"entity_id": pl.String()}
    if name != PROFILE:
        out["event_time"] = pl.Datetime("us")
    out["known_at"] = pl.Datetime("us")
    for key, spec in _fields(schema, name).items():
        out[key] = history.storage_type(spec.kind)
        if spec.kind == "identifier" and name != PROFILE:
            out[key + SHARED_SUFFIX] = pl.Int64()
    return out


def _refuse_reserved(schema: Schema) -> None:
    for name in _table_names(schema):
        for key in _fields(schema, name):
            if key in lakehouse.INTERNAL or key.endswith(SHARED_SUFFIX) or key.startswith("_"):
                raise SchemaError(
                    f"'{name.lstrip('_')}': field name '{key}' is used by the store; give the "
                    "field another name and the file's name under 'column'"
                )


def _as_rows(bad: list[pl.DataFrame], digest: str) -> pl.DataFrame:
    """Quarantined rows in the form of a store table."""
    rows = pl.concat([pl.DataFrame(schema=validate.QUARANTINE_SCHEMA), *bad])
    return rows.with_columns(
        pl.lit(digest).alias("import"),
        pl.col("source").alias("entity_id"),
        pl.lit(None, dtype=pl.Datetime("us")).alias("known_at"),
    )
