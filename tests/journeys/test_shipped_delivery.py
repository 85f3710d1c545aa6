"""A channel without a backbone of its own: its deliveries prepare the shipped one."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from finetune.package import read_manifest
from foundation.checkpoint import load_backbone
from foundation.shipped import SHIPPED, shipped_backbone
from foundation.store import import_events
from serving.cli import cli
from serving.delivery import Delivery, hand_in
from serving.jobs import DONE, Job
from tests.journeys.delivered import CREATED_AT, worked
from tests.journeys.small_world import World, write_world

SETTINGS = {
    "adapt": {"recipes": ["query", "probe"], "repeats": 1, "folds": 2},
    "gates": {"min_ks": 0.0, "min_ks_low": 0.0, "max_psi": 5.0, "max_oot_drop": 1.0},
}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The small world with a store and no backbone."""
    made = write_world(tmp_path_factory.mktemp("fresh"))
    import_events(made.schema, made.store)
    return made


def handed_in(world: World, root: Path) -> tuple[Delivery, Job]:
    """A channel added by the command, without --backbone, and its samples handed in."""
    gates = root.with_suffix(".yaml")
    gates.write_text(yaml.safe_dump(SETTINGS), encoding="utf-8")
    answer = CliRunner().invoke(
        cli,
        ["channel", "add", "--tenant", "acme", "--channel", "cards", "--store", str(world.store),
         "--gates", str(gates), "--by", "root", "--workspace", str(root)],
    )  # fmt: skip
    assert answer.exit_code == 0, answer.output
    delivery = Delivery.open(root)
    assert delivery.registry.channel("acme", "cards")["backbone"] == SHIPPED
    job, _ = hand_in(delivery, "acme", "cards", world.samples, world.test, "anna", CREATED_AT)
    return delivery, job


def test_it_is_prepared_for_the_store(fresh: World, tmp_path: Path) -> None:
    delivery, _ = handed_in(fresh, tmp_path / "workspace")
    half = delivery.workspace.root / "backbones" / "nano-credit-0123456789abcdef.12345"
    half.mkdir(parents=True)  # what a worker that died was preparing
    (job,) = worked(delivery)
    assert job.state == DONE, job.error
    (prepared,) = (delivery.workspace.root / "backbones").iterdir()
    backbone = load_backbone(prepared)
    assert backbone.schema.name == "small_world"
    assert backbone.run["until"].startswith("2021-01-01")  # the samples' day, and nothing after
    release = delivery.registry.release(job.release)
    manifest = read_manifest(delivery.workspace.packages / release.package)
    assert manifest["backbone_fingerprint"] == backbone.fingerprint
    assert manifest["backbone_from"]["fingerprint"] == load_backbone(shipped_backbone()).fingerprint
    said = [text for _, text in delivery.book.log(job.id)]
    assert any("without 110 test entities" in text for text in said)
    again, new = hand_in(delivery, "acme", "cards", fresh.samples, fresh.test, "bob", CREATED_AT)
    assert (again.id, new) == (job.id, False)
