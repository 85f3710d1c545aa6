"""Decision files of a few rules, facts, and a desk with the real log, hashes and vault."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from serving.audit import DecisionLog, follow
from serving.database import Database
from serving.decisions.decision_file import DecisionFile, decode
from serving.decisions.desk import Desk
from serving.decisions.facts import Decision, Facts
from serving.decisions.projection import Given
from serving.decisions.replay import Rescored
from serving.safety.hashing import EntityHasher
from serving.safety.secrets import open_secrets
from serving.safety.vault import Vault

BANDS = ("A", "B", "C")
GRAPH: dict[str, Any] = {
    "nodes": [
        {"id": "in", "type": "inputNode", "name": "request"},
        {
            "id": "t",
            "type": "decisionTableNode",
            "name": "outcome",
            "content": {
                "hitPolicy": "first",
                "inputs": [
                    {"id": "b", "name": "black", "field": "lists.black"},
                    {"id": "p", "name": "points", "field": "points"},
                ],
                "outputs": [
                    {"id": "o", "name": "outcome", "field": "outcome"},
                    {"id": "r", "name": "reason", "field": "reasons"},
                    {"id": "a", "name": "action", "field": "actions"},
                ],
                "rules": [
                    {"_id": "black", "b": "true", "p": "", "o": '"refuse"', "r": '"on a list"',
                     "a": '"hold"'},
                    {"_id": "low", "b": "", "p": "< 500", "o": '"refuse"', "r": '"low"', "a": ""},
                    {"_id": "high", "b": "", "p": ">= 600", "o": '"approve"', "r": "", "a": ""},
                    {"_id": "rest", "b": "", "p": "", "o": '"review"', "r": '"between"', "a": ""},
                ],
            },
        },
        {"id": "out", "type": "outputNode", "name": "decision"},
    ],
    "edges": [
        {"id": "1", "sourceId": "in", "targetId": "t"},
        {"id": "2", "sourceId": "t", "targetId": "out"},
    ],
}  # fmt: skip
TESTS = [
    {"name": "low", "facts": {"points": 450}, "expect": {"outcome": "refuse", "rules": ["low"]}},
    {"name": "high", "facts": {"points": 650}, "expect": {"outcome": "approve"}},
    {"name": "between", "facts": {"points": 550}, "expect": {"outcome": "review"}},
    {
        "name": "black",
        "facts": {"points": 650, "lists": ["black:device"]},
        "expect": {"outcome": "refuse", "actions": ["hold"]},
    },
]
HOLD = {"url": "https://lender.example/hold", "secret": "RISKFM_ACTION_HOLD"}


def graph() -> dict[str, Any]:
    """A zen decision that may be changed."""
    return copy.deepcopy(GRAPH)


def table(decision: dict[str, Any]) -> dict[str, Any]:
    """The table of `graph()`."""
    return dict(decision["nodes"][1]["content"])


def file(
    high: int = 600, hold: Mapping[str, str] = HOLD, review: Mapping[str, Any] | None = None
) -> DecisionFile:
    """A decision file; approvals start at `high` points."""
    decision = graph()
    decision["nodes"][1]["content"]["rules"][2]["p"] = f">= {high}"
    tests = [t for t in TESTS if high > 550 or t["name"] != "between"]
    data = {"decision": decision, "tests": tests, "actions": {"hold": dict(hold)}}
    return decode(data | ({"review": dict(review)} if review else {}), "file")


def facts(points: float = 550.0, entity: str = "c1", **more: Any) -> Facts:
    """Facts of a request."""
    band = "A" if points >= 600 else "B" if points >= 500 else "C"
    return replace(Facts(entity, 0.1, points, band, BANDS), **more)


def hasher(tenant: str, text: str) -> str:
    """A keyed hash that needs no key."""
    return hashlib.sha256(f"{tenant}|{text}".encode()).hexdigest()


@dataclass
class Small:
    """A desk, its log, and what a service would do with them."""

    desk: Desk
    log: DecisionLog
    hash: Any

    def decide(self, request: str, found: Facts, tenant: str = "acme", **more: Any) -> Decision:
        """Decide, log, keep the body; as POST /v1/score does."""
        decision = self.desk.decider.decide(tenant, "cards", found)
        record = {
            "tenant": tenant, "key_id": "k", "request_id": request, "route": "/v1/score",
            "channel": "cards", "package": "demo", "digest": "d1", "score": found.score,
            "points": found.points, "band": found.band,
        }  # fmt: skip
        self.log.append(record | decision.logged() | more, found.entity_id).result(10)
        body = json.dumps({"points": found.points, "entity": found.entity_id} | dict(found.context))
        assert self.desk.inputs is not None
        self.desk.inputs.keep(tenant, request, self.hash(tenant, found.entity_id), body.encode())
        self.desk.inputs.flush()
        return decision

    def take_in(self) -> int:
        """The log into the database."""
        assert self.desk.projection is not None
        return self.desk.projection.run()

    def crown(self, given: DecisionFile, tenant: str = "acme") -> int:
        """Make a file the champion of the channel; its number."""
        files = self.desk.files
        number = files.add(tenant, "cards", given, "anna").number
        files.challenge(tenant, "cards", number, "anna")
        files.approve(tenant, "cards", number, "ben")
        self.desk.decider.refresh()
        return number


def rescore(tenant: str, body: bytes, given: Given) -> Rescored:
    """What a service would do with a kept body."""
    kept = json.loads(body)
    points, entity = kept.pop("points"), kept.pop("entity")
    return Rescored(facts(points, entity, context=kept), "d1")


@contextmanager
def small(folder: Path, database: Database) -> Iterator[Small]:
    """A desk without threads over a fresh log."""
    secrets = open_secrets(folder / "master.key", "development")
    hashes = EntityHasher(secrets)
    log = DecisionLog(folder / "decisions.jsonl", hashes)
    desk = Desk(
        database, hashes.hash, vault=Vault(secrets), log=folder / "decisions.jsonl", node="n1",
        follow=follow, score=rescore, networks=("127.0.0.0/8",), background=False,
    )  # fmt: skip
    try:
        yield Small(desk, log, hashes.hash)
    finally:
        desk.close()
        log.close()
