"""Back-tests of the small world: a package against an incumbent, and a rolling origin."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from finetune.backtest import run_backtest
from finetune.backtest_origins import RollingSettings
from finetune.backtest_rolling import run_rolling_backtest
from finetune.file_scoring import score_file
from foundation.errors import SampleError
from serving.cli import cli
from serving.progress import Reporter
from tests.journeys.small_world import World

RECIPES = ("query", "gbdt")


def run(*words: object) -> int:
    """The command line in this process; its exit code."""
    with pytest.raises(SystemExit) as caught:
        cli.main([str(w) for w in words])
        raise SystemExit(0)
    return int(caught.value.code or 0)


def later_samples(world: World) -> pl.DataFrame:
    """All customers, decided in six months around the backbone's last day."""
    every = pl.concat([pl.read_csv(p) for p in (world.samples, world.test)])
    rng = np.random.default_rng(1)
    day = rng.integers(0, 180, len(every))
    as_of = [dt.datetime(2020, 9, 1) + dt.timedelta(days=int(d)) for d in day]
    return every.with_columns(
        as_of=pl.Series(as_of),
        label_known_at=pl.Series([t + dt.timedelta(days=31) for t in as_of]),
        channel=pl.Series(rng.choice(["app", "shop"], len(every))),
        incumbent_score=pl.col("requested") * 1.0,
    ).sort("as_of")


@pytest.fixture(scope="module")
def files(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("backtests")
    later_samples(world).write_csv(root / "samples.csv", datetime_format="%Y-%m-%d %H:%M:%S")
    (root / "costs.yaml").write_text(
        yaml.safe_dump({"bad_approved": 0.5, "good_approved": 0.1, "exposure": "requested"})
    )
    return root


def test_a_package_against_the_incumbents_column(
    world: World, adapted: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = files / "fixed"
    code = run(
        "backtest", "--package", adapted / "package", "--store", world.store, "--samples",
        files / "samples.csv", "-o", out, "--costs", files / "costs.yaml", "--draws", 120,
        "--quiet",
    )  # fmt: skip
    said = capsys.readouterr()
    assert code == 0, said.err
    numbers = json.loads((out / "backtest.json").read_text())
    assert f"verdict: {numbers['verdict']} (against incumbent)" in said.out
    rows = pl.read_parquet(out / "rows.parquet")
    # The package learnt from decisions of 2021-01-01: only later rows are judged.
    assert rows["as_of"].min() > dt.datetime(2021, 1, 1)
    assert len(rows) + numbers["left_out"][0]["n"] == 260
    assert numbers["opponent"] == "incumbent_score"
    assert "higher taken as riskier" in numbers["models"][1]["title"]
    assert not numbers["models"][1]["probability"]
    assert {c["channel"] for c in numbers["channels"]} == {"app", "shop"}
    assert numbers["overall"]["models"]["package"]["value"]["best"]["value"] is not None
    assert any("customers stand behind the training labels" in n for n in numbers["notes"])
    # The same scores as file scoring gives.
    score_file(adapted / "package", world.store, files / "samples.csv", files / "s.parquet", False)
    scored = pl.read_parquet(files / "s.parquet")[rows["row"].to_numpy() - 1]
    np.testing.assert_allclose(rows["score.package"], scored["score"], atol=1e-6)


def test_a_package_against_itself(world: World, adapted: Path, tmp_path: Path) -> None:
    package = adapted / "package"
    result = run_backtest(
        package, world.store, world.test, tmp_path, incumbent=package, draws=120
    )  # fmt: skip
    assert result.verdict == "not worse"
    assert result.paired_gain_lower == pytest.approx(0, abs=1e-9)
    assert result.oot_drop is None  # decided on the same day as the training samples
    assert any("not lie after the training window" in w for w in result.warnings)


def test_training_rows_prove_nothing(world: World, adapted: Path, tmp_path: Path) -> None:
    package = adapted / "package"
    result = run_backtest(
        package, world.store, world.samples, tmp_path, incumbent=package, draws=120
    )  # fmt: skip
    assert result.verdict == "cannot tell"
    assert "the model learnt from these outcomes" in result.reasons[0]


def test_rolling_origin(world: World, adapted: Path, files: Path, tmp_path: Path) -> None:
    settings = RollingSettings(recipes=RECIPES, folds=2)

    def roll(samples: Path, out: Path) -> dict:
        return run_rolling_backtest(
            world.backbone, world.store, samples, out, settings=settings,
            incumbent=adapted / "package", draws=100, reporter=Reporter(True),
        ).numbers  # fmt: skip

    numbers = roll(files / "samples.csv", tmp_path)
    origins = [o["origin"] for o in numbers["origins"]]
    assert origins == ["2021-01", "2021-02"]  # later than what the backbone knew
    assert {s["origin"] for s in numbers["skipped_origins"]} == {
        "2020-09", "2020-10", "2020-11", "2020-12",
    }  # fmt: skip
    given = pl.read_csv(files / "samples.csv", try_parse_dates=True)
    for origin in numbers["origins"]:
        start = dt.datetime.strptime(origin["origin"], "%Y-%m")
        known = given.filter(pl.col("label_known_at") < start)
        assert (origin["learnt"], origin["learnt_bads"]) == (len(known), known["label"].sum())
        assert dt.datetime.fromisoformat(origin["last_label_known"]) < start
    names = {m["name"] for m in numbers["models"]}
    assert names == {"adapted", "incumbent", "incumbent_score", "gbdt"}
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "origins").iterdir()}
    assert len(kept) == 4

    # A second run reads all it kept and says the same; a damaged origin is made again, alike.
    again = roll(files / "samples.csv", tmp_path)
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "origins").iterdir()} == kept
    broken = next((tmp_path / "origins").glob("*.parquet"))
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-9])
    third = roll(files / "samples.csv", tmp_path)
    for other in (again, third):
        assert other | {"created_at": ""} == numbers | {"created_at": ""}
    assert broken.read_bytes() == whole

    # Labels known at or after an origin change nothing that was scored there.
    flipped = given.with_columns(
        label=pl.when(pl.col("label_known_at") < dt.datetime(2021, 2, 1))
        .then(pl.col("label"))
        .otherwise(1 - pl.col("label"))
    )
    flipped.write_csv(tmp_path / "flipped.csv", datetime_format="%Y-%m-%d %H:%M:%S")
    roll(tmp_path / "flipped.csv", tmp_path / "flipped")
    first, second = (
        pl.read_parquet(p / "rows.parquet").filter(pl.col("origin").is_in(origins))
        for p in (tmp_path, tmp_path / "flipped")
    )
    for name in ("adapted", "gbdt"):
        np.testing.assert_array_equal(first[f"score.{name}"], second[f"score.{name}"])
    assert (first["label"] != second["label"]).any()


