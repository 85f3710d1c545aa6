"""The live service: BentoML, a worker process, a real socket, and what the worker imports."""

from __future__ import annotations

import json
import os
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from foundation.errors import ConfigError
from serving.audit import verify_log
from serving.champions import write_champions
from serving.database import Database
from serving.launch import check, first_keys, free_port, running_service
from serving.settings import Settings
from serving.tenancy.keys import list_keys
from tests.serving.fake_package import request_of, write_package
from tests.serving.installed_packages import install

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "pytorch_lightning", "lightning", "transformers", "lightgbm", "sklearn")
# Puts the fake in the place of the real package and notes at exit what was imported.
CUSTOMIZE = """
import atexit, importlib.util, os, sys

class Fake:
    def find_spec(self, name, path=None, target=None):
        if name == "finetune.package":
            return importlib.util.spec_from_file_location(name, os.environ["TEST_FAKE"])

def note():
    path = os.path.join(os.environ["TEST_OUT"], f"modules-{os.getpid()}")
    with open(path, "w") as out:
        out.write("\\n".join(sys.modules))

sys.meta_path.insert(0, Fake())
atexit.register(note)
"""


def call(url: str, key: str | None = None, body: bytes | None = None) -> tuple[int, dict]:
    headers = {"content-type": "application/json"}
    if key:
        headers["authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read() or b"{}")
    except urllib.error.HTTPError as exc:
        return exc.code, json.loads(exc.read())


def test_live_service_scores_and_imports_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(CUSTOMIZE)
    package = write_package(tmp_path)
    environment = {
        "PYTHONPATH": f"{tmp_path}:{ROOT}",
        "TEST_OUT": str(tmp_path),
        "TEST_FAKE": str(ROOT / "tests" / "serving" / "fake_package.py"),
    }
    settings = Settings(state=str(tmp_path / "state"))
    with running_service(package, settings=settings, environment=environment, wait_seconds=120) as (
        url,
        key,
    ):
        status, answer = call(f"{url}/v1/score", key, json.dumps(request_of(30)).encode())
        assert (status, answer["package"]["id"]) == (200, "fake-0001")
        for path in ("/v1/score", "/v1/packages", "/metrics", "/schema.json", "/docs.json", "/"):
            status, refused = call(url + path)
            assert (status, refused["error"]["code"]) == (401, "unauthorized")
            if path != "/v1/packages":
                assert call(url + path, key)[0] in (404, 405)
        assert call(f"{url}/v1/health/ready") == (200, {"status": "ready", "packages": 1})
        assert call(f"{url}/v1/score", key, b"{")[0] == 400
    with pytest.raises(urllib.error.URLError):
        call(f"{url}/v1/health/live")
    assert verify_log(settings.audit_path).lines == 1
    workers = [set(path.read_text().split("\n")) for path in tmp_path.glob("modules-*")]
    workers = [modules for modules in workers if "serving.api" in modules]
    assert workers, "no worker noted its modules"
    for modules in workers:
        assert not modules & set(HEAVY)


def test_check_names_what_stands_in_the_way(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such directory"):
        check(Settings(packages=(str(tmp_path / "none"),)), free_port())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="cannot be used"):
            check(Settings(packages=(str(tmp_path),)), taken.getsockname()[1])


def test_a_first_key_is_made_once(tmp_path: Path) -> None:
    settings = Settings(state=str(tmp_path))
    assert list(first_keys(settings, ["fake-0001"])) == ["default"]
    assert first_keys(settings, ["fake-0001"]) == {}
    assert len(list_keys(Database(settings.database_url))) == 1


def test_of_a_workspace_only_digests_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launcher loads no package of a workspace, and says what lies there whole."""
    monkeypatch.setattr("serving.launch.Deployments", None)
    found = {mark: install(tmp_path, mark)["digest"] for mark in ("one", "two", "three", "four")}

    def named(mark: str) -> dict[str, Any]:
        return {"release": f"acme/{mark}/1", "package": found[mark]}

    channels: dict[str, dict[str, Any]] = {
        "acme/cards": named("one"),
        "acme/loans": named("two") | {"before": named("one")},
        "brix/cards": named("three"),
        "brix/loans": named("four"),
    }
    settings = Settings(workspace=str(tmp_path))
    assert check(settings, free_port()) == ()
    write_champions(tmp_path, channels)
    assert check(settings, free_port()) == ("acme/cards", "acme/loans", "brix/cards", "brix/loans")
    for mark in ("two", "three"):
        (tmp_path / "packages" / found[mark] / "head.onnx").write_bytes(b"altered")
    os.rename(tmp_path / "packages" / found["four"], tmp_path / "elsewhere")
    assert check(settings, free_port()) == ("acme/cards", "acme/loans")
    os.rename(tmp_path / "packages" / found["one"], tmp_path / "packages" / found["four"])
    assert check(settings, free_port()) == ()
    (tmp_path / "champions.json").write_text("{")
    assert check(settings, free_port()) == ()
