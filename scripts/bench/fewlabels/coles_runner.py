"""Runs CoLES of pytorch-lifestream in an environment of its own; the benchmark imports nothing.

    python coles_runner.py embed FOLDER OUT SECONDS SEED

trains a GRU on random slices of the histories in FOLDER (two slices of one entity are alike, of two
entities not) for SECONDS of CPU time of one thread and writes OUT/embeddings.npy [S, d], NaN
without events. Needs pytorch-lifestream.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

WIDTH, EMBEDDING, SLICES, BATCH = 256, 16, 5, 64
LEARNING_RATE = 2e-3
LEVELS = 500
DAY_US = 86_400_000_000
History = dict[str, np.ndarray]


def main(arguments: list[str]) -> None:
    """Whatever fails is raised, the last line of stderr names it."""
    warnings.simplefilter("ignore")
    action, folder, out, seconds, seed = arguments
    if action != "embed":
        raise ValueError(f"unknown action {action!r}")
    embed(Path(folder), Path(out), float(seconds), int(seed))


def embed(folder: Path, out: Path, seconds: float, seed: int) -> None:
    """Fit the inputs, train for a time, embed the samples."""
    import torch
    from ptls.data_load.padded_batch import PaddedBatch
    from ptls.frames.coles import CoLESModule
    from ptls.frames.coles.split_strategy import SampleSlices
    from ptls.nn import RnnSeqEncoder, TrxEncoder

    np.random.seed(seed)
    torch.manual_seed(seed)
    table = read(folder / "pretrain.parquet")
    inputs = Inputs(table)
    columns, offsets, _ = inputs.columns(table)
    lengths = np.diff(offsets)
    trx = TrxEncoder(
        embeddings={n: {"in": inputs.size(n), "out": EMBEDDING} for n in inputs.levels},
        numeric_values=dict.fromkeys(inputs.numbers, "identity"),
        embeddings_noise=0.003,
    )
    encoder = RnnSeqEncoder(trx_encoder=trx, hidden_size=WIDTH, type="gru")
    module = CoLESModule(seq_encoder=encoder)
    usual = int(np.median(lengths))
    least = max(1, min(15, usual // 3))
    splitter = SampleSlices(SLICES, least, max(least + 1, min(150, usual)))
    usable = np.flatnonzero(lengths > 1)
    optimizer = torch.optim.Adam(module.parameters(), lr=LEARNING_RATE)

    def padded(slices: list[np.ndarray]) -> Any:
        size = torch.tensor([len(s) for s in slices])
        at = np.zeros((len(slices), int(size.max())), np.int64)
        inside = np.arange(at.shape[1]) < size.numpy()[:, None]
        at[inside] = np.concatenate(slices)
        payload = {n: torch.from_numpy(np.where(inside, v[at], 0)) for n, v in columns.items()}
        return PaddedBatch(payload, size)

    rng = np.random.default_rng(seed)
    began, steps, losses = time.process_time(), 0, []
    while (done := (time.process_time() - began) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - done)
        slices, owners = [], []
        for owner, entity in enumerate(rng.choice(usable, min(BATCH, len(usable)), replace=False)):
            at = np.arange(offsets[entity], offsets[entity + 1])
            slices += [at[part] for part in splitter.split(at)]
            owners += [owner] * SLICES
        y_h, y = module.shared_step(padded(slices), torch.tensor(owners))
        loss = module._loss(y_h, y)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        steps += 1
    spent = time.process_time() - began

    module.eval()
    columns, offsets, users = inputs.columns(read(folder / "samples.parquet"))
    rows = np.array([int(u[1:]) for u in users], np.int64)
    total = int(pq.read_metadata(folder / "samples_profile.parquet").num_rows)
    matrix = np.full((total, WIDTH), np.nan, np.float32)
    order = np.argsort(np.diff(offsets), kind="stable")
    with torch.no_grad():
        for part in pieces(order, 256):
            batch = padded([np.arange(offsets[i], offsets[i + 1]) for i in part])
            matrix[rows[part]] = module(batch).numpy()
    np.save(out / "embeddings.npy", matrix)
    facts = {"steps": steps, "seconds": spent, "last_loss": float(np.mean(losses[-20:]))}
    (out / "facts.json").write_text(json.dumps(facts))


def read(path: Path) -> dict[str, np.ndarray]:
    """Columns of a table; text as objects, numbers as float64."""
    table = pq.read_table(path)
    return {n: table.column(n).to_numpy(zero_copy_only=False) for n in table.column_names}


def pieces(order: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Parts of an array."""
    for begin in range(0, len(order), size):
        yield order[begin : begin + size]


