"""After an erasure no store knows the person; what was done stands in the decision log."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import polars as pl
import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from finetune.sample_sets import add_version, find_version, read_version, versions
from finetune.samples import check_samples
from foundation.errors import DataError, InternalError, UserError
from foundation.schema import Schema
from foundation.store import EventStore, import_events
from serving.audit import DecisionLog, follow, verify_log
from serving.cli import cli
from serving.database import Database
from serving.decisions.inputs import Inputs
from serving.decisions.tables import cases, decisions
from serving.delivery import Delivery
from serving.durable import RECORD, place_directory, whole_directory
from serving.models.shadow_store import ShadowStore, shadow_scores
from serving.online.tables import blocks
from serving.safety.erasers import FilesEraser
from serving.safety.erasure import Erasure, ErasureCount
from serving.safety.hashing import EntityHasher
from serving.safety.places import hosted_erasers
from serving.safety.secrets import make_secrets, open_secrets
from serving.safety.vault import Vault

SCHEMA = """
name: shop
entity: client
sources:
  purchase: {path: purchase.csv, event_time: at, fields: {amount: {kind: money, role: amount}}}
"""
WHO = "person-7"
OTHER = "person-70"
AT = dt.datetime(2024, 1, 1)


@pytest.fixture
def hasher(tmp_path: Path) -> EntityHasher:
    make_secrets(tmp_path / "master.key")
    return EntityHasher(open_secrets(tmp_path / "master.key", "production", {}))


def filled(database: Database, url_secrets: Path, hasher: EntityHasher) -> None:
    """A row about the person and one about somebody else in every table of the service."""
    vault = Vault(open_secrets(url_secrets, "production", {}))
    inputs = Inputs(database, vault)
    hosted_erasers(database, vault)
    for n, (tenant, who) in enumerate([("acme", WHO), ("acme", OTHER), ("brix", WHO)]):
        hidden = hasher.hash(tenant, who)
        inputs.keep(tenant, f"r{n}", hidden, b"{}")
        with database.transaction() as connection:
            for table in (decisions, cases, shadow_scores, blocks):
                row = {"tenant": tenant, "entity": hidden, "seq": n + 1, "id": str(n)}
                row |= {"events": 1, "blob": b""}
                for column in table.columns:
                    number = not isinstance(column.type, sa.Text)
                    row.setdefault(column.name, 0 if number else "")
                connection.execute(
                    table.insert().values({c.name: row[c.name] for c in table.columns})
                )
    inputs.close()


def test_every_table_of_the_service_forgets(tmp_path: Path, hasher: EntityHasher) -> None:
    database = Database(f"sqlite:///{tmp_path}/riskfm.db")
    filled(database, tmp_path / "master.key", hasher)
    vault = Vault(open_secrets(tmp_path / "master.key", "production", {}))
    erasure = Erasure(hasher)
    for name, eraser in hosted_erasers(database, vault).items():
        erasure.register(name, eraser)
    names = ("kept requests", "decisions", "review cases", "shadow scores", "stored events")
    assert erasure.stores == names
    assert {n: c.rows for n, c in erasure.look("acme", WHO).counts.items()} == dict.fromkeys(
        names, 1
    )
    log = DecisionLog(tmp_path / "log", hasher)
    assert erasure.erase("acme", WHO, "anna", log).rows == 5
    assert erasure.look("acme", WHO).rows == 0
    assert erasure.look("acme", OTHER).rows == erasure.look("brix", WHO).rows == 5
    assert ShadowStore(database).erase("acme", hasher.hash("acme", WHO)) == 0
    log.close()


class Remembered:
    """A store in memory that may fail or forget to forget."""

    def __init__(self, rows: int, fails: str = "", stays: bool = False) -> None:
        self.rows, self.fails, self.stays, self.asked = rows, fails, stays, []

    def __call__(
        self, tenant: str, entity_hash: str, entity_id: str, *, dry_run: bool = False
    ) -> ErasureCount:
        self.asked.append((tenant, entity_hash, entity_id, dry_run))
        if self.fails and not dry_run:
            raise DataError(self.fails)
        found = self.rows
        if not dry_run and not self.stays:
            self.rows = 0
        return ErasureCount(found)


def test_an_erasure_is_noted_and_says_what_failed(tmp_path: Path, hasher: EntityHasher) -> None:
    erasure = Erasure(hasher)
    good, bad, stuck = Remembered(3), Remembered(2, fails="no disk"), Remembered(1, stays=True)
    for name, eraser in (("good", good), ("bad", bad), ("stuck", stuck)):
        erasure.register(name, eraser)
    with pytest.raises(InternalError, match="called 'good'"):
        erasure.register("good", good)
    found = erasure.look("acme", WHO)
    assert found.rows == 6 and good.rows == 3 and "would be removed" in found.lines()[0]
    log = DecisionLog(tmp_path / "log.jsonl", hasher)
    done = erasure.erase("acme", WHO, " anna ", log)
    assert done.failed == {"bad": "no disk", "stuck": "1 rows are still there"}
    assert good.asked[1] == ("acme", hasher.hash("acme", WHO), WHO, False)
    with pytest.raises(UserError, match="--by"):
        erasure.erase("acme", WHO, " ", log)
    with pytest.raises(UserError, match="empty"):
        erasure.look("acme", " ")
    log.close()
    assert WHO not in log.path.read_text() and verify_log(log.path).lines == 1
    assert follow(log.path)[0] == []
    (line,), _ = follow(log.path, events=True)
    assert (line["event"], line["by"], line["entity"]) == ("erasure", "anna", log.hide(WHO, "acme"))
    assert line["stores"] == {"good": 3, "stuck": 1} and line["failed"] == ["bad", "stuck"]


def frame(ids: list[str]) -> pl.DataFrame:
    return pl.DataFrame({"entity_id": ids, "as_of": [AT] * len(ids), "label": [0] * len(ids)})


def sample_set(root: Path, schema: Schema, ids: list[str]) -> None:
    samples = check_samples(frame(ids), schema, False, where="samples")
    add_version(root, "cards", samples, schema, "samples.csv")


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A workspace with a store, sample sets, a delivery and a day; two tenants."""
    source = tmp_path / "in"
    source.mkdir()
    (source / "schema.yaml").write_text(SCHEMA)
    pl.DataFrame(
        {"client": [WHO, OTHER, WHO], "at": [AT, AT, AT], "amount": [1.0, 2.0, 3.0]}
    ).write_csv(source / "purchase.csv")
    import_events(source / "schema.yaml", tmp_path / "store")
    delivery = Delivery.open(tmp_path / "ws", create=True)
    root = delivery.workspace.root
    config = {"store": str(tmp_path / "store"), "backbone": "", "settings": {}}
    delivery.registry.set_channel("acme", "cards", config, "root")
    file = root / "samples" / "handed.csv"
    frame([WHO, OTHER]).write_csv(file)
    request = {"samples": {"file": "samples/handed.csv", "digest": "0"}, "test": None}
    job, _ = delivery.book.add("acme", "cards", request, "root")

    def make(folder: Path) -> dict[str, int]:
        frame([OTHER, WHO, WHO]).write_parquet(folder / "rows.parquet")
        pl.DataFrame({"n": [WHO]}).write_parquet(folder / "other.parquet")
        return {"rows": 3}

    place_directory(root / "runs" / job.id / "backtested", make)
    for tenant in ("acme", "brix"):
        place_directory(root / "days" / tenant / "cards" / "2024-01-01" / "scored", make)
    schema = EventStore.open(tmp_path / "store").schema
    sample_set(root, schema, [WHO, OTHER])
    sample_set(root, schema, [WHO, OTHER, "third"])
    return root


