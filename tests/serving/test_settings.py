"""Settings come from a file and the environment; mistakes name the key or the variable."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from foundation.errors import ConfigError
from serving.cli import cli
from serving.safety.secrets import make_secrets
from serving.settings import (
    PREFIX,
    SECRETS,
    Settings,
    absolute,
    load_settings,
    sourced_settings,
    to_environment,
)
from serving.settings_check import KNOWN, loopback, problems, require_safe

SHIPPED = Path(__file__).resolve().parents[2] / "configs" / "serving"


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda p: p.name)
def test_shipped_settings_load_and_name_every_setting(path: Path) -> None:
    shipped = load_settings(str(path), {})
    text = path.read_text()
    for field in msgspec.structs.fields(Settings):
        assert f"\n{field.name}:" in text or field.name == "default_package"
    plain = msgspec.structs.replace(shipped, audit="")
    assert plain == Settings()


def test_a_process_scores_with_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    assert Settings().scoring_threads == 6
    assert Settings(workers=2).scoring_threads == 3
    assert Settings(workers=8).scoring_threads == 1
    assert Settings(threads=5, workers=3).scoring_threads == 5


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("queue: 3\nthreads: 2\n")
    found = load_settings(
        None,
        {
            "RISKFM_CONFIG": str(path),
            "RISKFM_QUEUE": "9",
            "RISKFM_AUDIT_DURABLE": "true",
            "RISKFM_PACKAGES": os.pathsep.join(["a", "b"]),
            "RISKFM_DATA": "elsewhere",
        },
    )
    assert (found.queue, found.threads, found.audit_durable) == (9, 2, True)
    assert found.packages == ("a", "b")


def test_settings_survive_the_way_through_the_environment() -> None:
    settings = absolute(Settings(packages=("a", "b"), queue=3, timeout_seconds=0.5))
    assert load_settings(None, to_environment(settings)) == settings
    assert all(os.path.isabs(p) for p in (*settings.packages, settings.state, settings.audit))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RISKFM_QUEUE", "0"),
        ("RISKFM_QUEUE", "many"),
        ("RISKFM_TIMEOUT_SECONDS", "nan"),
        ("RISKFM_AUDIT_DURABLE", "perhaps"),
        ("RISKFM_MAX_BODY_BYTES", "12"),
    ],
)
def test_bad_variables_are_named(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name):
        load_settings(None, {name: value})


def test_unknown_keys_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("max_event: 3\n")
    with pytest.raises(ConfigError, match="did you mean 'max_events'"):
        load_settings(str(path), {})


URL = "postgresql+psycopg://risk:pl4nted-word@db.bank/riskfm"


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without a setting."""
    for name in [n for n in os.environ if n.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    return monkeypatch


def safe(tmp_path: Path, **more: object) -> Settings:
    """Settings production starts with."""
    key = tmp_path / "master.key"
    if not key.exists():
        make_secrets(key)
    chosen = {"environment": "production", "master_key_file": str(key), "database": URL}
    return Settings(**(chosen | more))  # type: ignore[arg-type]


def test_a_secret_may_stand_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text(URL + "\n")
    found, sources = sourced_settings(None, {"RISKFM_DATABASE_FILE": str(file)})
    assert (found.database, sources["database"]) == (URL, "RISKFM_DATABASE_FILE")
    assert sources["valkey"] == "default"
    with pytest.raises(ConfigError, match="both set") as caught:
        load_settings(None, {"RISKFM_VALKEY": URL, "RISKFM_VALKEY_FILE": str(file)})
    assert "pl4nted" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"RISKFM_VALKEY_FILE.*FileNotFoundError"):
        load_settings(None, {"RISKFM_VALKEY_FILE": str(tmp_path / "none")})
    child = {"RISKFM_DATABASE_FILE": str(file)} | to_environment(found)
    assert load_settings(None, child) == found


