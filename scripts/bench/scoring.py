"""Latency of POST /v1/score with 256 events against a running service.

    python scripts/bench/scoring.py [--package DIR] [--events 256] [--requests 300]

Without --package it makes one first, of synthetic purchases: the nano backbone, trained for a
fraction of an epoch, and the recipe `fusion`, which uses every part. What a model has learned does
not change how long it takes. One client, one worker, JSON over loopback; every request is another
customer. The figures are synthetic speed, not evidence of quality.
"""

from __future__ import annotations

import argparse
import datetime as dt
import http.client
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from foundation.schema import Field, Schema, schema_from_dict

ROOT = Path(__file__).resolve().parents[2]
AS_OF = dt.datetime(2024, 1, 1)
BAR_MS = 10.0
WARM_UP = 20
SCHEMA = """\
name: synthetic
sources:
  purchase:
    path: purchase.parquet
    fields:
      amount: {kind: money, currency: EUR, role: amount}
      fee: {kind: money, currency: EUR, role: amount}
      balance: {kind: money, currency: EUR, role: balance}
      items: {kind: number, role: count}
      merchant: {kind: category, role: merchant_type}
      channel: {kind: category, role: channel}
      country: {kind: category, role: place}
      status: {kind: category, role: status}
      product: {kind: category, role: product}
      online: {kind: boolean, role: flag}
profile:
  path: profile.parquet
  fields: {age: {kind: number, role: person}, region: {kind: category, role: place}}
outcomes:
  refused: purchase.status = 'v3' within 30d
  silence: silence within 30d
windows_days: [30, 90]
"""


def main() -> None:
    """Make a package where none is given, start the service, measure, print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--package", type=Path, help="a package directory")
    parser.add_argument("--events", type=int, default=256)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--reasons", action="store_true", help="ask for reasons, too")
    parser.add_argument("--port", type=int, default=3119)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        package = given.package or build_package(Path(folder))
        measure(package, given.events, given.requests, given.port, given.reasons)


def measure(package: Path, events: int, requests: int, port: int, reasons: bool) -> None:
    """Send the requests one after another and print p50, p99 and the rate."""
    from finetune.package import read_manifest
    from serving.launch import running_service

    manifest = read_manifest(package)
    schema = schema_from_dict(manifest["schema"], str(package))
    bodies = list(make_requests(schema, events, requests + WARM_UP, reasons))
    took = np.zeros(requests + WARM_UP)
    with running_service(package, port=port) as (_, key):
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        # The standard library's client: a comfortable one takes a millisecond and a half itself.
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        for i, body in enumerate(bodies):
            started = time.perf_counter()
            client.request("POST", "/v1/score", body, headers)
            response = client.getresponse()
            answer = response.read()
            took[i] = time.perf_counter() - started
            if response.status != 200:
                raise SystemExit(f"{response.status}: {answer.decode()}")
        client.close()
    used = json.loads(answer)["events"]["used"]
    if used != events:
        raise SystemExit(f"the service used {used} of {events} events")
    ms = took[WARM_UP:] * 1000
    p50, p99 = np.percentile(ms, [50, 99])
    where = f"{requests} requests, {events} events, {len(bodies[0]):,} bytes, {manifest['recipe']}"
    figure("score p50", float(p50), "ms", where, BAR_MS)
    figure("score p99", float(p99), "ms", where)
    figure("one client", float(1000 / ms.mean()), "requests/s", where)


def figure(what: str, value: float, unit: str, on: str, bar: float | None = None) -> None:
    """Print one line for the table of `run_all.py`."""
    row = {"what": what, "value": round(value, 3), "unit": unit, "on": on}
    if bar is not None:
        row |= {"bar": bar, "better": "lower"}
    print(json.dumps(row), flush=True)


def make_requests(schema: Schema, events: int, count: int, reasons: bool) -> Iterator[bytes]:
    """Request bodies with random histories in the year before AS_OF, spread over the sources."""
    rng = np.random.default_rng(0)
    names = schema.source_names
    for i in range(count):
        source = rng.integers(len(names), size=events) if names else np.zeros(0, dtype=int)
        body: dict[str, Any] = {
            "entity_id": f"bench{i:05d}",
            "as_of": f"{AS_OF:%Y-%m-%dT%H:%M:%SZ}",
            "events": {
                name: event_rows(schema.sources[name].fields, int((source == s).sum()), rng)
                for s, name in enumerate(names)
            },
            "reasons": reasons,
        }
        for part, fields in (("profile", schema.profile_fields), ("context", schema.context)):
            if fields:
                body[part] = {name: value(field, rng) for name, field in fields.items()}
        yield json.dumps(body).encode()


def event_rows(
    fields: dict[str, Field], count: int, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Events in the year that ends 40 days before AS_OF, so that every delay has passed."""
    minutes = np.sort(rng.integers(0, 365 * 24 * 60, count))
    first = AS_OF - dt.timedelta(days=405)
    return [
        {"event_time": f"{first + dt.timedelta(minutes=int(m)):%Y-%m-%dT%H:%M:%SZ}"}
        | {name: value(field, rng) for name, field in fields.items()}
        for m in minutes
    ]


