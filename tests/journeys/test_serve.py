"""A package behind HTTP answers what the file scorer writes, and its worker knows no torch."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import numpy as np
import polars as pl

from finetune.file_scoring import score_file
from finetune.package import read_manifest
from foundation.store import EventStore
from serving.delivery import Delivery
from serving.demo import request_body
from serving.durable import place_tree
from serving.launch import running_service
from tests.journeys.served import served
from tests.journeys.small_world import World


def test_http_score_equals_file_score(world: World, adapted: Path) -> None:
    """Same rows over HTTP and from a file, to 1e-5, on the live BentoML service."""
    rows = pl.read_csv(world.test, infer_schema_length=None)[:12]
    part = world.root / "http_rows.csv"
    rows.write_csv(part)
    output = world.root / "http_scored.parquet"
    score_file(adapted / "package", world.store, part, output, reasons=False)
    scored = pl.read_parquet(output)
    wanted = scored["score"].to_numpy()
    store = EventStore.open(world.store)
    found, flags = [], []
    with running_service(adapted / "package") as (url, key):
        headers = {"Authorization": f"Bearer {key}"}
        for row in rows.iter_rows(named=True):
            body = request_body(store, row["entity_id"], "2021-01-01")
            body["context"] = {"requested": row["requested"]}
            answer = httpx.post(f"{url}/v1/score", json=body, headers=headers, timeout=30)
            assert answer.status_code == 200, answer.text
            found.append(answer.json()["score"])
            flags.append(answer.json()["flags"])
        later = request_body(store, "c0001", "2021-01-01")
        later["context"] = {"requested": 10.0}
        before = httpx.post(f"{url}/v1/score", json=later, headers=headers, timeout=30).json()
        later["events"]["statement"].append(
            {"event_time": "2021-01-01T00:00:00Z", "status": "late", "amount": 1e9}
        )
        after = httpx.post(f"{url}/v1/score", json=later, headers=headers, timeout=30).json()
        assert after["score"] == before["score"]
        assert after["events"]["ignored"] == before["events"]["ignored"] + 1
        refused = httpx.post(f"{url}/v1/score", json=later, timeout=30)
        assert refused.status_code == 401
        wrong = dict(later, context={"request": 10.0})
        answer = httpx.post(f"{url}/v1/score", json=wrong, headers=headers, timeout=30)
        assert answer.status_code == 422 and "requested" in answer.text
    assert np.abs(np.array(found) - wanted).max() <= 1e-5, list(zip(found, wanted, strict=True))
    assert [" ".join(f) for f in flags] == scored["flags"].to_list()


def test_a_workspace_serves_its_champion(world: World, adapted: Path, tmp_path: Path) -> None:
    """`riskfm serve --workspace` answers with what was approved, and with nothing else."""
    delivery = Delivery.open(tmp_path / "workspace", create=True)
    manifest = read_manifest(adapted / "package")
    place_tree(adapted / "package", delivery.workspace.packages / manifest["digest"])
    delivery.registry.set_channel("acme", "cards", {"store": str(world.store)}, "root")
    release = delivery.registry.submit("acme", "cards", manifest, "job-1", "anna")
    delivery.registry.challenge(release.id, "anna")
    delivery.registry.approve(release.id, "bob")
    body = request_body(EventStore.open(world.store), "c0001", "2021-01-01")
    body["context"] = {"requested": 10.0}
    place = str(delivery.workspace.root)
    with served(tmp_path, "--workspace", place, fake=False) as service:
        url = f"http://127.0.0.1:{service.port}/v1"
        answer = httpx.post(f"{url}/score", json=body, headers=service.headers, timeout=30)
        assert answer.status_code == 200, answer.text
        assert answer.json()["package"]["digest"] == manifest["digest"]
        assert service.call("/v1/health/ready") == 200
    (line,) = (tmp_path / "decisions.jsonl").read_text().splitlines()
    assert json.loads(line)["digest"] == manifest["digest"]
