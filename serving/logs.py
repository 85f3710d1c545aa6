"""Logs of the service and of its worker: one event a line, as JSON or for people.

Every line has time (UTC), level, logger and event; a line about a request also has its request id,
tenant, route, status and milliseconds. Nothing else of a request is ever logged: `tell` takes
declared fields only, an exception appears as its type and place, and every text passes through a
`Redactor` before it is written. Control characters are escaped, so that nobody can forge a line.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Any, TextIO
from urllib.parse import unquote, urlsplit

from foundation.errors import RiskfmError
from serving.settings import SECRETS, Settings

HIDDEN = "***"
LONGEST = 4000
GATHER_SECONDS = 0.1
# Shorter ones would blot out ordinary words.
_LEAST_SECRET = 6
_FIELDS = "riskfm_fields"
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^\s\"'<>]*@")
_PARAMETER = re.compile(
    r"((?:password|passwd|pwd|sslpassword|secret|token|api[-_]?key|authorization)"
    r"[\"']?\s*[=:]\s*[\"']?)(?:(?:bearer|basic)\s+)?[^\s\"'&,;}]+",
    re.I,
)
_BEARER = re.compile(r"\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}", re.I)
_API_KEY = re.compile(r"\b(rfm_[0-9a-f]{4,32}_)[A-Za-z0-9_-]+")
_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*-----|\Z)", re.S
)
_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)
# No form above matches a text that has none of these.
_SIGNS = (
    "://", "passw", "pwd", "secret", "token", "api", "authorization", "bearer", "basic", "rfm_",
    "private key",
)  # fmt: skip
_ENCODER = json.JSONEncoder(separators=(",", ":"))
# Variables whose values are secrets of other parts of the program.
ACTION_SECRETS = "RISKFM_ACTION_"
_VARIABLES = (
    "RISKFM_MASTER_KEY",
    "RISKFM_WEBHOOK_TOKEN",
    "RISKFM_SMTP_PASSWORD",
    "RISKFM_IDENTIFIER_KEY",
    "RISKFM_REGISTRY_URL",
    "RISKFM_JOBS_URL",
)
# Loggers that would otherwise write lines of their own.
_OTHERS = ("bentoml", "bentoml.access", "uvicorn", "uvicorn.error", "uvicorn.access", "circus")


class Redactor:
    """Takes secrets out of texts: known ones by their value, others by their form.

    Args:
        secrets: values that must never appear, such as passwords and whole URLs.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = {secret for secret in secrets if len(secret) >= _LEAST_SECRET}
        known |= {json.dumps(secret)[1:-1] for secret in known}
        self._known = sorted(known, key=lambda secret: (-len(secret), secret))

    def suspects(self, text: str) -> bool:
        """Whether `hide` may change a text; quick, for the many lines without a secret."""
        low = text.lower()
        return any(sign in low for sign in _SIGNS) or any(each in text for each in self._known)

    def hide(self, text: str) -> str:
        """The text without known secrets, credentials in URLs, API keys, tokens, private keys."""
        for secret in self._known:
            text = text.replace(secret, HIDDEN)
        text = _PRIVATE_KEY.sub(HIDDEN, text)
        text = _URL.sub(rf"\1{HIDDEN}@", text)
        text = _API_KEY.sub(rf"\1{HIDDEN}", text)
        text = _PARAMETER.sub(rf"\1{HIDDEN}", text)
        return _BEARER.sub(rf"\1 {HIDDEN}", text)


def secrets_of(settings: Settings, environment: Mapping[str, str] | None = None) -> set[str]:
    """What must not be logged: passwords of URLs, plain and as written there, and tokens."""
    environment = os.environ if environment is None else environment
    actions = (name for name in environment if name.startswith(ACTION_SECRETS))
    found = {environment.get(name, "") for name in (*_VARIABLES, *actions)}
    found |= {getattr(settings, name) for name in SECRETS}
    found.add(settings.trace_endpoint)
    out: set[str] = set()
    for text in found - {""}:
        if "://" not in text:
            out.add(text)
            continue
        password = _password(text)
        if password:
            out |= {password, unquote(password)}
    return out


def _password(url: str) -> str:
    try:
        return urlsplit(url).password or ""
    except ValueError:
        return ""