def test_the_command_erases_everything_a_workspace_has(
    workspace: Path, tmp_path: Path, hasher: EntityHasher
) -> None:
    database = f"sqlite:///{tmp_path}/riskfm.db"
    filled(Database(database), tmp_path / "master.key", hasher)
    run, log = CliRunner(), tmp_path / "decisions.jsonl"
    words = ["erase", "--tenant", "acme", "--workspace", str(workspace), "--log", str(log)]
    words += ["--secrets", str(tmp_path / "master.key"), "--database", database, "--by", "anna"]
    before = {v.number: v.digest for v in versions(workspace, "cards")}

    dry = run.invoke(cli, [*words, "-"], input=f"{WHO}\n")
    assert dry.exit_code == 0, dry.output
    assert "14 rows in all; nothing was removed, --yes removes them" in dry.output
    assert not log.exists() and {v.digest for v in versions(workspace, "cards")} == set(
        before.values()
    )
    done = run.invoke(cli, [*words, "--yes", WHO])
    assert done.exit_code == 0, done.output
    assert "sample sets: 2 rows removed" in done.output
    again = run.invoke(cli, [*words, WHO])
    assert "0 rows in all" in again.output

    assert EventStore.open(tmp_path / "store").entity_ids().to_list() == [OTHER]
    assert pl.read_csv(workspace / "samples" / "handed.csv")["entity_id"].to_list() == [OTHER]
    day = workspace / "days" / "acme" / "cards" / "2024-01-01" / "scored"
    assert whole_directory(day) == {"rows": 3}
    assert pl.read_parquet(day / "rows.parquet")["entity_id"].to_list() == [OTHER]
    (changed,) = json.loads((day / RECORD).read_text())["changed"]
    assert (changed["file"], changed["rows"]) == ("rows.parquet", 2)
    # Another tenant's person of the same id is somebody else.
    theirs = pl.read_parquet(workspace / "days/brix/cards/2024-01-01/scored/rows.parquet")
    assert len(theirs) == 3
    found = versions(workspace, "cards")
    assert [read_version(v)["entity_id"].to_list() for v in found] == [
        [OTHER], [OTHER, "third"]
    ]  # fmt: skip
    assert not {v.digest for v in found} & set(before.values())
    contents = workspace / "sample_sets" / "cards" / "contents"
    assert {p.name for p in contents.iterdir()} == {v.digest for v in found}
    with pytest.raises(UserError, match="no version"):
        find_version(workspace, f"cards@{before[1]}")
    note = json.loads((workspace / "sample_sets/cards/erasures/000001.json").read_text())
    assert [c["rows"] for c in note["changes"]] == [1, 1]
    (line,), _ = follow(log, events=True)
    assert line["stores"]["deliveries"] == 2 and line["by"] == "anna" and WHO not in log.read_text()


