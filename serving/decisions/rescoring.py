"""Facts of a scored request, and a body scored again for a replay."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from foundation.errors import UserError
from serving.decisions.facts import Facts
from serving.decisions.projection import Given
from serving.decisions.replay import Rescored
from serving.messages import Envelope
from serving.requests import RequestReader

if TYPE_CHECKING:
    from finetune.package import Package, ScoreRow

_ENVELOPE = msgspec.json.Decoder(Envelope)


class Again(Protocol):
    """A package that can score a request once more."""

    manifest: dict[str, Any]

    def again(self, envelope: Envelope, version: int | None = None) -> tuple[ScoreRow, list[str]]:
        """The score, and every flag of the answer; `version` is that of the history then stored."""


# (tenant, channel, digest) -> the package with the digest, else the one that answers now, or None.
Find = Callable[[str, str, str], Again | None]


class PackageAgain:
    """A package of a directory as `Again`.

    Args:
        max_events, future_seconds: bounds of a request, as the service's settings have them.
    """

    def __init__(self, package: Package, max_events: int, future_seconds: int) -> None:
        self._package = package
        self._reader = RequestReader(package.schema, max_events, future_seconds)
        self.manifest: dict[str, Any] = package.manifest

    def again(self, envelope: Envelope, version: int | None = None) -> tuple[ScoreRow, list[str]]:
        """The score, and every flag of the answer.

        Raises:
            UserError: it was made from a stored history, which a package alone does not have.
        """
        if envelope.history != "inline":
            raise UserError("the score was made from stored history; replay it through the service")
        given = self._reader.read(envelope, time.time_ns() // 1000)
        [row] = self._package.score_population(given.population(), envelope.reasons)
        return row, list(dict.fromkeys((*row.flags, *given.flags)))


def facts_of(
    envelope: Envelope,
    row: ScoreRow,
    manifest: dict[str, Any],
    flags: Sequence[str] = (),
    release: str = "",
) -> Facts:
    """What a decision is made from.

    Args:
        flags: all that the answer carries.
    """
    return Facts(
        entity_id=envelope.entity_id,
        score=float(row.score),
        points=float(row.points),
        band=row.band,
        bands=[str(band["name"]) for band in manifest.get("bands") or ()],
        reasons=[
            {"name": r.name, "title": r.title, "value": r.value, "effect": float(r.effect)}
            for r in row.reasons
        ],
        forecasts={name: float(value) for name, value in row.forecasts.items()},
        flags=list(flags),
        profile=msgspec.json.decode(envelope.profile) or {},
        context=msgspec.json.decode(envelope.context) or {},
        model=str(manifest.get("id", "")),
        release=release,
    )


def rescorer(find: Find) -> Callable[[str, bytes, Given], Rescored]:
    """What a replay scores with.

    Args:
        find: gives the package of then, or the one that answers the channel now, or None.
    """

    def score(tenant: str, body: bytes, given: Given) -> Rescored:
        package = find(tenant, given.channel, given.digest)
        if package is None:
            raise UserError("neither the package of then nor another one of the channel is here")
        envelope = _ENVELOPE.decode(body)
        envelope = msgspec.structs.replace(envelope, as_of=given.as_of or envelope.as_of)
        row, flags = package.again(envelope, given.detail.get("history"))
        facts = facts_of(envelope, row, package.manifest, flags, given.release)
        return Rescored(facts, str(package.manifest["digest"]))

    return score