def configure(
    settings: Settings, stream: TextIO | None = None, gather: bool = False
) -> logging.Handler:
    """Send every log of this process through one handler; again replaces the handler before.

    Args:
        stream: where lines go; standard error if None.
        gather: write lines together (`Gathering`), as a service of many requests does.
    Returns:
        the handler, to be removed by whoever wants the old state back.
    """
    handler = (Gathering if gather else logging.StreamHandler)(stream or sys.stderr)
    redactor = Redactor(secrets_of(settings))
    handler.setFormatter(
        JsonLines(redactor) if settings.log_format == "json" else PlainLines(redactor)
    )
    handler.set_name("riskfm")
    root = logging.getLogger()
    for before in root.handlers:
        before.flush()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())
    for name in _OTHERS:
        other = logging.getLogger(name)
        other.handlers, other.propagate, other.disabled = [], True, False
        other.setLevel(logging.NOTSET)
    # Chatty below warnings, and of no use to whoever runs the service.
    for name in ("uvicorn", "circus", "urllib3", "opentelemetry", "casbin"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(True)
    threading.excepthook = _thread_failed
    return handler


def tell(
    logger: logging.Logger,
    level: int,
    event: str,
    *,
    request_id: str = "",
    tenant: str = "",
    key_id: str = "",
    method: str = "",
    route: str = "",
    status: int | None = None,
    ms: float | None = None,
    package: str = "",
    channel: str = "",
    release: str = "",
    count: int | None = None,
    error: str = "",
) -> None:
    """Log an event with the fields there are; there are no others, so no value slips in.

    Args:
        event: a few fixed words, such as `request` or `release loaded`.
        route: the template, never the path.
        ms: milliseconds.
        error: a type or a sentence without values of the request.
    """
    if not logger.isEnabledFor(level):
        return
    fields: dict[str, Any] = {
        "request_id": request_id, "tenant": tenant, "key_id": key_id, "method": method,
        "route": route, "status": status, "ms": None if ms is None else round(ms, 3),
        "package": package, "channel": channel, "release": release, "count": count,
        "error": error,
    }  # fmt: skip
    given = {name: value for name, value in fields.items() if value not in ("", None)}
    logger.log(level, event, extra={_FIELDS: given}, stacklevel=2)


class Gathering(logging.StreamHandler[TextIO]):
    """Writes lines below a warning together, a tenth of a second late at most.

    A write for every request would cost more than most of what the request needs. Warnings are
    written at once, with what waits before them; a process that ends writes what is left. Only one
    that is killed outright loses that last tenth.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._lines: list[str] = []
        self._begun = threading.Event()
        self._thread: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line; called under the handler's lock."""
        try:
            self._lines.append(self.format(record) + self.terminator)
        except Exception:
            self.handleError(record)
            return
        if record.levelno >= logging.WARNING:
            self.flush()
        elif len(self._lines) == 1:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="logs", daemon=True)
                self._thread.start()
            self._begun.set()

    def flush(self) -> None:
        """Write what waits."""
        with self.lock or nullcontext():
            lines, self._lines = self._lines, []
            if lines:
                try:
                    self.stream.write("".join(lines))
                except ValueError:
                    return  # the stream was closed: the process ends
            super().flush()

    def _run(self) -> None:
        while self._begun.wait():
            time.sleep(GATHER_SECONDS)
            self._begun.clear()
            self.flush()


class _Lines(logging.Formatter):
    """What both forms share: the parts of a line, redacted."""

    def __init__(self, redactor: Redactor) -> None:
        super().__init__()
        self._redactor = redactor

    def parts(self, record: logging.LogRecord) -> dict[str, Any]:
        """The members of a line, in their order."""
        try:
            event = record.getMessage()
        except (TypeError, ValueError, KeyError):
            event = str(record.msg)
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        found: dict[str, Any] = {
            "time": moment.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": event,
            **getattr(record, _FIELDS, {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            found.setdefault("error", described(record.exc_info[1]))
        texts = {name: value for name, value in found.items() if isinstance(value, str)}
        if self._redactor.suspects("\0".join(texts.values())):
            found |= {name: self._redactor.hide(value) for name, value in texts.items()}
        return {name: _clipped(value) for name, value in found.items()}


class JsonLines(_Lines):
    """One JSON object a line, ASCII only."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        return _ENCODER.encode(self.parts(record)).replace("\x7f", "\\u007f")


class PlainLines(_Lines):
    """Time, level, logger and event, then the fields as name=value."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        parts = self.parts(record)
        head = [parts.pop("time"), f"{parts.pop('level'):<7}", parts.pop("logger")]
        words = [*head, parts.pop("event"), *(f"{k}={v}" for k, v in parts.items())]
        return _CONTROL.sub(_escaped, " ".join(words))


def described(exc: BaseException) -> str:
    """Type and place of an exception; its text only where it is ours, which holds no values."""
    place = exc.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    at = f" at {place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place else ""
    words = f": {exc}" if isinstance(exc, RiskfmError) else ""
    return f"{type(exc).__name__}{words}{at}"


def _clipped(value: Any) -> Any:
    long = isinstance(value, str) and len(value) > LONGEST
    return value[:LONGEST] + "…" if long else value


def _escaped(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def _thread_failed(args: threading.ExceptHookArgs) -> None:
    """Threads die with a line like everybody else's, not with a traceback full of values."""
    if args.exc_value is not None and args.exc_type is not SystemExit:
        name = args.thread.name if args.thread is not None else "?"
        logging.getLogger("riskfm").error("thread %s ended: %s", name, described(args.exc_value))
