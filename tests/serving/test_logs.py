"""Logs: one line an event, declared fields only, nothing secret and nothing forged."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.errors import ConfigError
from serving.logs import HIDDEN, Redactor, configure, described, secrets_of, tell
from serving.progress import LoggedReporter
from serving.settings import Settings

PASSWORD = "pl4nted/p@ss word"
QUOTED = "pl4nted%2Fp%40ss%20word"
URL = f"postgresql+psycopg://risk:{QUOTED}@db.bank/riskfm"
LOG = logging.getLogger("riskfm.serving")


@pytest.fixture
def kept() -> Iterator[None]:
    """The logging of the test process, given back afterwards."""
    names = ("bentoml", "bentoml.access", "uvicorn", "uvicorn.error", "uvicorn.access", "circus")
    loggers = [logging.getLogger(n) for n in ("", *names, "urllib3", "opentelemetry", "casbin")]
    before = [(x, x.handlers, x.level, x.propagate) for x in loggers]
    hook = threading.excepthook
    yield
    logging.captureWarnings(False)
    threading.excepthook = hook
    for logger, handlers, level, propagate in before:
        logger.handlers, logger.level, logger.propagate = handlers, level, propagate
        logging.Logger.manager._clear_cache()  # type: ignore[attr-defined]


def lines(form: str, **settings: str) -> io.StringIO:
    """Logs of this process from now on."""
    stream = io.StringIO()
    configure(Settings(log_format=form, **settings), stream)  # type: ignore[arg-type]
    return stream


def test_a_request_is_one_json_object(kept: None) -> None:
    out = lines("json")
    tell(
        LOG, logging.INFO, "request", request_id="r1", tenant="acme", route="/v1/score",
        status=200, ms=1.23456,
    )  # fmt: skip
    tell(LOG, logging.DEBUG, "too fine to be logged")
    (line,) = out.getvalue().splitlines()
    found = json.loads(line)
    assert list(found) == [
        "time", "level", "logger", "event", "request_id", "tenant", "route", "status", "ms",
    ]  # fmt: skip
    assert found["time"].endswith("Z") and found["level"] == "info"
    assert (found["status"], found["ms"]) == (200, 1.235)
    with pytest.raises(TypeError):
        tell(LOG, logging.INFO, "request", entity_id="4711")  # type: ignore[call-arg]


def test_the_text_form_is_one_line_too(kept: None) -> None:
    out = lines("text")
    tell(LOG, logging.WARNING, "shed\nforged line", route="/v1/score", status=429)
    (line,) = out.getvalue().splitlines()
    assert line.endswith("riskfm.serving shed\\x0aforged line route=/v1/score status=429")


def test_other_loggers_speak_through_it(kept: None) -> None:
    logging.getLogger("uvicorn.error").addHandler(logging.StreamHandler(io.StringIO()))
    out = lines("json")
    logging.getLogger("uvicorn.error").error("boom %s", "x")
    logging.getLogger("bentoml").warning("half a format %d", "x")
    assert [json.loads(x)["event"] for x in out.getvalue().splitlines()] == [
        "boom x", "half a format %d",
    ]  # fmt: skip


@pytest.mark.parametrize("form", ["json", "text"])
def test_planted_secrets_do_not_come_out(
    kept: None, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "rfm_0123456789ab_SECRETsecretSECRETsecretSECRETsecret123"
    planted = [PASSWORD, QUOTED, "SECRETsecret", "hook-token-1", "s3cr3t", "MIIEvQIB", "vk-pass"]
    planted += ["0123" * 16, "action-key-1"]
    monkeypatch.setenv("RISKFM_WEBHOOK_TOKEN", "hook-token-1")
    monkeypatch.setenv("RISKFM_MASTER_KEY", "0123" * 16)
    monkeypatch.setenv("RISKFM_ACTION_HOLD", "action-key-1")
    out = lines(form, database=URL, valkey="redis://:vk-pass@cache:6379/0")
    for text in (
        f"cannot open {URL}",
        f'password is {PASSWORD}, as JSON {{"password": "{PASSWORD}"}}',
        f"Authorization: Bearer {key}",
        f"authorization=Bearer {key[20:]}",
        f"key {key} refused",
        "POST https://user:s3cr3t@hooks.bank/x failed",
        "GET /hook?token=s3cr3t&x=1",
        "connect to redis://:vk-pass@cache:6379/0",
        "X-Api-Key: s3cr3t",
        "sent hook-token-1",
        f"sealed with {'0123' * 16}, signed with action-key-1",
        "-----BEGIN EC PRIVATE KEY-----\nMIIEvQIBADANBg\n-----END EC PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBg",
    ):
        LOG.error("%s", text)
        LOG.error(text, extra={"riskfm_fields": {"error": text}})
        try:
            raise ConfigError(text)
        except ConfigError:
            LOG.exception("failed")
    written = out.getvalue()
    assert not [word for word in planted if word in written]
    assert len(written.splitlines()) == 39
    assert written.count(HIDDEN) >= 51
    assert "db.bank/riskfm" in written and "rfm_0123456789ab_" in written


def test_a_worker_reports_to_the_log(kept: None) -> None:
    out = lines("json")
    reporter = LoggedReporter()
    reporter.say(f"job 1: {URL}")
    with reporter.bar("adapt") as bar:
        bar(1, 2)
    (line,) = out.getvalue().splitlines()
    assert json.loads(line)["logger"] == "riskfm.worker"
    assert json.loads(line)["event"] == f"job 1: postgresql+psycopg://{HIDDEN}@db.bank/riskfm"


def test_exceptions_show_their_type_and_place_only(kept: None) -> None:
    out = lines("json")
    try:
        raise ValueError("entity 4711 owes 12")
    except ValueError as exc:
        LOG.exception("failed")
        assert "4711" not in described(exc)
    thread = threading.Thread(target=lambda: [][4711], name="reader")
    thread.start()
    thread.join()
    first, second = map(json.loads, out.getvalue().splitlines())
    assert first["error"].startswith("ValueError at ") and "test_logs.py:" in first["error"]
    assert second["event"].startswith("thread reader ended: IndexError at ")
    assert "4711" not in first["error"] + second["event"]


@given(st.text(max_size=200), st.sampled_from(["json", "text"]))
def test_nothing_forges_a_line(text: str, form: str) -> None:
    from serving.logs import JsonLines, PlainLines

    formatter = {"json": JsonLines, "text": PlainLines}[form](Redactor())
    record = logging.makeLogRecord({"name": "x", "msg": "%s", "args": (text,), "levelname": "INFO"})
    line = formatter.format(record)
    assert len(line.splitlines()) == 1
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in line)
    line.encode()
    if form == "json" and Redactor().hide(text) == text:
        assert json.loads(line)["event"] == text


@given(st.text(min_size=6, max_size=40).filter(lambda s: "*" not in s), st.text(), st.text())
def test_a_known_secret_never_survives(secret: str, before: str, after: str) -> None:
    shown = Redactor([secret]).hide(f"{before}{secret}{after}")
    assert secret not in shown


def test_only_urls_with_a_password_are_secrets() -> None:
    plain = Settings(database="postgresql+psycopg://riskfm@db/riskfm", valkey="unix:///v.sock")
    assert secrets_of(plain, {}) == set()
    assert secrets_of(Settings(database=URL), {}) == {QUOTED, PASSWORD}


def test_lines_are_written_together_and_a_warning_at_once(kept: None) -> None:
    out = io.StringIO()
    handler = configure(Settings(log_format="json"), out, gather=True)
    tell(LOG, logging.INFO, "request", request_id="r1")
    assert out.getvalue() == ""
    LOG.warning("something is wrong")
    tell(LOG, logging.INFO, "request", request_id="r2")
    assert [json.loads(line)["event"] for line in out.getvalue().splitlines()] == [
        "request", "something is wrong",
    ]  # fmt: skip
    handler.flush()
    assert len(out.getvalue().splitlines()) == 3


def test_lines_that_wait_are_written_without_anybody_asking(kept: None) -> None:
    out = io.StringIO()
    configure(Settings(log_format="text"), out, gather=True)
    for number in range(3):
        tell(LOG, logging.INFO, "request", request_id=f"r{number}")
        deadline = time.monotonic() + 60
        while f"r{number}" not in out.getvalue():
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_process_that_ends_writes_what_is_left() -> None:
    program = (
        "import logging; from serving.logs import configure; from serving.settings import Settings;"
        "configure(Settings(), gather=True); logging.getLogger('riskfm').info('the last word')"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "the last word" in ended.stderr
