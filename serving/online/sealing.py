"""What of a history reaches the database: sealed blocks, and keyed hashes of ids and contents.

A block is sealed for its place (customer and number), so that nobody who can write to the database
can move it to somebody else.
"""

from __future__ import annotations

from typing import Protocol

from serving.online.events import Events

PURPOSE = "online.events"


class Sealer(Protocol):
    """What seals values of a tenant for one purpose."""

    def seal(self, tenant: str, purpose: str, data: bytes) -> bytes:
        """The sealed value."""

    def open(self, tenant: str, purpose: str, blob: bytes) -> bytes:
        """The data of a sealed value."""


class Hasher(Protocol):
    """What hides names of a tenant."""

    def hash(self, tenant: str, entity_id: str) -> str:
        """A keyed hash, 64 hex digits."""


def purpose(entity: str, seq: int) -> str:
    """What a block is sealed for: its place."""
    return f"{PURPOSE}:{entity}:{seq}"


def seal(vault: Sealer, tenant: str, entity: str, seq: int, events: Events) -> bytes:
    """A block as the database keeps it."""
    return vault.seal(tenant, purpose(entity, seq), events.to_bytes())


def unseal(vault: Sealer, tenant: str, entity: str, seq: int, blob: bytes) -> Events:
    """The events of a block.

    Raises:
        ArtifactError: changed in the database, or not of this place.
        ConfigError: sealed under a key that is not among the secrets.
    """
    return Events.from_bytes(vault.open(tenant, purpose(entity, seq), blob))
