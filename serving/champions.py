"""`champions.json`: which package answers for which channel, readable without a database.

The registry writes it after every change and at every opening; a scoring image reads it and needs
neither the registry nor its libraries.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foundation.errors import ArtifactError, UserError
from serving.durable import place_file

CHAMPIONS = "champions.json"
PACKAGES = "packages"


def write_champions(workspace: Path, champions: Mapping[str, Mapping[str, Any]]) -> None:
    """Write `tenant/channel` -> release and package digest, where it says something else."""
    text = json.dumps(dict(sorted(champions.items())), indent=1) + "\n"
    path = workspace / CHAMPIONS
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        place_file(path, text.encode())


def champion_packages(workspace: Path) -> list[Path]:
    """Package directories of the champions, each once, by tenant and channel.

    Raises:
        UserError: there is no champion yet.
        ArtifactError: the file is damaged.
    """
    path = workspace / CHAMPIONS
    try:
        champions = json.loads(path.read_text(encoding="utf-8"))
        digests = [str(champions[name]["package"]) for name in sorted(champions)]
    except FileNotFoundError:
        digests = []
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ArtifactError(
            f"{path}: damaged; any command such as riskfm releases writes it anew"
        ) from None
    if not digests:
        raise UserError(
            f"{workspace}: no channel has a champion yet; deliver a sample file and let a "
            "different person approve it with riskfm approve"
        )
    return [workspace / PACKAGES / digest for digest in dict.fromkeys(digests)]
