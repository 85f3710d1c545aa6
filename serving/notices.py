"""Telling people: a webhook (POST of JSON) and e-mail, tried a few times, never failing the day.

What is sent carries counts and sentences, no customer. Secrets come from the environment at the
moment of sending: `${NAME}` in the webhook's address, RISKFM_WEBHOOK_TOKEN as bearer token,
RISKFM_SMTP_USER and RISKFM_SMTP_PASSWORD. Neither they nor the address are written anywhere.
"""

from __future__ import annotations

import json
import os
import re
import smtplib
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from foundation.errors import UserError
from serving.daily_settings import Email, Notices

TOKEN = "RISKFM_WEBHOOK_TOKEN"
SMTP_USER, SMTP_PASSWORD = "RISKFM_SMTP_USER", "RISKFM_SMTP_PASSWORD"
WAIT_SECONDS = 1.0
_NAME = re.compile(r"\$\{(\w+)\}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A webhook that sends elsewhere is wrong: the token must not follow."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def tell(
    notices: Notices, message: Mapping[str, Any], attachment: Path | None, urgent: bool
) -> dict[str, Any]:
    """Send a message by every way that is set.

    Args:
        message: plain data with `id`, `subject` and `lines`; `id` stays the same when it is sent
            again, so that a receiver can drop repeats.
        attachment: goes with the e-mail.
        urgent: e-mail goes out only then, unless `always`.
    Returns:
        by way: `sent`, `tries`, and `error` as a short text.
    """
    out: dict[str, Any] = {}
    if notices.webhook:
        out["webhook"] = _tried(notices, lambda: _post(notices, message))
    email = notices.email
    if email is not None and (urgent or email.always):
        out["email"] = _tried(notices, lambda: _mail(notices, email, message, attachment))
    return out


def _tried(notices: Notices, send: Callable[[], None]) -> dict[str, Any]:
    """Try to send, waiting a little longer after each failure."""
    error = ""
    for attempt in range(1, notices.tries + 1):
        try:
            send()
        except UserError as exc:
            return {"sent": False, "tries": attempt, "error": str(exc)}
        except urllib.error.HTTPError as exc:
            error = f"answered {exc.code}"
            exc.close()
        except smtplib.SMTPResponseException as exc:
            error = f"answered {exc.smtp_code}"
        except Exception as exc:
            # Whatever it is, the day goes on. Only its kind: texts may repeat addresses.
            reason = getattr(exc, "reason", exc)
            error = type(reason if isinstance(reason, Exception) else exc).__name__
        else:
            return {"sent": True, "tries": attempt, "error": ""}
        if attempt < notices.tries:
            time.sleep(WAIT_SECONDS * attempt)
    return {"sent": False, "tries": notices.tries, "error": error}


def _post(notices: Notices, message: Mapping[str, Any]) -> None:
    headers = {"Content-Type": "application/json", "User-Agent": "riskfm"}
    token = os.environ.get(TOKEN)
    if token:
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(
        _filled(notices.webhook), json.dumps(message).encode(), headers, method="POST"
    )
    # No redirects, no proxies of the file system, no other scheme than http and https.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(), urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=ssl.create_default_context()), _NoRedirect(),
        urllib.request.HTTPErrorProcessor(), urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
    ):  # fmt: skip
        opener.add_handler(handler)
    with opener.open(request, timeout=notices.timeout_seconds) as answer:
        answer.read(1 << 16)


def _filled(address: str) -> str:
    """The address with its names from the environment.

    Raises:
        UserError: one of them is not set.
    """

    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match[1])
        if found is None:
            raise UserError(f"the environment has no {match[1]}, which the webhook's address needs")
        return found

    return _NAME.sub(value, address)


def _mail(
    notices: Notices, email: Email, message: Mapping[str, Any], attachment: Path | None
) -> None:
    mail = EmailMessage()
    mail["Subject"] = message["subject"]
    mail["From"], mail["To"] = email.sender, ", ".join(email.to)
    mail["Message-ID"] = f"<{message['id']}@riskfm>"
    mail.set_content("\n".join(message["lines"]) + "\n")
    if attachment is not None:
        text = attachment.read_text(encoding="utf-8")
        mail.add_attachment(text, subtype="html", filename=attachment.name)
    user, password = os.environ.get(SMTP_USER), os.environ.get(SMTP_PASSWORD)
    if user and not email.tls:
        raise UserError(f"{SMTP_USER} is set but notices.email.tls is off: no password goes plain")
    with smtplib.SMTP(email.host, email.port, timeout=notices.timeout_seconds) as server:
        if email.tls:
            server.starttls(context=ssl.create_default_context())
        if user:
            server.login(user, password or "")
        server.send_message(mail)
