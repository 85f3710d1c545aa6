"""Back-tracking at scale: point in time, resumable, the same bytes whoever works."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from finetune import backtracking
from finetune.backtrack_check import verify_backtrack
from finetune.backtracking import BacktrackInputs, read_features, run_backtrack
from finetune.file_scoring import population_of
from finetune.samples import read_samples
from foundation.aggregates import AggregateSpec
from foundation.errors import ArtifactError, SampleError, UserError
from foundation.history import cut
from foundation.indexing import drop_index, make_index
from foundation.store import EventStore, import_events

DAY = dt.timedelta(days=1)
START = dt.datetime(2021, 1, 1)
SCHEMA = {
    "name": "tracks",
    "sources": {
        "pay": {
            "known_at": "known_at",
            "fields": {"amount": {"kind": "money"}, "status": {"kind": "category"}},
        },
        "call": {
            "known_at": "known_at",
            "fields": {"minutes": {"kind": "number"}, "phone": {"kind": "identifier"}},
        },
    },
    "profile": {
        "path": "profile.parquet",
        "valid_time": "known_at",
        "fields": {"income": {"kind": "money"}},
    },
    "windows_days": [30, 90],
}
LIMIT = 150  # events a piece: several pieces a bucket


def events(rng: np.random.Generator, count: int, first_day: int = 0) -> dict[str, pl.DataFrame]:
    """Random events of 120 entities, known up to nine days after they happened."""

    def frame(rows: int) -> pl.DataFrame:
        at = pl.Series(rng.integers(first_day * 24, 400 * 24, rows)) * dt.timedelta(hours=1)
        late = pl.Series(rng.integers(0, 9 * 24, rows)) * dt.timedelta(hours=1)
        return pl.DataFrame(
            {
                "entity_id": [f"e{i:03d}" for i in rng.integers(0, 120, rows)],
                "event_time": START + at,
                "known_at": START + at + late,
            }
        )

    return {
        "pay": frame(count).with_columns(
            pl.Series("amount", rng.normal(50, 20, count).round(2)),
            pl.Series("status", rng.choice(["ok", "late", "refused"], count)),
        ),
        "call": frame(count // 2).with_columns(
            pl.Series("minutes", rng.integers(0, 60, count // 2)),
            pl.Series("phone", [f"p{i}" for i in rng.integers(0, 30, count // 2)]),
        ),
    }


def write_store(root: Path, frames: list[dict[str, pl.DataFrame]]) -> Path:
    """A store of several imports, and so of several files a bucket."""
    root.mkdir(exist_ok=True)
    (root / "schema.yaml").write_text(yaml.safe_dump(SCHEMA), encoding="utf-8")
    income = pl.DataFrame(
        {
            "entity_id": [f"e{i:03d}" for i in range(0, 120, 2)] * 2,
            "known_at": [START] * 60 + [START + 200 * DAY] * 60,
            "income": [float(i) for i in range(120)],
        }
    )
    for k, each in enumerate(frames):
        paths = {}
        for name, frame in (each | ({"profile": income} if k == 0 else {})).items():
            paths[name] = root / f"{name}-{k}.parquet"
            frame.write_parquet(paths[name])
        import_events(root / "schema.yaml", root / "store", paths)
    return root / "store"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 4,500 events and 300 samples; ten entities have no event."""
    folder = tmp_path_factory.mktemp("tracks")
    rng = np.random.default_rng(0)
    write_store(folder, [events(rng, 2000), events(rng, 1000, 100)])
    hours = pl.Series(rng.integers(150 * 24, 420 * 24, 300)) * dt.timedelta(hours=1)
    pl.DataFrame(
        {
            "entity_id": [f"e{i:03d}" for i in rng.integers(0, 130, 300)],
            "as_of": START + hours,
            "label": rng.integers(0, 2, 300),
        }
    ).write_parquet(folder / "samples.parquet")
    return folder


