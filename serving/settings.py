"""Settings of the scoring service: a YAML file, overridden by RISKFM_* environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from foundation import strict
from foundation.errors import ConfigError

PREFIX = "RISKFM_"


class Settings(strict.Strict):
    """How the service runs.

    Attributes:
        packages: package directories, or directories whose children are packages.
        default_package: id that answers requests naming none; empty: the first package named by
            its own path, or the only one of a directory.
        keys: file of hashed API keys.
        audit: file of the decision log; empty: `decisions.jsonl` beside the keys.
        secret: file of the key that hides entity ids in the log; empty: beside the keys.
        audit_durable: answer only after the decision reached the disk.
        workers: processes answering requests.
        threads: threads of the model runtime within a process.
        queue: requests waiting per package before new ones get 429.
        timeout_seconds: longest time a request may take before it gets 503.
        max_events: events of one request.
        max_body_bytes: size of a request body.
        future_seconds: how far beyond now (or a later as_of) an event may lie.
        key_cache_seconds: how long a verified API key is remembered.
    """

    packages: tuple[str, ...] = ("packages",)
    default_package: str = ""
    keys: str = "riskfm-keys.json"
    audit: str = ""
    secret: str = ""
    audit_durable: bool = False
    workers: Annotated[int, Meta(ge=1, le=256)] = 1
    threads: Annotated[int, Meta(ge=1, le=256)] = 1
    queue: Annotated[int, Meta(ge=1, le=100_000)] = 64
    timeout_seconds: Annotated[float, Meta(gt=0, le=3600)] = 30.0
    max_events: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    max_body_bytes: Annotated[int, Meta(ge=1024, le=268_435_456)] = 2 * 1024 * 1024
    future_seconds: Annotated[int, Meta(ge=0)] = 86_400
    key_cache_seconds: Annotated[float, Meta(ge=0, le=3600)] = 300.0

    @property
    def audit_path(self) -> str:
        """The decision log."""
        return self.audit or _beside(self.keys, "decisions.jsonl")

    @property
    def secret_path(self) -> str:
        """The key that hides entity ids in the decision log."""
        return self.secret or _beside(self.keys, "entity.key")


def load_settings(
    path: str | None = None, environment: Mapping[str, str] | None = None
) -> Settings:
    """Settings from a file (or RISKFM_CONFIG), then from the environment.

    Every attribute has a variable: RISKFM_PACKAGES (separated by the path separator),
    RISKFM_KEYS, RISKFM_MAX_EVENTS and so on; other RISKFM_ variables are not read.

    Raises:
        ConfigError: unknown keys, wrong types, impossible values; names the variable or the file.
    """
    environment = os.environ if environment is None else environment
    path = path or environment.get(PREFIX + "CONFIG")
    base = strict.load(Settings, path) if path else Settings()
    given: dict[str, Any] = {}
    for field in msgspec.structs.fields(Settings):
        name = PREFIX + field.name.upper()
        text = environment.get(name)
        if text is None:
            continue
        value: Any = text
        if field.name == "packages":
            value = tuple(part for part in text.split(os.pathsep) if part)
        try:
            given[field.name] = msgspec.convert(value, field.type, strict=False)
        except msgspec.ValidationError as exc:
            raise ConfigError(f"environment variable {name}: {exc}") from None
    return msgspec.structs.replace(base, **given)


def to_environment(settings: Settings) -> dict[str, str]:
    """The variables from which `load_settings` restores the settings in another process."""
    out = {}
    for field in msgspec.structs.fields(Settings):
        value = getattr(settings, field.name)
        if field.name == "packages":
            value = os.pathsep.join(value)
        text = str(value).lower() if isinstance(value, bool) else str(value)
        out[PREFIX + field.name.upper()] = text
    return out


def absolute(settings: Settings) -> Settings:
    """The same settings with every path absolute, for a process in another directory."""
    return msgspec.structs.replace(
        settings,
        packages=tuple(os.path.abspath(path) for path in settings.packages),
        keys=os.path.abspath(settings.keys),
        audit=os.path.abspath(settings.audit_path),
        secret=os.path.abspath(settings.secret_path),
    )


def _beside(path: str, name: str) -> str:
    return os.path.join(os.path.dirname(path), name)