class Inputs:
    """Levels by frequency, numbers as standardised signed logarithms, time as gap and calendar.

    Column names become `f0`, `f1`, ..., as modules take no dots.
    """

    def __init__(self, table: dict[str, np.ndarray]) -> None:
        self.names: dict[str, str] = {}
        self.levels: dict[str, dict[str, int]] = {}
        self.numbers: dict[str, tuple[float, float]] = {}
        for column, values in table.items():
            if column in ("user_id", "at"):
                continue
            name = self.names[column] = f"f{len(self.names)}"
            if values.dtype == object:
                known = [v for v in values.tolist() if v is not None]
                levels, counts = np.unique(np.array(known, dtype=str), return_counts=True)
                common = levels[np.argsort(-counts, kind="stable")][:LEVELS].tolist()
                # 0 pads, 1 is missing, 2 rare or unseen.
                self.levels[name] = {level: i + 3 for i, level in enumerate(common)}
            else:
                x = _log(values.astype(np.float64))
                x = x[~np.isnan(x)]
                if len(x) and x.std() > 0:
                    self.numbers[name] = (float(x.mean()), float(x.std()))
        for name, size in (("weekday", 7), ("month", 12)):
            self.levels[name] = {str(i): i for i in range(size)}
        gap = self._gap(table)
        self.numbers["gap"] = (float(gap.mean()), float(gap.std()) or 1.0)

    def size(self, name: str) -> int:
        """Rows of an embedding."""
        return len(self.levels[name]) + 3

    def columns(self, table: dict[str, np.ndarray]) -> tuple[History, np.ndarray, list[str]]:
        """Columns of all events, offsets by user, and the users."""
        out: History = {}
        for column, name in self.names.items():
            if name in self.levels:
                place = self.levels[name]
                listed = [1 if v is None else place.get(v, 2) for v in table[column].tolist()]
                out[name] = np.array(listed, np.int64)
            elif name in self.numbers:
                x = _log(table[column].astype(np.float64))
                out[name] = self._scaled(name, x)
        out["gap"] = self._scaled("gap", self._gap(table))
        moment = table["at"].astype("datetime64[us]")
        out["weekday"] = 1 + (moment.astype("datetime64[D]").astype(np.int64) + 3) % 7
        out["month"] = 1 + moment.astype("datetime64[M]").astype(np.int64) % 12
        starts = self._starts(table)
        users = [str(u) for u in table["user_id"][starts]]
        return out, np.append(starts, len(moment)), users

    def _scaled(self, name: str, x: np.ndarray) -> np.ndarray:
        mean, spread = self.numbers[name]
        return np.nan_to_num(np.clip((x - mean) / spread, -6, 6)).astype(np.float32)

    @staticmethod
    def _starts(table: dict[str, np.ndarray]) -> np.ndarray:
        users = table["user_id"]
        return np.flatnonzero(np.append(True, users[1:] != users[:-1]))

    def _gap(self, table: dict[str, np.ndarray]) -> np.ndarray:
        """Logarithm of the days since the user's previous event, 0 at the first."""
        at = table["at"].astype(np.int64)
        gap = np.diff(at, prepend=at[:1]) / DAY_US
        gap[self._starts(table)] = 0
        return np.log1p(np.maximum(gap, 0))


def _log(x: np.ndarray) -> np.ndarray:
    return np.sign(x) * np.log1p(np.abs(x))


if __name__ == "__main__":
    main(sys.argv[1:])
