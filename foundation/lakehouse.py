"""Delta tables of the store: bucketed by entity, sorted inside, read at pinned versions.

A table starts as an empty version 0. A version that no import record pins is never read, and the
next write first restores the pinned one, so what an interrupted import left behind stays unseen.
Times stand in Delta as UTC timestamps (Spark, DuckDB and Ray read them) and come out naive UTC.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
from deltalake import ColumnProperties, DeltaTable, WriterProperties, write_deltalake

from foundation.errors import ConfigError
from foundation.history import entity_codes

BUCKETS = 16
BUCKET = "entity_bucket"
ROW = "import_row"
INTERNAL = (BUCKET, ROW)
# deltalake ends the process where a path holds one of these.
FORBIDDEN = "[]^|\\"
_PRIME = np.uint64(1_099_511_628_211)
_MIX = np.uint64(0xFF51AFD7ED558CCD)
# Times hardly repeat: a dictionary only slows reading. Row groups are small enough for a reader of
# some entities to skip the others.
_PLAIN = ColumnProperties(dictionary_enabled=False)
_LAYOUT = WriterProperties(
    compression="LZ4_RAW",
    max_row_group_size=131_072,
    column_properties={"event_time": _PLAIN, "known_at": _PLAIN, ROW: _PLAIN},
)


def buckets_of(entity_ids: pl.Series) -> np.ndarray:
    """[n] int32 bucket of each id, stable for ever."""
    return ((keys_of(entity_ids) >> np.uint64(40)) % np.uint64(BUCKETS)).astype(np.int32)


def keys_of(entity_ids: pl.Series) -> np.ndarray:
    """[n] uint64 of each id: a polynomial hash of its UTF-8 bytes, stable for ever."""
    lengths = entity_ids.str.len_bytes().to_numpy().astype(np.int64)
    if not len(lengths):
        return np.zeros(0, dtype=np.uint64)
    data = np.frombuffer(entity_ids.str.join("").item().encode(), dtype=np.uint8)
    starts = np.cumsum(lengths) - lengths
    place = np.arange(len(data)) - np.repeat(starts, lengths)
    powers = np.ones(int(lengths.max()) + 1, dtype=np.uint64)
    powers[1:] = _PRIME
    powers = np.cumprod(powers, dtype=np.uint64)
    terms = (data.astype(np.uint64) + np.uint64(1)) * powers[place]
    mixed = np.add.reduceat(terms, starts)
    return (mixed ^ (mixed >> np.uint64(33))) * _MIX


def require_nameable(directory: Path) -> None:
    """Refuse a directory that deltalake cannot name.

    Raises:
        ConfigError: its path holds one of `FORBIDDEN`.
    """
    found = [sign for sign in FORBIDDEN if sign in str(directory.absolute())]
    if found:
        raise ConfigError(
            f"{directory}: a store cannot lie below a folder with '{found[0]}' in its name; "
            "choose another"
        )


def create_table(path: Path, columns: Mapping[str, pl.DataType]) -> None:
    """Create an empty table at version 0; an existing one stays as it is."""
    if DeltaTable.is_deltatable(str(path)):
        return
    path.mkdir(parents=True, exist_ok=True)
    empty = _to_delta(pl.DataFrame(schema=dict(columns) | {ROW: pl.Int64(), BUCKET: pl.Int32()}))
    write_deltalake(str(path), empty, partition_by=[BUCKET], mode="ignore")


def append(path: Path, pinned: int, frame: pl.DataFrame, first_row: int) -> int:
    """Append rows on top of the pinned version.

    Args:
        frame: `entity_id` (never null), `known_at`, perhaps `event_time`, fields.
        first_row: number the first row gets; numbers run on in frame order.
    Returns:
        The Delta version that holds the pinned rows and the new ones.
    """
    table = DeltaTable(str(path))
    if table.version() != pinned:
        table.restore(pinned)
        table = DeltaTable(str(path))
    if not len(frame):
        return int(table.version())
    ids, (codes,) = entity_codes(frame["entity_id"])
    frame = frame.with_columns(
        pl.int_range(first_row, first_row + len(frame), dtype=pl.Int64, eager=True).alias(ROW),
        pl.Series(BUCKET, buckets_of(ids)[codes]),
        pl.Series("_code", codes),
    )
    times = ["known_at", *(["event_time"] if "event_time" in frame.columns else [])]
    frame = frame.sort(BUCKET, "_code", *times, ROW).drop("_code")
    write_deltalake(
        table, _to_delta(frame), mode="append", partition_by=[BUCKET], writer_properties=_LAYOUT
    )
    return int(DeltaTable(str(path)).version())


def merge(path: Path, pinned: int, target: int) -> int:
    """Bring every bucket of several files into one, rows in the order in which `append` sorts.

    One commit a bucket, so no more than a bucket is held.

    Args:
        target: bytes up to which rows stay in one file.
    Returns:
        The Delta version with the same rows in fewer files; `pinned` where there is none to merge.
    """
    listed = bucket_files(path, pinned).group_by("bucket", maintain_order=True).agg("file")
    split = listed.filter(pl.col("file").list.len() > 1)
    if not len(split):
        return pinned
    table = DeltaTable(str(path))
    if table.version() != pinned:
        table.restore(pinned)
    for bucket, files in split.iter_rows():
        rows = pl.read_parquet(files, hive_partitioning=False, glob=False)
        _replace_bucket(path, bucket, rows, target)
    return int(DeltaTable(str(path)).version())


def _replace_bucket(path: Path, bucket: int, rows: pl.DataFrame, target: int | None) -> None:
    """One bucket with these rows, sorted as `append` sorts; the others stay."""
    times = [c for c in ("known_at", "event_time") if c in rows.columns]
    _, (codes,) = entity_codes(rows["entity_id"])
    rows = rows.with_columns(pl.Series("_code", codes)).sort("_code", *times, ROW)
    write_deltalake(
        str(path),
        rows.drop("_code").with_columns(pl.lit(bucket, pl.Int32).alias(BUCKET)),
        mode="overwrite",
        predicate=f"{BUCKET} = {bucket}",
        partition_by=[BUCKET],
        writer_properties=_LAYOUT,
        target_file_size=target,
    )


def count_entity(path: Path, pinned: int, entity_id: str) -> int:
    """Rows of one entity."""
    rows = scan(path, pinned, pl.Series([entity_id])).select(pl.len()).collect()
    return int(rows.item())


def without_entity(path: Path, pinned: int, entity_id: str) -> int:
    """Write the bucket of an entity anew, without its rows; no more than a bucket is held.

    Returns:
        The Delta version without them; `pinned` where there are none.
    """
    table = DeltaTable(str(path))
    if table.version() != pinned:
        table.restore(pinned)
    if not count_entity(path, int(table.version()), entity_id):
        return int(table.version())
    bucket = int(buckets_of(pl.Series([entity_id]))[0])
    files = bucket_files(path, int(table.version())).filter(pl.col("bucket") == bucket)["file"]
    rows = pl.read_parquet(files.to_list(), hive_partitioning=False, glob=False)
    rest = rows.filter(pl.col("entity_id") != entity_id)
    if len(rest):
        _replace_bucket(path, bucket, rest, None)
    else:
        DeltaTable(str(path)).delete(f"{BUCKET} = {bucket}")
    return int(DeltaTable(str(path)).version())


def forget_files(path: Path) -> int:
    """Delete every file that the latest version does not read.

    Returns:
        The latest Delta version after that, with the same rows.
    """
    DeltaTable(str(path)).vacuum(0, dry_run=False, enforce_retention_duration=False, full=True)
    return int(DeltaTable(str(path)).version())


def forget_log(path: Path) -> None:
    """Keep the latest version only: earlier entries of the log cannot be read any more.

    An entry names the smallest and the largest entity of the files it added.
    """
    table = DeltaTable(str(path))
    table.create_checkpoint()
    for file in (path / "_delta_log").iterdir():
        if file.name[:20].isdigit() and int(file.name[:20]) < table.version():
            file.unlink()


def forget(path: Path, pinned: int, days: int) -> int:
    """Delete files that the pinned version does not read and that are older than some days.

    Returns:
        how many.
    """
    table = DeltaTable(str(path))
    if table.version() != pinned:
        table.restore(pinned)
        table = DeltaTable(str(path))
    return len(table.vacuum(days * 24, dry_run=False, enforce_retention_duration=False))


def scan(
    path: Path,
    pinned: int,
    entities: pl.Series | None = None,
    until_us: int | None = None,
    below: int | None = None,
) -> pl.LazyFrame:
    """Rows at a pinned version, in no particular order, times still in UTC zone.

    Args:
        entities: only these (str); buckets without any of them are not opened.
        until_us: only rows with known_at < until_us; rows without known_at stay.
        below: only rows whose number is smaller; None for all.
    """
    listed = bucket_files(path, pinned)
    wanted = None if entities is None else entities.cast(pl.String).drop_nulls().unique()
    if wanted is not None:
        held = np.unique(buckets_of(wanted)).tolist()
        listed = listed.filter(pl.col("bucket").is_in(held))
    if len(listed):
        # Not scan_delta: it asks for files by percent-encoded names and finds none below a folder
        # whose name holds a blank or letters beyond ASCII.
        rows = pl.scan_parquet(listed["file"].to_list(), hive_partitioning=False, glob=False)
    else:
        rows = pl.scan_delta(str(path), version=pinned).drop(BUCKET).clear()
    if below is not None:
        rows = rows.filter(pl.col(ROW) < below)
    if until_us is not None:
        until = pl.lit(until_us).cast(pl.Datetime("us", "UTC"))
        rows = rows.filter(pl.col("known_at").is_null() | (pl.col("known_at") < until))
    if wanted is not None:
        if len(wanted):
            low, high = pl.lit(wanted.min()), pl.lit(wanted.max())
            rows = rows.filter(pl.col("entity_id").is_between(low, high))
        rows = rows.join(wanted.alias("entity_id").to_frame().lazy(), on="entity_id", how="semi")
    return rows


def bucket_files(path: Path, pinned: int) -> pl.DataFrame:
    """The files of a table at a pinned version.

    Returns:
        `bucket` (Int32), `file` (full path), `rows` (Int64), sorted by bucket and file; every file
        is sorted by (entity_id, times, import order) as `append` writes it.
    """
    table = DeltaTable(str(path), version=pinned)
    added = pl.DataFrame(table.get_add_actions(flatten=True))
    if not len(added):
        return pl.DataFrame(schema={"bucket": pl.Int32, "file": pl.String, "rows": pl.Int64})
    return added.select(
        pl.col(f"partition.{BUCKET}").cast(pl.Int32).alias("bucket"),
        (pl.lit(f"{path}/") + pl.col("path")).alias("file"),
        pl.col("num_records").cast(pl.Int64).alias("rows"),
    ).sort("bucket", "file")


def in_order(rows: pl.DataFrame, *times: str) -> pl.DataFrame:
    """Rows of a table sorted by (entity_id, times, import order), without internal columns."""
    _, (codes,) = entity_codes(rows["entity_id"])
    rows = rows.with_columns(pl.Series("_code", codes)).sort("_code", *times, ROW)
    return rows.drop("_code", *(c for c in INTERNAL if c in rows.columns))


def naive(frame: pl.DataFrame) -> pl.DataFrame:
    """Zoned UTC times as naive UTC; the values do not change."""
    return frame.with_columns(pl.col(pl.Datetime("us", "UTC")).dt.replace_time_zone(None))


def _to_delta(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(pl.col(pl.Datetime("us")).dt.replace_time_zone("UTC"))
