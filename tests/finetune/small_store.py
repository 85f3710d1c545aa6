"""A store of a few customers for tests of sample files."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import polars as pl
import yaml

from foundation.store import EventStore, import_events

SCHEMA = {
    "name": "few",
    "time_zone": "Asia/Shanghai",
    "sources": {"pay": {"path": "pay.csv", "fields": {"amount": {"kind": "money"}}}},
    "context": {
        "requested": {"kind": "money"},
        "phone": {"kind": "identifier", "column": "phone_no"},
    },
}


def few_customers(folder: Path, customers: int = 40) -> EventStore:
    """Customers c000 ...; customer i has i % 5 payments, one a month from January 2024 on."""
    rows = [
        (f"c{i:03d}", dt.datetime(2024, 1 + k, 10), 10.0 * i)
        for i in range(customers)
        for k in range(i % 5)
    ]
    pl.DataFrame(rows, schema=["entity_id", "event_time", "amount"], orient="row").write_csv(
        folder / "pay.csv"
    )
    (folder / "schema.yaml").write_text(yaml.safe_dump(SCHEMA, sort_keys=False), encoding="utf-8")
    import_events(folder / "schema.yaml", folder / "store")
    return EventStore.open(folder / "store")


def sample_rows(customers: int = 40) -> pl.DataFrame:
    """One labelled row a customer, decided in March to May 2024."""
    each = range(customers)
    return pl.DataFrame(
        {
            "entity_id": [f"c{i:03d}" for i in each],
            "as_of": [f"2024-{3 + i % 3:02d}-15 09:00:00" for i in each],
            "label": [str(int(i % 4 == 0)) for i in each],
            "requested": [str(100 + i) for i in each],
            "phone_no": [f"1380000{i:04d}" for i in each],
        }
    )
