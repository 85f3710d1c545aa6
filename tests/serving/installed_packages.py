"""Packages on the disk as far as the registry looks at them: a manifest, digests, one file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from finetune.package import FORMAT, manifest_digest


def install(workspace: Path, mark: str) -> dict[str, Any]:
    """Write a package into a workspace; the same mark gives the same digest."""
    content = f"weights {mark}".encode()
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "recipe": "blend",
        "created_at": "2026-01-01T00:00:00+00:00",
        "files": {"head.onnx": hashlib.sha256(content).hexdigest()},
    }
    digest = manifest_digest(manifest)
    path = workspace / "packages" / digest
    path.mkdir(parents=True, exist_ok=True)
    (path / "head.onnx").write_bytes(content)
    named = {"id": f"cards-{digest[:8]}", "digest": digest, **manifest}
    (path / "manifest.json").write_text(json.dumps(named))
    return named
