"""A service over a workspace with two tenants, an event store and everybody's keys."""

from __future__ import annotations

import datetime as dt
import io
from pathlib import Path
from typing import Any

import httpx
import polars as pl

from foundation.store import import_events
from foundation.strict import plain
from serving.deliveries import Deliveries
from serving.durable import place_directory
from serving.gates import DeliverySettings
from serving.intake import Delivery
from serving.jobs import DONE
from serving.tenancy.tenants import add_tenant
from tests.serving.harness import Service
from tests.serving.installed_packages import install

SCHEMA = """
name: shop
entity: client
sources:
  purchase: {path: purchase.csv, event_time: at, fields: {amount: {kind: money, role: amount}}}
context: {requested: {kind: money}}
"""
AT = dt.datetime(2024, 1, 1)
CSV = "text/csv"
PARQUET = "application/vnd.apache.parquet"
CUSTOMERS = 40
EVERYDAY = ("samples", "read", "decide")


def make_store(folder: Path) -> Path:
    """An event store that knows customers c0 to c39."""
    (folder / "schema.yaml").write_text(SCHEMA)
    ids = [f"c{n}" for n in range(CUSTOMERS)]
    pl.DataFrame(
        {"client": ids, "at": [AT] * CUSTOMERS, "amount": [float(n) for n in range(CUSTOMERS)]}
    ).write_csv(folder / "purchase.csv")
    import_events(folder / "schema.yaml", folder / "store")
    return folder / "store"


def frame(rows: int = CUSTOMERS, **columns: Any) -> pl.DataFrame:
    """Samples: every fourth is bad."""
    made = pl.DataFrame(
        {
            "entity_id": [f"c{n}" for n in range(rows)],
            "as_of": [dt.datetime(2024, 3, 1 + n % 20) for n in range(rows)],
            "label": [int(n % 4 == 0) for n in range(rows)],
            "requested": [100.0 + n for n in range(rows)],
            "label_known_at": [dt.datetime(2024, 6, 1)] * rows,
        }
    )
    return made.with_columns(**{k: pl.lit(v) for k, v in columns.items()})


def parquet(table: pl.DataFrame) -> bytes:
    """A frame as the bytes of a Parquet file."""
    out = io.BytesIO()
    table.write_parquet(out)
    return out.getvalue()


class DeliveryWorld:
    """Tenants acme and brix, each with a channel cards; anna and bob of acme, carol of brix."""

    def __init__(self, folder: Path, store: Path) -> None:
        self.folder, self.store = folder, store
        (folder / "backbone").mkdir()
        (folder / "backbone" / "run.json").write_text("{}")
        self.delivery = Delivery.open(folder / "ws", create=True)
        self.root = self.delivery.workspace.root
        config = {
            "store": str(store), "backbone": str(folder / "backbone"),
            "settings": plain(DeliverySettings()),
        }  # fmt: skip
        self.service = Service(folder / "service")
        self.deliveries = Deliveries(self.root, self.service.database, count_seconds=3600.0)
        self.service.runtime.deliveries = self.deliveries
        for tenant in ("acme", "brix"):
            self.delivery.registry.set_channel(tenant, "cards", config, "root")
            add_tenant(self.service.database, tenant)
        people = {"anna": "acme", "bob": "acme", "carol": "brix"}
        self.keys = {
            who: self.service.make_key(who, EVERYDAY, tenant=tenant, person=who)
            for who, tenant in people.items()
        }
        self.keys["robot"] = self.service.make_key("robot", EVERYDAY, tenant="acme")

    def call(
        self, who: str, method: str, path: str, body: Any = None, **headers: str
    ) -> httpx.Response:
        """One request with somebody's key."""
        return self.service.call(method, path, body, self.keys[who], **headers)

    def upload(
        self, who: str, data: bytes | str, query: str = "channel=cards", media: str = CSV
    ) -> httpx.Response:
        """POST /v1/samples."""
        body = data.encode() if isinstance(data, str) else data
        return self.call(who, "POST", f"/v1/samples?{query}", body, content_type=media)

    def taken(self, who: str, data: bytes | str, query: str = "channel=cards") -> dict[str, Any]:
        """What came of an upload that went well."""
        found = self.upload(who, data, query)
        assert found.status_code == 201, found.text
        return dict(found.json())

    def job(self, who: str = "anna") -> str:
        """A queued job of acme's samples."""
        sample = self.taken(who, frame().write_csv())["sample"]
        body = {"channel": "cards", "samples": sample}
        found = self.call(who, "POST", "/v1/jobs", body)
        assert found.status_code == 202, found.text
        return str(found.json()["id"])

    def delivered(self, mark: str, who: str = "anna") -> tuple[str, str]:
        """A job that is done, with what its steps write, and its challenger."""
        job, opened = self.job(who), self.delivery

        def adapted(folder: Path) -> dict[str, Any]:
            (folder / "report.html").write_text(f"<html>report {mark}</html>")
            (folder / "metrics.json").write_text('{"chosen": "blend"}')
            return {}

        def documented(folder: Path) -> dict[str, Any]:
            for language in ("en", "zh"):
                (folder / f"model_document.{language}.html").write_text(f"<p>{language} {mark}")
            return {}

        run = opened.workspace.runs / job
        place_directory(run / "adapted", adapted)
        place_directory(run / "documented-backtested-alone", documented)
        package = install(self.root, mark)
        release = opened.registry.submit("acme", "cards", package, job, who)
        opened.registry.challenge(release.id, who)
        opened.book.begin(job, 1, "shadow")
        opened.book.note_facts(job, "shadow", {}, release.id)
        opened.book.end(job, 1, DONE, "", 0)
        return job, release.id

    def close(self) -> None:
        """Close service and workspace."""
        self.deliveries.close()
        self.service.close()
