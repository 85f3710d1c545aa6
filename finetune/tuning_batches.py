"""Histories for tuning a backbone: parts of like length, frozen keys kept, batches cut along them.

A batch of 32 whose longest history has 450 events and whose usual one has 30 is mostly padding. So
samples are ordered by length and cut into parts of few tokens; a training batch is run part by part
and its gradients are summed, which is the same step.

Shapes: B samples of a part, L its longest history, S samples, M queries and prompt tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from finetune.table import FeatureTable
from foundation.attention import KeyValues
from foundation.backbone import RiskBackbone
from foundation.batching import history_batch, query_rows

Batch = dict[str, torch.Tensor]
# Tokens of a part, padding included: more do not compute faster, and pad more.
TOKENS = 1024
# Keys and values of frozen histories are kept up to so many bytes, and made anew beyond.
KEPT_BYTES = 1 << 30


@dataclass
class Part:
    """Samples that are computed together.

    Attributes:
        rows: [B] int64 their places in the table.
        batch: inputs of the backbone.
        keys: of every block, what queries may attend to where the backbone is frozen.
    """

    rows: np.ndarray
    batch: Batch
    keys: list[KeyValues] | None = None

    def take(self, at: np.ndarray) -> Part:
        """Some of the samples, by their places in the part."""
        if len(at) == len(self.rows):
            return self
        index = torch.from_numpy(at)
        batch = {name: tensor[index] for name, tensor in self.batch.items()}
        keys = self.keys and [(k[index], v[index]) for k, v in self.keys]
        return Part(self.rows[at], batch, keys)


def parts_of(table: FeatureTable) -> Iterator[Part]:
    """Every sample once, by length, short histories many at a time."""
    histories = table.histories
    cut, most = histories.cut, histories.max_events
    length = np.minimum(cut.stop - cut.start, most)
    order = np.argsort(length, kind="stable")
    size = np.maximum(length[order], 1)
    begin = 0
    while begin < len(order):
        tokens = np.arange(1, len(order) - begin + 1) * size[begin:]
        count = max(1, int(np.searchsorted(tokens, TOKENS, side="right")))
        rows = order[begin : begin + count]
        batch = history_batch(
            histories.events, cut.part(rows), query_rows(histories.queries, rows), most
        )
        yield Part(rows, {k: torch.from_numpy(v) for k, v in batch.arrays().items()})
        begin += count


def frozen_keys(backbone: RiskBackbone, batch: Batch) -> list[KeyValues]:
    """Keys and values of histories in every block; no gradient reaches the events."""
    with torch.no_grad():
        events = backbone.encode_tokens(
            batch["source"], batch["code"], batch["value"], batch["extra"]
        )
        angles = backbone.rotary(event_index(batch["days"]), batch["days"])
        keys: list[KeyValues] = []
        *blocks, last = backbone.blocks
        for block in blocks:
            events, each = block.read(events, angles)
            keys.append(each)
        return [*keys, last.keys(events, angles)]


def keep_keys(backbone: RiskBackbone, parts: Sequence[Part]) -> None:
    """Encode the histories of parts once, as many as may be kept."""
    kept = 0
    for part in parts:
        width = 2 * len(backbone.blocks) * backbone.config.width * 4
        kept += part.batch["days"].numel() * width
        if kept > KEPT_BYTES:
            break
        part.keys = frozen_keys(backbone, part.batch)


def batches(
    parts: Sequence[Part], rows: np.ndarray, size: int
) -> list[list[tuple[Part, np.ndarray]]]:
    """Batches of `size` of the samples `rows`, like lengths together.

    Returns:
        Of every batch the parts its samples lie in, and their places there.
    """
    wanted = np.zeros(max(int(p.rows.max()) for p in parts) + 1, bool)
    wanted[rows] = True
    places = [np.flatnonzero(wanted[p.rows]) for p in parts]
    owner = np.repeat(np.arange(len(parts)), [len(p) for p in places])
    place = np.concatenate(places)
    out: list[list[tuple[Part, np.ndarray]]] = []
    for begin in range(0, len(place), size):
        chunk = slice(begin, begin + size)
        out.append([(parts[k], place[chunk][owner[chunk] == k]) for k in np.unique(owner[chunk])])
    return out


def event_index(days: torch.Tensor) -> Any:
    """[B, L] float32 event index."""
    return torch.arange(days.shape[1], dtype=days.dtype).expand_as(days)
