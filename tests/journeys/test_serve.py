"""A package behind HTTP answers what the file scorer writes, and its worker knows no torch."""

from __future__ import annotations

from pathlib import Path

import httpx
import numpy as np
import polars as pl

from finetune.file_scoring import score_file
from foundation.store import EventStore
from serving.demo import request_body
from serving.launch import running_service
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
