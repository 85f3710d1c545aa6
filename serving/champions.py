"""`champions.json`: which package answers for which channel, readable without a database.

Once there is a champion, the registry writes it after every change and at every opening; a scoring
image reads it and needs neither the registry nor its libraries. `tenant/channel` -> the champion,
since when, the champion before it, the challenger some customers get, and the releases that score
in shadow.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from foundation.errors import ArtifactError, UserError
from serving.durable import place_file

CHAMPIONS = "champions.json"
PACKAGES = "packages"


class Named(msgspec.Struct, frozen=True, kw_only=True):
    """A release and its package: digest and readable id."""

    release: str
    package: str
    name: str = ""


class Rollout(Named, frozen=True, kw_only=True):
    """The challenger that a part of the customers gets."""

    percent: float
    since: str = ""
    backbone: str = ""


class ShadowOf(Named, frozen=True, kw_only=True):
    """A release that scores along; `share` of the requests, None for what the service is set to."""

    share: float | None = None


class Standing(Named, frozen=True, kw_only=True):
    """What stands in a channel.

    Attributes:
        since: when it became champion, ISO 8601 UTC.
        backbone: fingerprint of its backbone; empty where unknown.
        backbone_since: when the channel's champions last changed their backbone, or None.
        before: the champion it followed; None after a rollback or for the first.
    """

    since: str = ""
    backbone: str = ""
    backbone_since: str | None = None
    before: Named | None = None
    rollout: Rollout | None = None
    shadows: tuple[ShadowOf, ...] = ()


Channel = tuple[str, str]
_STANDINGS = msgspec.json.Decoder(dict[str, Standing])


def write_champions(workspace: Path, champions: Mapping[str, Mapping[str, Any]]) -> None:
    """Write `tenant/channel` -> members of a `Standing`, where the file says something else."""
    text = json.dumps(dict(sorted(champions.items())), indent=1) + "\n"
    path = workspace / CHAMPIONS
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        place_file(path, text.encode())


def read_champions(data: bytes, path: Path) -> dict[Channel, Standing]:
    """What stands in every channel, by tenant and channel.

    Args:
        data: content of the file. path: for the message.
    Raises:
        ArtifactError: damaged.
    """
    try:
        found = _STANDINGS.decode(data)
        keys = {name: name.split("/") for name in found}
        return {(tenant, channel): found[name] for name, (tenant, channel) in keys.items()}
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError):
        raise ArtifactError(
            f"{path}: damaged; any command such as riskfm releases writes it anew"
        ) from None


def champion_packages(workspace: Path) -> list[Path]:
    """Package directories of the champions, each once, by tenant and channel.

    Raises:
        UserError: there is no champion yet.
        ArtifactError: the file is damaged.
    """
    path = workspace / CHAMPIONS
    standings: dict[Channel, Standing] = {}
    if path.is_file():
        standings = read_champions(path.read_bytes(), path)
    if not standings:
        raise UserError(
            f"{workspace}: no channel has a champion yet; deliver a sample file and let a "
            "different person approve it with riskfm approve"
        )
    digests = [standings[key].package for key in sorted(standings)]
    return [workspace / PACKAGES / digest for digest in dict.fromkeys(digests)]
