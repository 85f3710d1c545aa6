"""Reading tables: Parquet, CSV, Delta directories and globs, and the times in them.

A CSV file is checked record by record before it is parsed, because parsers fill a short record
with nulls without a word. CSV columns stay text (an id `007` stays `007`); what a column means is
decided where its kind is known. Times become naive `Datetime('us')` in UTC.
"""

from __future__ import annotations

import glob
import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from deltalake import DeltaTable, QueryBuilder

from foundation.errors import DataError, listing

CSV_ENDINGS = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
PARQUET_ENDINGS = (".parquet", ".pq")
SEPARATORS = ",;\t|"
_CHUNK = 1 << 25
_QUOTE, _NEWLINE = ord('"'), ord("\n")
_CLOCK = "%Y-%m-%d %H:%M:%S%.f"
_WITH_OFFSET = r"\d{2}:\d{2}.*?\s*(?:[Zz]|[+-]\d{2}(?::?\d{2})?)$"
_OFFSET = r"([+-]\d{2}(?::?\d{2})?)$"


@dataclass(frozen=True)
class Part:
    """One file of a table; row r of `frame` is row r + 1 of the file, its header not counted."""

    file: str
    frame: pl.DataFrame


def read_table(path: str | Path, where: str = "") -> pl.DataFrame:
    """Read a table whole.

    Args:
        path: a Parquet or CSV file, a glob, a Delta directory, or a directory of files.
        where: what the table is for, in messages, such as `source 'statement'`.
    Returns:
        The rows of all files in name order. CSV columns are strings, empty fields null.
    Raises:
        DataError: no such file, unreadable, a broken line (file and line), differing columns.
    """
    return pl.concat([part.frame for part in read_parts(path, where)], how="vertical_relaxed")


def read_parts(path: str | Path, where: str = "") -> list[Part]:
    """Like `read_table`, one part per file, all with the columns of the first."""
    parts = [Part(str(file), _read_file(file)) for file in table_files(path, where)]
    first = parts[0]
    for part in parts[1:]:
        if set(part.frame.columns) != set(first.frame.columns):
            raise DataError(
                f"{part.file}: columns ({listing(part.frame.columns)}) differ from those of "
                f"{first.file} ({listing(first.frame.columns)})"
            )
    columns = first.frame.columns
    return [Part(part.file, part.frame.select(columns)) for part in parts]


def table_files(path: str | Path, where: str = "") -> list[Path]:
    """The files of a table in name order; a Delta directory counts as one file.

    Raises:
        DataError: nothing is there.
    """
    prefix = f"{where}: " if where else ""
    path = Path(path)
    if (path / "_delta_log").is_dir():
        return [path]
    if path.is_dir():
        found = [p for p in sorted(path.iterdir()) if _ending(p)]
    elif path.is_file():
        return [path]
    else:
        found = [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]
    if not found:
        raise DataError(f"{prefix}{path}: no such file, Delta directory or match of a pattern")
    return found


def is_table(path: Path) -> bool:
    """Whether the file's ending says Parquet or CSV."""
    return bool(_ending(path))


def _read_delta(path: Path) -> pl.DataFrame:
    """The latest version of a Delta table, wherever it lies.

    polars asks for a table's files by percent-encoded names and finds none where a folder or the
    value of a partition holds a blank or letters beyond ASCII. The rows that deltalake's own engine
    gives then come in no particular order, so they are sorted.
    """
    try:
        return pl.read_delta(str(path))
    except FileNotFoundError:
        rows = QueryBuilder().register("t", DeltaTable(str(path))).execute("select * from t")
        frame = pl.DataFrame(rows.read_all())
        return frame.sort(frame.columns)


def _ending(path: Path) -> str:
    name = path.name.lower()
    return next((e for e in (*CSV_ENDINGS, *PARQUET_ENDINGS) if name.endswith(e)), "")


def _read_file(path: Path) -> pl.DataFrame:
    try:
        if (path / "_delta_log").is_dir():
            return _read_delta(path)
        if _ending(path) in PARQUET_ENDINGS:
            return pl.read_parquet(path, hive_partitioning=False)
    except Exception as exc:  # readers of three libraries raise a dozen types
        kind = "Delta table" if path.is_dir() else "Parquet file"
        raise DataError(f"{path}: not a readable {kind}: {_first_line(exc)}") from None
    if _ending(path) in CSV_ENDINGS:
        return read_csv(path)
    raise DataError(
        f"{path}: cannot tell what this is; expected a Delta directory or a file ending in "
        f"{listing((*PARQUET_ENDINGS, *CSV_ENDINGS))}"
    )


def _first_line(exc: Exception) -> str:
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0]


# ---------------------------------------------------------------------------------------- CSV


