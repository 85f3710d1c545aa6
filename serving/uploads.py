"""Sample files that come in over HTTP: reviewed at once, kept as versions of a tenant's own sets.

    WORKSPACE/tenants/TENANT/sample_sets/NAME/   see `finetune.sample_sets`

The review is the one of `riskfm samples check`, without what takes the libraries of training: the
delivery does that. What was left out is said, the usable rows are kept, the file itself is not.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import sqlalchemy as sa

from foundation import strict
from foundation.errors import SampleError, UserError, listing, nearest
from serving.database import now
from serving.gates import DeliverySettings
from serving.intake import Delivery
from serving.parquet_size import unpacked_bytes

if TYPE_CHECKING:
    from finetune.sample_review import Review
    from finetune.sample_sets import SampleVersion
    from foundation.store import EventStore

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# Customers that are looked up in the event store while the caller waits; the delivery reads all.
LOOKED_UP = 20_000
# A small Parquet file may hold any number of rows; it is counted before it is read.
MOST_ROWS = 2_000_000
# Of a Parquet file once it is unpacked.
MOST_BYTES = 1 << 30
ENDINGS = {"text/csv": ".csv", "application/vnd.apache.parquet": ".parquet"}
_SHORT = 16

metadata = sa.MetaData()
uploads = sa.Table(
    "uploads", metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("person", sa.Text, primary_key=True),
    sa.Column("channel", sa.Text, nullable=False),
    sa.Column("test", sa.Boolean, nullable=False),
    sa.Column("at", sa.Text, nullable=False),
)  # fmt: skip
mappings = sa.Table(
    "mappings", metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("content", sa.Text, nullable=False),
    sa.Column("at", sa.Text, nullable=False),
)  # fmt: skip


@dataclass(frozen=True)
class Upload:
    """A sample file as it came in.

    Attributes:
        name: of the sample set; empty: that of the channel, with `-test` for a test file.
        ending: .csv or .parquet.
        mapping: JSON, or the id of an earlier one; None: the columns are called as ours.
        window_days: performance window of the labels.
        by: who hands it in.
    """

    tenant: str
    channel: str
    name: str
    test: bool
    data: bytes
    ending: str
    mapping: str | None
    window_days: int | None
    by: str


@dataclass(frozen=True)
class Taken:
    """What became of it.

    Attributes:
        new: whether it is another version than the newest before.
        mapping: id of the mapping, to be named instead of its JSON; empty without one.
        numbers: the review, see `finetune.sample_review`.
    """

    version: SampleVersion
    new: bool
    mapping: str
    numbers: dict[str, Any]


class Uploads:
    """Sample sets of the tenants of a workspace."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        self._database = delivery.registry.database
        self._database.make(metadata)

    def take(self, upload: Upload, config: dict[str, Any]) -> Taken:
        """Review a sample file and keep its usable rows.

        Args:
            config: how the channel is delivered.
        Raises:
            UserError: it cannot be used; says why, without a path of this machine.
        """
        from finetune.sample_sets import add_version
        from foundation.store import EventStore

        name = upload.name or upload.channel + ("-test" if upload.test else "")
        _check_name(name)
        store = EventStore.open(config["store"])
        mapping, content = self._mapping(upload)
        review = _reviewed(upload, store, content)
        settings = strict.convert(DeliverySettings, config["settings"], "the channel's settings")
        need = upload.test or settings.adapt.recipe != "query"
        _require_usable(review, need, upload.test)
        assert review.kept is not None
        version, new = add_version(
            self._delivery.workspace.tenant(upload.tenant), name, review.kept, store.schema,
            "upload", Path(config["store"]),
        )  # fmt: skip
        with self._database.transaction() as connection:
            self._database.insert_missing(
                connection, uploads, tenant=upload.tenant, name=name, digest=version.digest,
                person=upload.by, channel=upload.channel, test=upload.test, at=now(),
            )  # fmt: skip
            if content is not None:
                self._database.insert_missing(
                    connection, mappings, tenant=upload.tenant, id=mapping, content=content,
                    at=now(),
                )  # fmt: skip
        return Taken(version, new, mapping, review.numbers)

    def all(self, tenant: str) -> list[tuple[SampleVersion, str, bool]]:
        """Every version of a tenant's sets with its channel and whether it is for testing."""
        from finetune.sample_sets import set_names, versions

        query = sa.select(uploads).where(uploads.c.tenant == tenant)
        with self._database.reading() as connection:
            told = {(r.name, r.digest): (r.channel, r.test) for r in connection.execute(query)}
        root = self._delivery.workspace.tenant(tenant)
        every = [v for name in set_names(root) for v in versions(root, name)]
        # An erasure gives versions another digest: what they were for is not known then.
        return [(v, *told.get((v.name, v.digest), ("", False))) for v in every]

    def find(self, tenant: str, reference: str) -> SampleVersion:
        """The version that `NAME`, `NAME@2` or `NAME@DIGEST` names.

        Raises:
            UserError: the tenant has none; says what there is.
        """
        from finetune.sample_sets import find_version, set_names

        root = self._delivery.workspace.tenant(tenant)
        name, names = reference.partition("@")[0], set_names(root)
        if name not in names:
            raise UserError(
                f"no sample set of this name{nearest(name, names)}; sets: "
                f"{listing(names) or 'none'}"
            )
        return find_version(root, reference)

    def makers(self, tenant: str, version: SampleVersion) -> list[str]:
        """Who handed in the rows of a version; after an erasure, whoever added to its set."""
        query = sa.select(uploads.c.digest, uploads.c.person).where(
            uploads.c.tenant == tenant, uploads.c.name == version.name
        )
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
        own = {row.person for row in rows if row.digest == version.digest}
        return sorted(own or {row.person for row in rows})

    def _mapping(self, upload: Upload) -> tuple[str, str | None]:
        """Id and JSON of the mapping of a file."""
        given = upload.mapping
        if given is None:
            return "", None
        if not given.lstrip().startswith("{"):
            query = sa.select(mappings.c.content).where(
                mappings.c.tenant == upload.tenant, mappings.c.id == given
            )
            with self._database.reading() as connection:
                known = connection.execute(query).scalar()
            if known is None:
                raise UserError(
                    "no mapping of this id; give one as JSON, such as "
                    '{"columns": {"entity_id": "customer_no", "as_of": "apply_date"}}'
                )
            return given, str(known)
        try:
            content = json.dumps(json.loads(given), sort_keys=True, ensure_ascii=False)
        except (ValueError, RecursionError):
            raise UserError("the mapping is not valid JSON") from None
        return hashlib.sha256(content.encode()).hexdigest()[:_SHORT], content


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise UserError("no name of a sample set: use up to 64 letters, digits, '.', '_' and '-'")


