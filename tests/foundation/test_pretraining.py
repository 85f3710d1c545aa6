"""Pretraining end to end on a tiny store: resume, leaks, refusals, tables without events."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest
import yaml
from pytorch_lightning.callbacks import Callback

from foundation.boosted import BoostSettings
from foundation.checkpoint import load_backbone
from foundation.errors import ArtifactError, ConfigError, DataError, UserError
from foundation.objectives import ObjectiveConfig
from foundation.pretrain_config import PretrainConfig, SizeConfig, checked, load_pretrain_config
from foundation.pretraining import pretrain, run_pretraining
from foundation.schema import schema_to_dict
from foundation.store import import_events
from foundation.training import OptimizerConfig
from tests.foundation.small_lender import SCHEMA, frames

UNTIL = dt.datetime(2020, 11, 1)
CONFIG = PretrainConfig(
    model=SizeConfig(
        width=16,
        layers=1,
        heads=2,
        hidden=16,
        fusion_hidden=16,
        slot_width=8,
        hash_rows=32,
        name_rows=16,
    ),
    objectives=ObjectiveConfig(masked_event=0.1, coles=0.1),
    steps=8,
    batch_events=120,
    max_events=12,
    queries=2,
    cuts=6,
    validate_every=4,
    checkpoint_every=3,
    validation_share=0.2,
    boosted=False,
    threads=1,
)


def write_store(folder: Path, late_change: bool = False, time_zone: str = "UTC") -> Path:
    """A store of the invented lender; `late_change` alters everything known from UNTIL on."""
    tables, profile = frames(30)
    if late_change:
        late = pl.col("event_time") >= UNTIL
        tables["statement"] = tables["statement"].with_columns(
            pl.when(late).then(pl.lit("2")).otherwise("status").alias("status"),
            pl.when(late).then(9e6).otherwise("bill").alias("bill"),
        )
        tables["payment"] = tables["payment"].filter(~late | (pl.col("shop") == "food"))
    data = schema_to_dict(SCHEMA) | {"time_zone": time_zone}
    folder.mkdir()
    for name, frame in tables.items():
        frame.drop("known_at").write_parquet(folder / f"{name}.parquet")
        data["sources"][name]["path"] = f"{name}.parquet"
    profile.drop("known_at").write_parquet(folder / "profile.parquet")
    data["profile"]["path"] = "profile.parquet"
    (folder / "schema.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    import_events(folder / "schema.yaml", folder / "store")
    return folder / "store"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("pretraining") / "a")


class Stop(Exception):
    """Stands for a killed process."""


class StopAt(Callback):
    """Raises after a number of steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise Stop


DISTILLING = msgspec.structs.replace(
    CONFIG,
    objectives=ObjectiveConfig(distillation=1.0),
    boosted=True,
    boost=BoostSettings(rounds=3, min_leaf=5, min_class=3, folds=2),
)


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        msgspec.structs.replace(CONFIG, optimizer=OptimizerConfig(muon_lr=0.01)),
        DISTILLING,
    ],
    ids=["adamw", "muon", "distillation"],
)
def test_killed_and_resumed_ends_at_the_same_weights(
    store: Path, tmp_path: Path, config: PretrainConfig
) -> None:
    whole = pretrain(config, store, tmp_path / "whole", UNTIL)
    with pytest.raises(Stop):
        pretrain(config, store, tmp_path / "killed", UNTIL, callbacks=[StopAt(5)])
    assert not (tmp_path / "killed").exists()
    with pytest.raises(ArtifactError, match="no such"):
        load_backbone(tmp_path / "killed")
    with pytest.raises(ArtifactError, match="unfinished"):
        load_backbone(tmp_path / "killed.unfinished")
    resumed = pretrain(config, store, tmp_path / "killed", UNTIL, resume=True)
    weights = [(r.path / "model.safetensors").read_bytes() for r in (whole, resumed)]
    assert weights[0] == weights[1]
    assert whole.facts["network"] == resumed.facts["network"]
    assert [r["step"] for r in whole.facts["network"]["validation"]] == [4.0, 8.0]
    names = {p.name for p in resumed.path.iterdir()}
    assert not {"started.json", "trainer.safetensors"} & names


