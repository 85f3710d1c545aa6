"""Who may import whom, and what a scoring process may load."""

from __future__ import annotations

import ast
import json
import subprocess
import sys

import pytest

from tests.contracts.tree import PACKAGES, ROOT, imported, python_files, syntax

FORBIDDEN = {
    "foundation": {"finetune", "serving", "scripts", "tests"},
    "finetune": {"serving", "scripts", "tests"},
    "serving": {"scripts", "tests"},
}
# What answers a scoring request.
SCORING = (
    "foundation.errors",
    "foundation.strict",
    "foundation.schema",
    "foundation.history",
    "foundation.slots",
    "foundation.tokenizer",
    "foundation.aggregates",
    "foundation.outcomes",
    "foundation.batching",
    "finetune.package",
    "serving.scorer",
    "serving.api",
    "serving.service",
)
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


def test_scoring_loads_no_training_library() -> None:
    code = (
        "import importlib, json, sys\n"
        f"heavy, loaded = set({sorted(HEAVY)!r}), {{}}\n"
        f"for name in {SCORING!r}:\n"
        "    before = set(sys.modules)\n"
        "    importlib.import_module(name)\n"
        "    new = {m.split('.')[0] for m in set(sys.modules) - before} & heavy\n"
        "    if new: loaded[name] = sorted(new)\n"
        "print(json.dumps(loaded))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {}


def test_help_is_quick_to_load() -> None:
    code = (
        "import sys, serving.cli\n"
        f"print(sorted({{m.split('.')[0] for m in sys.modules}} & set({sorted(HEAVY)!r})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


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
