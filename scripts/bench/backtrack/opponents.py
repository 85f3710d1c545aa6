"""The same features by DuckDB and by polars, in several formulations each.

Both read the Parquet files of the store, only the columns they need, and the sample file as it
is; they write `row` (from 1) and the columns of `world.column_names` as Parquet.
"""

from __future__ import annotations

from pathlib import Path

from scripts.bench.backtrack.world import SOURCES, WINDOWS

DAY = 86_400_000_000
LONGEST = max(WINDOWS)


def files(world: Path, source: str) -> str:
    """Glob of a source's Parquet files; every one belongs to the only import."""
    return str(world / "store" / "tables" / source / "*" / "*.parquet")


def duck_range(world: Path, out: Path, threads: int) -> None:
    """A range join of samples and events, then filtered aggregates."""
    parts = []
    for source, (_, number) in SOURCES.items():
        parts.append(
            f"{source} AS (SELECT s.row, {_duck_windows(source, number)}, "
            f'(max(s.us) - max(epoch_us(e.event_time))) / {DAY}.0 AS "{source} since_last" '
            f"FROM s JOIN read_parquet('{files(world, source)}') e "
            "ON e.entity_id = s.entity_id AND e.known_at < s.as_of GROUP BY s.row)"
        )
    _duck(world, out, threads, parts)


def duck_asof(world: Path, out: Path, threads: int) -> None:
    """The longest window by a range join; the last event by a running maximum and an ASOF join."""
    parts = []
    for source, (_, number) in SOURCES.items():
        parts += [
            f"{source}_e AS MATERIALIZED (SELECT e.entity_id, e.event_time, e.known_at, "
            f"e.{number} FROM read_parquet('{files(world, source)}') e "
            "SEMI JOIN s ON e.entity_id = s.entity_id)",
            f"{source}_w AS (SELECT s.row, {_duck_windows(source, number)} "
            f"FROM s JOIN {source}_e e ON e.entity_id = s.entity_id AND e.known_at < s.as_of "
            f"AND e.event_time >= s.as_of - INTERVAL {LONGEST} DAY GROUP BY s.row)",
            f"{source}_r AS (SELECT entity_id, known_at, max(event_time) OVER (PARTITION BY "
            f"entity_id ORDER BY known_at) AS latest FROM {source}_e)",
            f"{source}_l AS (SELECT s.row, (s.us - epoch_us(r.latest)) / {DAY}.0 AS "
            f'"{source} since_last" FROM s ASOF JOIN {source}_r r '
            "ON s.entity_id = r.entity_id AND r.known_at < s.as_of)",
            f'{source} AS (SELECT l.row, w.* EXCLUDE (row), l."{source} since_last" '
            f"FROM {source}_l l LEFT JOIN {source}_w w USING (row))",
        ]
    _duck(world, out, threads, parts)


def _duck_windows(source: str, number: str) -> str:
    """Filtered aggregates of all windows."""
    out = []
    for call, stat in (("count(*)", "count"), ("sum", "sum"), ("avg", "mean"), ("max", "max")):
        for w in WINDOWS:
            what = call if stat == "count" else f"{call}(e.{number})"
            out.append(
                f"{what} FILTER (e.event_time >= s.as_of - INTERVAL {w} DAY AND "
                f'e.event_time <= s.as_of) AS "{source} {stat} {w}d"'
            )
    return ", ".join(out)


def _duck(world: Path, out: Path, threads: int, parts: list[str]) -> None:
    """Run common table expressions named after the sources and write their join."""
    import duckdb

    con = duckdb.connect()
    con.execute(f"SET threads = {threads}")
    con.execute("SET preserve_insertion_order = false")
    con.execute("SET TimeZone = 'UTC'")
    con.execute(
        "CREATE TABLE s AS SELECT row_number() OVER () AS row, entity_id, "
        "as_of AT TIME ZONE 'UTC' AS as_of, epoch_us(as_of) AS us FROM "
        f"read_parquet('{world / 'samples.parquet'}')"
    )
    joins = " ".join(f"LEFT JOIN {name} USING (row)" for name in SOURCES)
    columns = ", ".join(f"{name}.* EXCLUDE (row)" for name in SOURCES)
    con.execute(
        f"COPY (WITH {', '.join(parts)} SELECT s.row, {columns} FROM s {joins}) "
        f"TO '{out}' (FORMAT parquet)"
    )


def polars_join(world: Path, out: Path, threads: int) -> None:
    """Join by entity, filter, filtered aggregates; polars' streaming engine."""
    _polars(world, out, where=False, engine="streaming")


def polars_memory(world: Path, out: Path, threads: int) -> None:
    """The same on polars' in-memory engine."""
    _polars(world, out, where=False, engine="in-memory")


def polars_where(world: Path, out: Path, threads: int) -> None:
    """The same by `join_where`."""
    _polars(world, out, where=True, engine="streaming")


def _polars(world: Path, out: Path, where: bool, engine: str) -> None:
    import polars as pl

    samples = (
        pl.scan_parquet(world / "samples.parquet")
        .with_row_index("row", 1)
        .with_columns(pl.col("as_of").dt.replace_time_zone("UTC"))
    )
    result = samples.select("row")
    for source, (_, number) in SOURCES.items():
        events = pl.scan_parquet(files(world, source), hive_partitioning=False).select(
            "entity_id", "event_time", "known_at", number
        )
        if where:
            pairs = samples.join_where(
                events.rename({"entity_id": "owner"}),
                pl.col("entity_id") == pl.col("owner"),
                pl.col("known_at") < pl.col("as_of"),
            )
        else:
            pairs = events.join(samples, on="entity_id").filter(
                pl.col("known_at") < pl.col("as_of")
            )
        age = pl.col("as_of") - pl.col("event_time")
        value = {w: pl.col(number).filter(pl.col("age").is_between(
            pl.duration(), pl.duration(days=w))) for w in WINDOWS}  # fmt: skip
        found = pairs.with_columns(age.alias("age")).group_by("row").agg(
            *(value[w].len().alias(f"{source} count {w}d") for w in WINDOWS),
            *(value[w].sum().alias(f"{source} sum {w}d") for w in WINDOWS),
            *(value[w].mean().alias(f"{source} mean {w}d") for w in WINDOWS),
            *(value[w].max().alias(f"{source} max {w}d") for w in WINDOWS),
            (pl.col("age").min().dt.total_microseconds() / DAY).alias(f"{source} since_last"),
        )  # fmt: skip
        result = result.join(found, on="row", how="left")
    result.collect(engine=engine).write_parquet(out)


FORMULATIONS = {
    "duckdb range join": duck_range,
    "duckdb asof and range": duck_asof,
    "polars join, streaming": polars_join,
    "polars join, in memory": polars_memory,
    "polars join_where": polars_where,
}
