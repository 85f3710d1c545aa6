"""Runs pragmatiq in an environment of its own; nothing here is imported by the benchmark.

    python pragmatiq_runner.py embed FOLDER OUT SECONDS SEED
    python pragmatiq_runner.py tune FOLDER OUT JOB SEED

`embed` pretrains the preset `nano` (for CPUs) on FOLDER's files for SECONDS of CPU time of one
thread and writes OUT/embeddings.npy [S, d] (NaN without events). `tune` fine-tunes that model with
LoRA as pragmatiq does it on JOB.npz (`rows`, `y`) and writes the log-odds of the rows `score` to
JOB.out.npy. Needs pragmatiq[train].
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SIZE = "nano"
# Its own choice for a CPU (training/autoconfig.py); its default of 16,384 makes few, large steps.
TOKEN_BUDGET = 4096
SOURCES = ("transaction", "app", "trading", "communication")


def main(arguments: list[str]) -> None:
    """One action; whatever fails is raised, the last line of stderr names it."""
    action, folder, out, what, seed = arguments
    if action == "embed":
        embed(Path(folder), Path(out), float(what), int(seed))
    else:
        tune(Path(folder), Path(out), Path(what), int(seed))


def embed(folder: Path, out: Path, seconds: float, seed: int) -> None:
    """Tokenize, pretrain for a time, embed the samples."""
    from pragmatiq import api
    from pragmatiq.training import probe

    # It would set as many threads as there are cores; the caller chose one.
    probe.cpu_thread_cap = lambda n=None: contextlib.nullcontext()
    for part in ("pretrain", "samples"):
        write_raw(folder, part, out / "raw" / part)
    # Amounts of few distinct values would be taken for codes, and new ones for unknown.
    config = {"force_numeric": numeric_columns(folder)}
    api.tokenize(out / "raw" / "pretrain", out / "tok" / "pretrain", config=config)
    tokenizer = out / "tok" / "pretrain" / "tokenizer"
    api.tokenize(out / "raw" / "samples", out / "tok" / "samples", tokenizer_dir=tokenizer)
    shutil.rmtree(out / "raw")

    def pretrain(name: str, steps: int) -> tuple[float, dict[str, Any]]:
        began = time.process_time()
        config = {
            "max_steps": steps,
            "warmup_steps": max(1, min(100, steps // 10)),
            "token_budget": TOKEN_BUDGET,
            "devices": 1,
            "accelerator": "cpu",
            "prefetch_batches": 0,
            "verbose": False,
            "seed": seed,
        }
        summary = api.pretrain(
            out / "tok" / "pretrain", name, SIZE, config=config, runs_root=out / "runs"
        )
        return time.process_time() - began, summary

    # The schedule wants the number of steps beforehand: the first run warms up, two set the pace.
    _, short, long = (pretrain(f"pace{i}", n)[0] for i, n in enumerate((2, 4, 24)))
    steps = max(20, int(seconds / max((long - short) / 20, long / 48)))
    spent, summary = pretrain("model", steps)
    for i in range(3):
        shutil.rmtree(out / "runs" / f"pace{i}")
    api.embed(out / "tok" / "samples", out / "runs" / "model", out=out / "embeddings.parquet")
    table = pq.read_table(out / "embeddings.parquet")
    rows = rows_of(table.column("user_id").to_pylist())
    values = np.array(table.column("embedding").to_pylist(), np.float32)
    matrix = np.full((count(folder), values.shape[1]), np.nan, np.float32)
    matrix[rows] = values
    np.save(out / "embeddings.npy", matrix)
    facts = {"steps": steps, "seconds": spent, "last": summary["last_metrics"]}
    (out / "facts.json").write_text(json.dumps(facts))


def tune(folder: Path, out: Path, job: Path, seed: int) -> None:
    """LoRA and a head on some rows, early stopping on a fifth of them; scores of other rows."""
    import torch
    from pragmatiq.data.collate import VarlenCollator
    from pragmatiq.data.dataset import DynamicBatchSampler, ShardDataset
    from pragmatiq.models.pragmatiq import PragmaModel
    from pragmatiq.training.finetuner import FineTuneConfig, LoRAFineTuner
    from pragmatiq.training.pretrainer import seed_everything

    with np.load(job) as given:
        rows, y, wanted = given["rows"], given["y"], given["score"]
    seed_everything(seed)
    model = PragmaModel.from_pretrained(out / "runs" / "model", device="cpu")
    labels = job.with_suffix(".labels.parquet")
    users = [f"s{i}" for i in rows]
    pq.write_table(pa.table({"user_id": users, "label": pa.array(y, pa.int8())}), labels)
    dataset = ShardDataset(out / "tok" / "samples")
    config = FineTuneConfig(seed=seed, devices=1, prefetch_batches=0)
    tuner = LoRAFineTuner(model, config, device="cpu")
    found = tuner.fit(dataset, labels)
    tuner.model.eval()
    tuner.head.eval()
    order = dataset.index.order
    asked = {f"s{i}" for i in wanted}
    subset = [i for i, user in enumerate(order) if user in asked]
    sampler = DynamicBatchSampler(dataset.index, token_budget=16_384, shuffle=False, subset=subset)
    sampler.set_epoch(0)
    collate = VarlenCollator(max_events=dataset.max_events)
    score = np.full(count(folder), np.nan)
    with torch.no_grad():
        for batch in sampler:
            users = [order[i] for i in batch]
            logits = tuner.head(tuner.model.embed_users(collate(dataset.get_many(users))))
            score[rows_of(users)] = (logits[:, 1] - logits[:, 0]).double().numpy()
    dataset.close()
    np.save(job.with_suffix(".out.npy"), score[wanted])
    facts = {"epochs": found["epochs_run"], "best_val_auc": found["best_val_auc"]}
    job.with_suffix(".json").write_text(json.dumps(facts))


def write_raw(folder: Path, part: str, raw: Path) -> None:
    """The two tables of pragmatiq's contract.

    Our sources are named in a field, as it knows four of its own only; first and last event are
    milestones, so that their distance from the as_of is known.
    """
    raw.mkdir(parents=True)
    table = pq.read_table(folder / f"{part}.parquet")
    users, at = table.column("user_id").to_pylist(), table.column("at").to_numpy()
    sources = table.column("source").to_pylist()
    fields: list[list[tuple[str, str]]] = [[("event", s)] for s in sources]
    fill(fields, table, ("user_id", "at", "source"))
    place = {name: SOURCES[i % len(SOURCES)] for i, name in enumerate(sorted(set(sources)))}
    events = {
        "user_id": users,
        "ts": pa.array(at, pa.int64()).cast(pa.timestamp("us")),
        "source": [place[s] for s in sources],
        "fields": pa.array(fields, pa.map_(pa.string(), pa.string())),
    }
    pq.write_table(pa.table(events), raw / "events.parquet")
    ends: dict[str, tuple[int, int]] = {}
    for user, moment in zip(users, at.tolist(), strict=True):
        ends[user] = (ends.get(user, (moment, moment))[0], moment)
    profile = pq.read_table(folder / f"{part}_profile.parquet")
    owners = profile.column("user_id").to_pylist()
    attributes: list[list[tuple[str, str]]] = [[] for _ in owners]
    fill(attributes, profile, ("user_id", "as_of"))
    milestones = [
        [{"key": k, "ts": t} for k, t in zip(("first_event", "last_event"), ends[u], strict=True)]
        if u in ends
        else []
        for u in owners
    ]
    kind = pa.list_(pa.struct([("key", pa.string()), ("ts", pa.timestamp("us"))]))
    rows = {
        "user_id": owners,
        "as_of": profile.column("as_of").cast(pa.timestamp("us")),
        "attributes": pa.array(attributes, pa.map_(pa.string(), pa.string())),
        "lifelong": pa.array(milestones, kind),
    }
    pq.write_table(pa.table(rows), raw / "profiles.parquet")


def fill(rows: list[list[tuple[str, str]]], table: pa.Table, apart: tuple[str, ...]) -> None:
    """Append every value that is there, as text, under its column's name."""
    for name in table.column_names:
        if name not in apart:
            for row, value in zip(rows, table.column(name).to_pylist(), strict=True):
                if value is not None and value == value:
                    row.append((name, f"{value:.6g}" if isinstance(value, float) else str(value)))


def numeric_columns(folder: Path) -> tuple[str, ...]:
    """Names of the number columns of events and profile."""
    found = []
    for part in ("pretrain", "pretrain_profile"):
        for column in pq.read_schema(folder / f"{part}.parquet"):
            if pa.types.is_floating(column.type):
                found.append(column.name)
    return tuple(sorted(found))


def count(folder: Path) -> int:
    """S."""
    return int(pq.read_metadata(folder / "samples_profile.parquet").num_rows)


def rows_of(users: list[str]) -> np.ndarray:
    """Rows of the users `s0`, `s1`, ..."""
    return np.array([int(u[1:]) for u in users], np.int64)


if __name__ == "__main__":
    main(sys.argv[1:])
