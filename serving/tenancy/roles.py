"""What the roles may do, decided by casbin.

A role stands for its own actions and for those of the roles below it:

    viewer < analyst < approver < admin < operator

`operator` is of the whole platform and holds it for every tenant. `auditor` stands apart: it sees
everything and changes nothing. A role is held for a tenant's channel, or for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import casbin
from casbin.util import key_match

from foundation.errors import UserError, listing, nearest

EVERY = "*"
OPERATOR = "operator"
PARENTS = {"analyst": "viewer", "approver": "analyst", "admin": "approver", OPERATOR: "admin"}
ACTIONS = {
    "viewer": ("read", "see_usage"),
    "analyst": ("hand_in", "edit_rules", "edit_lists", "score"),
    "approver": ("approve", "reject", "rollback", "decide"),
    "admin": ("manage_keys", "manage_people", "manage_channels", "see_audit", "erase"),
    OPERATOR: ("manage_tenants",),
    "auditor": ("read", "see_usage", "see_audit"),
}
ROLES = tuple(ACTIONS)
EVERY_ACTION = tuple(dict.fromkeys(a for actions in ACTIONS.values() for a in actions))

# Domains read TENANT/CHANNEL; a role may be held for TENANT/* or, by operators, for *.
MODEL = """
[request_definition]
r = person, place, action
[policy_definition]
p = role, action
[role_definition]
g = _, _, _
[policy_effect]
e = some(where (p.eft == allow))
[matchers]
m = g(r.person, p.role, r.place) && r.action == p.action
"""


class Held(NamedTuple):
    """A role somebody holds; tenant and channel may be `*`."""

    person: str
    role: str
    tenant: str
    channel: str = EVERY


class Roles:
    """Answers who may do what, for some people."""

    def __init__(self, held: Iterable[Held]) -> None:
        model = casbin.Model()
        model.load_model_from_text(MODEL)
        enforcer = casbin.Enforcer(model)
        enforcer.add_named_domain_matching_func("g", key_match)
        # Prefixes keep a person called like a role from being one.
        enforcer.add_policies(
            [(f"role:{role}", action) for role, actions in ACTIONS.items() for action in actions]
        )
        enforcer.add_grouping_policies(
            [(f"role:{role}", f"role:{below}", EVERY) for role, below in PARENTS.items()]
        )
        rows = [(f"person:{h.person}", f"role:{h.role}", _place(h.tenant, h.channel)) for h in held]
        if rows:
            enforcer.add_grouping_policies(list(dict.fromkeys(rows)))
        self._enforcer = enforcer

    def allowed(self, person: str, tenant: str, action: str, channel: str = EVERY) -> bool:
        """Whether a person may do something to a tenant's channel.

        Args:
            channel: `*` asks for all of them: what a role for one channel does not give.
        Raises:
            UserError: no such action.
        """
        if action not in EVERY_ACTION:
            raise UserError(
                f"no action '{action}'{nearest(action, EVERY_ACTION)}; actions: "
                f"{listing(EVERY_ACTION)}"
            )
        place = _place(tenant, channel)
        return bool(self._enforcer.enforce(f"person:{person}", place, action))


def holders(action: str) -> list[str]:
    """Roles that may do something, for a message."""
    found = []
    for role in ROLES:
        below: str | None = role
        while below is not None:
            if action in ACTIONS[below]:
                found.append(role)
                break
            below = PARENTS.get(below)
    return found


def check_role(role: str) -> str:
    """The name of a role.

    Raises:
        UserError: there is none of this name, with the nearest.
    """
    if role not in ROLES:
        raise UserError(f"no role '{role}'{nearest(role, ROLES)}; roles: {listing(ROLES)}")
    return role


def _place(tenant: str, channel: str) -> str:
    return EVERY if tenant == EVERY else f"{tenant}/{channel}"
