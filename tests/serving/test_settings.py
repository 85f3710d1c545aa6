"""Settings come from a file and the environment; mistakes name the key or the variable."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from foundation.errors import ConfigError
from serving.settings import Settings, absolute, load_settings, to_environment

SHIPPED = Path(__file__).resolve().parents[2] / "configs" / "serving"


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda p: p.name)
def test_shipped_settings_load_and_name_every_setting(path: Path) -> None:
    shipped = load_settings(str(path), {})
    text = path.read_text()
    for field in msgspec.structs.fields(Settings):
        assert f"\n{field.name}:" in text or field.name == "default_package"
    plain = msgspec.structs.replace(shipped, audit="", secret="")
    assert plain == Settings()


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
    assert all(os.path.isabs(p) for p in (*settings.packages, settings.keys, settings.audit))


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
