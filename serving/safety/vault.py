"""The vault: seals what must not lie about in clear, for one tenant and one purpose."""

from __future__ import annotations

from functools import lru_cache

from foundation.errors import ConfigError, listing
from serving.safety import ciphers
from serving.safety.ciphers import AES_GCM, Header
from serving.safety.secrets import Secrets

_TENANTS = 4096


class Vault:
    """Seals and opens values; safe to use from several threads.

    Args:
        secrets: the newest sealing key seals, all of them open.
        algorithm: "aes-gcm" or "sm4-gcm", for what is sealed from now on; both open.
    Raises:
        ConfigError: no such algorithm.
    """

    def __init__(self, secrets: Secrets, algorithm: str = AES_GCM) -> None:
        self.algorithm = ciphers.require_algorithm(algorithm)
        self._roots = {key.id: key.secret for key in secrets.sealing}
        self._newest = Header(algorithm, secrets.sealing[-1].id)
        self._key = lru_cache(_TENANTS)(self._derive)

    def seal(self, tenant: str, purpose: str, data: bytes) -> bytes:
        """A sealed value, 34 bytes longer than the data.

        Args:
            purpose: what it is for, such as "events.body"; only the same purpose opens it.
        """
        return ciphers.seal(self._newest, self._key(self._newest, tenant), tenant, purpose, data)

    def open(self, tenant: str, purpose: str, blob: bytes) -> bytes:
        """The data of a sealed value.

        Raises:
            ArtifactError: it was changed, or sealed for another tenant or purpose.
            ConfigError: its key is not among the secrets.
        """
        header = ciphers.read_header(blob)
        if header.key_id not in self._roots:
            raise ConfigError(
                f"a value is sealed under key {header.key_id}, which is not among the secrets "
                f"({listing(self._roots)}); put that key back until everything is resealed"
            )
        return ciphers.unseal(self._key(header, tenant), tenant, purpose, blob)

    @property
    def newest(self) -> bytes:
        """The first bytes of what this vault seals: version, algorithm, key."""
        return ciphers.header_bytes(self._newest)

    def sealed_newest(self, blob: bytes) -> bool:
        """Whether a value is sealed by the newest key and this vault's algorithm."""
        return ciphers.read_header(blob) == self._newest

    def reseal(self, tenant: str, purpose: str, blob: bytes) -> bytes:
        """The same value under the newest key; one that is there already comes back as it is.

        Raises:
            ArtifactError, ConfigError: as `open`.
        """
        if self.sealed_newest(blob):
            return blob
        return self.seal(tenant, purpose, self.open(tenant, purpose, blob))

    def _derive(self, header: Header, tenant: str) -> bytes:
        return ciphers.tenant_key(header.algorithm, self._roots[header.key_id], tenant)
