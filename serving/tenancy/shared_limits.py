"""Rate limits that several workers and nodes share, in Valkey.

One atomic script looks at the buckets of key and tenant and takes from both or from neither; time
is the server's. Where the server does not answer, the worker falls back on its own share of the
limits and looks for the server again after a moment: limits then hold for each worker.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from foundation.errors import ConfigError
from serving.tenancy.limits import RateLimits, bucket_rules, headers_or_refusal
from serving.tenancy.principal import Principal
from serving.tenancy.tenants import TenantLimits

log = logging.getLogger("riskfm.tenancy")
_AWAY_SECONDS = 1.0
# KEYS: the buckets. ARGV: what to take, then rate and burst of each. Answers the seconds to wait
# and the tokens of each bucket, as texts: Valkey would cut numbers to integers.
_SCRIPT = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local take, wait, levels = tonumber(ARGV[1]), -math.huge, {}
for i, key in ipairs(KEYS) do
  local rate, burst = tonumber(ARGV[2 * i]), tonumber(ARGV[2 * i + 1])
  local state = redis.call('HMGET', key, 'tokens', 'at')
  local tokens, at = tonumber(state[1]) or burst, tonumber(state[2]) or now
  levels[i] = math.min(burst, tokens + math.max(0, now - at) * rate)
  wait = math.max(wait, (take - levels[i]) / rate)
end
local answer = {tostring(wait)}
for i, key in ipairs(KEYS) do
  local left = levels[i]
  if wait <= 0 then left = left - take end
  local rate, burst = tonumber(ARGV[2 * i]), tonumber(ARGV[2 * i + 1])
  redis.call('HSET', key, 'tokens', string.format('%.6f', left), 'at', string.format('%.6f', now))
  redis.call('PEXPIRE', key, math.ceil(1000 * burst / rate) + 1000)
  answer[i + 1] = string.format('%.6f', levels[i])
end
return answer
"""


class SharedRateLimits:
    """Token buckets in Valkey; asked over the network, so `admit` belongs into a thread.

    Args:
        url: valkey://HOST:PORT/NUMBER, or redis:// and unix://.
        limits: a tenant's limits, from memory.
        workers: for the share of this worker while the server is away.
        timeout_seconds: how long an answer may take.
    Raises:
        ConfigError: the client is not installed, or the URL is none.
    """

    def __init__(
        self,
        url: str,
        limits: Callable[[str], TenantLimits],
        workers: int = 1,
        timeout_seconds: float = 0.1,
    ) -> None:
        try:
            import valkey
        except ImportError:
            raise ConfigError(
                "shared limits need the valkey client: pip install 'riskfm[valkey]'"
            ) from None
        try:
            self._client: Any = valkey.Valkey.from_url(
                url, socket_timeout=timeout_seconds, socket_connect_timeout=timeout_seconds
            )
        except ValueError:
            raise ConfigError("the Valkey URL must read valkey://HOST:PORT/NUMBER") from None
        self._errors: type[Exception] = valkey.ValkeyError
        self._script: Any = self._client.register_script(_SCRIPT)
        self._limits = limits
        self._own = RateLimits(limits, workers)
        self._away_until = 0.0
        self._lock = threading.Lock()

    def admit(self, principal: Principal) -> dict[str, str]:
        """As `RateLimits.admit`, over all workers and nodes."""
        return self._look(principal, 1, self._own.admit)

    def remaining(self, principal: Principal) -> dict[str, str]:
        """As `RateLimits.remaining`."""
        return self._look(principal, 0, self._own.remaining)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _look(
        self, principal: Principal, take: int, alone: Callable[[Principal], dict[str, str]]
    ) -> dict[str, str]:
        rules = bucket_rules(self._limits(principal.tenant), principal)
        if not rules:
            return {}
        if time.monotonic() < self._away_until:
            return alone(principal)
        # One slot for a tenant: a cluster runs a script on one node.
        names = [f"riskfm:rate:{{{tenant}}}:{key}" for (tenant, key), _, _ in rules]
        numbers = [number for _, rate, burst in rules for number in (rate, burst)]
        try:
            answer = self._script(keys=names, args=[take, *numbers])
        except self._errors as exc:
            with self._lock:
                if time.monotonic() >= self._away_until:
                    log.error("Valkey: %s; limits hold for each worker", type(exc).__name__)
                self._away_until = time.monotonic() + _AWAY_SECONDS
            return alone(principal)
        wait, *levels = (float(text) for text in answer)
        left = [
            (level - take, rate, burst)
            for level, (_, rate, burst) in zip(levels, rules, strict=True)
        ]
        return headers_or_refusal(wait, left)
