"""Everything about decisions that one process of the service holds, opened and closed together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from foundation.errors import UserError
from serving.database import Database
from serving.decisions import projection
from serving.decisions.actions import Sender
from serving.decisions.cases import CaseBook
from serving.decisions.decider import Decider
from serving.decisions.inputs import Inputs, Sealer
from serving.decisions.lists import Hasher, ListBook
from serving.decisions.projection import Follow, Projection
from serving.decisions.replay import Replay, Rescored, Score
from serving.decisions.rule_book import RuleBook
from serving.tenancy.background import Background
from serving.tenancy.principal import Principal

STEP_SECONDS, PURGE_SECONDS = 0.5, 3600.0
Permit = Callable[[Principal, str, str], None]


def _anybody(principal: Principal, action: str, channel: str) -> None:
    """Nobody is refused where no roles are set up."""


def _no_score(tenant: str, body: bytes, given: projection.Given) -> Rescored:
    raise UserError("no package is loaded that could score the request again")


class Desk:
    """Lists, decision files, decisions, cases, actions and replay.

    Args:
        hasher: (tenant, text) -> keyed hash, as in the decision log.
        vault: seals what replays need; None: bodies are not kept.
        days: how long bodies are kept.
        log: decision log of this node, with its `node` name and how it is followed; None: another
            process takes it in.
        networks: private networks that actions may be posted to.
        permit: refuses who may not: (principal, action, channel).
        background: look for changes, take the log in and post actions in threads of their own.
    """

    def __init__(
        self,
        database: Database,
        hasher: Hasher,
        *,
        vault: Sealer | None = None,
        days: int = 30,
        log: str | Path | None = None,
        node: str = "node",
        follow: Follow | None = None,
        score: Score = _no_score,
        networks: Iterable[str] = (),
        permit: Permit = _anybody,
        background: bool = True,
    ) -> None:
        self.database, self.permit = database, permit
        self.lists, self.files = ListBook(database, hasher), RuleBook(database)
        self.cases, self.sender = CaseBook(database), Sender(database, networks=networks)
        self.inputs = None if vault is None else Inputs(database, vault, days)
        self.decider = Decider(database, hasher, **({} if background else {"poll": 0.0}))
        self.replay = Replay(
            database, self.decider, self.lists, self.files, self.inputs, score
        )  # fmt: skip
        self.projection = (
            None if log is None or follow is None else Projection(database, node, log, follow)
        )
        self._loops: list[Background] = []
        if background:
            work: list[tuple[str, float, Callable[[], object]]] = [
                ("actions", STEP_SECONDS, self.sender.step),
                ("decisions-tidy", PURGE_SECONDS, self.tidy),
            ]
            if self.projection is not None:
                work.append(("decisions-log", STEP_SECONDS, self.projection.keep_up))
            self._loops = [Background(*one) for one in work]

    def tidy(self) -> None:
        """Close cases whose time is over, erase bodies that are too old."""
        self.cases.expire()
        if self.inputs is not None:
            self.inputs.purge()

    def erase(self, tenant: str, entity_hash: str, entity_id: str) -> dict[str, int]:
        """Forget a customer: bodies kept, and whom cases and decisions were about.

        What was decided stays, without the customer. Entries of lists stay: they are the lender's
        own record of why somebody is refused, and are taken off by who keeps the list.

        Returns:
            rows by table.
        """
        kept = 0 if self.inputs is None else self.inputs.erase(tenant, entity_hash, entity_id)
        return {
            "inputs": kept,
            "cases": self.cases.erase(tenant, entity_hash, entity_id),
            "decisions": projection.erase(self.database, tenant, entity_hash),
        }

    def close(self) -> None:
        """Stop the threads; what waits is written."""
        for loop in self._loops:
            loop.close()
        self.decider.close()
        if self.inputs is not None:
            self.inputs.close()
