"""Commands of tenancy, from the first tenant to the month's bill."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from serving.cli import cli
from serving.database import Database
from serving.delivery import Delivery
from serving.tenancy.key_ring import KeyRing
from tests.serving.installed_packages import install
from tests.serving.tenancy.small_hosting import open_log


class Shell:
    """Runs commands in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"sqlite:///{folder}/riskfm.db"

    def run(self, *words: str) -> Result:
        """One command, whatever comes of it."""
        environment = {
            "RISKFM_DATABASE": self.url, "RISKFM_WORKSPACE": str(self.folder / "workspace"),
        }  # fmt: skip
        return CliRunner().invoke(cli, [*words], env=environment)

    def ok(self, *words: str) -> str:
        """What a command prints that ends well."""
        result = self.run(*words)
        assert result.exit_code == 0, result.output
        return result.stdout.strip()

    def no(self, *words: str) -> str:
        """What a command says that is refused."""
        result = self.run(*words)
        assert result.exit_code == 2, result.output
        return result.output


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def test_tenants_and_keys(shell: Shell) -> None:
    assert "added" in shell.ok("tenant", "add", "acme")
    assert "nothing changed" in shell.ok("tenant", "add", "acme")
    shell.ok("tenant", "limit", "acme", "--rate", "50", "--burst", "20", "--day", "1000")
    limits = shell.ok("tenant", "limit", "acme", "--channel", "cards", "--month", "9")
    assert limits == "tenant acme: rate 50, burst 20, quota.day 1000, channels.cards.month 9"
    assert limits.removeprefix("tenant acme: ") in shell.ok("tenant", "list")
    assert "no limits" in shell.ok("tenant", "limit", "acme", "--clear")
    assert "rate" in shell.no("tenant", "limit", "acme", "--rate", "0")
    assert "did you mean 'acme'" in shell.no("key", "create", "--name", "n", "--tenant", "acm")

    key = shell.ok("key", "create", "--name", "n", "--tenant", "acme", "--scope", "score")
    old = key.split("_")[1]
    fresh = shell.ok("key", "rotate", old, "--grace-hours", "1").splitlines()[0]
    sandbox = shell.ok("key", "create", "--name", "try", "--sandbox", "--person", "Anna")
    ring = KeyRing(Database(shell.url))
    assert ring.authenticate(key).tenant == ring.authenticate(fresh).tenant == "acme"
    assert ring.authenticate(sandbox).sandbox and ring.authenticate(sandbox).person == "anna"
    assert "suspended" in shell.ok("tenant", "suspend", "acme")
    assert "active" in shell.ok("tenant", "resume", "acme")
    shell.ok("key", "revoke", old)
    listed = shell.ok("key", "list", "--tenant", "acme").splitlines()
    assert [line.split()[1] for line in listed] == ["revoked", "active"]
    assert f"for {old}" in listed[1] and fresh not in "".join(listed)
    assert "no key" in shell.no("key", "revoke", "nothing")
    ring.close()


def test_roles_hold_on_the_command_line(shell: Shell) -> None:
    opened = Delivery.open(shell.folder / "workspace", create=True)
    registry = opened.registry
    registry.set_channel("acme", "cards", {"store": "s"}, "root")
    found = registry.submit("acme", "cards", install(registry.workspace, "m"), "job-1", "anna")
    registry.challenge(found.id, "anna")
    assert "nobody is declared" in shell.ok("person", "list")
    who = ("--role", "admin", "--tenant", "acme", "--by", "root")
    assert "added" in shell.ok("person", "add", "Mona", *who)
    shell.ok("person", "add", "anna", "--role", "analyst", "--tenant", "acme", "--by", "mona")
    shell.ok("person", "add", "bo", "--role", "approver", "--tenant", "acme", "--by", "mona")
    assert shell.ok("person", "list").splitlines()[-1] == "mona  admin  acme/*"

    for words in (
        ("approve", found.id), ("reject", found.id),
        ("rollback", "--tenant", "acme", "--channel", "cards"),
        ("key", "create", "--name", "n", "--tenant", "default"),
        ("tenant", "add", "beta"),
        ("usage", "--month", "2027-01", "--tenant", "acme"),
    ):  # fmt: skip
        assert "stranger may not" in shell.no(*words, "--by", "stranger")
    assert "anna may not approve in acme/cards" in shell.no("approve", found.id, "--by", "anna")
    # The role is not enough: who handed in the samples may not approve them.
    shell.ok("person", "add", "anna", "--role", "approver", "--tenant", "acme", "--by", "mona")
    assert "a different person must" in shell.no("approve", found.id, "--by", "anna")
    assert "champion" in shell.ok("approve", found.id, "--by", "Bo")
    assert "last who can manage" in shell.no(
        "person", "remove", "mona", "--role", "admin", "--tenant", "acme", "--by", "mona"
    )
    removed = ("anna", "--role", "approver", "--tenant", "acme")
    assert "no longer approver" in shell.ok("person", "remove", *removed, "--by", "mona")


def test_makers_may_withdraw_their_own(shell: Shell) -> None:
    registry = Delivery.open(shell.folder / "workspace", create=True).registry
    registry.set_channel("acme", "cards", {"store": "s"}, "root")
    found = registry.submit("acme", "cards", install(registry.workspace, "m"), "job-1", "anna")
    shell.ok("person", "add", "mona", "--role", "admin", "--tenant", "acme", "--by", "root")
    for name in ("anna", "cy"):
        who = ("--role", "analyst", "--tenant", "acme", "--by", "mona")
        shell.ok("person", "add", name, *who)
    assert "cy may not reject" in shell.no("reject", found.id, "--by", "cy")
    assert "retired" in shell.ok("reject", found.id, "--by", "Anna")


def test_the_months_bill(shell: Shell) -> None:
    log = open_log(shell.folder)
    for channel in ("cards", "cards", "loans"):
        log.append({"channel": channel, "route": "/v1/score"}, "e").result(timeout=60)
    log.close()
    month = _month(log.path)
    prices = shell.folder / "prices.yaml"
    prices.write_text("currency: CNY\nscore: '0.5'\n")
    out = shell.folder / "days.csv"
    words = ("usage", "--month", month, "--log", str(log.path), "--prices", str(prices))
    for _ in range(2):  # a second look counts nothing twice
        shown = shell.ok(*words, "--csv", str(out)).splitlines()
        assert shown[0] == f"usage of default in {month}, UTC"
        assert shown[2].split() == ["cards", "score", "2", "0.5", "1.00"]
        assert shown[4].split() == ["total", "1.50", "CNY"]
    assert [line.split(",")[-1] for line in out.read_text().splitlines()] == ["units", "2", "1"]
    assert "write it as 2027-01" in shell.no("usage", "--month", "1")


def _month(path: Path) -> str:
    text = path.read_text()
    place = text.index('"time":"') + len('"time":"')
    return text[place : place + 7]