def read_csv(path: str | Path) -> pl.DataFrame:
    """Read a CSV file into string columns; quoted newlines are part of a field.

    The separator is the one of `,` `;` tab `|` that the header line holds most.

    Raises:
        DataError: not UTF-8, no header, a duplicate column, an unclosed quote, or a line with
            another number of fields than the header; names the file and the line.
    """
    path = Path(path)
    data = _csv_bytes(path)
    if not data.strip():
        raise DataError(f"{path}: the file is empty; expected a header line with column names")
    head = data[: data.find(b"\n") if b"\n" in data else len(data)]
    separator = max(SEPARATORS, key=lambda s: (head.count(s.encode()), -SEPARATORS.index(s)))
    _check_records(path, data, separator)
    try:
        frame = pl.read_csv(data, infer_schema=False, separator=separator)
    except pl.exceptions.PolarsError as exc:
        raise DataError(f"{path}: not a readable CSV file: {_first_line(exc)}") from None
    doubled = [c for c in frame.columns if "_duplicated_" in c]
    if doubled:
        name = doubled[0].rsplit("_duplicated_", 1)[0]
        raise DataError(f"{path}, line 1: column '{name}' stands twice in the header")
    frame = frame.rename({c: c.strip() for c in frame.columns if c != c.strip()})
    text = pl.col(pl.String)
    return frame.with_columns(pl.when(text.str.strip_chars() != "").then(text))


