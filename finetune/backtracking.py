"""Back-tracking at scale: features of any number of samples over a whole store, point in time.

The store is read bucket by bucket in pieces of bounded size (foundation.buckets). Every piece
becomes one Parquet part, written under another name and renamed, with its counts beside it; a
job that was killed goes on at the first part it lacks, on the store version it began with. Pieces
do not depend on who works on them: any number of workers writes the same bytes.

    DIR/features/part-BB-PPPP.parquet   rows of a piece, in order of `row`; names sort as buckets do
    DIR/aggregates.json                 the aggregate columns
    DIR/certificate.json                what was read, written last: see finetune.leak_certificate
    DIR/.unfinished/                    the job in the making

Shapes: S samples, E entities.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from finetune.backtrack_rows import BLOCKS, LEADING, PieceFeatures
from finetune.features import FeatureBuilder, open_session
from finetune.file_scoring import check_same_schema
from finetune.leak_certificate import CERTIFICATE, Sources, code_version, make_certificate
from finetune.samples import Samples, read_samples
from foundation import lakehouse
from foundation.aggregates import FIT_ENTITIES, AggregateSpec
from foundation.buckets import BucketReader, Piece
from foundation.checkpoint import load_backbone, read_json, write_json
from foundation.errors import ArtifactError, UserError, listing, nearest
from foundation.history import entity_index
from foundation.schema import fingerprint
from foundation.store import EventStore

# Events held at once by a worker: aggregates keep a few numbers of each, a network's tokens many.
AGGREGATE_EVENTS, PIECE_EVENTS = 8_000_000, 1_000_000
# Small buckets are read together up to this many: enough for every worker to have some.
GROUP_EVENTS = 2_500_000
UNFINISHED, JOB, PARTS, FEATURES = ".unfinished", "job.json", "parts", "features"
AGGREGATES = "aggregates.json"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class BacktrackInputs:
    """What a job reads.

    Attributes:
        backbone: its directory; None for aggregates alone.
        aggregates: a specification to use instead of one fitted before the earliest as_of.
        blocks: of `aggregates`, `forecasts`, `embeddings`; empty for all there are.
        limit: events (and samples) held at once by a worker; None for what the blocks allow.
    """

    store: Path
    samples: Path
    backbone: Path | None = None
    aggregates: Path | None = None
    blocks: tuple[str, ...] = ()
    limit: int | None = None


def run_backtrack(
    inputs: BacktrackInputs,
    output: Path,
    workers: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the features of a sample file and their certificate; resumes an interrupted job.

    Args:
        output: the directory to write; a finished one of the same job is left as it is.
        workers: threads; default one a core.
        progress: called with (samples done, samples in all).
    Returns:
        the certificate.
    Raises:
        UserError: the directory holds another job, or one that is running.
    """
    blocks = _blocks(inputs)
    limit = inputs.limit or (AGGREGATE_EVENTS if blocks == ("aggregates",) else PIECE_EVENTS)
    store = EventStore.open(inputs.store)
    samples = read_samples(inputs.samples, store.schema, need_labels=False, keep_duplicates=True)
    facts = {
        "samples": file_digest(inputs.samples),
        "schema": fingerprint(store.schema),
        "backbone": _backbone_digest(inputs.backbone, store),
        "aggregates": file_digest(inputs.aggregates) if inputs.aggregates else None,
        "blocks": list(blocks),
        "limit": limit,
        "code": code_version(),
    }
    output.mkdir(parents=True, exist_ok=True)
    with _alone(output):
        finished = _finished(output, facts, store.version)
        if finished is not None:
            shutil.rmtree(output / UNFINISHED, ignore_errors=True)
            return finished
        work, store = _open_work(output, facts, store)
        with tempfile.TemporaryDirectory() as scratch:
            job = _Job(inputs, store, samples, work, blocks, Path(scratch), limit)
            parts = job.run(workers or os.cpu_count() or 1, progress)
        certificate = make_certificate(facts, store, samples, job.sources, parts)
        (work / PARTS).rename(output / FEATURES)
        os.replace(work / AGGREGATES, output / AGGREGATES)
        write_whole(output / CERTIFICATE, certificate)
        shutil.rmtree(work)
    return certificate


