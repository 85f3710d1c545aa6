"""The files of the checkout: everything git tracks or would track."""

from __future__ import annotations

import ast
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("foundation", "finetune", "serving")


@cache
def files() -> tuple[Path, ...]:
    """Paths relative to the root, without what .gitignore names."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout: the tree cannot be listed")
    paths = [Path(name) for name in listed.decode().split("\0") if name]
    return tuple(sorted(p for p in paths if (ROOT / p).is_file()))


@cache
def python_files() -> tuple[Path, ...]:
    """The Python files among them."""
    return tuple(p for p in files() if p.suffix == ".py")


@cache
def syntax(path: Path) -> ast.Module:
    """A file's syntax tree; `path` is relative to the root."""
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), filename=str(path))


def imported(path: Path) -> set[str]:
    """Dotted names a file imports anywhere, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(syntax(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names
