"""The shipped backbone on stores it never saw: carried weights, leaks, cache digest, warm start."""

from __future__ import annotations

from pathlib import Path

import msgspec
import polars as pl
import pytest
import torch

from foundation.carried import HEADS, carry
from foundation.checkpoint import Backbone, load_backbone
from foundation.errors import ArtifactError, ConfigError, DataError, UserError
from foundation.preparation import preparation_digest, prepare_backbone, run_preparation
from foundation.pretraining import pretrain, run_pretraining
from foundation.selection import chosen_entities
from foundation.shipped import shipped_backbone, start_directory
from foundation.store import EventStore
from foundation.tokenizer import Tokenizer
from tests.foundation.test_pretraining import CONFIG, UNTIL, Stop, StopAt, write_store

UNTIL_US = 1_604_188_800_000_000
HELD = [f"e{i:04d}" for i in range(10)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("preparation")


@pytest.fixture(scope="module")
def store(folder: Path) -> Path:
    """A lender the shipped backbone never saw."""
    return write_store(folder / "a")


@pytest.fixture(scope="module")
def prepared(folder: Path, store: Path) -> Path:
    run_preparation(store, folder / "prepared", "2020-11-01", exclude_entities=held(folder))
    return folder / "prepared"


@pytest.fixture(scope="module")
def start(folder: Path, store: Path) -> Path:
    """A small pretrained backbone to start from."""
    config = msgspec.structs.replace(CONFIG, steps=3, seed=5)
    return pretrain(config, store, folder / "start", UNTIL).path


def held(folder: Path) -> Path:
    path = folder / "held.txt"
    path.write_text("\n".join(HELD))
    return path


def weights(backbone: Backbone) -> dict[str, torch.Tensor]:
    assert backbone.model is not None
    return {n: p for n, p in backbone.model.named_parameters() if not n.startswith(HEADS)}


def test_the_network_is_carried_and_the_rest_is_the_stores_own(prepared: Path) -> None:
    shipped, found = load_backbone(shipped_backbone()), load_backbone(prepared)
    mine, theirs = weights(found), weights(shipped)
    assert set(mine) == set(theirs)
    assert all(torch.equal(mine[n], theirs[n]) for n in mine)
    assert found.model is not None and found.model.config.targets == []
    assert set(found.schema.source_names) == {"statement", "payment"}
    assert found.tokenizer.fingerprint != shipped.tokenizer.fingerprint
    assert found.run["prepared_from"]["fingerprint"] == shipped.fingerprint
    assert found.run["network"]["steps"] == 0
    assert {c.name for c in [*found.forecasters.cards, *found.forecasters.skipped]} == {
        "late_31d",
        "quiet_31d",
        "quiet_62d",
    }
    assert shipped.run["config"]["name"] in (prepared / "README.md").read_text()


def test_new_fields_have_vectors_of_their_own(prepared: Path) -> None:
    model = load_backbone(prepared).model
    assert model is not None
    with torch.no_grad():
        table = model.tables().code[1:]
    assert bool(table.isfinite().all())
    assert len(torch.unique(table.round(decimals=5), dim=0)) > 0.9 * len(table)


def test_what_came_later_or_is_held_out_changes_no_byte(
    folder: Path, store: Path, prepared: Path
) -> None:
    other = write_store(folder / "late", late_change=True)
    again = run_preparation(other, folder / "again", "2020-11-01", exclude_entities=held(folder))
    compared = set()
    for path in sorted(p for p in prepared.rglob("*") if p.is_file()):
        if path.name in ("run.json", "README.md"):
            continue
        same = again.path / path.relative_to(prepared)
        assert path.read_bytes() == same.read_bytes(), path.name
        compared.add(path.name)
    assert {
        "model.safetensors",
        "tokenizer.json",
        "aggregates.json",
        "forecasters.json",
    } <= compared
    assert again.facts["last_known_us"] < UNTIL_US
    opened = EventStore.open(store)
    allowed = chosen_entities(opened, None, HELD)
    assert again.facts["events"] == len(opened.timeline(entities=allowed, until_us=UNTIL_US))
    assert not set(HELD) & set(opened.timeline(entities=allowed, until_us=UNTIL_US).entity_ids)


def test_the_digest_names_all_it_depends_on(folder: Path, store: Path, start: Path) -> None:
    opened, shipped = EventStore.open(store), shipped_backbone()
    some = pl.Series("entity_id", ["e0001", "e0002"])
    other = EventStore.open(write_store(folder / "b", late_change=True))
    digests = [
        preparation_digest(opened, UNTIL_US, None, shipped),
        preparation_digest(opened, UNTIL_US + 1, None, shipped),
        preparation_digest(opened, UNTIL_US, some, shipped),
        preparation_digest(opened, UNTIL_US, None, start),
        preparation_digest(other, UNTIL_US, None, shipped),
    ]
    assert len(set(digests)) == len(digests)
    assert digests[0] == preparation_digest(EventStore.open(store), UNTIL_US, None, shipped)


def test_preparing_refuses(folder: Path, store: Path, prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="exists already"):
        run_preparation(store, prepared, "2020-11-01")
    with pytest.raises(UserError, match="no date"):
        run_preparation(store, tmp_path / "x", "soon")
    with pytest.raises(ArtifactError, match="no such backbone"):
        run_preparation(store, tmp_path / "x", "2020-11-01", start=tmp_path / "none")
    opened, nobody = EventStore.open(store), pl.Series("entity_id", ["nobody"])
    with pytest.raises(DataError, match="no event was known before 1970"):
        prepare_backbone(opened, tmp_path / "x", 1, None, shipped_backbone())
    with pytest.raises(DataError, match="no event and no profile row"):
        prepare_backbone(opened, tmp_path / "x", UNTIL_US, nobody, shipped_backbone())
    assert not list(tmp_path.iterdir())
    with pytest.raises(ArtifactError, match=r"no backbone 'large'.*nano-credit"):
        shipped_backbone("large")
    assert start_directory("shipped") == shipped_backbone()
    assert start_directory("elsewhere") == Path("elsewhere")


def test_carrying_keeps_what_the_network_never_learned_to_read(start: Path) -> None:
    source = load_backbone(start)
    assert source.model is not None
    tokenizer = Tokenizer.from_json(source.tokenizer.to_json())
    made = carry(source.model, tokenizer, source.schema, ["weekday_sin"])
    assert set(source.model.config.ignored_extra) | {"weekday_sin"} == {*made.config.ignored_extra}
    assert source.model.config.targets != []


def test_warm_start_begins_at_those_weights_and_resumes_alike(
    store: Path, start: Path, tmp_path: Path
) -> None:
    config = msgspec.structs.replace(CONFIG, steps=6)
    whole = run_pretraining(config, store, tmp_path / "whole", "2020-11-01", init=start)
    with pytest.raises(Stop):
        pretrain(config, store, tmp_path / "cut", UNTIL, callbacks=[StopAt(4)], init=start)
    with pytest.raises(ArtifactError, match="another init"):
        pretrain(config, store, tmp_path / "cut", UNTIL, resume=True)
    resumed = pretrain(config, store, tmp_path / "cut", UNTIL, resume=True, init=start)
    cold = pretrain(config, store, tmp_path / "cold", UNTIL)
    a, b, c = ((r.path / "model.safetensors").read_bytes() for r in (whole, resumed, cold))
    assert a == b != c
    assert whole.facts["init"] == load_backbone(start).fingerprint and cold.facts["init"] is None
    slow = msgspec.structs.replace(
        config, steps=1, optimizer=msgspec.structs.replace(config.optimizer, lr=1e-12)
    )
    still = pretrain(slow, store, tmp_path / "still", UNTIL, init=start)
    mine, theirs = weights(load_backbone(still.path)), weights(load_backbone(start))
    assert all(torch.allclose(mine[n], theirs[n], atol=1e-6) for n in mine)


def test_warm_start_needs_the_same_sizes(store: Path, start: Path, tmp_path: Path) -> None:
    other = msgspec.structs.replace(
        CONFIG, model=msgspec.structs.replace(CONFIG.model, hash_rows=64)
    )
    with pytest.raises(ConfigError, match=r"model\.hash_rows: 64.*has 32"):
        pretrain(other, store, tmp_path / "out", UNTIL, init=start)
