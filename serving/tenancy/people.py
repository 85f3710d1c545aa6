"""People and their roles, and the one question everything asks: may this person do that?

People are declared where the registry is. Where nobody is declared, nobody is asked for a role:
everything works as it does for a single team. From the first person on, who is not allowed is
refused. The first must be able to manage people, and the last who can stays.

On the command line a person is whom `--by` names: the operating system's account is trusted. At
the API a person is known by their own key. Maker is not checker stays a rule of the registry.
"""

from __future__ import annotations

import threading
import time

import sqlalchemy as sa

from foundation.errors import UserError, listing
from serving.database import Database, now
from serving.messages import ApiError
from serving.releases import name as checked_name
from serving.releases import person as checked_person
from serving.tenancy.principal import Principal
from serving.tenancy.roles import EVERY, OPERATOR, Held, Roles, check_role, holders
from serving.tenancy.tables import people, people_metadata

MANAGE = "manage_people"


class People:
    """Roles of people, from memory; read again when older than `refresh_seconds`."""

    def __init__(self, database: Database, refresh_seconds: float = 1.0) -> None:
        database.make(people_metadata)
        self.database, self._trust = database, refresh_seconds
        self._lock = threading.Lock()
        self._held: tuple[Held, ...] = ()
        self._roles = Roles(())
        self._until = 0.0

    def held(self, tenant: str | None = None) -> tuple[Held, ...]:
        """Every role, or those that count for a tenant."""
        self._refresh()
        return tuple(h for h in self._held if tenant is None or h.tenant in (tenant, EVERY))

    def allowed(self, person: str, tenant: str, action: str, channel: str = EVERY) -> bool:
        """Whether a person may do something; anybody may where no people are declared."""
        self._refresh()
        return not self._held or self._roles.allowed(person, tenant, action, channel)

    def require(self, person: str, tenant: str, action: str, channel: str = EVERY) -> None:
        """Refuse who may not.

        Raises:
            UserError: says which roles may.
        """
        if not self.allowed(checked_person(person), tenant, action, channel):
            where = f"{tenant}/{channel}" if tenant != EVERY else "the platform"
            raise UserError(
                f"{person} may not {action.replace('_', ' ')} in {where}; it takes one of the "
                f"roles {listing(holders(action))} (riskfm person add)"
            )

    def permit(self, principal: Principal, action: str, channel: str = EVERY) -> None:
        """Refuse a personal key whose person may not; a machine's key has its scopes only.

        Raises:
            ApiError: 403.
        """
        if not principal.person:
            return
        if not self.allowed(principal.person, principal.tenant, action, channel):
            roles = listing(holders(action))
            raise ApiError(403, f"the key's person may not {action.replace('_', ' ')}: {roles} may")

    def add(
        self, person: str, role: str, tenant: str, by: str, channel: str = EVERY
    ) -> tuple[Held, bool]:
        """Give a person a role; whether it is new.

        Args:
            by: who gives it; needs the right to, from the second person on.
        Raises:
            UserError: no such role, a name nobody can have, or `by` may not.
        """
        given = _check(person, role, tenant, channel)
        with self.database.transaction() as connection:
            held = _read(connection)
            _authorise(held, given, by)
            after = Roles((*held, given))
            if not held and not after.allowed(given.person, given.tenant, MANAGE):
                raise UserError(
                    "the first person must be able to manage people: give the role operator, or "
                    "admin of a whole tenant"
                )
            new = self.database.insert_missing(
                connection, people, **given._asdict(), at=now(), who=checked_person(by)
            )
        self._until = 0.0
        return given, new

    def remove(self, person: str, role: str, tenant: str, by: str, channel: str = EVERY) -> Held:
        """Take a role away.

        Raises:
            UserError: nobody holds it, `by` may not, or nobody could manage people any more.
        """
        taken = _check(person, role, tenant, channel)
        with self.database.transaction() as connection:
            held = _read(connection)
            if taken not in held:
                raise UserError(
                    f"{person} does not hold {role} for {_where(taken)}; riskfm person list"
                )
            _authorise(held, taken, by)
            rest = tuple(h for h in held if h != taken)
            if not any(Roles(rest).allowed(h.person, h.tenant, MANAGE) for h in rest):
                raise UserError(
                    f"{person} is the last who can manage people; let another be so first"
                )
            mine = [people.c[name] == value for name, value in taken._asdict().items()]
            connection.execute(people.delete().where(*mine))
        self._until = 0.0
        return taken

    def _refresh(self) -> None:
        if time.monotonic() < self._until:
            return
        with self._lock:
            began = time.monotonic()
            with self.database.reading() as connection:
                held = _read(connection)
            if held != self._held:
                self._roles = Roles(held)
                self._held = held
            self._until = began + self._trust


def require(
    database: Database, person: str, tenant: str, action: str, channel: str = EVERY
) -> None:
    """Refuse who may not do something; where no people are declared, nobody is refused.

    Raises:
        UserError: says which roles may.
    """
    People(database).require(person, tenant, action, channel)


def _authorise(held: tuple[Held, ...], change: Held, by: str) -> None:
    """Who manages people of a tenant may give its roles; operators are made by operators."""
    by = checked_person(by)
    action = "manage_tenants" if change.tenant == EVERY else MANAGE
    if held and not Roles(held).allowed(by, change.tenant, action):
        raise UserError(
            f"{by} may not manage people of {_where(change)}; it takes one of the roles "
            f"{listing(holders(action))}"
        )


def _check(person: str, role: str, tenant: str, channel: str) -> Held:
    check_role(role)
    if (role == OPERATOR) != (tenant == EVERY):
        raise UserError(
            "operator is the role of the whole platform, and the only one: --tenant '*'"
        )
    if tenant != EVERY:
        checked_name("tenant", tenant)
    if channel != EVERY:
        checked_name("channel", channel)
    if tenant == EVERY and channel != EVERY:
        raise UserError("an operator's role is for every channel")
    return Held(checked_person(person), role, tenant, channel)


def _read(connection: sa.Connection) -> tuple[Held, ...]:
    columns = (people.c.person, people.c.role, people.c.tenant, people.c.channel)
    query = sa.select(*columns).order_by(*columns)
    return tuple(Held(*row) for row in connection.execute(query))


def _where(held: Held) -> str:
    return "the platform" if held.tenant == EVERY else f"{held.tenant}/{held.channel}"
