"""What answers for whom at one moment: tenants, their channels, their packages.

A table is never changed; a new release makes a new table, and the old one lives as long as a
request holds it. Nothing found here, and no sentence of a refusal, names another tenant's things.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from foundation.errors import listing, nearest
from serving.messages import ApiError
from serving.models.loaded import Loaded

_AGAIN = {"Retry-After": "5"}


@dataclass(frozen=True)
class Channel:
    """What answers for a channel.

    Attributes:
        rollout: challenger that `percent` of the customers get, or None.
    """

    champion: Loaded
    rollout: Loaded | None = None
    percent: float = 0.0

    def pick(self, entity: str) -> Loaded:
        """The champion, or the rollout where the customer is on its side.

        Args:
            entity: keyed hash of the customer; empty gets the champion.
        """
        if self.rollout is None or not entity:
            return self.champion
        inside = in_share(entity, self.rollout.release, self.percent / 100)
        return self.rollout if inside else self.champion

    @property
    def releases(self) -> tuple[Loaded, ...]:
        """Everything that is live in the channel, champion first."""
        rollout = () if self.rollout is None else (self.rollout,)
        return (self.champion, *rollout, *(loaded for loaded, _ in self.champion.shadows))


@dataclass(frozen=True)
class Tenant:
    """What answers for a tenant.

    Attributes:
        packages: packages a request may name, by id.
        default: package that answers a request naming neither package nor channel, or None.
        only: the one channel there is, or None.
        pending: channels that have a release, none of which could be loaded.
    """

    channels: Mapping[str, Channel] = field(default_factory=dict)
    packages: Mapping[str, Loaded] = field(default_factory=dict)
    default: str | None = None
    only: str | None = None
    pending: frozenset[str] = frozenset()

    def pick(self, channel: str | None, package: str | None, entity: str) -> Loaded:
        """The release that answers a request.

        Raises:
            ApiError: 404 for an unknown package or channel, 422 where neither is named and there
                is no default or where the two do not fit, 503 where no release of the channel
                could be loaded.
        """
        if package is not None:
            return self._package(package, channel)
        if channel is None:
            if self.default is not None:
                return self.packages[self.default]
            if self.only is not None:
                return self.channels[self.only].pick(entity)
            raise self._unnamed()
        found = self.channels.get(channel)
        if found is not None:
            return found.pick(entity)
        if channel in self.pending:
            raise ApiError(503, "the channel's release could not be loaded yet", "channel", _AGAIN)
        same = [loaded for loaded in self.packages.values() if loaded.channel == channel]
        if len(same) > 1:
            raise ApiError(
                422,
                f"several packages answer for this channel; name one of the packages: "
                f"{listing(loaded.id for loaded in same)}",
                "package",
            )
        known = sorted({*self.channels, *self.pending})
        raise ApiError(
            404,
            f"no such channel{nearest(channel, known)}; channels: {listing(known) or 'none'}",
            "channel",
        )

    def _package(self, package: str, channel: str | None) -> Loaded:
        found = self.packages.get(package)
        if found is None:
            raise ApiError(
                404,
                f"no such package{nearest(package, self.packages)}; "
                f"packages: {listing(self.packages) or 'none'}",
                "package",
            )
        if channel is not None and found.channel != channel:
            raise ApiError(422, "the package does not answer for this channel", "package")
        return found

    def _unnamed(self) -> ApiError:
        by_path = [loaded.id for loaded in self.packages.values() if not loaded.release]
        if by_path:
            return ApiError(422, f"name one of the packages: {listing(self.packages)}", "package")
        known = sorted({*self.channels, *self.pending})
        if known:
            return ApiError(422, f"name one of the channels: {listing(known)}", "channel")
        return ApiError(404, "no channel has a release yet", "channel")


NOBODY = Tenant()


def in_share(entity: str, release: str, share: float) -> bool:
    """Whether a customer is on the side of a release that `share` (0 to 1) of them get.

    The same customer is always on the same side; a growing share only adds customers, and the
    sides of two releases do not depend on each other.
    """
    digest = hashlib.blake2b(f"{release}\0{entity}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2.0**64


def tenant_of(
    channels: Mapping[str, Channel],
    named: Mapping[str, Loaded],
    default: str | None,
    pending: frozenset[str],
) -> Tenant:
    """A tenant's view: its channels, the packages they answer with, and packages named by path."""
    packages = dict(named)
    for channel in channels.values():
        for loaded in (channel.champion, channel.rollout):
            if loaded is not None:
                packages.setdefault(loaded.id, loaded)
    by_channel: dict[str, list[Loaded]] = {}
    for loaded in named.values():
        by_channel.setdefault(loaded.channel, []).append(loaded)
    alone = {name: Channel(same[0]) for name, same in by_channel.items() if len(same) == 1}
    every = {**alone, **channels}
    names = {*every, *by_channel, *pending}
    only = next(iter(names)) if len(names) == 1 and len(every) == 1 else None
    return Tenant(every, packages, default, only, pending)
