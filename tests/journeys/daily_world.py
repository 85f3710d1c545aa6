"""A synthetic lender with a served champion on the eve of June 2024, and June day by day.

Made once a session; every test works on a copy of store and workspace.
"""

from __future__ import annotations

import datetime as dt
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest
import yaml

from foundation.simulation import WorldSize
from foundation.simulation_files import write_days, write_world
from foundation.simulation_scenario import load_scenario
from foundation.store import EventStore, import_events
from serving.daily import Outcome, run_days
from serving.daily_settings import DailySettings, load_daily_settings, set_daily
from serving.delivery import Delivery, add_channel, hand_in, run_jobs
from serving.progress import Reporter
from tests.contracts.tree import ROOT
from tests.journeys.small_world import PRETRAIN

FIRST, LAST = dt.date(2024, 6, 1), dt.date(2024, 6, 30)
SIZE = WorldSize(customers=400, months=24, seed=3)
DELIVERY = {
    "adapt": {"recipe": "linear", "repeats": 1, "folds": 2},
    "gates": {"min_ks": 0.0, "min_ks_low": 0.0, "min_bads": 5, "max_oot_drop": 1.0},
}
# Bounds that a quiet month of so few samples keeps, and that planted trouble crosses.
DAILY: dict[str, Any] = {
    "window_days": 30,
    "label_days": 92,
    "bounds": {
        "psi": 3.0, "input_psi": 6.0, "ks_drop": 1.0, "calibration": 50.0, "forecast": 1000.0,
        "unknown": 0.9, "thin": 1.0, "min_bads": 1, "min_samples": 4,
    },
    "retrain": {"min_bads": 5, "test_share": 0.0},
    "notices": {"timeout_seconds": 5, "tries": 1},
}  # fmt: skip


@dataclass(frozen=True)
class DailyWorld:
    """What every test copies: `store`, `workspace`, `backbone`, and a folder for each day."""

    root: Path

    @property
    def incoming(self) -> Path:
        """June, one folder a day."""
        return self.root / "incoming"

    @property
    def backbone(self) -> Path:
        """A backbone that knows nothing of 2024."""
        return self.root / "backbone"


def make_daily_world(root: Path) -> DailyWorld:
    """Simulate, pretrain, deliver, approve."""
    from foundation.pretraining import load_pretrain_config, run_pretraining

    scenario = load_scenario(ROOT / "configs" / "simulation" / "lending.yaml")
    world = root / "world"
    write_world(scenario, SIZE, world, FIRST)
    write_days(scenario, SIZE, root / "incoming", FIRST, LAST)
    store, made = root / "store", DailyWorld(root)
    import_events(world / "schema.yaml", store)
    config = PRETRAIN | {"steps": 4, "validate_every": 2, "checkpoint_every": 2}
    (root / "tiny.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    run_pretraining(
        load_pretrain_config(root / "tiny.yaml"), store, made.backbone, until="2023-10-01"
    )
    parts = [pl.read_parquet(p) for p in sorted((world / "samples").glob("*.parquet"))]
    pl.concat(parts).write_parquet(root / "samples.parquet")
    (root / "delivery.yaml").write_text(yaml.safe_dump(DELIVERY), encoding="utf-8")
    delivery = Delivery.open(root / "workspace", create=True)
    add_channel(delivery, "acme", "loans", store, made.backbone, root / "delivery.yaml", "root")
    hand_in(delivery, "acme", "loans", root / "samples.parquet", None, "anna")
    (job,) = run_jobs(delivery, Reporter(True))
    assert job.state == "done", job.error
    delivery.registry.approve(job.release, "bob")
    return made


@pytest.fixture(scope="session")
def daily_world(tmp_path_factory: pytest.TempPathFactory) -> DailyWorld:
    """The world of this session."""
    return make_daily_world(tmp_path_factory.mktemp("daily"))


def settled(world: DailyWorld, root: Path, days: int = 30, **changes: Any) -> Delivery:
    """A copy of store and workspace with a daily run set, and links to the first days' files.

    Args:
        changes: keys of the daily settings, merged into `DAILY`.
    """
    for name in ("store", "workspace"):
        shutil.copytree(world.root / name, root / name)
    (root / "incoming").mkdir()
    for n in range(days):
        date = str(FIRST + dt.timedelta(days=n))
        os.symlink(world.incoming / date, root / "incoming" / date)
    delivery = Delivery.open(root / "workspace")
    add_channel(
        delivery, "acme", "loans", root / "store", world.backbone, world.root / "delivery.yaml",
        "root",
    )  # fmt: skip
    set_again(delivery, root, **changes)
    return delivery


def set_again(delivery: Delivery, root: Path, **changes: Any) -> DailySettings:
    """Set the daily run anew."""
    data = {k: v | changes[k] if isinstance(changes.get(k), dict) else v for k, v in DAILY.items()}
    data |= {k: v for k, v in changes.items() if not isinstance(v, dict)}
    file = root / "daily.yaml"
    file.write_text(yaml.safe_dump(data), encoding="utf-8")
    settings = msgspec.structs.replace(
        load_daily_settings(file), incoming=str(root / "incoming" / "{date}")
    )
    set_daily(delivery.workspace, delivery.registry, "acme", "loans", settings, "root")
    return settings


def ran(delivery: Delivery, first: dt.date = FIRST, days: int = 1) -> list[Outcome]:
    """Run some days; none of them may fail."""
    ended = run_days(delivery, first, first + dt.timedelta(days=days - 1), Reporter(True))
    assert not [each for each in ended if each.error], ended
    return ended


def own_day(root: Path, date: dt.date) -> Path:
    """Replace the link to a day's files by a copy that a test may change."""
    folder = root / "incoming" / str(date)
    source = folder.resolve()
    folder.unlink()
    shutil.copytree(source, folder)
    return folder


def plant_drift(root: Path, date: dt.date) -> None:
    """Sixty decisions of one day about amounts nobody asked for before."""
    folder = own_day(root, date)
    ids = EventStore.open(root / "store").entity_ids()[:60]
    noon = dt.datetime(date.year, date.month, date.day, 12)
    pl.DataFrame(
        {"entity_id": ids, "as_of": [noon] * 60, "amount": [9_999_999.0] * 60, "term": [99] * 60}
    ).write_parquet(folder / "applications.parquet")
