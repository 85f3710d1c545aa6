"""A schema without any event source: profile alone must make a model, with the same commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from serving.cli import cli


def run(*words: object) -> int:
    """The command line in this process; its exit code."""
    with pytest.raises(SystemExit) as caught:
        cli.main([str(w) for w in words])
        raise SystemExit(0)
    return int(caught.value.code or 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("plain")
    rng = np.random.default_rng(5)
    income = np.exp(rng.normal(8, 0.5, 300))
    job = rng.choice(["clerk", "none", "boss"], 300)
    logit = -1.5 * (np.log(income) - 8) + 1.5 * (job == "none") - 0.8
    label = (rng.random(300) < 1 / (1 + np.exp(-logit))).astype(int)
    ids = [f"p{i}" for i in range(300)]
    pl.DataFrame({"entity_id": ids, "income": income, "job": job}).write_csv(root / "people.csv")
    samples = pl.DataFrame({"entity_id": ids, "as_of": ["2024-05-01"] * 300, "label": label})
    samples[:180].write_csv(root / "samples.csv")
    samples[180:].write_csv(root / "test.csv")
    return root


def test_from_raw_table_to_scores(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, model = folder / "store", folder / "model"
    kept = ("--store", store, "--quiet")
    packaged = ("--package", model / "package", "--samples", folder / "test.csv", *kept)
    backbone = ("--backbone", folder / "backbone", "--recipes", "linear,gbdt,probe,forecast")
    samples = ("--samples", folder / "samples.csv", "--test", folder / "test.csv")
    nano = "configs/pretrain/nano.yaml"
    assert run("schema", "infer", folder / "people.csv", "-o", folder / "schema.yaml") == 0
    assert run("events", "import", "--schema", folder / "schema.yaml", *kept) == 0
    assert run("pretrain", "--config", nano, "-o", folder / "backbone", *kept) == 0
    assert "no network" in capsys.readouterr().out
    assert run("adapt", *backbone, *samples, "-o", model, *kept) == 0
    metrics = json.loads((model / "metrics.json").read_text())
    assert metrics["chosen"] in ("linear", "gbdt")
    assert metrics["recipes"]["probe"]["status"] == "skipped"
    assert "embedding" in metrics["recipes"]["probe"]["reason"]
    assert metrics["recipes"][metrics["chosen"]]["auc"] > 0.7
    assert run("score", *packaged, "-o", folder / "scored.csv") == 0
    scored = pl.read_csv(folder / "scored.csv")
    assert scored["score"].is_between(0, 1).all()
    assert scored["flags"].fill_null("").eq("").all()
    assert run("backtest", *packaged, "-o", folder / "backtest") == 0
    report = json.loads((folder / "backtest" / "backtest.json").read_text())
    assert report["overall"]["n"] == 120
    auc = report["overall"]["models"]["package"]["auc"]
    assert abs(auc - metrics["recipes"][metrics["chosen"]]["auc"]) < 1e-6


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("score", "--package", "nowhere", "--store", "x", "--samples", "x", "-o", "x.csv"),
         "no package here"),
        (("pretrain", "--config", "configs/pretrain/nano.yaml", "--store", "nowhere", "-o", "x"),
         "nowhere"),
        (("adapt", "--backbone", "x", "--store", "x", "--samples", "x", "-o", "x", "--recipe",
          "forecst"), "did you mean 'forecast'"),
        (("adapt", "--nonsense",), "No such option"),
        (("schema", "infer", "missing.parquet", "-o", "new.yaml"), "missing.parquet"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_and_exit_code_2(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == 2
    found = capsys.readouterr().err
    assert said in found
    assert "Traceback" not in found
