"""Entities at rest: keyed hashes of their ids, another key for each tenant.

The hashing root does not rotate with the sealing keys. A hash is a name: lists, cached histories,
decisions and idempotency of a person are found by it, and none of them keeps the id from which a
new hash could be made. A new root would make every person a stranger. What protects the hash is
that the root never leaves the secrets; where it did, the stores must be begun anew.

A tenant's hash of an id says nothing about another tenant's hash of the same id.
"""

from __future__ import annotations

from functools import lru_cache

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.hmac import HMAC

from foundation.errors import ConfigError, listing, nearest
from serving.safety.ciphers import derived
from serving.safety.secrets import Secrets

SHA256, SM3 = "hmac-sha256", "hmac-sm3"
_KINDS: dict[str, hashes.HashAlgorithm] = {SHA256: hashes.SHA256(), SM3: hashes.SM3()}
_TENANTS = 4096
MARK = 32


class EntityHasher:
    """Hashes entity ids; safe to use from several threads.

    Args:
        algorithm: "hmac-sha256" or "hmac-sm3"; to be chosen once, before the first hash is kept.
    Raises:
        ConfigError: no such algorithm.
    """

    def __init__(self, secrets: Secrets, algorithm: str = SHA256) -> None:
        if algorithm not in _KINDS:
            raise ConfigError(
                f"no algorithm '{algorithm}'{nearest(algorithm, _KINDS)}; "
                f"algorithms: {listing(_KINDS)}"
            )
        self.algorithm = algorithm
        self._root, self._kind = secrets.hashing, _KINDS[algorithm]
        self._prepared = lru_cache(_TENANTS)(self._prepare)

    def hash(self, tenant: str, entity_id: str) -> str:
        """64 hex digits; the same for the same tenant and id as long as the root stays."""
        return self._digest("entity", tenant, entity_id)

    def mark(self, tenant: str, seq: int) -> str:
        """Whose line of the decision log this is, for those who have the tenant's mark key; hex."""
        return self._digest("mark", tenant, str(seq))[:MARK]

    def mark_key(self, tenant: str) -> bytes:
        """The key behind `mark`, which its tenant may know: with it no line can be withheld."""
        return self._key("mark", tenant)

    def identifier_key(self, tenant: str) -> bytes:
        """The key that hides identifiers in events, such as devices: 32 bytes."""
        return self._key("identifier", tenant)

    def signature(self, text: str) -> str:
        """HMAC of a head of the decision log, hex."""
        return self._digest("head", "", text)

    def _digest(self, use: str, tenant: str, text: str) -> str:
        code = self._prepared(use, tenant).copy()
        code.update(text.encode())
        return code.finalize().hex()

    def _key(self, use: str, tenant: str) -> bytes:
        return derived(self._root, 32, self._kind, "hash", self.algorithm, use, tenant)

    def _prepare(self, use: str, tenant: str) -> HMAC:
        return HMAC(self._key(use, tenant), self._kind)


def mark_of(algorithm: str, key: bytes, seq: int) -> str:
    """The mark of a line, by the key its tenant was given.

    Raises:
        ConfigError: no such algorithm.
    """
    if algorithm not in _KINDS:
        raise ConfigError(f"no algorithm '{algorithm}'; algorithms: {listing(_KINDS)}")
    code = HMAC(key, _KINDS[algorithm])
    code.update(str(seq).encode())
    return code.finalize().hex()[:MARK]
