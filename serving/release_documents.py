"""The model document of a release with its approvals, kept beside the one made before them.

The delivery makes a document before anybody decides. Each approval asks for another one, of the
same artefacts and the same numbers, that names who approved, when and why:

    WORKSPACE/documents/DIGEST/   by the digest of its files; the first document and every later one

Which one stands is a row of the release's history. Made again it is the same bytes, and an approval
whose document was interrupted gets it with the next command or worker.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from foundation.errors import ArtifactError, RiskfmError
from serving import registry_tables as tables
from serving.durable import RECORD, digest_file, flush_tree
from serving.intake import Delivery
from serving.releases import Release, record

DOCUMENTS = "documents"
DOCUMENTED = "documented"
APPROVE = "approve"


def document_release(delivery: Delivery, release: Release) -> Path:
    """The document of a release as it stands now, made unless it is there.

    Returns:
        its directory.
    Raises:
        ArtifactError: the outputs of the release's delivery are gone.
    """
    from finetune.model_document import write_documents

    run = delivery.workspace.runs / release.job
    comparison = _comparison(delivery, release)
    first, report = run / f"documented-{comparison}", run / comparison / "report"
    if not (first.is_dir() and (run / "adapted").is_dir()):
        raise ArtifactError(
            f"{run}: outputs are gone, so {release.id} cannot be documented; deliver again"
        )
    found = _kept(delivery, release, "before approval", lambda out: _copy(first, out))
    approvals = _approvals(delivery, release)
    if not approvals:
        return found

    def write(out: Path) -> object:
        backtest = report if report.is_dir() else None
        return write_documents(run / "adapted", out, backtest_dir=backtest, approvals=approvals)

    return _kept(delivery, release, "with approvals", write)


def documents_of(delivery: Delivery, release: Release) -> list[str]:
    """Digests of a release's documents, the one that stands last."""
    table = tables.history
    query = sa.select(table.c.why).where(
        table.c.release == release.id, table.c.action == DOCUMENTED
    )
    with delivery.registry.database.transaction() as connection:
        rows = connection.execute(query.order_by(table.c.seq)).scalars()
        return [why.split()[0] for why in rows]


def document_missing(delivery: Delivery, say: Callable[[str], None]) -> None:
    """Make the documents that approvals ask for and that are not there; what cannot be made is
    said."""
    for release in delivery.registry.releases():
        if release.approved_at and len(documents_of(delivery, release)) < 2:
            try:
                say(f"document of {release.id}: {document_release(delivery, release)}")
            except RiskfmError as exc:
                say(f"no document of {release.id}: {exc}")


class DocumentKeeper:
    """Makes missing documents whenever an approval has come in since the last look.

    Approvals given over HTTP get their document this way: whoever answers requests has nothing to
    write documents with.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._seen = -1

    def __call__(self, delivery: Delivery) -> None:
        """Look, and make them."""
        with delivery.registry.database.reading() as connection:
            last = connection.execute(sa.select(sa.func.max(tables.approvals.c.seq))).scalar() or 0
        if last != self._seen:
            document_missing(delivery, self._say)
            self._seen = last


def _approvals(delivery: Delivery, release: Release) -> list[dict[str, Any]]:
    """Records of the approvals of a release, as `write_documents` takes them."""
    table = tables.approvals
    query = sa.select(table).where(table.c.release == release.id, table.c.decision == APPROVE)
    with delivery.registry.database.transaction() as connection:
        rows = connection.execute(query.order_by(table.c.seq)).mappings()
        return [
            {"by": r["who"], "role": "approver", "decision": "approved", "at": r["at"],
             "note": r["note"]}
            for r in rows
        ]  # fmt: skip


def _comparison(delivery: Delivery, release: Release) -> str:
    """Name of the back-test a release's document was made of: against its incumbent."""
    if release.incumbent is None:
        return "backtested-alone"
    return f"backtested-{delivery.registry.release(release.incumbent).package[:12]}"


def _copy(source: Path, out: Path) -> None:
    shutil.copytree(source, out, ignore=shutil.ignore_patterns(RECORD))


def _kept(delivery: Delivery, release: Release, what: str, write: Callable[[Path], object]) -> Path:
    """Write a document and move it to the name of its content; one row of history, once."""
    root = delivery.workspace.root / DOCUMENTS
    root.mkdir(exist_ok=True)
    partial = root / f".{uuid.uuid4().hex}.part"
    try:
        write(partial)
        files = {str(f.relative_to(partial)): digest_file(f) for f in sorted(partial.rglob("*"))}
        digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
        if not (root / digest).exists():
            flush_tree(partial)
            os.replace(partial, root / digest)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if digest not in documents_of(delivery, release):
        with delivery.registry.database.transaction() as connection:
            record(
                connection, "riskfm", DOCUMENTED, release.tenant, release.channel, release.id,
                why=f"{digest} {what}",
            )  # fmt: skip
    return root / digest
