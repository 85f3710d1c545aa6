"""What a decision is made from, and what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a request once it is scored.

    Attributes:
        entity_id: the customer, as in the request; rules do not see it, lists do.
        score: probability of label 1.
        points: on the package's scale, more is better.
        band: name of the package's band; `bands` all its bands, least risk first.
        reasons: name, title, value and effect of each reason of the score; rules know them as
            `score_reasons`, because `reasons` are those of the decision.
        forecasts: probability by forecast.
        flags: words about the request, such as no_history.
        profile, context: fields of the request as they came.
        model, release: what answered.
    """

    entity_id: str
    score: float
    points: float
    band: str
    bands: Sequence[str] = ()
    reasons: Sequence[Mapping[str, Any]] = ()
    forecasts: Mapping[str, float] = field(default_factory=dict)
    flags: Sequence[str] = ()
    profile: Mapping[str, Any] = field(default_factory=dict)
    context: Mapping[str, Any] = field(default_factory=dict)
    model: str = ""
    release: str = ""

    def named(self, hits: Sequence[str]) -> dict[str, Any]:
        """The facts by the names that rules use.

        Args:
            hits: LIST:KIND of the list entries that match, such as black:device.
        """
        return {
            "score": self.score,
            "points": self.points,
            "band": self.band,
            "score_reasons": [dict(reason) for reason in self.reasons],
            "forecasts": dict(self.forecasts),
            "flags": list(self.flags),
            "profile": dict(self.profile),
            "context": dict(self.context),
            "lists": {
                **{name: any(h.startswith(f"{name}:") for h in hits) for name in LISTS},
                "hits": list(hits),
            },
            "model": self.model,
            "release": self.release,
        }


LISTS = ("black", "grey", "white")


@dataclass(frozen=True, slots=True)
class Ruling:
    """What a decision file says about some facts.

    Attributes:
        rules: ids of the table rows that hit, then those the file names itself.
        actions: names of the actions to be posted.
        limit, price: what the file suggests; None where it says nothing.
        failed: the file could not be evaluated, so a person has to look.
    """

    outcome: str
    reasons: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    limit: float | None = None
    price: float | None = None
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision on a request.

    Attributes:
        version: digest of the decision file, or `default`.
        lists: LIST:KIND of the list entries that matched.
        shadow: what the challenger would have said, with its version; it has no effect.
    """

    outcome: str
    reasons: tuple[str, ...]
    rules: tuple[str, ...]
    actions: tuple[str, ...]
    version: str
    limit: float | None = None
    price: float | None = None
    lists: tuple[str, ...] = ()
    shadow: Decision | None = None

    def logged(self) -> dict[str, Any]:
        """Members for the line of the decision log: outcome, rules, and the rest in `decision`."""
        detail: dict[str, Any] = {"version": self.version}
        for name in ("reasons", "actions", "lists"):
            if getattr(self, name):
                detail[name] = list(getattr(self, name))
        for name in ("limit", "price"):
            if getattr(self, name) is not None:
                detail[name] = getattr(self, name)
        if self.shadow is not None:
            shadow = self.shadow
            detail["shadow"] = {
                "version": shadow.version, "outcome": shadow.outcome, "rules": list(shadow.rules)
            }  # fmt: skip
        return {"outcome": self.outcome, "rules": list(self.rules), "decision": detail}
