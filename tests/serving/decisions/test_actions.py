"""Actions: once into the outbox, signed, retried, and only where they may go."""

from __future__ import annotations

import hashlib
import hmac
import json
import socket
from typing import Any

import pytest

from foundation.errors import ConfigError
from serving.database import Database
from serving.decisions import actions
from serving.decisions.actions import Sender, check_url, waiting
from serving.decisions.tables import outbox
from tests.serving.decisions.small_desk import HOLD, Small, facts, file
from tests.serving.listeners import webhook

PAST = "2020-01-01T00:00:00.000000+00:00"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "FIRST_WAIT", 0.0)
    monkeypatch.setenv("RISKFM_ACTION_HOLD", "hush")


def held(desk: Small, url: str) -> None:
    """A decision with the action hold, taken in."""
    desk.crown(file(hold=HOLD | {"url": url}))
    lists = desk.desk.lists
    lists.add("acme", [lists.entry("acme", "black", "entity", "c1")], "eve")
    desk.desk.decider.refresh()
    assert desk.decide("r1", facts(650)).actions == ("hold",)
    assert desk.take_in() == 1


def only(database: Database) -> dict[str, Any]:
    [row] = waiting(database, "acme")
    return row


def test_an_action_is_posted_once_and_signed(desks: Small) -> None:
    with webhook(204) as (url, got):
        held(desks, url)
        assert desks.desk.sender.step() == 1
        assert desks.desk.sender.step() == 0
    [(headers, body)] = got
    assert body["id"] == "n1.1"
    assert (body["action"], body["outcome"], body["request_id"]) == ("hold", "refuse", "r1")
    assert "c1" not in json.dumps(body)
    assert headers["Idempotency-Key"] == "n1.1/hold"
    stamp, mark = (p.partition("=")[2] for p in headers[actions.SIGNATURE].split(","))
    text = f"{stamp}.{json.dumps(body)}".encode()
    assert mark == hmac.new(b"hush", text, hashlib.sha256).hexdigest()
    assert only(desks.desk.database)["state"] == "sent"
    assert waiting(desks.desk.database, "other") == []


def test_it_is_tried_again_and_given_up_at_last(
    desk: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    with webhook(500, 302, 200) as (url, got):
        held(desk, url)
        desk.desk.sender.step()
        assert only(desk.desk.database)["error"] == "answered 500"
        desk.desk.sender.step()
        assert only(desk.desk.database)["error"] == "answered 302"
        desk.desk.sender.step()
        row = only(desk.desk.database)
    assert (row["state"], row["tries"], len(got)) == ("sent", 3, 3)
    assert len({headers["Idempotency-Key"] for headers, _ in got}) == 1
    monkeypatch.setattr(actions, "TRIES", 2)
    with desk.desk.database.transaction() as connection:
        connection.execute(outbox.update().values(state="waiting", tries=0, next_at=PAST))
    for _ in range(3):
        desk.desk.sender.step()
    row = only(desk.desk.database)
    assert (row["state"], row["tries"], row["error"]) == ("failed", 2, "ConnectionRefusedError")


def test_what_is_being_sent_is_not_sent_twice(desk: Small) -> None:
    with webhook(204) as (url, got):
        held(desk, url)
        taken = desk.desk.sender._take(10)
        assert len(taken) == 1
        assert desk.desk.sender.step() == 0
        # The process that took it dies; its lease runs out.
        with desk.desk.database.transaction() as connection:
            connection.execute(outbox.update().values(next_at=PAST))
        assert desk.desk.sender.step() == 1
    assert len(got) == 1


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.8", "169.254.169.254", "::1",
                                     "::ffff:127.0.0.1", "0.0.0.0", "224.0.0.1"])  # fmt: skip
def test_private_addresses_are_refused(
    desk: Small, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    held(desk, "https://lender.example/hold")
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)
    monkeypatch.setattr(socket, "create_connection", _never)
    Sender(desk.desk.database).step()
    assert only(desk.desk.database)["error"] == (
        "the address is private and its network is not allowed"
    )


def _never(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("nobody is connected to")


def test_plain_http_stays_inside(desk: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    held(desk, "http://lender.example/hold")
    Sender(desk.desk.database).step()
    assert only(desk.desk.database)["error"].startswith("the address of an action should be https")
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("8.8.8.8", 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)
    monkeypatch.setattr(socket, "create_connection", _never)
    Sender(desk.desk.database, networks=("10.0.0.0/8",)).step()
    assert only(desk.desk.database)["error"] == "plain http only goes to allowed networks"


def test_without_its_secret_nothing_is_sent(desk: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RISKFM_ACTION_HOLD")
    with webhook(204) as (url, got):
        held(desk, url)
        desk.desk.sender.step()
    assert not got
    assert "has no RISKFM_ACTION_HOLD" in only(desk.desk.database)["error"]


@pytest.mark.parametrize(
    "url",
    ["ftp://x/y", "https:///x", "https://u:p@x/", "https://x/a b", "https://x:99999/", "x",
     "http://x/y"],
)  # fmt: skip
def test_wrong_addresses(url: str) -> None:
    with pytest.raises(ConfigError):
        check_url(url)


def test_wrong_networks(desk: Small) -> None:
    with pytest.raises(ConfigError, match="allowed networks"):
        Sender(desk.desk.database, networks=("inside",))
