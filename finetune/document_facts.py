"""Values of a model document, each with the place in an artefact it was read from.

Whatever number a document shows passes through `Facts`, which writes down what was shown, of which
file, at which path and in which form. The list stands beside the documents, so that anybody (and a
test) can look every number up again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foundation.errors import ArtifactError

METRICS, REPORT, MANIFEST, BACKTEST = (
    "metrics.json",
    "report.json",
    "manifest.json",
    "backtest.json",
)
APPROVALS = "approvals"
RULES = "rules"
# Bounds of the monitoring plan that are conventions, not measurements.
CONVENTIONS = {"psi_watch": 0.10, "psi_act": 0.25, "least_bads": 30, "confidence": 0.95}
DASH = "–"

FORMS: dict[str, Callable[[Any], str]] = {
    "count": lambda v: f"{v:,.0f}",
    "fixed2": lambda v: f"{v:.2f}",
    "fixed3": lambda v: f"{v:.3f}",
    "fixed4": lambda v: f"{v:.4f}",
    "signed3": lambda v: f"{v:+.3f}",
    "percent": lambda v: f"{100 * v:.1f} %",
    "percent0": lambda v: f"{100 * v:.0f} %",
    "general": lambda v: f"{v:g}",
    "tiny": lambda v: f"{v:.1e}",
    "day": lambda v: str(v)[:10],
    "moment": lambda v: str(v)[:16].replace("T", " ") + " UTC",
    "text": str,
    "size": lambda v: f"{len(v):,}",
}


@dataclass
class Facts:
    """The artefacts of a model, and what was shown of them.

    Attributes:
        files: name to content; a missing file is absent.
        shown: rows of file, path, form and text, in the order of the document.
    """

    files: dict[str, Any]
    shown: list[dict[str, Any]] = field(default_factory=list)

    def get(self, file: str, *path: str | int) -> Any:
        """A value, or None where any step of the path is missing."""
        value: Any = self.files.get(file)
        for step in path:
            inside = (
                step in value
                if isinstance(value, Mapping)
                else isinstance(value, list) and isinstance(step, int) and step < len(value)
            )
            if not inside:
                return None
            value = value[step]
        return value

    def show(self, form: str, file: str, *path: str | int) -> str:
        """A value in a form of `FORMS`, noted down; a dash where it is missing."""
        value = self.get(file, *path)
        if value is None or value == "":
            return DASH
        text = str(FORMS[form](value))
        self.shown.append({"shown": text, "file": file, "path": list(path), "form": form})
        return text

    def name(self, file: str, *path: str | int) -> str:
        """The last step of a path, a name that somebody gave, noted down like a value."""
        text = str(path[-1])
        self.shown.append({"shown": text, "file": file, "path": list(path), "form": "name"})
        return text

    def span(self, form: str, file: str, *path: str | int, low: str, high: str) -> str:
        """An interval whose ends stand beside each other, or a dash."""
        if self.get(file, *path, low) is None or self.get(file, *path, high) is None:
            return DASH
        first, last = self.show(form, file, *path, low), self.show(form, file, *path, high)
        return f"{first} – {last}"

    def tally(self, file: str, *path: str | int, key: str, value: str) -> str:
        """How many records of a list have a value under a key, noted down."""
        count = sum(record.get(key) == value for record in self.get(file, *path) or [])
        row = {"shown": f"{count:,}", "file": file, "path": list(path), "form": "tally"}
        self.shown.append(row | {"key": key, "value": value})
        return f"{count:,}"

    def size(self, file: str, *path: str | int) -> int:
        """Length of a list or mapping, 0 where it is missing."""
        value = self.get(file, *path)
        return len(value) if value else 0


def read_facts(
    adaptation_dir: Path, backtest_dir: Path | None, approvals: list[dict[str, Any]]
) -> Facts:
    """The artefacts of an adaptation and, where there is one, of a back-test.

    Raises:
        ArtifactError: no such directory, a file that is missing or no JSON, or a back-test of
            another package.
    """
    files = {
        METRICS: _read(adaptation_dir / "metrics.json"),
        REPORT: _read(adaptation_dir / "report.json"),
        MANIFEST: _read(adaptation_dir / "package" / "manifest.json"),
        RULES: CONVENTIONS,
        APPROVALS: approvals,
    }
    if backtest_dir is not None:
        files[BACKTEST] = _read(backtest_dir / "backtest.json")
        judged, digest = files[BACKTEST].get("package"), files[MANIFEST]["digest"]
        if judged and judged.get("digest") != digest:
            raise ArtifactError(
                f"{backtest_dir}: this back-test judged package {judged.get('id')}, not "
                f"{files[MANIFEST]['id']}; back-test the package of {adaptation_dir}"
            )
    return Facts(files)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(
            f"{path}: no such file; expected the directory that `riskfm adapt -o` wrote (or, for "
            "--backtest, the one of `riskfm backtest -o`)"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as exc:
        raise ArtifactError(f"{path}: not readable as JSON: {exc}") from None
