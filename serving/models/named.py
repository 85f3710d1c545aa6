"""Packages named by their path: a service without a workspace answers with these."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from foundation.errors import ArtifactError, ConfigError, RiskfmError, listing, nearest
from serving.models.loaded import Model

MANIFEST = "manifest.json"
log = logging.getLogger("riskfm.serving")


class NamedPackages:
    """Packages by id, loaded once.

    Args:
        paths: package directories, or directories whose children are packages.
        wanted: id that answers requests naming none; empty: the first package named by its own
            path, or the only one.
        load: opens, verifies and warms one package directory.
    Attributes:
        refused: children of a directory that could not be loaded -> why.
        default: id that answers requests naming none, or None.
    Raises:
        ArtifactError: a package named by its own path is damaged, or none could be loaded.
        ConfigError: a path without packages, or a default that is not there.
    """

    def __init__(self, paths: tuple[str, ...], wanted: str, load: Callable[[Path], Model]) -> None:
        self.models: dict[str, Model] = {}
        self.refused: dict[str, str] = {}
        first = ""
        for path, named in package_paths(paths):
            try:
                model = load(path)
                self._add(model, path)
                first = first or (model.id if named else "")
            except RiskfmError as exc:
                if named:
                    raise
                self.refused[path.name] = str(exc)
                log.error("package_refused %s: %s", path.name, exc)
        if not self.models:
            reasons = "; ".join(f"{name}: {text}" for name, text in self.refused.items())
            raise ArtifactError(f"no package could be loaded ({reasons})")
        self.default = self._choose(wanted or first)

    def _add(self, model: Model, path: Path) -> None:
        twin = self.models.get(model.id)
        if twin is None:
            self.models[model.id] = model
        elif twin.digest != model.digest:
            raise ArtifactError(f"{path}: another package with the id '{model.id}' is loaded")

    def _choose(self, wanted: str) -> str | None:
        if wanted and wanted not in self.models:
            raise ConfigError(
                f"default_package '{wanted}' is not loaded{nearest(wanted, self.models)}; "
                f"packages: {listing(self.models)}"
            )
        only = next(iter(self.models)) if len(self.models) == 1 else None
        return wanted or only


def package_paths(paths: tuple[str, ...]) -> list[tuple[Path, bool]]:
    """Package directories among `paths`, each with whether it was named itself.

    Raises:
        ConfigError: a path that is neither a package nor a directory of packages.
    """
    out: list[tuple[Path, bool]] = []
    for text in paths:
        path = Path(text)
        if (path / MANIFEST).is_file():
            out.append((path, True))
            continue
        if not path.is_dir():
            raise ConfigError(f"{path}: no such directory; expected a package or a folder of them")
        inside = sorted(child for child in path.iterdir() if (child / MANIFEST).is_file())
        if not inside:
            raise ConfigError(f"{path}: holds no package (a directory with a {MANIFEST})")
        out += [(child, False) for child in inside]
    if not out:
        raise ConfigError("no package is named; set packages (RISKFM_PACKAGES)")
    return out
