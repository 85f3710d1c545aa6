"""The room a worker has for requests at once, over all tenants.

What is being read, waits or is worked on counts by its bytes, so that memory stays flat however
many clients send, however slowly. A tenant may hold as much as is still free: alone it gets half,
and there is always room left for another. What does not fit is refused before it is read further.
"""

from __future__ import annotations

from foundation.errors import ConfigError
from serving.messages import ApiError
from serving.settings import Settings

# About what a request costs beside its body: connection, headers, task.
PER_REQUEST = 16 * 1024
_AGAIN = {"Retry-After": "1"}


class Room:
    """Bytes of requests in this worker; used on its event loop only.

    Args:
        limit: of all requests together.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.total = 0
        self._held: dict[str, int] = {}

    @classmethod
    def of(cls, settings: Settings) -> Room:
        """The room a service is set to have.

        Raises:
            ConfigError: the largest body that is allowed would never be let in.
        """
        name = max("max_body_bytes", "max_batch_bytes", key=lambda n: int(getattr(settings, n)))
        largest = int(getattr(settings, name))
        least = 2 * (largest + PER_REQUEST)
        if settings.waiting_bytes < least:
            raise ConfigError(
                f"waiting_bytes is {settings.waiting_bytes}: with {name} {largest} it has to be "
                f"{least} at least"
            )
        return cls(settings.waiting_bytes)

    def held(self, tenant: str) -> int:
        """Bytes that a tenant's requests hold."""
        return self._held.get(tenant, 0)

    def take(self, tenant: str, size: int) -> None:
        """Let more bytes of a request in.

        Raises:
            ApiError: the tenant holds its part already (429), or the worker is full (503).
        """
        free = self.limit - self.total - size
        mine = self._held.get(tenant, 0) + size
        if free < 0:
            raise ApiError(
                503, "as many requests wait as there is memory for", headers=_AGAIN, shed="memory"
            )
        if mine > free:
            raise ApiError(
                429, "too many of your requests are waiting", headers=_AGAIN, shed="memory"
            )
        self.total += size
        self._held[tenant] = mine

    def leave(self, tenant: str, size: int) -> None:
        """A request is done with these bytes."""
        self.total -= size
        left = self._held.get(tenant, 0) - size
        if left > 0:
            self._held[tenant] = left
        else:
            self._held.pop(tenant, None)
