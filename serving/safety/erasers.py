"""Erasers of what lies on disk: event stores, sample sets, and the files of a workspace.

Files of a workspace are tables (Parquet, CSV) with a column `entity_id`: handed-in samples, outputs
of deliveries, and of the daily run labels, decisions and scored rows. They are written anew without
the person; a directory that carries a record of its files (`serving.durable`) gets a new one, with
what was removed beside it.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import polars as pl

from foundation.erasure import count_entity, erase_entity
from foundation.errors import DataError
from serving.durable import renew_record
from serving.safety.erasure import ErasureCount

COLUMN = "entity_id"


class StoreEraser:
    """One event store."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __call__(
        self, tenant: str, entity_hash: str, entity_id: str, *, dry_run: bool = False
    ) -> ErasureCount:
        """Rows of events and profile, at every version."""
        run = count_entity if dry_run else erase_entity
        return ErasureCount(run(self._directory, entity_id).total)


class SampleSetEraser:
    """Sample sets of a workspace, by name."""

    def __init__(self, workspace: Path, names: Sequence[str]) -> None:
        self._workspace, self._names = workspace, tuple(names)

    def __call__(
        self, tenant: str, entity_hash: str, entity_id: str, *, dry_run: bool = False
    ) -> ErasureCount:
        """Rows of every version of the sets."""
        from finetune.sample_erasure import count_customer, erase_customer

        run = count_customer if dry_run else erase_customer
        return ErasureCount(sum(run(self._workspace, name, entity_id) for name in self._names))


class FilesEraser:
    """Tables below some files and folders."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = tuple(paths)

    def __call__(
        self, tenant: str, entity_hash: str, entity_id: str, *, dry_run: bool = False
    ) -> ErasureCount:
        """Rows of every table with a column `entity_id`."""
        rows = files = 0
        for file in tables_below(self._paths):
            found = _count(file, entity_id)
            if found and not dry_run:
                _rewrite(file, entity_id)
                renew_record(file, {"at": _now(), "rows": found})
            rows, files = rows + found, files + bool(found)
        return ErasureCount(rows, f"{files:,} files" if files else "")


def tables_below(paths: Iterable[Path]) -> list[Path]:
    """Parquet and CSV files with a column `entity_id`, sorted.

    Raises:
        DataError: a file that cannot be read: nobody knows whom it holds.
    """
    found: set[Path] = set()
    for path in paths:
        files = [path] if path.is_file() else path.rglob("*")
        found |= {f for f in files if f.suffix in (".parquet", ".csv") and f.is_file()}
    return sorted(f for f in found if COLUMN in _columns(f))


def _columns(file: Path) -> list[str]:
    try:
        return _rows(file).collect_schema().names()
    except pl.exceptions.PolarsError as exc:
        raise DataError(f"{file}: cannot be read, so nobody knows what it holds: {exc}") from None


def _rows(file: Path) -> pl.LazyFrame:
    if file.suffix == ".csv":
        # As text: what is written again says what was read.
        return pl.scan_csv(file, infer_schema=False)
    return pl.scan_parquet(file, hive_partitioning=False, glob=False)


def _mine(entity_id: str) -> pl.Expr:
    return pl.col(COLUMN).cast(pl.String).str.strip_chars().eq_missing(pl.lit(entity_id))


def _count(file: Path, entity_id: str) -> int:
    try:
        return int(_rows(file).filter(_mine(entity_id)).select(pl.len()).collect().item())
    except pl.exceptions.PolarsError as exc:
        raise DataError(f"{file}: cannot be read, so nobody knows what it holds: {exc}") from None


def _rewrite(file: Path, entity_id: str) -> None:
    """The file without the rows; it is as it was or whole, whatever dies."""
    rest = _rows(file).filter(~_mine(entity_id)).collect()
    partial = file.with_name(f".{file.name}.{os.getpid()}.part")
    (rest.write_csv if file.suffix == ".csv" else rest.write_parquet)(partial)
    with partial.open("rb") as handle:
        os.fsync(handle.fileno())
    os.chmod(partial, file.stat().st_mode & 0o777)
    os.replace(partial, file)


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