@pytest.mark.parametrize(
    "objectives", [CONFIG.objectives, DISTILLING.objectives], ids=["plain", "distillation"]
)
def test_what_came_later_changes_no_byte(
    store: Path, tmp_path: Path, objectives: ObjectiveConfig
) -> None:
    other = write_store(tmp_path / "b", late_change=True)
    config = msgspec.structs.replace(DISTILLING, objectives=objectives)
    a = pretrain(config, store, tmp_path / "one", UNTIL)
    b = pretrain(config, other, tmp_path / "two", UNTIL)
    unlike = {"run.json", "README.md", "metrics.csv"}
    compared = []
    for path in sorted(p for p in a.path.rglob("*") if p.is_file()):
        if path.name in unlike or path.name.startswith("events.out"):
            continue
        assert path.read_bytes() == (b.path / path.relative_to(a.path)).read_bytes(), path.name
        compared.append(path.name)
    assert {"model.safetensors", "tokenizer.json", "aggregates.json", "forecasters.json"} <= {
        *compared
    }
    assert a.facts["last_known_us"] < 1_604_188_800_000_000


def test_resume_refuses_another_run(store: Path, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        pretrain(CONFIG, store, tmp_path / "out", UNTIL, callbacks=[StopAt(3)])
    other = msgspec.structs.replace(CONFIG, seed=1)
    with pytest.raises(ArtifactError, match="another config"):
        pretrain(other, store, tmp_path / "out", UNTIL, resume=True)


def test_run_says_what_it_was_made_from(store: Path, tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_text("entity_id\ne0001\ne0002\n")
    lines: list[str] = []
    counts: list[tuple[int, int]] = []
    run = run_pretraining(
        CONFIG,
        store,
        tmp_path / "bb",
        until="2020-11-01",
        exclude_entities=tmp_path / "out.csv",
        progress=lambda done, total: counts.append((done, total)),
        say=lines.append,
    )
    facts = json.loads((run.path / "run.json").read_text())
    assert facts == json.loads(json.dumps(run.facts))
    assert facts["entities"] == 28
    assert facts["until"] == "2020-11-01T00:00:00+00:00"
    assert facts["config"]["steps"] == 8
    assert counts[-1] == (8, 8)
    assert "8 steps" in run.summary()
    assert any("events/s" in line for line in lines)
    assert "e0001" not in (run.path / "run.json").read_text()
    assert (run.path / "logs" / "csv" / "metrics.csv").is_file()
    with pytest.raises(ArtifactError, match="exists already"):
        pretrain(CONFIG, store, run.path, UNTIL)


def test_without_events_there_is_no_network(tmp_path: Path) -> None:
    schema = {
        "name": "plain",
        "profile": {"path": "profile.parquet", "fields": {"limit": {"kind": "money"}}},
    }
    (tmp_path / "schema.yaml").write_text(yaml.safe_dump(schema))
    frames(12)[1].drop("known_at").write_parquet(tmp_path / "profile.parquet")
    import_events(tmp_path / "schema.yaml", tmp_path / "store")
    lines: list[str] = []
    run = pretrain(CONFIG, tmp_path / "store", tmp_path / "bb", say=lines.append)
    assert run.facts["network"] is None
    assert any("no network" in line for line in lines)
    assert "no network" in run.summary()
    found = load_backbone(run.path)
    assert found.model is None
    assert found.spec.names == ("profile.limit",)


def test_nothing_before_until(store: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no entity"):
        pretrain(CONFIG, store, tmp_path / "x", entities=["e0001"], exclude_entities=["e0001"])


def test_until_is_read_in_the_time_zone_of_the_schema(tmp_path: Path) -> None:
    store = write_store(tmp_path / "a", time_zone="Asia/Shanghai")
    run = run_pretraining(CONFIG, store, tmp_path / "bb", until="2020-11-01")
    assert run.facts["until"] == "2020-10-31T16:00:00+00:00"
    with pytest.raises(UserError, match="2017-09-01"):
        run_pretraining(CONFIG, store, tmp_path / "other", until="soon")


def test_impossible_configurations(tmp_path: Path) -> None:
    two_way = SizeConfig(bidirectional=True)
    for bad, words in (
        (msgspec.structs.replace(CONFIG, model=two_way), "bidirectional"),
        (msgspec.structs.replace(CONFIG, model=SizeConfig(width=30)), "multiple"),
        (msgspec.structs.replace(CONFIG, queries=0), "at least 1"),
        (msgspec.structs.replace(CONFIG, steps=0, epochs=0.0), "positive"),
    ):
        with pytest.raises(ConfigError, match=words):
            checked(bad)
    (tmp_path / "c.yaml").write_text("model: {widht: 64}\n")
    with pytest.raises(ConfigError, match="did you mean 'width'"):
        load_pretrain_config(tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_text("name: x\n")
    assert load_pretrain_config(tmp_path / "c.yaml", steps=5).steps == 5
