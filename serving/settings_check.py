"""What is wrong with settings beyond their types: risks that production does not start with."""

from __future__ import annotations

import ipaddress
from urllib.parse import unquote, urlsplit

import msgspec

from foundation.errors import ConfigError
from serving.logs import ACTION_SECRETS, Redactor, secrets_of
from serving.safety.secrets import open_secrets
from serving.settings import LISTS, PREFIX, SECRETS, Settings, variable

PRODUCTION = "production"
# What examples and images carry; nobody may keep it.
DEFAULT_PASSWORDS = frozenset(
    (
        "", "admin", "change-me", "changeme", "default", "example", "passw0rd", "password",
        "postgres", "redis", "riskfm", "root", "secret", "test", "valkey",
    )
)  # fmt: skip
# Secrets that other parts of the program read from the environment or from `<name>_FILE`.
OTHER_SECRETS = ("RISKFM_REGISTRY_URL", "RISKFM_JOBS_URL")


def problems(settings: Settings, host: str = "127.0.0.1") -> list[str]:
    """What production refuses to start with, each with what to do about it.

    Args:
        host: the address it listens on.
    """
    found = []
    if not loopback(host) and not settings.behind_tls:
        found.append(
            f"it listens on {host} without encryption: put a TLS proxy before it and set "
            "behind_tls, or listen on 127.0.0.1"
        )
    found += _key_problems(settings)
    urls = {name: getattr(settings, name) for name in SECRETS}
    urls |= {name: variable(name)[0] or "" for name in OTHER_SECRETS}
    for name, url in urls.items():
        password = _password(url)
        if password is not None and password.lower() in DEFAULT_PASSWORDS:
            found.append(f"{name} has a password everybody knows: choose another one")
    if settings.workers > 1 and settings.database_url.startswith("sqlite"):
        found.append(
            "several workers share a SQLite database: set database to a PostgreSQL URL, or run "
            "one worker"
        )
    return found


def require_safe(settings: Settings, host: str = "127.0.0.1") -> None:
    """Refuse to start in production where there is a problem.

    Raises:
        ConfigError: names every problem; never in development.
    """
    found = problems(settings, host) if settings.environment == PRODUCTION else []
    if found:
        raise ConfigError("not started in production: " + "; ".join(found))


def loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def shown(settings: Settings, sources: dict[str, str]) -> list[tuple[str, str, str]]:
    """Name, value and source of every setting, without a secret."""
    redactor = Redactor(secrets_of(settings))
    rows = []
    for field in msgspec.structs.fields(Settings):
        value = getattr(settings, field.name)
        if field.name in LISTS:
            value = LISTS[field.name].join(value)
        text = str(value).lower() if isinstance(value, bool) else str(value)
        rows.append((field.name, redactor.hide(text), sources[field.name]))
    return rows


def unknown_variables(names: list[str]) -> list[str]:
    """Variables that look like settings and are none: misspelt, or of another version."""
    known = {PREFIX + name.upper() for name in Settings.__struct_fields__} | KNOWN
    known |= {PREFIX + name.upper() + "_FILE" for name in SECRETS}
    known |= {f"{name}_FILE" for name in OTHER_SECRETS}
    return sorted(
        name
        for name in names
        if name.startswith(PREFIX) and name not in known and not name.startswith(ACTION_SECRETS)
    )


# Variables that are no settings of the service.
KNOWN = {
    "RISKFM_CONFIG",
    "RISKFM_DATA",
    "RISKFM_DEBUG",
    "RISKFM_FAULT",
    "RISKFM_IDENTIFIER_KEY",
    "RISKFM_MASTER_KEY",
    "RISKFM_SMTP_PASSWORD",
    "RISKFM_SMTP_USER",
    "RISKFM_STOPPING",
    "RISKFM_WEBHOOK_TOKEN",
    *OTHER_SECRETS,
}


def _key_problems(settings: Settings) -> list[str]:
    try:
        open_secrets(settings.master_key_path, PRODUCTION)
    except ConfigError as exc:
        return [str(exc)]
    return []


def _password(url: str) -> str | None:
    """The password in a URL; None where there is none, or no URL."""
    try:
        password = urlsplit(url).password
    except ValueError:
        return None
    return None if password is None else unquote(password)
