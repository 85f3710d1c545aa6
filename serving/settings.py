"""Settings of the scoring service: a YAML file, overridden by RISKFM_* environment variables.

A secret (`SECRETS`) may also stand in a file of its own that RISKFM_<NAME>_FILE names, as container
platforms mount them; nothing here ever prints one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from foundation import strict
from foundation.errors import ConfigError

PREFIX = "RISKFM_"
# URLs that may carry a password: also read from the file that RISKFM_<NAME>_FILE names.
SECRETS = ("database", "valkey")
# Settings that are lists, and what separates their parts in a variable.
LISTS = {"packages": os.pathsep, "action_networks": ","}
_SQLITE = "sqlite:///"


class Settings(strict.Strict):
    """How the service runs.

    Attributes:
        environment: production refuses to start where `serving.settings_check` finds a risk.
        behind_tls: somebody else (a proxy, a mesh) encrypts what reaches this process.
        packages: package directories, or directories whose children are packages.
        default_package: id that answers requests naming none; empty: the first package named by
            its own path, or the only one of a directory.
        workspace: delivery workspace whose champions answer; empty: none, only `packages`.
        state: folder of what the service keeps itself: database, decision log, master key.
        database: SQLAlchemy URL of all hosted state; empty: SQLite, `riskfm.db` in the state.
        valkey: URL of a Valkey or Redis shared by the workers; empty: none.
        audit: file of the decision log; empty: `decisions.jsonl` in the state.
        audit_durable: answer only after the decision reached the disk.
        master_key_file: file of the key that all others at rest are derived from; empty:
            `master.key` in the state, made at the first start, never in production.
        cipher: how sensitive values are sealed at rest.
        entity_hash: how identifiers are hidden at rest.
        action_networks: private networks (CIDR) that actions and notices may be posted to.
        record_inputs: keep what a decision was made from, sealed, for replay.
        inputs_days: how long those are kept.
        idempotency_hours: how long the answer to an idempotency key is kept.
        workers: processes answering requests.
        threads: scoring threads of a process, whatever the number of packages; 0: the cores this
            process may use, divided by `workers`.
        short_ms: a score that is expected to take this many milliseconds at most, and to wait for
            no other machine, runs on the event loop, without the way to a thread; 0: none.
        queue: requests of a tenant, waiting or being scored, before new ones get 429.
        timeout_seconds: longest time a request may take before it gets 503.
        drain_seconds: how long a service told to stop still answers, not ready any more.
        grace_seconds: how long requests in work may take to end after that.
        waiting_bytes: requests held in the memory of one worker, waiting or in work, over all
            tenants; then 503, and 429 for a tenant that holds more than is free.
        session_bytes: models kept in the memory of one worker; least recently used leave first.
        poll_seconds: how often a worker looks for new releases.
        history_bytes: decoded stored histories in the memory of one worker.
        state_bytes: the backbone's states of customers in the memory of one worker.
        history_max_age: seconds from when a stored history's newest event was known to as_of,
            where a channel says nothing else; 0: any age will do.
        history_fallback: for older or missing ones: score with a flag, score without them, refuse.
        shadow_share: share of requests that a release in shadow scores as well, 0 to 1.
        announce_days: how long answers announce a change of backbone.
        max_events: events of one request.
        max_body_bytes: size of a request body.
        max_batch_rows: rows of one batch request.
        max_batch_bytes: size of the body of a batch request.
        future_seconds: how far beyond now as_of, and beyond the later of both an event, may lie.
        key_cache_seconds: how long a verified API key is remembered.
        log_format: json, one object a line, or text for people.
        log_level: least level that is logged.
        trace_endpoint: OTLP/HTTP URL that gets traces (extra `tracing`); empty: none are made.
        metrics_tenants: how many tenants metrics name, the others are one; 0: no tenant is named.
    """

    environment: Literal["development", "production"] = "development"
    behind_tls: bool = False
    packages: tuple[str, ...] = ()
    default_package: str = ""
    workspace: str = ""
    state: str = "riskfm-state"
    database: str = ""
    valkey: str = ""
    audit: str = ""
    audit_durable: bool = False
    master_key_file: str = ""
    cipher: Literal["aes-gcm", "sm4-gcm"] = "aes-gcm"
    entity_hash: Literal["hmac-sha256", "hmac-sm3"] = "hmac-sha256"
    action_networks: tuple[str, ...] = ()
    record_inputs: bool = False
    inputs_days: Annotated[int, Meta(ge=1, le=3650)] = 30
    idempotency_hours: Annotated[float, Meta(gt=0, le=8760)] = 24.0
    workers: Annotated[int, Meta(ge=1, le=256)] = 1
    threads: Annotated[int, Meta(ge=0, le=256)] = 0
    short_ms: Annotated[float, Meta(ge=0, le=1000)] = 8.0
    queue: Annotated[int, Meta(ge=1, le=100_000)] = 64
    timeout_seconds: Annotated[float, Meta(gt=0, le=3600)] = 30.0
    drain_seconds: Annotated[float, Meta(ge=0, le=600)] = 0.0
    grace_seconds: Annotated[float, Meta(gt=0, le=3600)] = 30.0
    waiting_bytes: Annotated[int, Meta(ge=1024 * 1024)] = 256 * 1024 * 1024
    session_bytes: Annotated[int, Meta(ge=1024 * 1024)] = 1024 * 1024 * 1024
    history_bytes: Annotated[int, Meta(ge=1024 * 1024)] = 64 * 1024 * 1024
    state_bytes: Annotated[int, Meta(ge=1024 * 1024)] = 128 * 1024 * 1024
    history_max_age: Annotated[float, Meta(ge=0)] = 0.0
    history_fallback: Literal["score", "without", "refuse"] = "score"
    poll_seconds: Annotated[float, Meta(gt=0, le=3600)] = 2.0
    shadow_share: Annotated[float, Meta(ge=0, le=1)] = 0.1
    announce_days: Annotated[int, Meta(ge=0, le=365)] = 14
    max_events: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    max_body_bytes: Annotated[int, Meta(ge=1024, le=268_435_456)] = 2 * 1024 * 1024
    max_batch_rows: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    max_batch_bytes: Annotated[int, Meta(ge=1024, le=4_294_967_296)] = 64 * 1024 * 1024
    future_seconds: Annotated[int, Meta(ge=0)] = 86_400
    key_cache_seconds: Annotated[float, Meta(ge=0, le=3600)] = 300.0
    log_format: Literal["json", "text"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    trace_endpoint: str = ""
    metrics_tenants: Annotated[int, Meta(ge=0, le=1000)] = 0

    @property
    def scoring_threads(self) -> int:
        """Scoring threads of a process, at least one."""
        affinity = getattr(os, "sched_getaffinity", None)
        cores = len(affinity(0)) if affinity else os.cpu_count() or 1
        return self.threads or max(1, cores // self.workers)

    @property
    def audit_path(self) -> str:
        """The decision log."""
        return self.audit or os.path.join(self.state, "decisions.jsonl")

    @property
    def master_key_path(self) -> str:
        """The key that all others at rest are derived from."""
        return self.master_key_file or os.path.join(self.state, "master.key")

    @property
    def database_url(self) -> str:
        """The database of all hosted state."""
        return self.database or _SQLITE + os.path.join(self.state, "riskfm.db")


def load_settings(
    path: str | None = None, environment: Mapping[str, str] | None = None
) -> Settings:
    """Settings from a file (or RISKFM_CONFIG), then from the environment.

    Every attribute has a variable: RISKFM_PACKAGES (separated by the path separator),
    RISKFM_STATE, RISKFM_MAX_EVENTS and so on; secrets also RISKFM_<NAME>_FILE. Other RISKFM_
    variables are not read.

    Raises:
        ConfigError: unknown keys, wrong types, impossible values; names the variable or the file.
    """
    return sourced_settings(path, environment)[0]


def sourced_settings(
    path: str | None = None, environment: Mapping[str, str] | None = None
) -> tuple[Settings, dict[str, str]]:
    """The same settings, and where each came from: `default`, the file or the variable.

    Raises:
        ConfigError: as `load_settings`.
    """
    environment = os.environ if environment is None else environment
    path = path or environment.get(PREFIX + "CONFIG")
    base, sources = Settings(), dict.fromkeys(Settings.__struct_fields__, "default")
    if path:
        data = strict.read_yaml(path)
        base = strict.convert(Settings, data, path)
        sources |= dict.fromkeys(data, path)
    given: dict[str, Any] = {}
    for field in msgspec.structs.fields(Settings):
        name = PREFIX + field.name.upper()
        text = environment.get(name)
        source = name
        if field.name in SECRETS:
            text, source = variable(name, environment)
        if text is None:
            continue
        value: Any = text
        if field.name in LISTS:
            value = tuple(part for part in text.split(LISTS[field.name]) if part)
        try:
            given[field.name] = msgspec.convert(value, field.type, strict=False)
        except msgspec.ValidationError as exc:
            raise ConfigError(f"environment variable {name}: {exc}") from None
        sources[field.name] = source
    return msgspec.structs.replace(base, **given), sources


def variable(name: str, environment: Mapping[str, str] | None = None) -> tuple[str | None, str]:
    """The value of a variable, or of the file that `<name>_FILE` names, and which of the two.

    Raises:
        ConfigError: both are set, or the file cannot be read; never tells the value.
    """
    environment = os.environ if environment is None else environment
    text, file = environment.get(name), environment.get(f"{name}_FILE")
    if not file:
        return text, name
    if text:
        raise ConfigError(f"{name} and {name}_FILE are both set; keep one of them")
    try:
        return Path(file).read_text(encoding="utf-8").strip(), f"{name}_FILE"
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(
            f"environment variable {name}_FILE: {file} cannot be read ({type(exc).__name__})"
        ) from None


def to_environment(settings: Settings) -> dict[str, str]:
    """The variables from which `load_settings` restores the settings in another process."""
    out = {}
    for field in msgspec.structs.fields(Settings):
        value = getattr(settings, field.name)
        if field.name in LISTS:
            value = LISTS[field.name].join(value)
        text = str(value).lower() if isinstance(value, bool) else str(value)
        out[PREFIX + field.name.upper()] = text
        if field.name in SECRETS:
            # Read already; the child must not see both.
            out[f"{PREFIX}{field.name.upper()}_FILE"] = ""
    return out


def absolute(settings: Settings) -> Settings:
    """The same settings with every path absolute, for a process in another directory."""
    url = settings.database_url
    if url.startswith(_SQLITE) and url not in (_SQLITE, _SQLITE + ":memory:"):
        url = _SQLITE + os.path.abspath(url.removeprefix(_SQLITE))
    return msgspec.structs.replace(
        settings,
        packages=tuple(os.path.abspath(path) for path in settings.packages),
        workspace=os.path.abspath(settings.workspace) if settings.workspace else "",
        state=os.path.abspath(settings.state),
        database=url,
        audit=os.path.abspath(settings.audit_path),
        master_key_file=os.path.abspath(settings.master_key_path),
    )
