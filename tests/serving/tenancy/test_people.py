"""Roles: who may do what, where, and how people are declared."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.errors import UserError
from serving.database import Database
from serving.messages import ApiError
from serving.tenancy.people import People, require
from serving.tenancy.roles import ACTIONS, EVERY, EVERY_ACTION, PARENTS, ROLES, Held, Roles
from tests.serving.tenancy.small_hosting import caller, open_hosting

NAMES = ("anna", "bo", "admin", "operator", "role:admin")
TENANTS = ("acme", "acm", "beta")
CHANNELS = ("cards", "card", "loans")


def by_hand(held: list[Held], person: str, tenant: str, action: str, channel: str) -> bool:
    """The rules without casbin."""
    for each in held:
        role: str | None = each.role
        here = each.tenant in (tenant, EVERY) and each.channel in (channel, EVERY)
        while role is not None and each.person == person and here:
            if action in ACTIONS[role]:
                return True
            role = PARENTS.get(role)
    return False


tenant_roles = st.builds(
    Held,
    st.sampled_from(NAMES),
    st.sampled_from([r for r in ROLES if r != "operator"]),
    st.sampled_from(TENANTS),
    st.sampled_from((*CHANNELS, EVERY)),
)
operators = st.builds(
    Held, st.sampled_from(NAMES), st.just("operator"), st.just(EVERY), st.just(EVERY)
)


@settings(max_examples=15)
@given(held=st.lists(tenant_roles | operators, max_size=5), data=st.data())
def test_casbin_decides_as_the_rules_read(held: list[Held], data) -> None:
    roles = Roles(held)
    for _ in range(8):
        person = data.draw(st.sampled_from(NAMES))
        tenant = data.draw(st.sampled_from((*TENANTS, EVERY)))
        channel = EVERY if tenant == EVERY else data.draw(st.sampled_from((*CHANNELS, EVERY)))
        action = data.draw(st.sampled_from(EVERY_ACTION))
        expected = by_hand(held, person, tenant, action, channel)
        assert roles.allowed(person, tenant, action, channel) == expected


def test_the_table_of_roles() -> None:
    may = {
        role: {a for a in EVERY_ACTION if Roles([Held("p", role, "t")]).allowed("p", "t", a)}
        for role in ROLES
        if role != "operator"
    }
    assert may["viewer"] < may["analyst"] < may["approver"] < may["admin"]
    assert {"approve", "reject", "rollback"} <= may["approver"] - may["analyst"]
    assert may["auditor"] == {"read", "see_usage", "see_audit"}
    assert "manage_tenants" not in may["admin"]
    assert set(EVERY_ACTION) == may["admin"] | {"manage_tenants"}


def test_people_are_declared_by_who_may(database: Database) -> None:
    people = People(database, refresh_seconds=0)
    assert people.allowed("anybody", "acme", "approve")
    with pytest.raises(UserError, match="the first person"):
        people.add("anna", "approver", "acme", "root")
    assert people.add("Anna ", "admin", "acme", "root")[0] == Held("anna", "admin", "acme")
    assert not people.allowed("anybody", "acme", "approve")
    with pytest.raises(UserError, match="root may not manage people of acme"):
        people.add("bo", "viewer", "acme", "root")
    with pytest.raises(UserError, match="may not manage people of beta"):
        people.add("bo", "viewer", "beta", "anna")
    with pytest.raises(UserError, match="may not manage people of the platform"):
        people.add("anna", "operator", EVERY, "anna")
    assert people.add("bo", "approver", "acme", "ANNA", "cards")[1]
    assert not people.add("bo", "approver", "acme", "anna", "cards")[1]
    assert people.allowed("bo", "acme", "approve", "cards")
    assert not people.allowed("bo", "acme", "approve", "loans")
    require(database, "Bo", "acme", "approve", "cards")
    with pytest.raises(UserError, match=r"bo may not approve in acme/loans; .* approver, admin"):
        require(database, "bo", "acme", "approve", "loans")
    with pytest.raises(UserError, match="the last who can manage"):
        people.remove("anna", "admin", "acme", "anna")
    people.add("cy", "admin", "acme", "anna")
    people.remove("anna", "admin", "acme", "anna")
    assert [h.person for h in people.held("acme")] == ["bo", "cy"]
    with pytest.raises(UserError, match="does not hold"):
        people.remove("anna", "admin", "acme", "cy")


def test_another_process_sees_the_change(tmp_path: Path) -> None:
    one, two = (People(open_hosting(tmp_path / "p.db"), 0) for _ in range(2))
    one.add("olga", "operator", EVERY, "root")
    assert two.allowed("olga", "zeta", "approve", "x") and not two.allowed("x", "zeta", "read")


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (("a", "approvr", "acme", "x"), "did you mean 'approver'"),
        (("a", "operator", "acme", "x"), "whole platform"),
        (("a", "admin", EVERY, "x"), "whole platform"),
        (("a", "admin", "no/name", "x"), "tenant 'no/name'"),
        (("a", "operator", EVERY, "x", "cards"), "every channel"),
        ((" ", "admin", "acme", "x"), "say who"),
    ],
)
def test_wrong_wishes(tmp_path: Path, wish: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        People(open_hosting(tmp_path / "p.db")).add(*wish)


def test_personal_keys_need_their_role_and_machines_their_scopes(tmp_path: Path) -> None:
    people = People(open_hosting(tmp_path / "p.db"), 0)
    people.add("anna", "admin", "acme", "root")
    people.add("aude", "auditor", "acme", "anna")
    people.permit(caller(), "approve")
    people.permit(caller(person="aude"), "see_audit")
    with pytest.raises(ApiError, match="may not approve: approver, admin, operator may") as found:
        people.permit(caller(person="aude"), "approve")
    assert found.value.status == 403
    with pytest.raises(ApiError):
        people.permit(caller("beta", person="anna"), "read")
    with pytest.raises(UserError, match="did you mean 'approve'"):
        people.allowed("anna", "acme", "aprove")