def value(field: Field, rng: np.random.Generator) -> Any:
    """A random JSON value of a field's kind."""
    if field.kind in ("number", "money"):
        return round(float(rng.lognormal(3, 1)), 2)
    if field.kind == "boolean":
        return bool(rng.random() < 0.5)
    if field.kind == "timestamp":
        return f"{AS_OF - dt.timedelta(days=int(rng.integers(1, 400))):%Y-%m-%dT%H:%M:%SZ}"
    return f"v{int(rng.integers(12))}"


def build_package(folder: Path, entities: int = 400, events: int = 120) -> Path:
    """A package with the nano backbone from synthetic purchases; about a minute."""
    from serving.cli import cli

    write_synthetic(folder, entities, events, np.random.default_rng(1))
    store, backbone, model = (str(folder / name) for name in ("store", "backbone", "model"))
    nano = str(ROOT / "configs" / "pretrain" / "nano.yaml")
    schema, samples = str(folder / "schema.yaml"), str(folder / "samples.csv")
    fitted = ["--until", f"{AS_OF:%Y-%m-%d}", "--epochs", "0.2"]
    given = ["--backbone", backbone, "--samples", samples, "--recipes", "fusion"]
    for line in (
        ["events", "import", "--schema", schema, "--store", store],
        ["pretrain", "--config", nano, "--store", store, "-o", backbone, *fitted],
        ["adapt", *given, "--store", store, "-o", model],
    ):
        cli.main([*line, "--quiet"])
    return folder / "model" / "package"


def write_synthetic(folder: Path, entities: int, events: int, rng: np.random.Generator) -> None:
    """Tables, schema and random labels."""
    n = entities * events
    (folder / "schema.yaml").write_text(SCHEMA, encoding="utf-8")
    minutes = pl.Series(rng.integers(0, 365 * 24 * 60, n))
    first = AS_OF - dt.timedelta(days=405)

    def codes(levels: int) -> list[str]:
        return [f"v{i}" for i in rng.integers(levels, size=n)]

    pl.DataFrame(
        {"entity_id": [f"e{i:04d}" for i in np.repeat(np.arange(entities), events)]}
    ).select(
        "entity_id",
        event_time=pl.lit(first) + pl.duration(minutes=minutes),
        amount=pl.Series(rng.lognormal(3, 1, n).round(2)),
        fee=pl.Series(rng.lognormal(0, 1, n).round(2)),
        balance=pl.Series(rng.normal(500, 300, n).round(2)),
        items=pl.Series(rng.integers(1, 30, n)),
        merchant=pl.Series(codes(12)),
        channel=pl.Series(codes(4)),
        country=pl.Series(codes(8)),
        status=pl.Series(codes(5)),
        product=pl.Series(codes(12)),
        online=pl.Series(rng.random(n) < 0.5),
    ).write_parquet(folder / "purchase.parquet")
    ids = [f"e{i:04d}" for i in range(entities)]
    pl.DataFrame(
        {
            "entity_id": ids,
            "age": rng.integers(18, 80, entities),
            "region": [f"v{i}" for i in rng.integers(8, size=entities)],
        }
    ).write_parquet(folder / "profile.parquet")
    pl.DataFrame(
        {
            "entity_id": ids,
            "as_of": [f"{AS_OF:%Y-%m-%d %H:%M:%S}"] * entities,
            "label": (rng.random(entities) < 0.3).astype(int),
        }
    ).write_csv(folder / "samples.csv")


if __name__ == "__main__":
    main()
