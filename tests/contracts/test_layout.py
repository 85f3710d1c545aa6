"""The shape of the tree: what stands at the top, how long a module is, what it may be called."""

from __future__ import annotations

import re
import tomllib

import pytest

from tests.contracts.tree import PACKAGES, ROOT, files, python_files, syntax

TOP_FOLDERS = {"foundation", "finetune", "serving", "configs", "scripts", "tests", "docs"}
TOP_FILES = {"README.md", "LICENSE", "CHANGELOG.md", "Makefile", "pyproject.toml"}
TEST_FOLDERS = {"foundation", "finetune", "serving", "journeys", "golden", "contracts", "scripts"}
VAGUE = {"utils", "util", "helpers", "helper", "common", "core", "misc"}
MAX_LINES = 500
MAX_BYTES = 8_000_000
HOME = re.compile(r"(?<![\w.])/(?:home|root|Users)/\w")
UNFINISHED = re.compile("|".join(("TO" + "DO", "FIX" + "ME", "NotImplemented" + "Error")))


def test_top_level() -> None:
    folders = {p.parts[0] for p in files() if len(p.parts) > 1}
    loose = {p.name for p in files() if len(p.parts) == 1}
    assert {f for f in folders if not f.startswith(".")} == TOP_FOLDERS
    assert {f for f in loose if not f.startswith(".")} == TOP_FILES


def test_tests_mirror_the_folders() -> None:
    inner = {p.parts[1] for p in files() if p.parts[0] == "tests" and len(p.parts) > 2}
    assert inner <= TEST_FOLDERS
    for path in python_files():
        if path.parts[0] == "tests" and len(path.parts) > 2:
            assert path.name != "__init__.py", f"{path}: tests are no package"


@pytest.mark.parametrize("package", [*PACKAGES, "configs"])
def test_packages_are_packages(package: str) -> None:
    assert (ROOT / package / "__init__.py").is_file()


def test_modules_are_short_and_named() -> None:
    for path in python_files():
        lines = (ROOT / path).read_text(encoding="utf-8").count("\n")
        assert lines <= MAX_LINES, f"{path} has {lines} lines"
        assert path.stem not in VAGUE, f"{path}: name it by its subject"


def test_modules_say_what_they_are() -> None:
    for path in python_files():
        body = syntax(path).body
        if body:
            first = body[0]
            value = getattr(getattr(first, "value", None), "value", None)
            assert isinstance(value, str), f"{path} has no docstring"


def test_nothing_is_unfinished_or_bound_to_a_machine() -> None:
    for path in python_files():
        text = (ROOT / path).read_text(encoding="utf-8")
        for pattern in (UNFINISHED, HOME):
            found = pattern.search(text)
            assert found is None, f"{path}: '{found.group(0) if found else ''}'"


def test_no_file_is_large() -> None:
    for path in files():
        assert (ROOT / path).stat().st_size <= MAX_BYTES, path


def test_project_file() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    base = " ".join(project["dependencies"])
    train = project["optional-dependencies"]["train"]
    assert "torch==2.13.0" in train
    assert "bentoml==1.4.39" in base
    for heavy in ("torch", "lightning", "transformers", "lightgbm", "scikit-learn", "pandas"):
        assert heavy not in base
    assert project["scripts"] == {"riskfm": "serving.cli:main"}
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {project['version']}" in changelog or "## Unreleased" in changelog
