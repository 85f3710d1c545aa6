"""The simulated lending world: seeded, point in time, selected, drifting, called synthetic."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from foundation.errors import ConfigError
from foundation.simulation import (
    HIDDEN,
    Part,
    WorldSize,
    known_between,
    known_by,
    simulate,
    world_end,
)
from foundation.simulation_files import schema_document, write_days, write_world
from foundation.simulation_people import TAIL_MONTHS, make_people, transitions
from foundation.simulation_scenario import GRACE_DAYS, Scenario, load_scenario, month_starts
from foundation.store import EventStore, import_events

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "simulation" / "lending.yaml"
SCENARIO = load_scenario(CONFIG)
SIZE = WorldSize(customers=3000, months=24, seed=5)
DAYS = st.dates(dt.date(2023, 1, 2), dt.date(2025, 1, 1))


@pytest.fixture(scope="module")
def part() -> Part:
    return next(simulate(SCENARIO, SIZE))


@pytest.fixture(scope="module")
def few() -> Part:
    return next(simulate(SCENARIO, WorldSize(customers=200, months=24, seed=8)))


def ranked(y: np.ndarray, score: np.ndarray) -> float:
    """AUC by ranks."""
    order = pl.Series(score).rank().to_numpy()
    bads = y.sum()
    return float((order[y == 1].sum() - bads * (bads + 1) / 2) / (bads * (len(y) - bads)))


def midnight(day: dt.date) -> dt.datetime:
    return dt.datetime(day.year, day.month, day.day)


# ------------------------------------------------------------------------------------ the seed


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    size = WorldSize(customers=200, months=24, seed=9)
    write_world(SCENARIO, size, tmp_path / "a")
    write_world(SCENARIO, size, tmp_path / "b")
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    assert len(files) >= 15
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_another_seed_is_another_world(few: Part) -> None:
    other = next(simulate(SCENARIO, WorldSize(customers=200, months=24, seed=6)))
    assert not other.events["bill"].equals(few.events["bill"])


# --------------------------------------------------------------------------------- known when


def test_nothing_is_known_before_it_happens_or_before_the_customer_joins(part: Part) -> None:
    joined = part.profile.group_by("entity_id").agg(pl.col("stated_at").min())
    for name, frame in part.events.items():
        assert (frame["known_at"] > frame["event_time"]).all(), name
        late = frame.join(joined, on="entity_id", how="left")
        assert (late["known_at"] >= late["stated_at"]).all(), name
    first = part.applications.join(joined, on="entity_id", how="left")
    assert (first["as_of"] > first["stated_at"]).all()


def test_an_application_is_no_history_of_its_own_decision(part: Part) -> None:
    recorded = part.events["application"].rename({"event_time": "as_of"})
    own = part.applications.join(recorded, on=["entity_id", "as_of"])
    assert len(own) == len(part.applications)
    assert (own["known_at"] > own["as_of"]).all()


@given(first=DAYS, second=DAYS)
@settings(max_examples=12)
def test_slices_add_up_to_what_is_known(few: Part, first: dt.date, second: dt.date) -> None:
    part = few
    since, until = sorted((midnight(first), midnight(second)))
    before, between, by = (
        known_by(part, since),
        known_between(part, since, until),
        known_by(part, until),
    )
    for name in part.events:
        joined = pl.concat([before.events[name], between.events[name]])
        assert_frame_equal(joined, by.events[name])
        assert (by.events[name]["known_at"] < until).all()
    assert_frame_equal(pl.concat([before.profile, between.profile]), by.profile)
    assert_frame_equal(pl.concat([before.labels, between.labels]), by.labels)
    assert len(by.applications) == len(by.refused) + (by.applications["approved"] == 1).sum()


def test_corrected_bills_come_later_and_say_so(part: Part) -> None:
    bills = part.events["bill"]
    key = ["entity_id", "bill_type", "due"]
    right = bills.filter("corrected")
    assert 0.01 < len(right) / len(bills) < 0.04
    both = right.join(bills.filter(~pl.col("corrected")), on=key, suffix="_first")
    assert len(both) == len(right)
    assert (both["event_time"] == both["event_time_first"]).all()
    assert (both["known_at"] > both["known_at_first"]).all()
    assert (both["status"] != both["status_first"]).all()


def test_some_events_are_late(part: Part) -> None:
    app = part.events["app"]
    lag = (app["known_at"] - app["event_time"]).dt.total_minutes()
    settled = app["event_time"] > dt.datetime(2023, 7, 1)
    assert 0.02 < (lag.filter(settled) > 24 * 60).mean() < 0.12


# ------------------------------------------------------------------------------------- labels


def test_labels_mature_after_their_window(part: Part) -> None:
    rows = part.applications
    days = (rows["label_known_at"] - rows["as_of"]).dt.total_days()
    assert days.min() >= 89 + GRACE_DAYS
    until = dt.datetime(2024, 6, 1)
    known = known_by(part, until)
    assert (known.labels["label_known_at"] < until).all()
    assert known.labels["as_of"].max() < until - dt.timedelta(days=110)
    assert "label" not in known.pending.columns
    assert known.pending.join(known.labels, on=["entity_id", "as_of"], how="semi").is_empty()
    assert len(known.pending) > 100


def test_a_label_is_what_the_repayments_say(part: Part) -> None:
    labels = known_by(part, world_end(SCENARIO, 24)).labels
    missed = part.events["repayment"].filter(
        pl.col("status") == "missed", pl.col("instalment") <= SCENARIO.label_instalments
    )
    joined = labels.join(missed.select("entity_id", "due", "known_at"), on="entity_id", how="left")
    inside = (pl.col("due") > pl.col("as_of")) & (
        pl.col("due") < pl.col("as_of").dt.offset_by("95d")
    )
    said = joined.group_by("entity_id", "as_of").agg(
        inside.any().alias("missed"), pl.col("label").first(),
        (inside & (pl.col("known_at") >= pl.col("label_known_at"))).any().alias("unknown"),
    )  # fmt: skip
    assert (said["missed"].fill_null(False) == (said["label"] == 1)).all()
    assert not said["unknown"].fill_null(False).any()


def test_policy_selects(part: Part) -> None:
    rows = part.applications
    share = rows.group_by("approved").agg(pl.col("label").mean(), pl.len()).sort("approved")
    refused, approved = share["label"].to_list()
    assert refused > 2 * approved
    assert 0.35 < share["len"][1] / len(rows) < 0.8
    known = known_by(part, world_end(SCENARIO, 24))
    assert len(known.refused) > 500
    assert "label" not in known.refused.columns


def test_reference_is_calibrated_and_ranks(part: Part) -> None:
    rows = part.applications
    p, y = rows["reference"].to_numpy(), rows["label"].to_numpy()
    for low, high in ((0, 0.05), (0.05, 0.2), (0.2, 0.5), (0.5, 1.01)):
        inside = (p >= low) & (p < high)
        expected, n = p[inside].mean(), inside.sum()
        error = 4 * np.sqrt(expected * (1 - expected) / n)
        assert abs(y[inside].mean() - expected) < error, (low, high)
    approved = rows["approved"].to_numpy() == 1
    assert 0.75 < ranked(y[approved], p[approved]) < 0.95


def test_behaviour_before_the_decision_forecasts_the_label(part: Part) -> None:
    rows = part.applications.filter(pl.col("approved") == 1, ~pl.col("fraud"))
    bills = part.events["bill"].with_columns(bad=pl.col("status") != "paid")
    seen = rows.join(bills, on="entity_id").filter(
        pl.col("known_at") < pl.col("as_of"),
        pl.col("event_time") > pl.col("as_of").dt.offset_by("-93d"),
    )
    mean = seen.group_by("entity_id", "as_of").agg(pl.col("bad").mean(), pl.col("label").first())
    assert ranked(mean["label"].to_numpy(), mean["bad"].to_numpy()) > 0.57


# ------------------------------------------------------------------- channels, fraud and drift


def test_a_channel_opens_late(part: Part) -> None:
    opens = SCENARIO.channels["marketplace"].opens
    start = month_starts(SCENARIO, 24)[opens]
    rows = part.applications.filter(pl.col("channel") == "marketplace")
    assert len(rows) > 50
    assert (rows["as_of"].to_physical() >= start).all()


def test_a_channel_shifts_what_queries_mean(part: Part) -> None:
    events = part.events["bureau"].group_by("entity_id").len()
    who = part.applications.unique("entity_id").join(events, on="entity_id", how="left")
    mean = dict(who.group_by("channel").agg(pl.col("len").mean()).iter_rows())
    assert mean["partner"] > 1.6 * mean["app"]


def test_fraud_wave_shares_devices_and_never_pays(part: Part) -> None:
    wave = SCENARIO.fraud_wave
    assert wave is not None
    rows = part.applications
    fraud = rows.filter("fraud")
    begin, end = month_starts(SCENARIO, 24)[[wave.month, wave.month + wave.months]]
    assert fraud["as_of"].to_physical().is_between(begin, end).all()
    assert fraud["channel"].unique().to_list() == [wave.channel]
    assert fraud["label"].mean() > 0.9
    people = part.events["app"].group_by("device").agg(pl.col("entity_id").n_unique())
    shared = part.events["app"].join(people, on="device").group_by("entity_id").agg(
        pl.col("entity_id_right").max()
    )  # fmt: skip
    rings = shared.join(fraud, on="entity_id", how="semi")["entity_id_right"]
    others = shared.join(fraud, on="entity_id", how="anti")["entity_id_right"]
    assert rings.median() == wave.ring_size
    assert others.median() == 1
    assert others.quantile(0.99) <= 4


def test_drift_shows(part: Part) -> None:
    bills = part.events["bill"].filter(pl.col("bill_type") == "power")
    year = pl.col("event_time").dt.year()
    amount = dict(bills.group_by(year).agg(pl.col("amount").median()).iter_rows())
    assert amount[2024] > 1.08 * amount[2023]
    bad = dict(bills.group_by(year).agg((pl.col("status") != "paid").mean()).iter_rows())
    assert bad[2024] > 1.1 * bad[2023]
    fresh = part.events["app"].filter(pl.col("event") == "top_up")["event_time"]
    assert fresh.min() >= dt.datetime(2024, 1, 1)
    assert len(fresh) > 100


@given(month=st.integers(0, 60), stability=st.floats(-4, 4), liquidity=st.floats(-4, 4))
def test_transitions_are_probabilities(month: int, stability: float, liquidity: float) -> None:
    p = transitions(SCENARIO, month, np.array([stability]), np.array([liquidity]))
    assert p.shape == (1, 3, 3)
    assert (p >= 0).all()
    assert np.allclose(p.sum(axis=2), 1)


def test_a_world_without_wave_or_drift() -> None:
    calm = Scenario(channels={"one": next(iter(SCENARIO.channels.values()))})
    people = make_people(calm, 12, 0, 100, np.random.default_rng(0))
    assert not people.fraud.any()
    assert people.state.shape == (12 + TAIL_MONTHS, 100)
    rows = next(simulate(calm, WorldSize(customers=100, months=12))).applications
    assert rows["channel"].unique().to_list() == ["one"]


# -------------------------------------------------------------------------------------- files


def test_files_say_synthetic_and_hide_the_truth(tmp_path: Path) -> None:
    made = write_world(SCENARIO, WorldSize(customers=300, months=24), tmp_path / "w")
    assert "SYNTHETIC" in (tmp_path / "w" / "README.md").read_text(encoding="utf-8")
    text = (tmp_path / "w" / "schema.yaml").read_text(encoding="utf-8")
    assert "SYNTHETIC" in text
    assert yaml.safe_load(text)["name"].startswith("synthetic")
    assert all(p.name.startswith("synthetic_") for p in (tmp_path / "w" / "events").iterdir())
    hidden = {*HIDDEN, "label_if_approved"}
    truth = pl.read_parquet(tmp_path / "w" / "truth.parquet")
    assert hidden <= set(truth.columns)
    for path in (tmp_path / "w").rglob("*.parquet"):
        if path.name != "truth.parquet":
            frame = pl.read_parquet(path)
            assert not hidden & set(frame.columns), path
            assert frame["entity_id"].str.starts_with("synthetic-").all()
    columns = ["entity_id", "as_of", "label", "label_known_at", "channel", "amount", "term"]
    for channel in SCENARIO.channels:
        rows = pl.read_parquet(tmp_path / "w" / "samples" / f"{channel}.parquet")
        assert rows.columns[:7] == columns
        assert set(rows["channel"]) <= {channel}
    assert sum(n for n, _ in made.channels.values()) == len(made.labels)


def test_base_and_days_make_the_store_of_the_whole(tmp_path: Path) -> None:
    size = WorldSize(customers=120, months=12, seed=2)
    write_world(SCENARIO, size, tmp_path / "base", until=dt.date(2023, 9, 2))
    write_days(SCENARIO, size, tmp_path / "days", dt.date(2023, 9, 2), dt.date(2023, 9, 2))
    write_world(SCENARIO, size, tmp_path / "whole", until=dt.date(2023, 9, 3))
    readme = (tmp_path / "base" / "README.md").read_text(encoding="utf-8")
    assert "development" not in readme  # twelve months are too short for a split out of time
    for folder in ("base", "days/2023-09-02"):
        import_events(tmp_path / folder / "schema.yaml", tmp_path / "steps")
    store = EventStore.open(tmp_path / "steps")
    assert store.version == 2
    assert len(store.quarantine()) == 0
    order = ["entity_id", "known_at", "event_time"]
    for name, frame in store.frames().items():
        path = tmp_path / "whole" / "events" / f"synthetic_{name}-000.parquet"
        columns = [c for c in frame.columns if not c.startswith("device")]  # the store hashes them
        whole = pl.read_parquet(path).select(columns)
        assert_frame_equal(frame.select(columns).sort(order), whole.sort(order), check_dtypes=False)
    base = pl.read_parquet(tmp_path / "base" / "samples" / "app.parquet")
    day = pl.read_parquet(tmp_path / "days" / "2023-09-02" / "labels.parquet")
    whole = pl.read_parquet(tmp_path / "whole" / "samples" / "app.parquet")
    assert_frame_equal(
        pl.concat([base, day.filter(channel="app")]).sort("as_of", "entity_id"), whole
    )


def test_a_folder_is_whole_or_absent(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="not empty"):
        write_world(SCENARIO, WorldSize(customers=50, months=6), tmp_path / "full")
    with pytest.raises(ConfigError, match="outside the world"):
        write_world(SCENARIO, WorldSize(50, 6), tmp_path / "new", until=dt.date(2030, 1, 1))
    assert [p.name for p in tmp_path.iterdir()] == ["full"]


def test_parts_do_not_hang_on_those_that_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foundation.simulation.PART_CUSTOMERS", 100)
    two = list(simulate(SCENARIO, WorldSize(customers=150, months=12)))
    three = list(simulate(SCENARIO, WorldSize(customers=250, months=12)))
    assert [part.first for part in three] == [0, 100, 200]
    assert_frame_equal(two[0].applications, three[0].applications)
    ids = [set(part.profile["entity_id"]) for part in three]
    assert not ids[0] & ids[1]
    assert not two[1].applications.drop("entity_id").equals(two[0].applications.drop("entity_id"))


def test_schema_declares_sources_and_shared_devices() -> None:
    document = schema_document(SCENARIO)
    assert set(document["sources"]) == {"app", "application", "bill", "bureau", "repayment"}
    assert document["sources"]["app"]["fields"]["device"]["sharing"]
    assert all("synthetic" in s["authorization"]["by"] for s in document["sources"].values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "lending"}, "must begin with 'synthetic'"),
        ({"start": "2023-01-15"}, "first day of a month"),
        ({"channels": {"late": {"share": 1, "opens": 3}}}, "open from month 0"),
        ({"fraud_wave": {"channel": "partnr"}}, "did you mean 'partner'"),
        ({"late_events": {"share": 2}}, "share in 0 to 1"),
        ({"label_instalments": 9}, "1, 2 or 3"),
    ],
)
def test_impossible_scenarios_are_refused(change: dict, message: str, tmp_path: Path) -> None:
    data = yaml.safe_load(CONFIG.read_text(encoding="utf-8")) | change
    path = tmp_path / "scenario.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_scenario(path)


def test_no_world_of_nobody() -> None:
    with pytest.raises(ConfigError, match="at least 50 customers"):
        WorldSize(customers=3)
