"""What crosses the wire about channels and the releases that answer for them."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta


class ReleaseAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A release that answers, or one that should and could not be loaded."""

    release: Annotated[str, Meta(description="TENANT/CHANNEL/NUMBER; empty where none decided it")]
    channel: str
    stage: Annotated[str, Meta(description="champion, challenger (rolled out) or shadow")]
    live: bool
    live_since: Annotated[str, Meta(description="ISO 8601, UTC; empty where unknown")] = ""
    package: str = ""
    digest: str = ""
    backbone: Annotated[str, Meta(description="Fingerprint of the backbone")] = ""
    share: Annotated[float, Meta(description="Share of customers (or of requests, in shadow)")] = 1
    flags: list[str] = []
    failure: Annotated[str, Meta(description="Why it could not be loaded")] = ""
    failed_at: str = ""


class ReleaseList(msgspec.Struct, frozen=True):
    """Releases of the tenant as this worker has them."""

    releases: list[ReleaseAnswer]


class ChannelSummary(msgspec.Struct, frozen=True):
    """A channel: the package that answers and, during a rollout, how many get another one."""

    channel: str
    live: bool
    release: str = ""
    package: str = ""
    digest: str = ""
    rollout_percent: float = 0.0


class ChannelList(msgspec.Struct, frozen=True):
    """Channels of the tenant; `default` is asked where a request names none."""

    channels: list[ChannelSummary]
    default: str | None


class ChannelDetail(msgspec.Struct, frozen=True):
    """A channel with its releases."""

    channel: str
    live: bool
    points: Any
    bands: Any
    releases: list[ReleaseAnswer]
