"""The few-label benchmark on a small made set: what teaches, what is cached, what is concluded."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from finetune.metrics import ks
from finetune.table import Column, FeatureTable
from foundation.errors import UserError
from scripts.bench.fewlabels import command, evaluation, opponents, outputs, sets, tasks
from scripts.bench.fewlabels.cells import ALL, Cell, code_digest, load_cell, save_cell
from scripts.bench.fewlabels.opponents import FORECAST, PLAIN
from scripts.bench.fewlabels.outputs import markdown
from scripts.bench.fewlabels.tasks import RunSettings, Task, cell_key, plan, run_tasks
from tests.scripts.prepared_set import labelled, use_root, write_prepared

SCHEMA = """\
name: tiny
sources:
  bill:
    path: bill.parquet
    fields:
      amount: {kind: money, currency: EUR}
      status: {kind: category}
profile:
  path: profile.parquet
  fields: {age: {kind: number}}
outcomes:
  late: bill.status in ('late') within 31d
windows_days: [31, 62]
"""
POOL, TEST = 360, 200
START, POOL_END, TEST_END = (dt.datetime(2020, m, 1) for m in (1, 7, 9))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder with the set `tiny`: late payers go on paying late; pool before test."""
    root = tmp_path_factory.mktemp("bench")
    rng = np.random.default_rng(0)
    ids = [f"e{i:03d}" for i in range(POOL + TEST)]
    risk = rng.normal(size=len(ids))
    months = 8
    late = rng.normal(size=(len(ids), months)) < (risk - 1.0)[:, None]
    bills = pl.DataFrame(
        {
            "entity_id": np.repeat(ids, months),
            "event_time": [START + dt.timedelta(days=31 * m) for _ in ids for m in range(months)],
            "amount": rng.lognormal(3, 1, len(ids) * months),
            "status": np.where(late.ravel(), "late", "paid"),
        }
    )
    ages = pl.DataFrame({"entity_id": ids, "age": rng.integers(20, 60, len(ids))})
    labels = (risk + 0.5 * rng.normal(size=len(ids)) > 0.6).astype(int)
    rows = labelled(ids, labels, POOL, POOL_END, TEST_END)
    write_prepared(root, "tiny", SCHEMA, {"bill": bills}, ages, *rows)
    return root