def test_an_origin_the_backbone_has_seen_is_refused(
    world: World, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SampleError, match="--allow-leak"):
        run_rolling_backtest(
            world.backbone, world.store, files / "samples.csv", tmp_path,
            settings=RollingSettings(first="2020-12"), reporter=Reporter(True),
        )  # fmt: skip
    words = ("--store", world.store, "--samples", files / "samples.csv", "-o", tmp_path)
    assert run("backtest", *words) == 2
    assert "--package, or roll with --rolling" in capsys.readouterr().err
    assert run("backtest", "--rolling", *words) == 2
    assert "--backbone" in capsys.readouterr().err
    assert run("backtest", "--package", "x", "--first", "2020-01", *words) == 2
    assert "--first belongs to --rolling" in capsys.readouterr().err


def test_a_file_with_other_names_gives_the_same_with_its_mapping(
    world: World, adapted: Path, files: Path
) -> None:
    names = {"entity_id": "customer", "as_of": "applied", "label": "outcome"}
    frame = pl.read_csv(files / "samples.csv")
    labels = pl.col("label").replace_strict({0: "good", 1: "bad"}, return_dtype=pl.String)
    frame.with_columns(labels).rename(names).write_csv(files / "named.csv")
    given = {"columns": names, "labels": {"good": 0, "bad": 1}}
    (files / "mapping.yaml").write_text(yaml.safe_dump(given))
    common = ("--package", adapted / "package", "--store", world.store, "--draws", 100, "--quiet")
    for name, more in (("samples", ()), ("named", ("--mapping", files / "mapping.yaml"))):
        out = files / f"out_{name}"
        file = files / f"{name}.csv"
        assert run("backtest", "--samples", file, "-o", out, *common, *more) == 0
    rows = [pl.read_parquet(files / f"out_{n}" / "rows.parquet") for n in ("samples", "named")]
    assert rows[0].equals(rows[1])
    numbers = [json.loads((files / f"out_{n}" / "backtest.json").read_text()) for n in
               ("samples", "named")]  # fmt: skip
    assert numbers[0]["overall"] == numbers[1]["overall"]
    assert numbers[0]["verdict"] == numbers[1]["verdict"]