def test_the_command_asks_for_what_it_needs(
    workspace: Path, tmp_path: Path, hasher: EntityHasher, monkeypatch
) -> None:
    run, key = CliRunner(), str(tmp_path / "master.key")
    for name in ("RISKFM_MASTER_KEY", "RISKFM_MASTER_KEY_FILE", "RISKFM_DATABASE"):
        monkeypatch.delenv(name, raising=False)
    store = ["--store", str(tmp_path / "store")]
    for words, why in (
        ([], "name where to erase"),
        ([*store, "--yes"], "name it with --log"),
        (store, "name the master secrets"),
        ([*store, "--secrets", key, "--yes", "--log", str(tmp_path / "l")], "--by NAME"),
        (["--workspace", str(workspace), "--secrets", key, "--set", "loans"], "no sample set"),
    ):
        found = run.invoke(cli, ["erase", *words, WHO])
        assert found.exit_code == 2 and why in found.output, found.output
    Delivery.open(workspace).registry.set_channel(
        "brix", "cards", {"store": str(tmp_path / "other")}, "root"
    )
    words = ["erase", "--workspace", str(workspace), "--secrets", key, "--tenant", "acme"]
    assert "other tenants too (brix)" in run.invoke(cli, [*words, WHO]).output
    assert "sample sets: 0 rows" in run.invoke(cli, [*words, "--set", "", WHO]).output


def test_a_file_nobody_can_read_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"torn")
    with pytest.raises(DataError, match="nobody knows what it holds"):
        FilesEraser([tmp_path])("acme", "", WHO)
