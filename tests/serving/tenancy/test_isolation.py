"""Two tenants on one service see what each would see alone, whatever they do in which order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from serving.database import Database
from serving.messages import ApiError
from serving.tenancy.idempotency import Begun
from serving.tenancy.keys import create_key, list_keys
from serving.tenancy.limits import Quotas, RateLimits
from serving.tenancy.metering import Meter, read_decisions, read_usage
from serving.tenancy.people import People
from serving.tenancy.tenants import (
    Quota,
    TenantLimits,
    add_tenant,
    list_tenants,
    suspend_tenant,
)
from tests.serving.tenancy.small_hosting import (
    Clock,
    caller,
    open_hosting,
    open_idempotency,
    open_log,
)

RULES = TenantLimits(rate=0.5, burst=3, quota=Quota(day=4), channels={"cards": Quota(day=2)})
NAMES = st.sampled_from(("a", "b"))
OPERATIONS = st.one_of(
    st.tuples(st.just("key"), NAMES),
    st.tuples(st.just("admit"), NAMES),
    st.tuples(st.just("spend"), st.sampled_from(("cards", "loans"))),
    st.tuples(st.just("repeat"), NAMES, st.sampled_from(("d1", "d2"))),
    st.tuples(st.just("decide"), st.sampled_from(("cards", "loans"))),
    st.tuples(st.just("person"), NAMES),
    st.tuples(st.just("suspend")),
)


class Service:
    """Every store of tenancy on one database, and what each tenant was told."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.database = open_hosting(folder / "riskfm.db")
        clock = Clock()
        self.rates = RateLimits(lambda _: RULES, clock=clock)
        self.quotas = Quotas(self.database, lambda _: RULES, clock)
        self.idempotency = open_idempotency(self.database, folder, clock=clock)
        self.people = People(self.database, 0)
        self.people.add("olga", "operator", "*", "root")
        self.log = open_log(folder)
        self.meter = Meter(self.database, self.log.path)
        for tenant in ("acme", "acm"):
            add_tenant(self.database, tenant, RULES)

    def do(self, tenant: str, name: str, *what: str) -> Any:
        """One operation and its answer."""
        try:
            return getattr(self, f"do_{name}")(tenant, *what)
        except ApiError as exc:
            return exc.status, str(exc), exc.headers

    def do_key(self, tenant: str, name: str) -> None:
        # The fast half of making one: argon2 has no part in isolation.
        if name not in [k.name for k in list_keys(self.database, tenant)]:
            create_key(self.database, name, tenant=tenant)

    def do_admit(self, tenant: str, key: str) -> Any:
        return self.rates.admit(caller(tenant, key))

    def do_spend(self, tenant: str, channel: str) -> Any:
        return self.quotas.spend(tenant, channel)

    def do_repeat(self, tenant: str, key: str, digest: str) -> Any:
        found = self.idempotency.begin(tenant, "/v1/score", key, digest)
        if isinstance(found, Begun):
            return self.idempotency.finish(found, 200, f"{tenant} {key} {digest}".encode())
        return found

    def do_decide(self, tenant: str, channel: str) -> None:
        self.log.append({"tenant": tenant, "channel": channel, "route": "/v1/score"}, "e")

    def do_person(self, tenant: str, name: str) -> None:
        self.people.add(name, "approver", tenant, "olga")

    def do_suspend(self, tenant: str) -> None:
        suspend_tenant(self.database, tenant)

    def seen(self, tenant: str) -> Any:
        """Everything a tenant may read."""
        shown = ("channel", "route", "kind", "billed")
        decisions = read_decisions(self.database, tenant)
        return {
            "keys": [(k.name, k.tenant) for k in list_keys(self.database, tenant)],
            "quota": [self.quotas.used(tenant, c) for c in ("", "cards", "loans")],
            "usage": read_usage(self.database, tenant, "2000", "2999"),
            "decisions": [{name: row[name] for name in shown} for row in decisions],
            "people": self.people.held(tenant),
            "may": [self.people.allowed(n, tenant, "approve", "cards") for n in ("a", "b")],
            "state": [t.state for t in list_tenants(self.database) if t.name == tenant],
        }


@settings(max_examples=6)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(("acme", "acm")), OPERATIONS), min_size=4, max_size=16
    ),
)
def test_together_as_alone(tmp_path_factory, steps) -> None:
    folder = tmp_path_factory.mktemp("isolation")
    together = Service(folder / "together")
    told = [(tenant, together.do(tenant, *step)) for tenant, step in steps]
    together.log.close()
    together.meter.advance()
    together.quotas.sync()
    for tenant in ("acme", "acm"):
        alone = Service(folder / tenant)
        mine = [alone.do(tenant, *step) for each, step in steps if each == tenant]
        alone.log.close()
        alone.meter.advance()
        alone.quotas.sync()
        assert [answer for each, answer in told if each == tenant] == mine
        assert together.seen(tenant) == alone.seen(tenant)


def test_the_same_names_in_two_tenants(database: Database, tmp_path: Path) -> None:
    """What a tenant finished is never another's answer, on both kinds of database."""
    keys = open_idempotency(database, tmp_path)
    answers = {}
    for tenant in ("acme", "acm"):
        found = keys.begin(tenant, "/v1/score", "k", "d")
        assert isinstance(found, Begun)
        keys.finish(found, 200, tenant.encode())
    for tenant in ("acme", "acm"):
        answers[tenant] = keys.begin(tenant, "/v1/score", "k", "d").answer
    assert answers == {"acme": b"acme", "acm": b"acm"}
