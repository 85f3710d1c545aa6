"""Who a request speaks for: one tenant, one key, perhaps one person, and what the key may do."""

from __future__ import annotations

from dataclasses import dataclass

SCOPES = ("score", "events", "read", "samples", "decide", "admin")
# A service that was started on packages alone, without a workspace, has this one tenant.
DEFAULT_TENANT = "default"


@dataclass(frozen=True)
class Principal:
    """An authenticated caller; everything it sees is filtered by `tenant`.

    Attributes:
        tenant: the lender whose rows, caches, files and metrics these are.
        key_id: id of the API key, never its secret.
        name: name of the key, for people.
        scopes: what the key may do, of `SCOPES`.
        sandbox: test entities only; no model, no bill.
        person: whose personal key it is; empty for a machine's key.
    """

    tenant: str
    key_id: str
    name: str
    scopes: frozenset[str]
    sandbox: bool = False
    person: str = ""
