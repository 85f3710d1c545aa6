"""A store of histories over a real vault and real hashes, with posts as the API takes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from foundation.schema import Schema, schema_from_dict
from serving.database import Database
from serving.messages import ApiError
from serving.online.bounds import Bound, Bounds
from serving.online.events import Events
from serving.online.histories import Histories
from serving.online.store import OnlineStore
from serving.online.writing import Post, Posted
from serving.requests import RequestReader, ScoringInput
from serving.routes.scoring import read_envelope
from serving.safety.hashing import EntityHasher
from serving.safety.secrets import open_secrets
from serving.safety.vault import Vault
from tests.serving.fake_package import SCHEMA

NOW = 1_600_000_000_000_000  # 2020-09-13T12:26:40Z
READER = RequestReader(schema_from_dict(SCHEMA))
AS_OF = "2020-09-01T00:00:00Z"


class Small:
    """One worker: a store and what reads requests with it."""

    def __init__(self, folder: Path, url: str = "", bound: Bound | None = None, **more: Any):
        secrets = open_secrets(folder / "master.key", "development")
        self.hasher, vault = EntityHasher(secrets), Vault(secrets)
        self.database = Database(url or f"sqlite:///{folder}/online.db")
        self.store = OnlineStore(self.database, vault, self.hasher, **more)
        self.bounds = Bounds(self.database, bound)
        self.histories = Histories(self.store, self.bounds, self.hasher)

    def made(
        self, events: dict[str, Any], entity: str = "c1", tenant: str = "acme",
        ids: dict[str, list[str]] | None = None, reader: RequestReader = READER,
    ) -> Post:  # fmt: skip
        """A post, read as the route reads it."""
        envelope = read_envelope(json.dumps({"entity_id": entity, "events": events}).encode())
        key = self.hasher.identifier_key(tenant)
        tables = reader.read(envelope, NOW, key).tables
        fields = reader.schema.sources
        sources = {name: Events.read(t, fields[name].fields) for name, t in tables.items()}
        return Post(tenant, self.hasher.hash(tenant, entity), sources, ids or {})

    def post(self, events: dict[str, Any], **how: Any) -> Posted:
        """Store events."""
        found = self.store.append([self.made(events, **how)])[0]
        if isinstance(found, ApiError):
            raise found
        return found

    def read(
        self, history: str = "stored", tenant: str = "acme", reader: RequestReader = READER,
        version: int | None = None, **body: Any,
    ) -> ScoringInput:  # fmt: skip
        """A request as its package takes it."""
        given = {"entity_id": "c1", "as_of": AS_OF, "history": history} | body
        envelope = read_envelope(json.dumps(given).encode())
        return self.histories.read(tenant, "cards", reader, envelope, NOW, version)

    def held(self, entity: str = "c1", tenant: str = "acme") -> int:
        """Number of events stored of a customer."""
        found = self.store.read(tenant, self.hasher.hash(tenant, entity))
        return 0 if found is None else found.events


def statement(day: int, **fields: Any) -> dict[str, Any]:
    """A statement of a day of 2020."""
    return {"event_time": f"2020-{1 + day // 28:02d}-{1 + day % 28:02d}T10:00:00Z"} | fields


def schema(**sources: Any) -> Schema:
    """A schema of some sources."""
    return schema_from_dict({"name": "other", "sources": sources})
