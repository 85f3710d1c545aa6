"""What the tests of tenancy share: a database, a log, a vault, a clock to turn, a caller."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from serving.audit import DecisionLog
from serving.database import Database
from serving.safety.hashing import EntityHasher
from serving.safety.secrets import open_secrets
from serving.safety.vault import Vault
from serving.tenancy.idempotency import Idempotency
from serving.tenancy.principal import Principal
from serving.tenancy.tables import open_tables


class Clock:
    """Seconds that pass when told to."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def open_hosting(path: Path) -> Database:
    """A hosting database in SQLite."""
    database = Database(f"sqlite:///{path}")
    open_tables(database)
    return database


def open_log(folder: Path) -> DecisionLog:
    """The decision log of a folder."""
    secrets = open_secrets(folder / "master.key", "development")
    return DecisionLog(folder / "decisions.jsonl", EntityHasher(secrets))


def open_idempotency(database: Database, folder: Path, **how: Any) -> Idempotency:
    """Idempotency keys sealed and hidden by the folder's secrets."""
    secrets = open_secrets(folder / "master.key", "development")
    return Idempotency(database, Vault(secrets), EntityHasher(secrets).hash, **how)


def caller(tenant: str = "acme", key: str = "k1", **more: Any) -> Principal:
    """A principal with the everyday scopes."""
    return Principal(tenant, key, "test", frozenset(("score", "read")), **more)
