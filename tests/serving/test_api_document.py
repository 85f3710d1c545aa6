"""docs/api.md is true: its commands run against a running service, its tables hold."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.client import Client
from serving.database import Database
from serving.launch import running_service
from serving.messages import CODES, ID_LIMIT, TEXT_LIMIT
from serving.settings import Settings
from serving.tenancy.keys import create_key
from serving.tenancy.sandbox import ENTITIES, ERRORS
from tests.serving.fake_package import write_package
from tests.serving.test_service import CUSTOMIZE, ROOT

PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.M | re.S)
# A command ends with the status it claims.
COMMANDS = [
    (text.strip(), int(status))
    for language, block in BLOCKS
    if language == "bash"
    for text, status in re.findall(r"(.*?)\s+# (\d{3})\n", re.sub(r"^export.*\n", "", block), re.S)
]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """URL and sandbox key of a running service over a fake package."""
    folder = tmp_path_factory.mktemp("document")
    (folder / "sitecustomize.py").write_text(CUSTOMIZE)
    environment = {
        "PYTHONPATH": f"{folder}:{ROOT}",
        "TEST_OUT": str(folder),
        "TEST_FAKE": str(ROOT / "tests" / "serving" / "fake_package.py"),
    }
    settings = Settings(state=str(folder / "state"))
    key = create_key(Database(settings.database_url), "docs", ["score", "read"], sandbox=True)
    with running_service(
        write_package(folder), settings=settings, environment=environment, wait_seconds=120
    ) as (url, _):
        yield url, key


def test_every_command_claims_a_status() -> None:
    assert len(COMMANDS) >= 12
    assert sum(block.count("curl ") for _, block in BLOCKS) == len(COMMANDS)


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_commands_answer_what_they_claim(running: tuple[str, str], tmp_path: Path) -> None:
    url, key = running
    environment = {"URL": url, "KEY": key, "PATH": "/usr/local/bin:/usr/bin:/bin"}
    for text, status in COMMANDS:
        done = subprocess.run(
            ["bash", "-c", text.replace("curl -i", "curl -s -i")],
            env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, (text, done.stderr)
        assert done.stdout.startswith(f"HTTP/1.1 {status} "), (text, done.stdout)


def test_the_python_example_runs(
    running: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    [example] = [block for language, block in BLOCKS if language == "python"]
    exec(compile(example, "docs/api.md", "exec"), {"url": running[0], "key": running[1]})
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "0.15 590 review late payments"
    assert said[1] == "0 0.02" and said[2].startswith("1 ") and said[3].startswith("422 invalid")
    assert Client.score_many.__doc__


def test_tables_name_what_there_is() -> None:
    codes = dict(re.findall(r"^\| (\d{3}) \| `(\w+)` \|", PAGE, re.M))
    assert codes == {str(status): code for status, code in CODES.items()}
    named = re.findall(r"`(test_\w+)`", PAGE.split("| test entity |")[1].split("\n\n")[0])
    assert set(named) == {*ENTITIES, *ERRORS}
    settings = Settings()
    limits = (settings.max_events, settings.max_batch_rows, TEXT_LIMIT)
    for number in map("{:,}".format, limits):
        assert number in PAGE
    assert f"{ID_LIMIT} characters" in PAGE and f"| {settings.queue} |" in PAGE
    assert settings.max_body_bytes == 2 * 2**20 and settings.max_batch_bytes == 64 * 2**20
    assert settings.future_seconds == 86_400 and settings.timeout_seconds == 30
    assert settings.idempotency_hours == 24
