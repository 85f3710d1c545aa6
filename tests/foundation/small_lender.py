"""A small invented lender for the tests of pretraining: statements and card payments.

Late statements follow low limits and earlier late statements, so that there is something to learn.
"""

from __future__ import annotations

import datetime as dt

import numpy as np
import polars as pl

from foundation.history import ProfileHistory, Timeline, build_profile, build_timeline
from foundation.schema import Schema, schema_from_dict

START = dt.datetime(2020, 1, 1)
UNTIL_US = 1_609_459_200_000_000  # 2021-01-01

SCHEMA = schema_from_dict(
    {
        "name": "small",
        "sources": {
            "statement": {
                "fields": {
                    "status": {"kind": "category", "role": "status"},
                    "bill": {"kind": "money", "role": "balance"},
                }
            },
            "payment": {
                "fields": {
                    "amount": {"kind": "money", "role": "amount"},
                    "shop": {"kind": "category", "role": "merchant_type"},
                    "device": {"kind": "identifier", "role": "device"},
                }
            },
        },
        "profile": {"fields": {"limit": {"kind": "money", "role": "limit"}}},
        "outcomes": {
            "late": "statement.status in ('1', '2') within 31d",
            "quiet": "silence(payment) within 31d, 62d",
        },
    }
)


def frames(entities: int, seed: int = 0) -> tuple[dict[str, pl.DataFrame], pl.DataFrame]:
    """Events per source over 2020 and profile rows."""
    rng = np.random.default_rng(seed)
    risk = rng.random(entities)
    who = np.arange(entities)
    month = np.arange(12)
    owner, at = np.repeat(who, 12), np.tile(month, entities)
    status = rng.binomial(2, 0.9 * risk[owner] ** 2)
    payer = np.repeat(who, rng.integers(0, 30, entities))
    statement = pl.DataFrame(
        {
            "entity_id": [f"e{i:04d}" for i in owner],
            "event_time": [
                START + dt.timedelta(days=int(30 * m + 5), hours=int(h))
                for m, h in zip(at, rng.integers(0, 24, len(at)), strict=True)
            ],
            "status": status.astype(str),
            "bill": np.round(rng.gamma(2.0, 100.0, len(at)), 2),
        }
    )
    payment = pl.DataFrame(
        {
            "entity_id": [f"e{i:04d}" for i in payer],
            "event_time": [
                START + dt.timedelta(minutes=int(m))
                for m in rng.integers(0, 365 * 1440, len(payer))
            ],
            "amount": np.round(rng.gamma(1.5, 20.0, len(payer)), 2),
            "shop": rng.choice(["food", "fuel", "games"], len(payer)),
            "device": [f"d{i}" for i in rng.integers(0, 40, len(payer))],
        }
    )
    profile = pl.DataFrame(
        {
            "entity_id": [f"e{i:04d}" for i in who],
            "known_at": pl.Series([None] * entities, dtype=pl.Datetime("us")),
            "limit": np.round(1000 * (1.2 - risk)),
        }
    )
    times = pl.col("event_time").cast(pl.Datetime("us"))
    tables = {
        name: frame.with_columns(times, times.alias("known_at"))
        for name, frame in (("statement", statement), ("payment", payment))
    }
    return tables, profile


def small_lender(entities: int = 40, seed: int = 0) -> tuple[Schema, Timeline, ProfileHistory]:
    """Schema, timeline and profile of the invented lender."""
    tables, profile = frames(entities, seed)
    return SCHEMA, build_timeline(SCHEMA, tables), build_profile(profile)
