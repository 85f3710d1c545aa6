"""Where something of a person may lie, as erasers: on disk, in a workspace, in the database.

Not erased, and why: entries of lists (`riskfm lists` takes them out; a lender may have to keep
them), answers to idempotency keys (sealed, gone after `idempotency_hours`), the decision log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import sqlalchemy as sa

from foundation.errors import UserError, listing
from serving.database import Database
from serving.safety.erasers import FilesEraser, SampleSetEraser, StoreEraser
from serving.safety.erasure import Eraser, ErasureCount
from serving.safety.vault import Vault

Erase = Callable[[str, str, str], int]


class TableEraser:
    """Rows of a table of the service that name a person by its keyed hash.

    Args:
        table: with columns `tenant` and `entity`.
        erase: (tenant, entity hash, entity id) -> rows erased; of the part that owns the table.
    """

    def __init__(self, database: Database, table: sa.Table, erase: Erase) -> None:
        self._database, self._table, self._erase = database, table, erase

    def __call__(
        self, tenant: str, entity_hash: str, entity_id: str, *, dry_run: bool = False
    ) -> ErasureCount:
        """Rows that name the person."""
        if not dry_run:
            return ErasureCount(self._erase(tenant, entity_hash, entity_id))
        c = self._table.c
        mine = sa.select(sa.func.count()).where(c.tenant == tenant, c.entity == entity_hash)
        with self._database.reading() as connection:
            return ErasureCount(int(connection.execute(mine).scalar_one()))


def disk_erasers(
    tenant: str, stores: Iterable[Path], workspace: Path | None, sets: Iterable[str]
) -> dict[str, Eraser]:
    """Erasers of event stores and of what a workspace holds of a tenant.

    Args:
        stores: event stores beside those of the tenant's channels.
        sets: sample sets of the tenant. Where the workspace has one tenant, all are its own.
    Raises:
        UserError: no workspace, or sets that may belong to somebody else.
    """
    found = {path.resolve() for path in stores}
    out: dict[str, Eraser] = {}
    if workspace is not None:
        found |= _workspace(out, tenant, workspace, tuple(sets))
    ahead: dict[str, Eraser] = {f"event store {path}": StoreEraser(path) for path in sorted(found)}
    return ahead | out


def _workspace(
    out: dict[str, Eraser], tenant: str, workspace: Path, sets: tuple[str, ...]
) -> set[Path]:
    """Adds what a workspace holds of a tenant; the event stores of its channels."""
    from finetune.sample_sets import set_names
    from serving.delivery import Delivery

    delivery = Delivery.open(workspace)
    root = delivery.workspace.root
    channels = delivery.registry.channels()
    names = set_names(root)
    if missing := set(sets) - {*names, ""}:
        raise UserError(f"{root}: no sample set {listing(sorted(missing))}; sets: {listing(names)}")
    others = sorted({t for t, _, _ in channels} - {tenant})
    if names and others and not sets:
        raise UserError(
            f"{root} has other tenants too ({listing(others)}); name the sample sets of "
            f"'{tenant}' with --set, or --set '' for none: {listing(names)}"
        )
    jobs = [job for job in delivery.book.all() if job.tenant == tenant]
    files: list[Path] = []
    for job in jobs:
        given: Mapping[str, dict[str, str] | None] = job.request
        files += [root / each["file"] for k in ("samples", "test") if (each := given.get(k))]
    packages = {release.package for release in delivery.registry.releases(tenant)}
    places = {
        "handed-in samples": files,
        "deliveries": [delivery.workspace.runs / job.id for job in jobs],
        "daily runs": [
            root / "days" / tenant, *(root / "references" / digest for digest in packages)
        ],
    }  # fmt: skip
    chosen = [name for name in sets if name] if sets else names
    out["sample sets"] = SampleSetEraser(root, chosen)
    own = delivery.workspace.tenant(tenant)
    out["sample sets handed in over HTTP"] = SampleSetEraser(own, set_names(own))
    for name, paths in places.items():
        out[name] = FilesEraser([path for path in paths if path.exists()])
    return {Path(config["store"]) for t, _, config in channels if t == tenant}


def hosted_erasers(database: Database, vault: Vault) -> dict[str, Eraser]:
    """Erasers of the service's database."""
    from serving.decisions import projection
    from serving.decisions.cases import CaseBook
    from serving.decisions.inputs import Inputs
    from serving.decisions.tables import cases, decisions, inputs
    from serving.models.shadow_store import ShadowStore, shadow_scores
    from serving.online.erasing import eraser

    kept, shadow, book = Inputs(database, vault), ShadowStore(database), CaseBook(database)
    erase: dict[str, tuple[sa.Table, Erase]] = {
        "kept requests": (inputs, kept.erase),
        "decisions": (decisions, lambda t, h, _: projection.erase(database, t, h)),
        "review cases": (cases, book.erase),
        "shadow scores": (shadow_scores, lambda t, h, _: shadow.erase(t, h)),
    }
    out: dict[str, Eraser] = {
        name: TableEraser(database, table, how) for name, (table, how) in erase.items()
    }
    return out | {"stored events": eraser(database)}