def inputs(root: Path, **changed: object) -> BacktrackInputs:
    """The job of these tests."""
    return BacktrackInputs(
        root / "store",
        root / "samples.parquet",
        **({"limit": LIMIT} | changed),  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def done(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished job, by one worker; tests that write take a copy."""
    out = tmp_path_factory.mktemp("done") / "out"
    run_backtrack(inputs(root), out, workers=1)
    return out


@pytest.fixture
def copy(done: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(done, tmp_path / "out"))


def certificate_of(directory: Path) -> dict:
    """The certificate of a finished job."""
    return json.loads((directory / "certificate.json").read_text())


def every_byte(directory: Path) -> dict[str, bytes]:
    """Contents of every file but the lock."""
    files = (p for p in directory.rglob("*") if p.is_file() and p.name != ".lock")
    return {str(p.relative_to(directory)): p.read_bytes() for p in files}


def test_equals_the_path_in_memory(root: Path, done: Path) -> None:
    assert len(certificate_of(done)["parts"]) > 20  # pieces inside buckets, not whole buckets
    store = EventStore.open(root / "store")
    samples = read_samples(root / "samples.parquet", store.schema, False, True)
    population = population_of(store, store.schema, samples)
    spec = AggregateSpec.from_json((done / "aggregates.json").read_text())
    values = spec.compute(
        population.timeline,
        cut(population.timeline, population.entity_ids, population.as_of_us),
        population.profile,
        population.entity_ids,
    )
    found = read_features(done).sort("row").collect()
    assert found["row"].to_list() == list(range(1, 301))
    assert found["entity_id"].equals(samples.entity_ids)
    assert found["label"].equals(samples.frame["label"])
    assert spec.names and np.array_equal(
        found.select(spec.names).to_numpy(), values, equal_nan=True
    )


def test_the_columns_are_those_of_a_fit_before_the_first_sample(root: Path, tmp_path: Path) -> None:
    run_backtrack(inputs(root, limit=100_000), tmp_path / "out")
    store = EventStore.open(root / "store")
    samples = read_samples(root / "samples.parquet", store.schema, False, True)
    until, ids = int(samples.as_of_us.min()), samples.entity_ids.unique()
    timeline = store.timeline(entities=ids, until_us=until)
    profile = store.profile_history(entities=ids, until_us=until)
    spec = AggregateSpec.fit(store.schema, timeline, profile, until_us=until)
    assert (tmp_path / "out" / "aggregates.json").read_text() == spec.to_json()


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_workers_writes_the_same_bytes(
    root: Path, done: Path, tmp_path: Path, workers: int
) -> None:
    run_backtrack(inputs(root), tmp_path / "out", workers=workers)
    assert every_byte(tmp_path / "out") == every_byte(done)


def test_with_an_index_it_writes_the_same_bytes(root: Path, done: Path, tmp_path: Path) -> None:
    make_index(root / "store")
    try:
        run_backtrack(inputs(root), tmp_path / "out", workers=2)
    finally:
        drop_index(root / "store")
    assert every_byte(tmp_path / "out") == every_byte(done)


def test_source_by_source_equals_merged(root: Path, done: Path, tmp_path: Path) -> None:
    """Columns of single sources take a path that never merges sources; the bits are the same."""
    spec = AggregateSpec.from_json((done / "aggregates.json").read_text())
    single = [c for c in spec.columns if c.layout < 0 or spec.layouts[c.layout].source >= 0]
    assert 0 < len(single) < len(spec.columns)
    fewer = AggregateSpec(schema=spec.schema, layouts=spec.layouts, columns=tuple(single))
    (tmp_path / "spec.json").write_text(fewer.to_json())
    run_backtrack(inputs(root, aggregates=tmp_path / "spec.json"), tmp_path / "single")
    some = read_features(tmp_path / "single").collect()
    every = read_features(done).collect()
    assert some.equals(every.select(some.columns))


def test_counts_of_the_certificate_against_brute_force(root: Path, done: Path) -> None:
    counts = certificate_of(done)["counts"]
    frames = EventStore.open(root / "store").frames()
    known: dict[str, list[dt.datetime]] = {}
    for frame in frames.values():
        for entity, at in frame.select("entity_id", "known_at").iter_rows():
            known.setdefault(entity, []).append(at)
    samples = pl.read_parquet(root / "samples.parquet")
    used = excluded = thin = 0
    margins = []
    for entity, as_of in samples.select("entity_id", "as_of").iter_rows():
        before = [t for t in known.get(entity, []) if t < as_of]
        used, excluded = used + len(before), excluded + len(known.get(entity, [])) - len(before)
        thin += not before
        if entity < "e120" and int(entity[1:]) % 2 == 0:
            before = [*before, START, *([START + 200 * DAY] if as_of > START + 200 * DAY else [])]
        margins += [as_of - max(before)] if before else []
    assert counts["events_used"] == used
    assert counts["events_excluded"] == excluded > 0
    assert counts["thin_samples"] == thin > 0
    assert counts["samples"] == 300
    assert counts["entities"] == samples["entity_id"].n_unique()
    assert counts["events"] == sum(len(known.get(e, [])) for e in set(samples["entity_id"]))
    assert counts["smallest_margin_us"] == min(margins) // dt.timedelta(microseconds=1)


def test_nothing_known_later_changes_a_byte(root: Path, tmp_path: Path) -> None:
    """Every event known at or after its entity's last as_of gets another value or goes away."""
    last = (
        pl.read_parquet(root / "samples.parquet").group_by("entity_id").agg(pl.col("as_of").max())
    )

    def changed(frame: pl.DataFrame) -> pl.DataFrame:
        joined = frame.join(last, on="entity_id", how="left", maintain_order="left")
        later = pl.col("known_at") >= pl.col("as_of").fill_null(START)
        other = [
            pl.when(later).then(-7).otherwise(pl.col(c)).cast(frame[c].dtype).alias(c)
            for c in ("amount", "minutes")
            if c in frame.columns
        ]
        gone = later & (pl.int_range(pl.len()) % 3 == 0)
        return joined.filter(~gone).with_columns(other).drop("as_of")

    frames = [
        {n: changed(pl.read_parquet(root / f"{n}-{k}.parquet")) for n in ("pay", "call")}
        for k in (0, 1)
    ]
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "samples.parquet").write_bytes((root / "samples.parquet").read_bytes())
    write_store(tmp_path / "w", frames)
    limit = 100_000  # pieces follow numbers of events, which change here
    a = run_backtrack(inputs(root, limit=limit), tmp_path / "a")
    b = run_backtrack(inputs(tmp_path / "w", limit=limit), tmp_path / "b")
    one, two = every_byte(tmp_path / "a"), every_byte(tmp_path / "b")
    del one["certificate.json"], two["certificate.json"]
    assert one == two
    assert a["counts"]["events_excluded"] > b["counts"]["events_excluded"]
    for certificate in (a, b):
        del certificate["store"], certificate["inputs"]
        for name in ("events", "events_excluded"):
            del certificate["counts"][name]
    assert a == b


RUN = """
import sys, time
from pathlib import Path
import finetune.backtracking as jobs
make = jobs.PieceFeatures.make
def slow(*given):
    time.sleep(0.02)
    return make(*given)
jobs.PieceFeatures.make = slow
jobs.code_version = lambda: "test"
root, out = Path(sys.argv[1]), Path(sys.argv[2])
given = jobs.BacktrackInputs(root / "store", root / "samples.parquet", limit=150)
jobs.run_backtrack(given, out, workers=2)
"""


def test_a_killed_job_goes_on_where_it_stood(
    root: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backtracking, "code_version", lambda: "test")
    out = tmp_path / "out"
    child = subprocess.Popen(
        [sys.executable, "-c", RUN, str(root), str(out)], cwd=Path(__file__).parents[2]
    )
    parts = out / ".unfinished" / "parts"
    while len(list(parts.glob("part-*"))) < 5:
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (out / "features").exists() and not (out / "certificate.json").exists()
    (parts / ".part-15-9999.parquet.tmp").write_bytes(b"torn")
    before = {p.name: p.stat().st_mtime_ns for p in parts.glob("part-*.parquet")}
    # The store grows meanwhile: the job keeps to the version it began with.
    grown = tmp_path / "grown.parquet"
    events(np.random.default_rng(9), 50)["pay"].write_parquet(grown)
    records = set((root / "store" / "imports").iterdir())
    import_events(root / "schema.yaml", root / "store", {"pay": grown})
    try:
        certificate = run_backtrack(inputs(root), out, workers=2)
        after = {p.name: p.stat().st_mtime_ns for p in (out / "features").iterdir()}
        assert certificate["store"]["version"] == 2
        assert before.items() <= after.items()
        assert len(verify_backtrack(out, rows=10)) == 2
        with pytest.raises(UserError, match="store version"):
            run_backtrack(inputs(root), out)
    finally:
        for record in set((root / "store" / "imports").iterdir()) - records:
            record.unlink()
    found, wanted = every_byte(out), every_byte(done)
    assert found.pop("certificate.json") != wanted.pop("certificate.json")  # another "code"
    assert found == wanted


def test_a_finished_job_stays_and_another_is_refused(root: Path, copy: Path) -> None:
    times = {p: p.stat().st_mtime_ns for p in (copy / "features").iterdir()}
    assert run_backtrack(inputs(root), copy) == certificate_of(copy)
    assert {p: p.stat().st_mtime_ns for p in (copy / "features").iterdir()} == times
    with pytest.raises(UserError, match="another limit; choose a new directory"):
        run_backtrack(inputs(root, limit=LIMIT + 1), copy)


def test_killed_between_the_last_steps(
    root: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features are in their place, the certificate is not: the next run ends the job."""
    write = backtracking.write_whole

    def killed(path: Path, data: dict) -> None:
        if path.name == "certificate.json":
            raise KeyboardInterrupt
        write(path, data)

    monkeypatch.setattr(backtracking, "write_whole", killed)
    with pytest.raises(KeyboardInterrupt):
        run_backtrack(inputs(root), tmp_path / "out")
    assert (tmp_path / "out" / "features").is_dir()
    monkeypatch.undo()
    with pytest.raises(UserError, match="unfinished job with another limit"):
        run_backtrack(inputs(root, limit=LIMIT + 1), tmp_path / "out")
    run_backtrack(inputs(root), tmp_path / "out")
    assert every_byte(tmp_path / "out") == every_byte(done)


def test_verify_finds_what_is_wrong(copy: Path) -> None:
    assert "brute force" in verify_backtrack(copy, rows=40)[1]
    for path in (copy / "features").iterdir():
        frame = pl.read_parquet(path)
        name = next(c for c in frame.columns if c.startswith("pay count"))
        frame.with_columns(pl.col(name) + 1).write_parquet(path)
    with pytest.raises(ArtifactError, match="altered"):
        verify_backtrack(copy)
    certificate = certificate_of(copy)
    for part in certificate["parts"]:
        part["sha256"] = hashlib.sha256((copy / part["file"]).read_bytes()).hexdigest()
    (copy / "certificate.json").write_text(json.dumps(certificate))
    with pytest.raises(ArtifactError, match=f"column '{name}'"):
        verify_backtrack(copy, rows=3)
    certificate["counts"]["events_used"] += 1
    (copy / "certificate.json").write_text(json.dumps(certificate))
    with pytest.raises(ArtifactError, match="events_used"):
        verify_backtrack(copy)
    path.unlink()
    with pytest.raises(ArtifactError, match="missing"):
        verify_backtrack(copy)


def test_what_cannot_be_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'forecasts'"):
        run_backtrack(inputs(root, blocks=("forecast",)), tmp_path / "a")
    with pytest.raises(UserError, match="give --backbone"):
        run_backtrack(inputs(root, blocks=("embeddings",)), tmp_path / "b")
    nobody = tmp_path / "nobody.csv"
    nobody.write_text("entity_id,as_of\nx1,2021-09-01\nx2,2021-10-01\n")
    with pytest.raises(SampleError, match="written alike"):
        run_backtrack(BacktrackInputs(root / "store", nobody), tmp_path / "c")
    assert os.listdir(tmp_path / "c") == [".lock"] or not (tmp_path / "c" / "features").exists()
