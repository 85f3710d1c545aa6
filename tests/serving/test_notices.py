"""Webhook and e-mail against servers of this process; a dead one is written down, no more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from foundation.errors import ConfigError
from serving import notices
from serving.daily_settings import DailySettings, Email, Notices, check
from serving.notices import tell
from tests.serving.listeners import mail_server, webhook

MESSAGE = {"id": "1f", "subject": "riskfm acme/cards: 1 alerts", "lines": ["one", "two"]}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "WAIT_SECONDS", 0.0)


def test_a_message_is_posted_with_its_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RISKFM_WEBHOOK_TOKEN", "hush")
    monkeypatch.setenv("HOOK", "hook")
    with webhook(204) as (url, got):
        found = tell(Notices(webhook=url.replace("/hook", "/${HOOK}")), MESSAGE, None, False)
    assert found == {"webhook": {"sent": True, "tries": 1, "error": ""}}
    assert got[0][1] == MESSAGE
    assert got[0][0]["Authorization"] == "Bearer hush"


def test_it_is_tried_again_and_then_given_up() -> None:
    with webhook(500, 503, 200) as (url, got):
        assert tell(Notices(webhook=url), MESSAGE, None, True)["webhook"]["tries"] == 3
        assert len(got) == 3
    with webhook(500) as (url, got):
        found = tell(Notices(webhook=url, tries=2), MESSAGE, None, True)["webhook"]
    assert found == {"sent": False, "tries": 2, "error": "answered 500"}
    dead = tell(Notices(webhook=url, tries=2, timeout_seconds=2), MESSAGE, None, True)["webhook"]
    assert dead == {"sent": False, "tries": 2, "error": "ConnectionRefusedError"}


def test_a_redirect_is_not_followed() -> None:
    with webhook(302, 200) as (url, got):
        found = tell(Notices(webhook=url, tries=1), MESSAGE, None, True)["webhook"]
    assert found == {"sent": False, "tries": 1, "error": "answered 302"}
    assert len(got) == 1


def test_nothing_secret_is_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RISKFM_WEBHOOK_TOKEN", "hush")
    monkeypatch.delenv("HOOK", raising=False)
    found = tell(Notices(webhook="http://127.0.0.1:9/${HOOK}"), MESSAGE, None, True)["webhook"]
    assert found["error"] == "the environment has no HOOK, which the webhook's address needs"
    monkeypatch.setenv("HOOK", "secret path\n")
    found = tell(Notices(webhook="http://127.0.0.1:9/${HOOK}", tries=1), MESSAGE, None, True)
    assert "secret" not in json.dumps(found)
    for address in ("ftp://x/y", "https://me:pass@x/y", "file:///etc/passwd", "x"):
        with pytest.raises(ConfigError, match="webhook"):
            check(DailySettings(notices=Notices(webhook=address)), "t")


def test_mail_goes_out_with_alerts_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "report.html"
    page.write_text("<p>report</p>")
    with mail_server() as (port, mails):
        email = Email(
            host="127.0.0.1", port=port, sender="r@bank.example", to=("a@bank.example",), tls=False
        )
        told = Notices(email=email)
        assert tell(told, MESSAGE, page, False) == {}
        found = tell(told, MESSAGE, page, True)
        assert found["email"] == {"sent": True, "tries": 1, "error": ""}
        monkeypatch.setenv("RISKFM_SMTP_USER", "me")
        monkeypatch.setenv("RISKFM_SMTP_PASSWORD", "hush")
        plain = tell(told, MESSAGE, page, True)["email"]
    assert "no password goes plain" in plain["error"]
    assert len(mails) == 1
    assert "Subject: riskfm acme/cards: 1 alerts" in mails[0]
    assert 'filename="report.html"' in mails[0]
    assert "two" in mails[0]
    assert "hush" not in mails[0]
