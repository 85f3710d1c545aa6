"""Who may import whom, and what a scoring process may load."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import pytest

from tests.contracts.tree import PACKAGES, ROOT, imported, python_files, syntax

FORBIDDEN = {
    "foundation": {"finetune", "serving", "scripts", "tests"},
    "finetune": {"serving", "scripts", "tests"},
    "serving": {"scripts", "tests"},
}
# What answers a scoring request, and what scores a file.
SCORING = ("serving.service", "finetune.package")
TORCH_FREE = (
    *SCORING,
    "serving.launch",
    "finetune.file_scoring",
    "finetune.incremental",
    "foundation.checkpoint",
    "foundation.infer",
    "foundation.selection",
    "foundation.store",
)
ARCHITECTURE = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
# The train and demo extras: a scoring image does not have them.
HEAVY = {
    "torch",
    "lightning",
    "pytorch_lightning",
    "transformers",
    "peft",
    "safetensors",
    "lightgbm",
    "sklearn",
    "optbinning",
    "onnx",
    "onnxscript",
    "plotly",
    "tensorboard",
    "pandas",
    "pyarrow",
    "scipy",
    "dbos",
}
UNSAFE = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def roots(names: set[str]) -> set[str]:
    """First parts of dotted names."""
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_downwards_only(package: str) -> None:
    checked = [p for p in python_files() if p.parts[0] == package]
    assert checked
    for path in checked:
        wrong = roots(imported(path)) & FORBIDDEN[package]
        assert not wrong, f"{path} imports {sorted(wrong)}"


def test_nothing_is_imported_relatively() -> None:
    for path in python_files():
        assert not any(name.startswith(".") for name in imported(path)), path


def test_init_files_import_nothing() -> None:
    for path in python_files():
        if path.name == "__init__.py":
            assert not imported(path), f"{path} imports"


def loaded_by(names: tuple[str, ...]) -> set[str]:
    """Every module a fresh interpreter has loaded after importing some."""
    code = f"import sys, {', '.join(names)}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def documented(section: str) -> dict[str, set[str]]:
    """Per package the modules that the lines `* `package`: `module`, ...` of a section name."""
    body = re.split(r"^## ", ARCHITECTURE, flags=re.M)
    text = next(part for part in body if part.startswith(section)).replace("\n  ", " ")
    lines = re.findall(r"^\* `(\w+)`: (.+)$", text, re.M)
    return {package: set(re.findall(r"`(\w+)`", names)) for package, names in lines}


def test_scoring_loads_what_is_documented_and_no_training_library() -> None:
    loaded = loaded_by(SCORING)
    assert not roots(loaded) & HEAVY
    found = {
        package: {n.split(".")[1] for n in loaded if n.startswith(f"{package}.")}
        for package in PACKAGES
    }
    assert documented("Import rule") == found


def test_files_are_scored_and_read_without_a_training_library() -> None:
    assert not roots(loaded_by(TORCH_FREE)) & HEAVY


FOLDERS = sorted({p.parent.as_posix() for p in python_files() if p.parts[0] in PACKAGES})


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_module_is_documented(folder: str) -> None:
    modules = {path.stem for path in python_files() if path.parent.as_posix() == folder}
    sections = re.split(r"^## ", ARCHITECTURE, flags=re.M)
    text = next((part for part in sections if part.startswith(f"{folder}\n")), "")
    rows = re.findall(r"^\| `(\w+)` \|", text, re.M)
    assert sorted(rows) == sorted(modules - {"__init__"}), f"docs/ARCHITECTURE.md, ## {folder}"


def test_help_is_quick_to_load() -> None:
    assert not roots(loaded_by(("serving.cli",))) & (HEAVY | {"polars", "numpy", "onnxruntime"})


def test_nothing_unpickles() -> None:
    for path in python_files():
        wrong = roots(imported(path)) & UNSAFE
        assert not wrong, f"{path} imports {sorted(wrong)}"
        for node in ast.walk(syntax(path)):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            assert called not in ("torch.load", "torch.save"), f"{path}:{node.lineno} {called}"
            for keyword in node.keywords:
                allows = keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False"
                assert not allows, f"{path}:{node.lineno} allow_pickle"