class _Job:
    """The features of every piece, made or found."""

    def __init__(
        self,
        inputs: BacktrackInputs,
        store: EventStore,
        samples: Samples,
        work: Path,
        blocks: tuple[str, ...],
        scratch: Path,
        limit: int,
    ) -> None:
        self.samples, self.work, self.limit = samples, work, limit
        self.reader = BucketReader(store)
        spec, builder, self.sources = feature_makers(
            inputs, store, samples, blocks, scratch, lambda: self._spec(inputs)
        )
        (work / AGGREGATES).write_text(spec.to_json(), encoding="utf-8")
        columns = frozenset(c for b in blocks for c in BLOCKS[b])
        self.features = PieceFeatures(self.reader, spec, builder, columns)

    def _spec(self, inputs: BacktrackInputs) -> AggregateSpec:
        """The one given, the one an interrupted run fitted, or one fitted now."""
        kept = self.work / AGGREGATES
        where = inputs.aggregates or (kept if kept.is_file() else None)
        if where is not None:
            return AggregateSpec.from_json(where.read_text(encoding="utf-8"), str(where))
        return fit_aggregates(self.reader, self.samples, min(self.limit, PIECE_EVENTS))

    def run(self, workers: int, progress: Progress | None) -> list[dict[str, Any]]:
        """Every part in order: `file`, `sha256` and `counts`."""
        done = 0
        with ThreadPoolExecutor(workers) as pool:
            try:
                # The lists of files are read while samples are put in order.
                listed = pool.submit(lambda: self.reader.files)
                tasks = [pool.submit(self.part, *task) for task in self._plan(pool, listed)]
                for task in as_completed(tasks):
                    done += task.result()["counts"]["samples"]
                    if progress:
                        progress(done, len(self.samples))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            return [task.result() for task in tasks]

    def _plan(
        self, pool: ThreadPoolExecutor, listed: Future[Any]
    ) -> list[tuple[Piece, np.ndarray]]:
        """Every piece with its samples, in order of buckets; `listed` is done once files are."""
        ids = self.samples.entity_ids.unique().sort()
        bucket = lakehouse.buckets_of(ids)
        order = np.argsort(bucket, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        # Samples in the order of their entities, entities in the order of buckets and ids.
        place = rank[entity_index(ids, self.samples.entity_ids)]
        asked = np.bincount(place, minlength=len(ids))
        by_entity = np.argsort(place, kind="stable")
        edges = np.concatenate([[0], np.cumsum(asked)])
        present, first = np.unique(bucket[order], return_index=True)
        ends = [*first[1:].tolist(), len(order)]
        buckets, first = present.tolist(), first.tolist()
        rows = [int(edges[z] - edges[a]) for a, z in zip(first, ends, strict=True)]
        listed.result()
        groups = self.reader.groups(buckets, rows, min(self.limit, GROUP_EVENTS))

        def plan(group: range) -> list[tuple[Piece, np.ndarray]]:
            start, stop = first[group.start], ends[group.stop - 1]
            here = ids[order[start:stop]]
            if len(group) > 1:
                pieces = [Piece(tuple(buckets[k] for k in group), 0, here.sort())]
            else:
                one = buckets[group.start]
                pieces = self.reader.pieces(one, here, asked[start:stop], self.limit)
            out = []
            for piece in pieces:
                stop = start + len(piece.entity_ids)
                out.append((piece, np.sort(by_entity[edges[start] : edges[stop]])))
                start = stop
            return out

        return [task for found in pool.map(plan, groups) for task in found]

    def part(self, piece: Piece, rows: np.ndarray) -> dict[str, Any]:
        """One part, made unless it is there as its record, written before it, describes it."""
        target = self.work / PARTS / f"part-{piece.name}.parquet"
        beside = self.work / f"part-{piece.name}.json"
        if target.is_file() and beside.is_file():
            record = read_json(beside)
            if file_digest(target) == record["sha256"]:
                return record
        frame, counts = self.features.make(piece, self.samples.frame[rows])
        partial = target.with_name(f".{target.name}.tmp")
        frame.write_parquet(partial, compression="zstd", compression_level=1)
        record = {
            "file": f"{FEATURES}/{target.name}",
            "sha256": file_digest(partial),
            "columns": len(frame.columns) - len(LEADING),
            "counts": asdict(counts),
        }
        noted = beside.with_suffix(".tmp")
        write_json(noted, record)
        os.replace(noted, beside)
        os.replace(partial, target)
        return record


def feature_makers(
    inputs: BacktrackInputs,
    store: EventStore,
    samples: Samples,
    blocks: tuple[str, ...],
    scratch: Path,
    without: Callable[[], AggregateSpec],
) -> tuple[AggregateSpec, FeatureBuilder | None, Sources]:
    """The aggregate columns, the feature builder of the backbone and where they come from.

    Args:
        without: gives the columns where there is no backbone.
    """
    if inputs.backbone is None:
        spec = without()
        if spec.schema != fingerprint(store.schema):
            raise ArtifactError(
                f"{inputs.aggregates}: made for schema {spec.schema}, the store holds "
                f"{fingerprint(store.schema)}"
            )
        origin = "given" if inputs.aggregates else "fitted on what was known before"
        where = (str(inputs.store), str(inputs.samples), None)
        return spec, None, Sources(*where, origin, spec.schema, spec.fingerprint)
    from finetune.building import make_builder

    backbone = load_backbone(inputs.backbone, network=set(blocks) != {"aggregates"})
    builder, graphs = make_builder(backbone, samples, scratch)
    # One thread a session: what a row gets must not depend on how many work beside it.
    if graphs.history is not None:
        builder.history = open_session(str(graphs.history))
    if graphs.forecasters is not None:
        builder.forecasters = open_session(graphs.forecasters.SerializeToString())
    sources = Sources(
        str(inputs.store),
        str(inputs.samples),
        str(inputs.backbone),
        "backbone",
        fingerprint(backbone.schema),
        builder.spec.fingerprint,
        backbone_id=backbone.fingerprint,
        tokenizer=backbone.tokenizer.fingerprint,
        knew_until_us=backbone.run.get("last_known_us"),
    )
    return builder.spec, builder, sources


def fit_aggregates(reader: BucketReader, samples: Samples, limit: int) -> AggregateSpec:
    """Columns fitted on some of the samples' entities, on what was known before every sample.

    Args:
        limit: events that may be held.
    """
    store, until = reader.store, int(samples.as_of_us.min())
    ids = samples.entity_ids.unique().sort()
    if len(ids) > FIT_ENTITIES:
        ids = ids.gather(np.sort(np.random.default_rng(0).permutation(len(ids))[:FIT_ENTITIES]))
    bucket = lakehouse.buckets_of(ids)
    events = np.zeros(len(ids), dtype=np.int64)
    for b in np.unique(bucket).tolist():
        events[bucket == b] = reader.count(b, ids.filter(pl.Series(bucket == b)))
    order = np.random.default_rng(1).permutation(len(ids))
    fit = order[np.cumsum(events[order]) <= limit]
    ids = ids.gather(np.sort(fit if len(fit) else order[:1]))
    schema = store.schema
    return AggregateSpec.fit(
        schema,
        store.timeline(entities=ids, until_us=until),
        store.profile_history(entities=ids, until_us=until) if schema.profile else None,
        samples.frame.select(list(schema.context)) if schema.context else None,
        until_us=until,
    )


def read_features(directory: Path) -> pl.LazyFrame:
    """Every row of a finished job, bucket after bucket; sort by `row` for the file's order."""
    return pl.scan_parquet(directory / FEATURES / "part-*.parquet")


def write_whole(path: Path, data: dict[str, Any]) -> None:
    """JSON that is either absent or whole."""
    partial = path.with_name(f".{path.name}.tmp")
    write_json(partial, data)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def _blocks(inputs: BacktrackInputs) -> tuple[str, ...]:
    """The blocks asked for, in the order of `BLOCKS`."""
    for name in inputs.blocks:
        if name not in BLOCKS:
            raise UserError(
                f"--blocks: no block '{name}'{nearest(name, BLOCKS)}; there are {listing(BLOCKS)}"
            )
    if inputs.backbone is None and set(inputs.blocks) - {"aggregates"}:
        raise UserError("--blocks: forecasts and embeddings come from a backbone; give --backbone")
    if inputs.backbone is not None and inputs.aggregates is not None:
        raise UserError("--aggregates: the backbone brings its own; give one of the two")
    every = BLOCKS if inputs.backbone else ("aggregates",)
    return tuple(b for b in BLOCKS if b in (inputs.blocks or every))


def _backbone_digest(backbone: Path | None, store: EventStore) -> str | None:
    if backbone is None:
        return None
    loaded = load_backbone(backbone, network=False)
    check_same_schema(store, loaded.schema, f"backbone {backbone}")
    return loaded.fingerprint


def file_digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise UserError(f"{path}: cannot be read: {exc.strerror}") from None


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    """One job in a directory at a time; the lock goes with the process."""
    with (output / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{output}: another back-tracking is running here") from None
        yield


def _finished(output: Path, facts: dict[str, Any], version: int) -> dict[str, Any] | None:
    """The certificate of the same job that is done, None where none is."""
    if not (output / CERTIFICATE).is_file():
        return None
    certificate = read_json(output / CERTIFICATE)
    before = certificate["job"] | {"store version": certificate["store"]["version"]}
    _require_same(output, before, facts | {"store version": version}, "holds the result of")
    return certificate


def _open_work(output: Path, facts: dict[str, Any], store: EventStore) -> tuple[Path, EventStore]:
    """The directory of the job, new or interrupted, and the store at the version it pinned."""
    work = output / UNFINISHED
    if (work / JOB).is_file():
        before = read_json(work / JOB)
        version = before.pop("store version")
        _require_same(output, before, facts, "holds an unfinished job with")
        if (output / FEATURES).is_dir():
            (output / FEATURES).rename(work / PARTS)
        for torn in (work / PARTS).glob(".*"):
            torn.unlink()
        return work, store.at(version)
    if (output / FEATURES).exists():
        raise UserError(f"{output}: holds other features; choose a new directory")
    (work / PARTS).mkdir(parents=True, exist_ok=True)
    write_whole(work / JOB, facts | {"store version": store.version})
    return work, store


def _require_same(output: Path, before: dict[str, Any], now: dict[str, Any], what: str) -> None:
    other = sorted(k for k in now if before.get(k) != now[k])
    if other:
        raise UserError(f"{output}: {what} another {other[0]}; choose a new directory")