@pytest.fixture
def settings(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunSettings:
    use_root(monkeypatch, data)
    return RunSettings(
        data=data / "prepared",
        work=tmp_path / "work",
        sets=("tiny",),
        sizes=(100, 300),
        draws=2,
        learners=("untuned", "forecast_lr"),
        workers=1,
        ceilings=False,
    )


def test_opponents_are_cached_and_judged(settings: RunSettings) -> None:
    bench = tasks.set_of("tiny", settings.data, settings.work)
    assert bench.strict_differs and bench.time_split
    assert bench.sizes((100, 300)) == [100]  # at most a third of the pool
    todo = plan(settings, "opponents")
    assert todo == [Task("tiny", 100, k, ("untuned", "forecast_lr")) for k in (0, 1)]
    run_tasks(settings, todo)
    assert plan(settings, "opponents") == []
    cells = tasks.found_cells(settings, "opponents")
    assert set(cells) == {("tiny", 100, k, o) for k in (0, 1) for o in settings.learners}
    drawn = {("tiny", 100, k): bench.draw(100, k) for k in (0, 1)}
    found = evaluation.collect({"tiny": bench}, cells, drawn)["tiny"]
    assert found.mean("forecast_lr", 100) > 0.3
    stable = evaluation.stability(found, "forecast_lr", 100)
    assert stable is not None
    assert abs(stable["drop"] - (stable["in_time"] - stable["out_of_time"])) < 1e-9
    # Another code version of the learner is another cell.
    keys = {cell_key(settings, bench, 100, k, o).digest for k in (0, 1) for o in settings.learners}
    assert len(keys) == 4


def test_strict_track_reads_nothing_from_as_of_on(settings: RunSettings) -> None:
    bench = tasks.set_of("tiny", settings.data, settings.work)
    strict, free = bench.reading("S"), bench.reading("H")
    as_of = int(bench.as_of_us[bench.splits[0].pool].min())
    assert strict.until_us <= as_of < free.until_us
    assert free.until_us <= int(bench.as_of_us[bench.tests].min())
    test_entities = set(bench.samples["entity_id"][bench.tests])
    assert test_entities <= set(strict.excluded) and test_entities <= set(free.excluded)


def test_changed_future_changes_no_feature(
    settings: RunSettings, data: Path, tmp_path: Path
) -> None:
    """Events at or after as_of are replaced; values of every sample stay as they were."""
    from scripts.bench.fewlabels.plain_features import plain_features

    before = plain_features(tasks.set_of("tiny", settings.data, settings.work))
    other = tmp_path / "prepared" / "tiny"
    other.mkdir(parents=True)
    for file in (data / "prepared" / "tiny").iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    frame = pl.read_parquet(other / "bill.parquet")
    pool = pl.read_parquet(other / "pool.parquet")["entity_id"]
    end = pl.when(pl.col("entity_id").is_in(pool.implode())).then(POOL_END).otherwise(TEST_END)
    after = pl.col("event_time") >= end
    frame.with_columns(
        amount=pl.when(after).then(1e6).otherwise("amount"),
        status=pl.when(after).then(pl.lit("late")).otherwise("status"),
    ).write_parquet(other / "bill.parquet")
    changed = plain_features(sets.open_set("tiny", tmp_path / "prepared", tmp_path / "w2"))
    assert [c.name for c in before.columns] == [c.name for c in changed.columns]
    np.testing.assert_array_equal(before.values, changed.values)


@pytest.mark.parametrize("learner", [*PLAIN, *FORECAST])
def test_every_opponent_learns(learner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opponents, "MAX_TREES", 40)
    if learner == "cat":
        pytest.importorskip("catboost")
    rng = np.random.default_rng(1)
    x = rng.normal(size=(700, 5)).astype(np.float32)
    x[:, 4] = rng.integers(0, 3, 700)
    x[rng.random(x.shape) < 0.05] = np.nan
    y = (np.nan_to_num(x[:, 0]) + (x[:, 4] == 2) + rng.normal(size=700) > 1).astype(np.float64)
    block = "forecast" if learner in FORECAST else "aggregate"
    if learner in FORECAST:
        x = (1 / (1 + np.exp(-np.nan_to_num(x)))).astype(np.float32)
    columns = tuple(
        Column(f"c{i} last", block, "code" if i == 4 and block == "aggregate" else "number")
        for i in range(5)
    )
    table = FeatureTable(columns, x)
    taught = table.take(np.arange(200))
    score, detail = (PLAIN | FORECAST)[learner](taught, y[:200], 0)
    assert ks(y[200:], score(table.take(np.arange(200, 700)))) > 0.3
    again, _ = (PLAIN | FORECAST)[learner](taught, y[:200], 0)
    np.testing.assert_array_equal(score(table), again(table))
    assert detail


def test_cells_survive_and_code_is_versioned(tmp_path: Path) -> None:
    cell = Cell({"a": np.arange(3.0)}, {"a": np.ones(2)}, 1.5, {"chosen": "a"})
    save_cell(tmp_path / "x.npz", cell)
    back = load_cell(tmp_path / "x.npz")
    np.testing.assert_array_equal(back.scores["a"], cell.scores["a"])
    assert (back.seconds, back.detail) == (1.5, {"chosen": "a"})
    assert [p.name for p in tmp_path.iterdir()] == ["x.npz"]
    assert code_digest((ks,)) != code_digest((markdown,))


def test_replicates_of_ks() -> None:
    rng = np.random.default_rng(2)
    y = (rng.random(400) < 0.3).astype(np.float64)
    score = np.round(y + rng.normal(size=400), 1)  # with ties
    ones = np.ones((1, 400), np.uint8)
    assert evaluation.ks_of_counts(y, score, ones)[0] == pytest.approx(ks(y, score))
    counts = evaluation.row_counts(y, 50, 0)
    assert (counts[:, y == 1].sum(axis=1) == y.sum()).all()
    rows = np.repeat(np.arange(400), counts[7])
    assert evaluation.ks_of_counts(y, score, counts)[7] == pytest.approx(ks(y[rows], score[rows]))


@pytest.fixture
def made(settings: RunSettings) -> evaluation.SetResults:
    """Scores of known quality: `lr` grows with n, `auto` is as good at 100 as `lr` at 300."""
    bench = tasks.set_of("tiny", settings.data, settings.work)
    found = evaluation.SetResults(bench)
    rng = np.random.default_rng(3)
    y = found.truth(0)
    noise = {k: rng.normal(size=len(y)) for k in range(6)}
    for k in range(6):
        for n, slope in ((100, 0.6), (300, 1.2), (ALL, 2.5)):
            if n != ALL or k == 0:
                found.scores["lr", n, k] = slope * y + noise[k]
        found.scores["auto", 100, k] = 1.2 * y + noise[k]
    return found


def test_gain_and_efficiency(made: evaluation.SetResults) -> None:
    gain = evaluation.Bootstrap(made, replicates=200).gain("auto", 100)
    assert gain is not None and gain.opponent == "lr"
    assert gain.value == pytest.approx(made.mean("auto", 100) - made.mean("lr", 100))
    low, high = gain.interval
    assert 0 < low < gain.value < high
    assert evaluation.label_efficiency(made, "auto") == (pytest.approx(3.0), "")
    closed = evaluation.headroom_closed(made, "auto", 100)
    assert closed is not None and 0 < closed < 1
    mean, low, high = evaluation.mean_gain([gain, gain], relative=True)
    assert low < mean < high and mean == pytest.approx(gain.value / gain.opponent_ks)


def test_what_the_state_says_without_labels_is_compared(made: evaluation.SetResults) -> None:
    y = made.truth(0)
    noise = np.random.default_rng(5).normal(size=len(y))
    made.scores["zero.boosted", ALL, 0] = y + noise
    made.scores["zero.state", ALL, 0] = 2.0 * y + noise
    replicates = evaluation.Bootstrap(made, replicates=200)
    gap = replicates.zero_gap("zero.state", "zero.boosted")
    assert gap is not None and 0 < gap[1] < gap[0] < gap[2]
    assert replicates.zero_gap("zero.network", "zero.boosted") is None
    table = outputs._zero({"tiny": made}, {"tiny": replicates})
    assert f"{gap[0]:+.3f} [{gap[1]:+.3f}, {gap[2]:+.3f}]" in table


def test_a_folder_of_ones_own_is_a_set(tmp_path: Path) -> None:
    folder = tmp_path / "prepared" / "mine"
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text("{}")
    given = command.parser().parse_args(["--data", str(tmp_path), "--sets", "mine"])
    assert command.read_settings(given).sets == ("mine",)


def test_wrong_arguments_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--sets", "ucii"]) == 2
    assert "did you mean 'uci'" in capsys.readouterr().err
    with pytest.raises(UserError, match="expected numbers"):
        command.read_settings(command.parser().parse_args(["--n", "few"]))
    quick = command.read_settings(command.parser().parse_args(["--quick"]))
    assert (quick.sizes, quick.draws, quick.repeats) == ((100, 300), 10, 1)
