"""Opponents of other libraries in the few-label benchmark, with a fake library: a plain script."""

from __future__ import annotations

import dataclasses
import datetime as dt
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from finetune.metrics import auc
from finetune.table import Column, FeatureTable
from foundation.errors import UserError
from scripts.bench.fewlabels import (
    command,
    opponents,
    outputs,
    sequence_models,
    sets,
    tasks,
)
from scripts.bench.fewlabels.evaluation import SetResults, take_earlier
from scripts.bench.fewlabels.sequence_data import write_sequences
from scripts.bench.fewlabels.sequence_models import SequenceError, boosted, probe
from scripts.bench.fewlabels.tasks import SEQUENCE, RunSettings, plan, run_tasks
from tests.scripts.prepared_set import labelled, use_root, write_prepared

SCHEMA = """\
name: small
sources:
  bill:
    path: bill.parquet
    fields:
      amount: {kind: money, currency: EUR}
      due: {kind: timestamp}
  visit:
    path: visit.parquet
    fields: {channel: {kind: category}}
profile:
  path: profile.parquet
  fields: {age: {kind: number}, town: {kind: category}}
outcomes:
  late: bill.amount > 100 within 31d
windows_days: [31]
"""
POOL, TEST, MONTHS = 320, 120, 6
START, POOL_END, TEST_END = (dt.datetime(2020, m, 1) for m in (1, 5, 6))
# Reads the events and the job as a library would; `embed` gives the mean amount and the visits.
FAKE = """
import json, sys
from pathlib import Path
import numpy as np
import polars as pl
action, folder, out, what, seed = sys.argv[1:]
folder, out = Path(folder), Path(out)
if action == "embed":
    assert "scripts" not in sys.modules and float(what) == 7.0
    size = pl.read_parquet(folder / "samples_profile.parquet").height
    events = pl.read_parquet(folder / "samples.parquet").group_by("user_id").agg(
        pl.col("bill.amount").log1p().mean(), pl.len())
    values = np.full((size, 2), np.nan, np.float32)
    for user, amount, count in events.iter_rows():
        values[int(user[1:])] = amount, count
    np.save(out / "embeddings.npy", values)
    (out / "facts.json").write_text(json.dumps({"steps": 1}))
else:
    job = np.load(what)
    values = np.load(out / "embeddings.npy")[:, 0]
    up = np.nanmean(values[job["rows"]][job["y"] == 1]) > np.nanmean(values[job["rows"]])
    np.save(Path(what).with_suffix(".out.npy"), values[job["score"]] * (1 if up else -1))
    Path(what).with_suffix(".json").write_text(json.dumps({"epochs": 1}))
"""
BROKEN = "import sys; print('noise', file=sys.stderr); raise ImportError('no module | here')"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set `small`: those with high bills are bad; the last entity has no events."""
    root = tmp_path_factory.mktemp("sequences")
    rng = np.random.default_rng(0)
    ids = [f"e{i:03d}" for i in range(POOL + TEST)]
    risk = rng.normal(size=len(ids))
    busy = ids[:-1]
    times = [START + dt.timedelta(days=31 * m) for _ in busy for m in range(MONTHS)]
    bills = pl.DataFrame(
        {
            "entity_id": np.repeat(busy, MONTHS),
            "event_time": times,
            "amount": np.exp(4 + np.repeat(risk[:-1], MONTHS) + rng.normal(size=len(times))),
            "due": [t + dt.timedelta(days=3) for t in times],
        }
    )
    visits = pl.DataFrame(
        {
            "entity_id": busy,
            "event_time": [START + dt.timedelta(days=40)] * len(busy),
            "channel": ["web", "shop", "web"] * (len(busy) // 3) + ["web"] * (len(busy) % 3),
        }
    )
    ages = {"age": rng.integers(20, 60, len(ids)), "town": ["a"] * len(ids)}
    profile = pl.DataFrame({"entity_id": ids, **ages})
    labels = (risk + 0.5 * rng.normal(size=len(ids)) > 0.4).astype(int)
    rows = labelled(ids, labels, POOL, POOL_END, TEST_END)
    write_prepared(root, "small", SCHEMA, {"bill": bills, "visit": visits}, profile, *rows)
    return root


@pytest.fixture
def settings(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunSettings:
    use_root(monkeypatch, data)
    monkeypatch.setattr(tasks, "SLOW_N", 100)
    monkeypatch.setattr(opponents, "MAX_TREES", 40)
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    monkeypatch.setattr(sequence_models, "_runner", lambda model: script)
    sequence_models._runner_version.cache_clear()
    sequence_models._learner_version.cache_clear()
    return RunSettings(
        data=data / "prepared",
        work=tmp_path / "work",
        sets=("small",),
        sizes=(100,),
        draws=1,
        learners=SEQUENCE,
        workers=1,
        ceilings=False,
        sequence_python=Path(sys.executable),
        sequence_seconds=7.0,
    )


def test_files_hold_what_was_known(settings: RunSettings, tmp_path: Path) -> None:
    bench = tasks.set_of("small", settings.data, settings.work)
    write_sequences(bench, "H", tmp_path)
    seen, samples = (pl.read_parquet(tmp_path / f"{n}.parquet") for n in ("pretrain", "samples"))
    assert seen["user_id"].n_unique() == POOL  # nobody of the test
    assert seen["at"].max() < bench.until_us
    rows = samples["user_id"].str.slice(1).cast(pl.Int64).to_numpy()
    assert (samples["at"].to_numpy() < bench.as_of_us[rows]).all()
    # All that was known, in time; not one event fewer.
    per_sample = np.bincount(rows, minlength=len(bench.samples))
    assert set(per_sample[:POOL]) == {5} and set(per_sample[POOL:-1]) == {6}
    assert per_sample[-1] == 0
    assert samples.group_by("user_id").agg(pl.col("at").is_sorted())["at"].all()
    bills = samples.filter(source="bill")
    assert bills["bill.due"].unique().to_list() == [3.0]  # days from the event
    assert bills["visit.channel"].is_null().all() and bills["bill.amount"].is_not_null().all()
    profile = pl.read_parquet(tmp_path / "samples_profile.parquet")
    assert profile.columns == ["user_id", "as_of", "age", "town"]
    assert len(profile) == len(bench.samples) and profile["age"].is_not_null().all()


def test_changed_future_changes_no_file(settings: RunSettings, data: Path, tmp_path: Path) -> None:
    """Events at or after the as_of of each entity are replaced; samples stay as they were."""
    first, second, other = (tmp_path / n for n in ("first", "second", "prepared"))
    for folder in (first, second, other / "small"):
        folder.mkdir(parents=True)
    for file in (data / "prepared" / "small").iterdir():
        (other / "small" / file.name).write_bytes(file.read_bytes())
    frame = pl.read_parquet(other / "small" / "bill.parquet")
    end = pl.when(pl.col("entity_id") < f"e{POOL:03d}").then(POOL_END).otherwise(TEST_END)
    after = pl.col("event_time") >= end
    frame.with_columns(amount=pl.when(after).then(1e6).otherwise("amount")).write_parquet(
        other / "small" / "bill.parquet"
    )
    write_sequences(tasks.set_of("small", settings.data, settings.work), "S", first)
    write_sequences(sets.open_set("small", other, tmp_path / "w2"), "S", second)
    for name in ("pretrain", "pretrain_profile", "samples", "samples_profile"):
        before, now = (pl.read_parquet(d / f"{name}.parquet") for d in (first, second))
        assert before.equals(now), name


def test_embeddings_become_cells(settings: RunSettings) -> None:
    bench = tasks.set_of("small", settings.data, settings.work)
    assert plan(settings, "sequence") == []  # nothing is pretrained yet
    sequence_models.prepare_sequences(settings, bench)
    assert sequence_models.ready(settings, bench) == SEQUENCE
    assert sequence_models.not_run(settings, bench) == {}
    run_tasks(settings, plan(settings, "sequence"))
    assert plan(settings, "sequence") == []
    cells = tasks.found_cells(settings, "sequence")
    assert set(cells) == {("small", 100, 0, o) for o in SEQUENCE}
    y = bench.y[bench.tests]
    for (_, _, _, learner), cell in cells.items():
        assert np.isfinite(cell.scores[learner]).all() and len(cell.pool[learner]) == POOL
        assert auc(y, cell.scores[learner]) > 0.7
    # Another pretraining time is another model.
    other = dataclasses.replace(settings, sequence_seconds=8.0)
    assert sequence_models.ready(other, bench) == ()


@pytest.mark.parametrize("given", [True, False])
def test_what_does_not_run_is_named(
    settings: RunSettings,
    tmp_path: Path,
    given: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "fake.py").write_text(BROKEN)
    sequence_models._runner_version.cache_clear()
    if not given:
        settings = dataclasses.replace(settings, sequence_python=None)
    bench = tasks.set_of("small", settings.data, settings.work)
    sequence_models.prepare_sequences(settings, bench)
    run_tasks(settings, plan(settings, "sequence"))
    text = outputs._not_run(settings, {"small": SetResults(bench)})
    reason = "exit code 1: ImportError: no module / here" if given else sequence_models.NO_PYTHON
    for learner in SEQUENCE:
        assert f"| {learner} | small | {reason} |" in text
    assert ("cannot be run" in capsys.readouterr().out) == given
    if given:  # no backbone either, so its time is unknown
        monkeypatch.setattr(sequence_models, "pretraining_seconds", lambda *_: None)
        found = sequence_models.not_run(settings, bench)
        assert set(found.values()) == {sequence_models.NO_BACKBONE}


def test_a_missing_environment_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SequenceError, match="cannot start nowhere: No such file"):
        sequence_models.run_runner(tmp_path / "nowhere", tmp_path / "x.py", [], 5)
    with pytest.raises(UserError, match="--sequence-python: no such file"):
        command.read_settings(command.parser().parse_args(["--sequence-python", "nowhere"]))
    (tmp_path / "slow.py").write_text("import time; time.sleep(30)")
    with pytest.raises(SequenceError, match="stopped after"):
        sequence_models.run_runner(Path(sys.executable), tmp_path / "slow.py", [], 0.2)


def test_probes_and_boosting_read_the_embedding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opponents, "MAX_TREES", 40)
    rng = np.random.default_rng(1)
    y = (rng.random(500) < 0.3).astype(np.float64)
    values = rng.normal(size=(500, 6)).astype(np.float32)
    values[:, 0] += 2 * y
    values[::50, :4] = np.nan  # no events
    blocks = ("embedding",) * 4 + ("profile", "aggregate")
    table = FeatureTable(tuple(Column(f"c{i}", b) for i, b in enumerate(blocks)), values)
    taught, held = table.take(np.arange(200)), table.take(np.arange(200, 500))
    for learner in (probe, boosted):
        score, detail = learner(taught, y[:200], 0)
        assert auc(y[200:], score(held)) > 0.8
    _, detail = probe(taught, y[:200], 0)
    assert detail["probe"] == max(detail["inner_auc"], key=detail["inner_auc"].get)
    assert len(detail["inner_auc"]) == 4


def test_runners_read_the_files(settings: RunSettings, tmp_path: Path) -> None:
    """What the libraries are handed, without the libraries; they bring pyarrow themselves."""
    pq = pytest.importorskip("pyarrow.parquet")
    from scripts.bench.fewlabels import coles_runner, pragmatiq_runner

    bench = tasks.set_of("small", settings.data, settings.work)
    write_sequences(bench, "H", tmp_path)
    pragmatiq_runner.write_raw(tmp_path, "samples", tmp_path / "raw")
    events = pq.read_table(tmp_path / "raw" / "events.parquet")
    assert set(dict(events["fields"][0].as_py())) == {"event", "bill.amount", "bill.due"}
    milestones = pq.read_table(tmp_path / "raw" / "profiles.parquet")["lifelong"].to_pylist()
    assert [m["key"] for m in milestones[0]] == ["first_event", "last_event"]
    assert milestones[-1] == []  # nothing happened yet
    numbers = pragmatiq_runner.numeric_columns(tmp_path)
    assert numbers == ("age", "bill.amount", "bill.due")
    seen = coles_runner.read(tmp_path / "pretrain.parquet")
    inputs = coles_runner.Inputs(seen)
    columns, offsets, users = inputs.columns(coles_runner.read(tmp_path / "samples.parquet"))
    assert len(users) == len(bench.samples) - 1 and offsets[-1] == len(columns["gap"])
    assert all(np.isfinite(v).all() and len(v) == offsets[-1] for v in columns.values())
    assert all(0 < columns[n].min() <= columns[n].max() < inputs.size(n) for n in inputs.levels)


def test_best_opponent_needs_as_many_draws(settings: RunSettings) -> None:
    bench = tasks.set_of("small", settings.data, settings.work)
    y = bench.y[bench.tests]
    rng = np.random.default_rng(4)
    for draws, expected in ((2, "pragmatiq"), (1, "lr")):
        found = SetResults(bench)
        for k in range(2):
            found.scores["lr", 100, k] = y + rng.normal(size=len(y))
            if k < draws:
                found.scores["pragmatiq", 100, k] = y
            found.scores["pragmatiq_tuned", 100, k] = y
        assert found.best_opponent(100) == expected


def test_failed_fine_tuning_leaves_the_rest(settings: RunSettings, tmp_path: Path) -> None:
    bench = tasks.set_of("small", settings.data, settings.work)
    sequence_models.prepare_sequences(settings, bench)
    (tmp_path / "fake.py").write_text(BROKEN)  # the version of the script is remembered
    run_tasks(settings, plan(settings, "sequence"))
    made = {learner for _, _, _, learner in tasks.found_cells(settings, "sequence")}
    assert made == {"pragmatiq", "coles_lgb"}
    reasons = sequence_models.not_run(settings, bench)
    assert list(reasons) == ["pragmatiq_tuned"] and "ImportError" in reasons["pragmatiq_tuned"]


def test_sequence_models_of_an_earlier_run_are_shown_beside(
    settings: RunSettings, tmp_path: Path
) -> None:
    bench = tasks.set_of("small", settings.data, settings.work)
    y = bench.y[bench.tests]

    def measured(learners: tuple[str, ...], seed: int) -> SetResults:
        rng = np.random.default_rng(seed)
        found = SetResults(bench)
        for name in learners:
            for k in range(2):
                found.scores[name, 100, k] = y + rng.normal(size=len(y))
        return found

    file = tmp_path / "before.parquet"
    measured(("lgb", "coles_lgb", "auto"), 4).figures.write_parquet(file)
    now = measured(("lgb",), 4)
    before = now.figures.height
    take_earlier({"small": now}, file, SEQUENCE)
    assert now.figures.height == before + 2
    assert now.counted("coles_lgb", 100) == 2 and now.draws("coles_lgb", 100) == []
    assert now.counted("auto", 100) == 0  # ours is measured now or not at all
    assert now.best_opponent(100) == "lgb"
    assert "coles_lgb" in outputs._learners(now)
    assert "coles_lgb" not in outputs._not_run(settings, {"small": now})
    with pytest.raises(UserError, match="other draws"):
        take_earlier({"small": measured(("lgb",), 5)}, file, SEQUENCE)
    file.write_text("no table")
    with pytest.raises(UserError, match="not the cells of a run"):
        take_earlier({"small": now}, file, SEQUENCE)
