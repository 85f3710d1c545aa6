"""What pragmatiq's simulator writes, as prepared sets: made here for a few users, not simulated."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from foundation.errors import DataError
from foundation.schema import load_schema
from scripts import synthetic as script
from scripts.bench.fewlabels import command, evaluation, outputs
from scripts.bench.fewlabels.plain_features import plain_features
from scripts.bench.fewlabels.sets import ROOT, SETS, SYNTHETIC, open_set
from scripts.bench.fewlabels.synthetic import ATTRIBUTES, SOURCES, TASKS, prepare_synthetic

USERS, MONTHS, UNLABELLED = 240, 12, 10
START = dt.datetime(2023, 1, 1)
MOMENTS = dict(zip(SYNTHETIC, (dt.datetime(2023, 8, 1), dt.datetime(2023, 10, 1)), strict=True))
PAIRS = pl.List(pl.Struct({"key": pl.String, "value": pl.String}))


def mapped(pairs: list[dict[str, str]]) -> pl.Series:
    """Mappings as the simulator's files hold them."""
    listed = [[{"key": k, "value": v} for k, v in each.items()] for each in pairs]
    return pl.Series(listed, dtype=PAIRS).cast(pl.Map(pl.String, pl.String))


def simulated(folder: Path, change: dt.datetime | None = None) -> Path:
    """A simulator's folder: monthly events of every source; other ones from `change` on."""
    (folder / "labels").mkdir(parents=True)
    ids = pl.DataFrame({"user_id": [f"u_{i:08d}" for i in range(USERS)]})
    rows: list[tuple[dt.datetime, str, dict[str, str]]] = []
    for month in range(MONTHS):
        for day, events in enumerate(SOURCES.values()):
            at = START + dt.timedelta(days=31 * month + day)
            word = "later" if change is not None and at >= change else f"w{month % 3}"
            fields = dict.fromkeys(events.fields, word)
            number = "99999" if word == "later" else f"{10 + month}.5"
            fields |= {n: number for n in ("amount", "price", "quantity") if n in fields}
            if events.received is not None:
                fields["txn_type"] = "p2p_in" if events.received else "card_payment"
            rows.append((at, events.source, fields))
    times, names, fields_of = zip(*rows, strict=True)
    events = pl.DataFrame({"ts": times, "source": names, "fields": mapped(list(fields_of))})
    # Users join one after the other, so that their histories differ.
    joined = pl.lit(START) + pl.duration(days=pl.col("user_id").str.slice(-1).cast(pl.Int64) * 20)
    ids.join(events, how="cross").filter(pl.col("ts") >= joined).write_parquet(
        folder / "events.parquet"
    )
    steps = [{"key": "account_opened", "ts": START}, {"key": "moved", "ts": max(MOMENTS.values())}]
    ids.with_columns(
        attributes=mapped([dict.fromkeys(ATTRIBUTES, "2")] * USERS),
        lifelong=pl.Series([steps] * USERS),
    ).write_parquet(folder / "profiles.parquet")
    for name, one_in in zip(SYNTHETIC, (8, 5), strict=True):
        some = ids.head(USERS - UNLABELLED).with_row_index("i")
        label = (pl.col("i") % one_in == 0).cast(pl.Int8)
        some.select("user_id", pl.lit(MOMENTS[name]).alias("eval_ts"), label=label).write_parquet(
            folder / "labels" / f"{TASKS[name].table}.parquet"
        )
    world = {"seed": 11, "months": MONTHS}
    manifest = {"pragmatiq_version": "1.1.0", "n_users": USERS, "config": world}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with both sets."""
    root = tmp_path_factory.mktemp("synthetic")
    assert script.main([str(simulated(root / "sim")), "-o", str(root)]) == 0
    return root


@pytest.mark.parametrize("name", SYNTHETIC)
def test_prepared_folder(name: str, data: Path) -> None:
    folder = data / "prepared" / name
    meta = json.loads((folder / "meta.json").read_text())
    schema = load_schema(ROOT / "configs" / "schemas" / f"{name}.yaml")
    assert meta["title"].startswith("Synthetic:") and meta["synthetic"]
    assert set(meta["sources"]) == set(schema.sources)
    pool, test, others = (
        pl.read_parquet(folder / f"{p}.parquet") for p in ("pool", "test", "unlabelled")
    )
    users = [set(part["entity_id"]) for part in (pool, test, others)]
    assert sum(map(len, users)) == USERS == len(set.union(*users))
    assert len(others) == UNLABELLED == meta["n_unlabelled"]
    assert set(pl.concat([pool["as_of"], test["as_of"]])) == {MOMENTS[name]}
    assert meta["n_bad_pool"] == pool["label"].sum() > 0
    # All that happened before as_of, and nothing else.
    written = pl.scan_parquet(data / "sim" / "events.parquet").collect()
    before = written.filter(pl.col("ts") < MOMENTS[name])
    counts = {source: part["rows"] for source, part in meta["sources"].items()}
    assert counts.pop("milestone") == USERS  # the later step is not known yet
    assert sum(counts.values()) == len(before) < len(written)
    for source in schema.sources.values():
        frame = pl.read_parquet(folder / source.path)
        assert frame["event_time"].max() < MOMENTS[name]
        assert set(source.fields) <= set(frame.columns)
    assert pl.read_parquet(folder / "money_in.parquet")["txn_type"].unique().to_list() == ["p2p_in"]
    assert pl.read_parquet(folder / "money_out.parquet")["amount"].dtype == pl.Float64


def test_drawn_from_by_name(data: Path, tmp_path: Path) -> None:
    given = command.parser().parse_args(["--data", str(data), "--sets", ",".join(SYNTHETIC)])
    settings = command.read_settings(given)
    assert settings.sets == SYNTHETIC
    rare, often = (open_set(name, settings.data, tmp_path) for name in SYNTHETIC)
    assert rare.synthetic and often.tracks == ("S",)
    assert often.until_us == int(often.as_of_us.min())
    drawn = often.draw(60, 0)
    assert often.y[drawn].sum() >= 10 and set(drawn) <= set(often.splits[0].pool)
    np.testing.assert_array_equal(drawn, often.draw(60, 0))
    # One in eight is bad: 60 labels hold no ten of them, and the set opens all the same.
    assert not rare.possible(60, 0, "stratified")


def test_changed_future_changes_no_feature(data: Path, tmp_path: Path) -> None:
    """Everything at or after as_of is another event; the features of all samples stay."""
    name = SYNTHETIC[1]
    other = simulated(tmp_path / "sim", change=MOMENTS[name])
    prepare_synthetic(other, tmp_path / "prepared", [name])
    before, now = (
        plain_features(open_set(name, root / "prepared", tmp_path / work))
        for root, work in ((data, "one"), (tmp_path, "other"))
    )
    assert before.columns == now.columns
    np.testing.assert_array_equal(before.values, now.values)
    # An event before as_of does change them.
    earlier = simulated(tmp_path / "earlier", change=MOMENTS[name] - dt.timedelta(days=60))
    prepare_synthetic(earlier, tmp_path / "third", [name])
    changed = plain_features(open_set(name, tmp_path / "third", tmp_path / "last"))
    assert not np.array_equal(before.values, changed.values, equal_nan=True)


def test_fewer_users(data: Path, tmp_path: Path) -> None:
    (folder,) = prepare_synthetic(data / "sim", tmp_path, SYNTHETIC[:1], users=100)
    assert len(pl.read_parquet(folder / "profile.parquet")) == 100
    assert pl.read_parquet(folder / "app.parquet")["entity_id"].n_unique() == 100
    assert "100 of 240 users" in json.loads((folder / "meta.json").read_text())["title"]
    with pytest.raises(DataError, match="cannot take 999 users"):
        prepare_synthetic(data / "sim", tmp_path, users=999)


def test_faults_are_named(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main([str(tmp_path / "none"), "-o", str(tmp_path)]) == 2
    assert "pragmatiq synth generate --n-users 8000 --seed 11" in capsys.readouterr().err
    assert script.main([str(data / "sim"), "-o", str(tmp_path), "--sets", "synthetic_churm"]) == 2
    assert "did you mean 'synthetic_churn'" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"scripts/synthetic\.py writes it"):
        open_set(SYNTHETIC[0], tmp_path / "prepared", tmp_path / "work")
    other = simulated(tmp_path / "sim")
    table = other / "labels" / f"{TASKS[SYNTHETIC[1]].table}.parquet"
    frame = pl.read_parquet(table).with_columns(
        eval_ts=pl.col("eval_ts") + pl.duration(days=pl.col("label").cast(pl.Int64))
    )
    frame.write_parquet(table)
    with pytest.raises(DataError, match="expected one eval_ts for all users, found 2"):
        prepare_synthetic(other, tmp_path, SYNTHETIC[1:])
    events = pl.read_parquet(other / "events.parquet")
    emptied = mapped([{"txn_type": "p2p_in"}] * len(events))
    events.with_columns(fields=emptied).write_parquet(other / "events.parquet")
    with pytest.raises(DataError, match="no 'transaction' event has the fields amount"):
        prepare_synthetic(other, tmp_path, SYNTHETIC[:1])


def test_only_named_and_in_no_mean(data: Path, tmp_path: Path) -> None:
    assert command.sets_there(data / "prepared") == SETS  # so that they are missed by name
    (tmp_path / "uci").mkdir()
    (tmp_path / "uci" / "meta.json").write_text("{}")
    assert command.sets_there(tmp_path) == ("uci",)
    found = {}
    rng = np.random.default_rng(0)
    for name in SYNTHETIC:
        found[name] = evaluation.SetResults(open_set(name, data / "prepared", tmp_path))
        y = found[name].truth(0)
        found[name].scores["lr", 60, 0] = y + rng.normal(size=len(y))
        found[name].scores["auto", 60, 0] = y + rng.normal(size=len(y))
    bootstraps = {n: evaluation.Bootstrap(r, replicates=20) for n, r in found.items()}
    table = outputs._gains(found, bootstraps, "auto")
    assert all(f"| {name} |" in table for name in SYNTHETIC) and "mean" not in table