def _reviewed(upload: Upload, store: EventStore, mapping: str | None) -> Review:
    """The review of a file; what is said of it names no file of this machine."""
    from finetune.sample_columns import apply_mapping, load_mapping
    from finetune.sample_review import ReviewSettings, review_samples
    from foundation.tables import read_table

    where, moment = "samples", dt.datetime.now(dt.UTC).replace(tzinfo=None)
    settings = ReviewSettings(moment, upload.window_days, power=False)
    with tempfile.TemporaryDirectory(prefix="riskfm-upload-") as folder:
        path, named = Path(folder) / f"samples{upload.ending}", Path(folder) / "mapping"
        path.write_bytes(upload.data)
        try:
            _require_bounded(path)
            table = read_table(path)
            if mapping is not None:
                named.write_text(mapping, encoding="utf-8")
                table = apply_mapping(table, load_mapping(named, store.schema), store.schema, where)
            looked_up = store if _customers(table, store) <= LOOKED_UP else None
            return review_samples(table, store.schema, looked_up, settings, where)
        except UserError as exc:
            text = str(exc).replace(str(path), where).replace(str(named), "mapping")
            hint = "give a mapping of the columns"
            text = text.replace("riskfm samples map proposes which is which", hint)
            raise type(exc)(text) from None
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
            raise SampleError("the file cannot be read") from None


def _require_bounded(path: Path) -> None:
    if path.suffix != ".parquet":
        return
    rows = int(pl.scan_parquet(path, hive_partitioning=False).select(pl.len()).collect().item())
    try:
        unpacked = unpacked_bytes(path.read_bytes())
    except ValueError:
        raise SampleError("the file cannot be read") from None
    if unpacked > MOST_BYTES:
        raise SampleError(f"the file unpacks to more than {MOST_BYTES:,} bytes")
    if rows > MOST_ROWS:
        raise SampleError(f"{rows:,} rows; a sample file has at most {MOST_ROWS:,}")


def _customers(table: pl.DataFrame, store: EventStore) -> int:
    for column in ("entity_id", store.schema.entity):
        if column in table.columns:
            return int(table[column].n_unique())
    return 0


def _require_usable(review: Review, need_labels: bool, test: bool) -> None:
    """Refuse what a delivery would refuse.

    Raises:
        SampleError: with the reasons.
    """
    numbers = review.numbers
    lost = "; ".join(f"{d['n']:,} rows left out: {d['reason']}" for d in numbers["dropped"][:5])
    why = ""
    if not numbers["usable"]:
        why = numbers["verdict"][0]
    elif need_labels and not numbers["labelled"]:
        why = "no row has a label" + (", and a test file is measured on them" if test else "")
    if why:
        raise SampleError("; ".join(filter(None, (why, lost))))
