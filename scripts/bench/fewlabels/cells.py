"""The cache: one file per cell (set, n, draw, learner), keyed by everything that made it.

A cell holds the scores of the test rows (float32), for sets with a split in time those of the pool
too. Its key covers the set, the drawn rows, the features, the learner's settings and the source of
the code behind it, docstrings aside; so a run resumes where it was killed, and nothing stale is
ever read.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import os
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ALL = 0
"""The n of a cell that was taught with the whole pool."""


@dataclass(frozen=True)
class CellKey:
    """Which cell, and the digest of what made it."""

    set: str
    n: int
    draw: int
    learner: str
    digest: str

    def path(self, work: Path) -> Path:
        """Where it lies under the working folder."""
        return work / "cells" / self.set / self.learner / f"{self.n}-{self.draw}-{self.digest}.npz"


@dataclass(frozen=True)
class Cell:
    """What a learner gave.

    Attributes:
        scores: name -> [S] float32 scores of the test rows; a ladder has several names.
        pool: the same for the rows of the pool, where they were asked for.
        seconds: CPU time spent fitting and scoring.
        detail: what was chosen, plain data.
    """

    scores: dict[str, np.ndarray]
    pool: dict[str, np.ndarray] = field(default_factory=dict)
    seconds: float = 0.0
    detail: dict[str, Any] = field(default_factory=dict)


def digest_of(*parts: Any) -> str:
    """Sixteen hex digits of some plain data."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def rows_digest(rows: np.ndarray) -> str:
    """Digest of drawn rows."""
    return hashlib.sha256(np.ascontiguousarray(rows, np.int64).tobytes()).hexdigest()[:16]


def code_digest(objects: Iterable[Any]) -> str:
    """Version of modules, classes or functions: their syntax without docstrings and comments."""
    return source_digest(inspect.getsource(item) for item in objects)


def source_digest(sources: Iterable[str]) -> str:
    """Version of source texts: their syntax without docstrings and comments."""
    found = hashlib.sha256()
    for source in sources:
        tree = ast.parse(textwrap.dedent(source))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[0] if node.body else None
                if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                    node.body = node.body[1:]
        found.update(ast.dump(tree).encode())
    return found.hexdigest()[:16]


def save_cell(path: Path, cell: Cell) -> None:
    """Write a cell, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {f"test.{k}": v.astype(np.float32) for k, v in cell.scores.items()}
    arrays |= {f"pool.{k}": v.astype(np.float32) for k, v in cell.pool.items()}
    facts = json.dumps({"seconds": cell.seconds, "detail": cell.detail}, default=float)
    arrays["facts"] = np.frombuffer(facts.encode(), np.uint8)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.npz")
    np.savez(partial, **arrays)
    os.replace(partial, path)


def load_cell(path: Path) -> Cell:
    """Read what `save_cell` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        facts = json.loads(arrays["facts"].tobytes().decode())
        found: dict[str, dict[str, np.ndarray]] = {"test": {}, "pool": {}}
        for name in arrays.files:
            side, _, learner = name.partition(".")
            if learner:
                found[side][learner] = arrays[name]
    return Cell(found["test"], found["pool"], facts["seconds"], facts["detail"])