def test_paths_follow_the_state() -> None:
    found = Settings(state="/data")
    assert found.database_url == "sqlite:////data/riskfm.db"
    assert found.master_key_path == "/data/master.key"
    whole = absolute(Settings(database="sqlite:///here.db", workspace="ws"))
    assert whole.database == f"sqlite:///{os.path.abspath('here.db')}"
    assert whole.workspace == os.path.abspath("ws")
    assert absolute(Settings(database=URL)).database == URL
    assert (absolute(Settings()).workspace, absolute(Settings()).valkey) == ("", "")


def test_every_setting_has_a_variable_and_comes_through_it() -> None:
    everything = Settings(
        environment="production", behind_tls=True, workspace="/w", database=URL, valkey="redis://v",
        master_key_file="/k", cipher="sm4-gcm", entity_hash="hmac-sm3", record_inputs=True,
        shadow_share=1.0, log_format="json", log_level="error", trace_endpoint="http://c:4318",
        metrics_tenants=5, drain_seconds=2.5, session_bytes=1 << 31,
    )  # fmt: skip
    found, sources = sourced_settings(None, to_environment(everything))
    assert found == everything
    assert set(sources.values()) == {PREFIX + n.upper() for n in Settings.__struct_fields__}
    assert not {PREFIX + n.upper() for n in Settings.__struct_fields__} & KNOWN


def test_production_names_every_risk(tmp_path: Path, clean: pytest.MonkeyPatch) -> None:
    assert problems(safe(tmp_path)) == []
    require_safe(safe(tmp_path, behind_tls=True, workers=4), "0.0.0.0")
    with pytest.raises(ConfigError, match=r"listens on 0\.0\.0\.0 without encryption"):
        require_safe(safe(tmp_path), "0.0.0.0")
    risky = safe(tmp_path, master_key_file=str(tmp_path / "none"), workers=2, database="")
    with pytest.raises(ConfigError, match=r"no master secrets.*;.*share a SQLite database"):
        require_safe(risky)
    require_safe(msgspec.structs.replace(risky, environment="development"), "0.0.0.0")
    for word in ("postgres", "RiskFM", "change%2Dme", ""):
        known = safe(tmp_path, valkey=f"redis://:{word}@cache:6379")
        with pytest.raises(ConfigError, match="valkey has a password everybody knows"):
            require_safe(known)
    clean.setenv("RISKFM_REGISTRY_URL", "postgresql+psycopg://riskfm:riskfm@db/riskfm")
    with pytest.raises(ConfigError, match="RISKFM_REGISTRY_URL has a password everybody knows"):
        require_safe(safe(tmp_path))


@pytest.mark.parametrize(
    ("host", "alone"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False),
     ("::", False), ("10.1.2.3", False), ("risk.bank", False)],
)  # fmt: skip
def test_loopback(host: str, alone: bool) -> None:
    assert loopback(host) is alone


def test_the_command_shows_where_settings_come_from(
    tmp_path: Path, clean: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("queue: 3\nthreads: 2\n")
    clean.setenv("RISKFM_DATABASE", URL)
    clean.setenv("RISKFM_THREADS", "4")
    clean.setenv("RISKFM_TREADS", "4")
    shown = CliRunner().invoke(cli, ["settings", "--config", str(file), "--changed"])
    assert shown.exit_code == 0, shown.output
    assert "pl4nted" not in shown.output
    rows = [line.split() for line in shown.output.splitlines() if not line.startswith("note")]
    assert rows == [
        ["database", "postgresql+psycopg://***@db.bank/riskfm", "RISKFM_DATABASE"],
        ["threads", "4", "RISKFM_THREADS"],
        ["queue", "3", str(file)],
    ]
    assert "note: RISKFM_TREADS is no setting" in shown.output
    assert "note: production would refuse" in shown.output
    every = CliRunner().invoke(cli, ["settings"]).output.splitlines()
    assert len([line for line in every if "note" not in line]) == len(Settings.__struct_fields__)
    clean.setenv("RISKFM_ENVIRONMENT", "production")
    refused = CliRunner().invoke(cli, ["settings", "--host", "0.0.0.0"])
    assert refused.exit_code == 2
    assert "not started in production: it listens on 0.0.0.0" in refused.output
    assert set(SECRETS) == {"database", "valkey"}