def _csv_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        if path.name.lower().endswith(".gz"):
            data = gzip.decompress(data)
    except (OSError, EOFError) as exc:
        raise DataError(f"{path}: cannot be read: {exc}") from None
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise DataError(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8") from None
    data = data.removeprefix(b"\xef\xbb\xbf")
    return data.rstrip(b"\r\n") + b"\n"


def _check_records(path: Path, data: bytes, separator: str) -> None:
    """Refuse records whose number of fields differs from the header's; numpy over bytes."""
    expected = 0
    for line, fields in _records(path, data, ord(separator)):
        if not expected:
            expected = int(fields[0])
        wrong = np.flatnonzero(fields != expected)
        if len(wrong):
            at = int(wrong[0])
            raise DataError(
                f"{path}, line {int(line[at])}: found {int(fields[at])} fields, expected "
                f"{expected} as in the header"
            )


def _records(path: Path, data: bytes, separator: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield, chunk by chunk, the first line number and the number of fields of every record."""
    raw = np.frombuffer(data, dtype=np.uint8)
    inside, opened, lines, carried = 0, 0, 0, 0
    record_line = 1
    for begin in range(0, len(raw), _CHUNK):
        part = raw[begin : begin + _CHUNK]
        quotes = part == _QUOTE
        outside = ((np.cumsum(quotes) + inside) & 1) == 0
        newlines = part == _NEWLINE
        if quotes.any():
            last = int(np.flatnonzero(quotes)[-1])
            opened = lines + int(newlines[:last].sum()) + 1
        ends = np.flatnonzero(newlines & outside)
        commas = np.flatnonzero((part == separator) & outside)
        upto = np.searchsorted(commas, ends)
        fields = np.diff(upto, prepend=0) + 1
        line_after = lines + np.cumsum(newlines)[ends] + 1
        if len(ends):
            fields[0] += carried
            yield np.concatenate([[record_line], line_after[:-1]]), fields
            carried = len(commas) - int(upto[-1])
            record_line = int(line_after[-1])
        else:
            carried += len(commas)
        inside = (inside + int(quotes.sum())) & 1
        lines += int(newlines.sum())
    if inside:
        raise DataError(f"{path}, line {opened}: a quote is opened and never closed")


# --------------------------------------------------------------------------------------- times


def parse_times(
    series: pl.Series,
    zone: str,
    where: str,
    strict: bool = False,
    ambiguous: Literal["earliest", "latest"] = "latest",
) -> pl.Series:
    """Times of a column as naive `Datetime('us')` in UTC.

    Naive times and dates (midnight) are read in `zone`, times with an offset are converted. A
    local time that occurs twice when clocks go back is read as the `latest` (what may have been
    known later was not known earlier) or the `earliest`; one that never occurs is read with the
    offset before the change, so 02:30 becomes 03:30.

    Args:
        series: Datetime, Date or strings such as 2017-01-31, 2017-01-31 10:00[:00[.123456]],
            2017-01-31T10:00:00Z, 2017-01-31 10:00+08:00; `/` is read as `-`. So are 2017/1/31,
            2017年1月31日, 20170131 and, day first as dots say, 31.1.2017. 31/1/2017 is not: nobody
            knows what 3/1/2017 is.
        where: file and column, for messages.
        strict: raise at the first missing or unreadable time instead of returning null for it.
    Raises:
        DataError: naive times and times with offsets mixed in one column (row of each), a type
            that holds no times, or not one readable time.
    """
    if isinstance(series.dtype, pl.Datetime):
        if series.dtype.time_zone:
            utc = series.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
            out = utc.dt.cast_time_unit("us")
        else:
            out = _localise(series.dt.cast_time_unit("us"), zone, ambiguous)
    elif series.dtype == pl.Date:
        out = _localise(series.cast(pl.Datetime("us")), zone, ambiguous)
    elif series.dtype == pl.Null:
        out = series.cast(pl.Datetime("us"))
    elif series.dtype in (pl.String, pl.Categorical):
        out = _from_text(series.cast(pl.String), zone, where, ambiguous)
    else:
        raise DataError(
            f"{where}: expected times, found {series.dtype}; write them as 2017-01-31 10:00:00"
        )
    if strict and out.null_count():
        row = int(out.is_null().arg_max() or 0)
        found = "is missing" if series[row] is None else f"'{series[row]}' is not readable"
        raise DataError(f"{where}, row {row + 1}: time {found}; write 2017-01-31 10:00:00")
    return out.alias(series.name)


def _from_text(
    series: pl.Series, zone: str, where: str, ambiguous: Literal["earliest", "latest"]
) -> pl.Series:
    """Parse strings; null where unreadable."""
    text = series.str.strip_chars()
    aware = text.str.contains(_WITH_OFFSET)
    clock = (
        pl.select(
            pl.when(aware)
            .then(text.str.replace(r"\s*(?:[Zz]|[+-]\d{2}(?::?\d{2})?)$", ""))
            .otherwise(text)
            .str.replace_all("/", "-")
            .str.replace("[Tt]", " ")
            .alias("t")
        )
        .select(
            pl.when(pl.col("t").str.len_bytes() == 10)
            .then(pl.col("t") + " 00:00:00")
            .when(pl.col("t").str.len_bytes() == 16)
            .then(pl.col("t") + ":00")
            .otherwise("t")
        )
        .to_series()
    )
    local = clock.str.to_datetime(_CLOCK, strict=False, time_unit="us")
    if local.null_count() > text.null_count():
        local = local.fill_null(
            _in_full(clock).str.to_datetime(_CLOCK, strict=False, time_unit="us")
        )
    given = text.drop_nulls()
    if len(given) and local.null_count() == len(local):
        row = int(text.is_not_null().arg_max() or 0)
        raise DataError(
            f"{where}: no time in this column is readable (row {row + 1}: '{text[row]}'); "
            "write them as 2017-01-31 10:00:00"
        )
    with_offset = (aware & local.is_not_null()).fill_null(False)
    naive = (~aware & local.is_not_null()).fill_null(False)
    if with_offset.any() and naive.any():
        a, b = int(with_offset.arg_max() or 0), int(naive.arg_max() or 0)
        raise DataError(
            f"{where}: time zones mixed: row {a + 1} '{text[a]}' has an offset and row {b + 1} "
            f"'{text[b]}' has none; write all with an offset, or all without and declare time_zone"
        )
    if not with_offset.any():
        return _localise(local, zone, ambiguous)
    digits = text.str.extract(_OFFSET).str.replace(":", "").str.pad_end(5, "0")
    hours, minutes = digits.str.slice(1, 2).cast(pl.Int64), digits.str.slice(3, 2).cast(pl.Int64)
    sign = pl.select(pl.when(digits.str.starts_with("-")).then(-1).otherwise(1)).to_series()
    shift = (sign * (hours * 60 + minutes)).fill_null(0)
    return local - (shift * 60_000_000).cast(pl.Duration("us"))


def _in_full(clock: pl.Series) -> pl.Series:
    """Times written in other orders or with fewer digits, as 2017-01-31 10:00:00."""
    text = clock.str.replace(r"^(\d{4})年(\d{1,2})月(\d{1,2})日?", "$1-$2-$3")
    text = text.str.replace(r"^(\d{1,2})\.(\d{1,2})\.(\d{4})", "$3-$2-$1")
    text = text.str.replace(r"^(\d{4})(\d{2})(\d{2})($| )", "$1-$2-$3$4")
    text = text.str.replace(r"^(\d{4}-\d{1,2}-\d{1,2})\s*(\d{1,2}:\d{2})$", "$1 $2:00")
    return text.str.replace(r"^(\d{4}-\d{1,2}-\d{1,2})$", "$1 00:00:00")


def _localise(local: pl.Series, zone: str, ambiguous: Literal["earliest", "latest"]) -> pl.Series:
    """Naive local times to naive UTC."""
    if zone == "UTC":
        return local
    day = pl.duration(days=1)
    column = pl.col("t")
    utc = pl.DataFrame({"t": local}).select(
        pl.coalesce(
            moment.dt.replace_time_zone(zone, ambiguous=ambiguous, non_existent="null")
            .dt.convert_time_zone("UTC")
            .dt.replace_time_zone(None)
            + back
            for moment, back in ((column, pl.duration(days=0)), (column - day, day))
        )
    )
    return utc.to_series()


def parse_numbers(series: pl.Series) -> pl.Series:
    """Numbers as Float64, null where the text is no number; infinities become null."""
    if series.dtype in (pl.String, pl.Categorical):
        series = series.cast(pl.String).str.strip_chars()
    out = series.cast(pl.Float64, strict=False).fill_nan(None)
    return pl.select(pl.when(out.is_finite()).then(out).alias(series.name)).to_series()
