"""The backbones that come with riskfm, and how a start is named: `shipped` or a directory.

pretrained/NAME/   a backbone directory whose card says what it saw; see its README.md
"""

from __future__ import annotations

from pathlib import Path

from foundation.errors import ArtifactError, listing

SHIPPED = "shipped"
DEFAULT = "nano-credit"
ROOT = Path(__file__).resolve().parent / "pretrained"


def shipped_backbone(name: str = DEFAULT) -> Path:
    """The directory of a backbone that comes with riskfm.

    Raises:
        ArtifactError: there is none of that name.
    """
    path = ROOT / name
    if not (path / "run.json").is_file():
        there = sorted(p.parent.name for p in ROOT.glob("*/run.json"))
        raise ArtifactError(
            f"no backbone '{name}' comes with riskfm; there are: {listing(there) or 'none'}"
        )
    return path


def start_directory(start: str | Path) -> Path:
    """`shipped` as the directory of the default backbone, anything else as it stands."""
    return shipped_backbone() if str(start) == SHIPPED else Path(start)
