"""Scoring with the cached state of an entity: what its events left in the backbone, and no more.

When an extension is exact. A causal backbone's keys and values of an event depend on that event and
those before it, never on the moment asked about: as_of only enters the query. So events that stand
behind a history (`finetune.event_carry.Carry.precedes`) extend its state, and the answers equal
those of the whole history up to float32 rounding (1e-5 on states and log-odds; measured 3e-6).

When a state is rebuilt, from the events themselves:
* an event arrived late, was corrected or erased: what the state was made from is no longer how the
  history begins. `follow` compares the encoded events with those kept in the state, byte by byte;
  `Carry.precedes` refuses to add events of the past;
* the history grew beyond the last `max_events` events, of which scores are defined. Every state
  behind the first block has seen the events that fall out, so nothing of it can be kept: each
  further event then costs a whole encoding of `max_events` events, from those kept in the state.
  The place for it is when the event arrives, not when a score is asked for; queries stay cheap;
* the moment asked about lies before an event of the state (`Carry.before`): `follow` rebuilds,
  `query` refuses;
* another graph or another `max_events` (`EntityState.backbone`): begin again.

One state serves every package whose history graph was exported from the same backbone with the same
tokenizer: the fingerprint is that of the incremental graph's bytes.

Shapes: n events of the state, L new events, K slots, X extra columns, D width, T forecasts.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from finetune.event_carry import Carry
from finetune.features import POOLINGS, Histories, open_session
from foundation.encoded import EncodedEvents, EncodedQueries
from foundation.errors import ArtifactError, InternalError
from foundation.history import Timeline

MAGIC = b"riskfm-state-1\n\0"
COLUMNS = ("source", "code", "value", "extra", "days")
_KINDS = {
    "source": np.int16,
    "code": np.int32,
    "value": np.float32,
    "extra": np.float32,
    "days": np.float32,
}
_DIGEST = 16
# Blocks times width squared from which a step of a few events takes a millisecond and more.
HEAVY = 1 << 17


@dataclass(frozen=True)
class EntityState:
    """What an entity's history left in a backbone; never changed, only replaced.

    Attributes:
        backbone: fingerprint of the encoder that made it, see `IncrementalEncoder`.
        carry: the end of the whole history.
        events: [n] the encoded events of the state, the last of the history.
        memory: [2 blocks, n, D] float32, keys and values of every block.
        total: [D] float64 sum of the event states; final: [D] float32 the last of them.
    """

    backbone: str
    carry: Carry
    events: EncodedEvents
    memory: np.ndarray
    total: np.ndarray
    final: np.ndarray

    def __len__(self) -> int:
        return len(self.events)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        columns = sum(getattr(self.events, name).nbytes for name in COLUMNS)
        return columns + self.memory.nbytes + self.total.nbytes + self.final.nbytes

    def begins(self, events: EncodedEvents) -> bool:
        """Whether encoded events begin with those this state was made from, to the bit."""
        n = len(self)
        if len(events) < n:
            return False
        return all(
            np.array_equal(getattr(self.events, name), getattr(events, name)[:n])
            for name in COLUMNS
        )

    def to_bytes(self, half: bool = False) -> bytes:
        """A header and the raw arrays, little-endian.

        Args:
            half: keys and values in float16: half the bytes; states then differ by up to 1e-3
                (7e-4 with `small` at 256 events), so that scores are no longer equal to 1e-5.
        """
        kind = np.float16 if half else np.float32
        memory = np.ascontiguousarray(self.memory, dtype=kind)
        small = [np.ascontiguousarray(getattr(self.events, n), dtype=_KINDS[n]) for n in COLUMNS]
        small += [np.ascontiguousarray(self.total), np.ascontiguousarray(self.final)]
        header = {
            "backbone": self.backbone,
            "carry": self.carry.to_dict(),
            "half": half,
            "events": len(self),
            "slots": self.events.code.shape[1],
            "extra": self.events.extra.shape[1],
            "memory": [self.memory.shape[0], self.memory.shape[2]],
            "sum": _checksum(memory),
        }
        head = json.dumps(header, separators=(",", ":")).encode()
        body = b"".join([head, *(array.tobytes() for array in small)])
        digest = hashlib.blake2b(body, digest_size=_DIGEST).digest()
        return b"".join([MAGIC, struct.pack("<I", len(head)), digest, body, memory.tobytes()])

    @classmethod
    def from_bytes(cls, data: bytes) -> EntityState:
        """What `to_bytes` wrote; float16 keys and values come back as float32.

        Raises:
            ArtifactError: not such bytes, or damaged ones.
        """
        fixed = len(MAGIC) + 4 + _DIGEST
        if len(data) < fixed or data[: len(MAGIC)] != MAGIC:
            raise ArtifactError("not a cached state of this version; begin a new one")
        (length,) = struct.unpack_from("<I", data, len(MAGIC))
        try:
            header = json.loads(data[fixed : fixed + length])
            n, slots, extra = header["events"], header["slots"], header["extra"]
            rows, width = header["memory"]
            sizes = (n, slots, extra, rows, width)
            if any(type(size) is not int or not 0 <= size < 2**24 for size in sizes):
                raise ValueError
            layout: list[tuple[Any, tuple[int, ...]]] = [
                (np.int16, (n,)),
                (np.int32, (n, slots)),
                (np.float32, (n, slots)),
                (np.float32, (n, extra)),
                (np.float32, (n,)),
                (np.float64, (width,)),
                (np.float32, (width,)),
                (np.float16 if header["half"] else np.float32, (rows, n, width)),
            ]
            arrays, place = [], fixed + length
            for kind, shape in layout:
                count = int(np.prod(shape))
                arrays.append(np.frombuffer(data, kind, count, place).reshape(shape))
                place += arrays[-1].nbytes
            *small, memory = arrays
            body = memoryview(data)[fixed : place - memory.nbytes]
            digest = hashlib.blake2b(body, digest_size=_DIGEST).digest()
            intact = place == len(data) and digest == data[fixed - _DIGEST : fixed]
            if not intact or _checksum(memory) != header["sum"]:
                raise ValueError
            carry = Carry.from_dict(header["carry"])
            backbone = str(header["backbone"])
        except (ValueError, KeyError, TypeError):
            raise ArtifactError("a cached state is damaged; begin a new one") from None
        *columns, total, final = small
        events = EncodedEvents(*columns)
        return cls(backbone, carry, events, memory.astype(np.float32, copy=False), total, final)


@dataclass(frozen=True)
class Answer:
    """What the history graph says of one sample.

    Attributes:
        states: [1, 3 D] float32, the poolings in the order of `finetune.features.POOLINGS`.
        forecasts: [1, T] float32 log-odds, of based targets the part that the network adds.
    """

    states: np.ndarray
    forecasts: np.ndarray


class IncrementalEncoder:
    """Runs an incremental graph; safe to share between threads.

    Args:
        session: of a graph that `finetune.incremental_graph` wrote.
        digest: of the graph's bytes.
        max_events: how many of a history's last events a score reads.

    Attributes:
        backbone: fingerprint of graph and `max_events`; states of another are refused.
        heavy: whether a step takes so long that something else can be done beside it.
    """

    def __init__(self, session: ort.InferenceSession, digest: str, max_events: int) -> None:
        self.session, self.max_events = session, max_events
        self.backbone = f"{digest[:16]}-{max_events}"
        shapes = {i.name: (i.type, i.shape) for i in session.get_inputs()}
        self._inputs = tuple(shapes)
        self._blocks = sum(name.startswith("key_") for name in shapes)
        if not self._blocks or "cached" not in shapes:
            raise ArtifactError("this graph takes no cached state; export it again")
        self._heads, head_width = shapes["key_0"][1][2:]
        self._width = self._heads * head_width
        self.heavy = self._blocks * self._width**2 >= HEAVY
        self._query = {
            name: np.zeros(
                [1 if isinstance(size, str) else size for size in shape],
                np.int64 if kind == "tensor(int64)" else np.float32,
            )
            for name, (kind, shape) in shapes.items()
            if name in ("query_code", "query_value", "query_extra", "query_days")
        }
        self._outputs = ["query", "mean", "last", "forecasts", "next_total", "memory"]

    @classmethod
    def load(cls, path: str | Path, max_events: int, threads: int = 1) -> IncrementalEncoder:
        """Open a graph file.

        Raises:
            ArtifactError: no such file, or another kind of graph.
        """
        path = Path(path)
        if not path.is_file():
            raise ArtifactError(f"{path}: no such graph")
        graph = path.read_bytes()
        try:
            session = open_session(graph, threads)
        except Exception as exc:  # ONNX Runtime raises several classes, none of them public
            raise ArtifactError(f"{path}: not a graph that can be run: {exc}") from None
        return cls(session, hashlib.sha256(graph).hexdigest(), max_events)

    def begin(self, events: EncodedEvents, carry: Carry) -> EntityState:
        """The state of a whole history.

        Args:
            events: all of the history or at least its last `max_events` events.
            carry: its end.
        """
        return self.advance(None, events, carry)[1]

    def extend(self, state: EntityState, events: EncodedEvents, carry: Carry) -> EntityState:
        """A state with new events behind it; see `advance`."""
        return self.advance(state, events, carry)[1]

    def query(self, state: EntityState, queries: EncodedQueries) -> Answer:
        """The answer to one query behind a state.

        Args:
            queries: one query, encoded behind the state's history at a moment that lies behind
                all of its events (`encode_next_query` checks that).
        """
        return self.advance(state, None, state.carry, queries)[0]

    def follow(
        self,
        state: EntityState | None,
        events: EncodedEvents,
        carry: Carry,
        queries: EncodedQueries,
    ) -> tuple[Answer, EntityState, bool]:
        """Answer a query about a whole history, with whatever of a state still holds for it.

        Args:
            events: the encoded history, of one entity, that the query may see.
            carry: the end of that history.

        Returns:
            The answer, the state of this history, and whether it had to be rebuilt.
        """
        window = rows_of(events, max(0, len(events) - self.max_events), len(events))
        if state is not None and state.backbone == self.backbone and state.begins(window):
            events = rows_of(window, len(state), len(window))
            return *self._advance(state, events, carry, queries), False
        return *self._advance(None, window, carry, queries), True

    def advance(
        self,
        state: EntityState | None,
        events: EncodedEvents | None,
        carry: Carry,
        queries: EncodedQueries | None = None,
    ) -> tuple[Answer, EntityState]:
        """Add events to a state and answer a query behind them, in one run.

        Args:
            state: None begins afresh.
            events: encoded behind the state's history (`encode_next`); None for none.
            carry: the end of the history with the events.
            queries: one query; None where only the state is wanted.

        Raises:
            InternalError: the state is another encoder's, or the numbers of events do not add up.
        """
        if state is not None and state.backbone != self.backbone:
            raise InternalError("a cached state of another backbone cannot be continued")
        count = 0 if events is None else len(events)
        before = 0 if state is None else state.carry.count
        if carry.count < before + count or (state is not None and carry.count != before + count):
            raise InternalError(f"{before} and {count} events do not make {carry.count}")
        if state is not None and events is not None and len(state) + count > self.max_events:
            # The window slides: what is left has seen events that no longer count.
            events, state = _joined(state.events, events), None
        if state is None and events is not None:
            events = rows_of(events, max(0, len(events) - self.max_events), len(events))
        return self._advance(state, events, carry, queries)

    def _advance(
        self,
        state: EntityState | None,
        events: EncodedEvents | None,
        carry: Carry,
        queries: EncodedQueries | None,
    ) -> tuple[Answer, EntityState]:
        """`advance` for events that fit the window."""
        new = 0 if events is None else len(events)
        found = self._run(state, events, queries)
        answer = Answer(np.concatenate([found[p] for p in POOLINGS], axis=1), found["forecasts"])
        if state is not None and not new:
            return answer, replace(state, carry=carry)
        memory = found["memory"][:, :new, 0]
        if events is None:
            events = self._no_events()
        if state is not None:
            memory = np.concatenate([state.memory, memory], axis=1)
            events = _joined(state.events, events)
        total, final = found["next_total"][0], found["last"][0]
        memory = np.ascontiguousarray(memory)
        for array in (memory, total, final):
            array.setflags(write=False)
        return answer, EntityState(self.backbone, carry, events, memory, total, final)

    def _run(
        self,
        state: EntityState | None,
        events: EncodedEvents | None,
        queries: EncodedQueries | None,
    ) -> dict[str, np.ndarray]:
        """One run of the graph, padded to one event and one cached event at least."""
        count = 0 if events is None else len(events)
        cached = 0 if state is None else len(state)
        feed = dict(self._query)
        if queries is not None:
            feed |= {
                "query_days": queries.days[:, None].astype(np.float32, copy=False),
                "query_extra": queries.extra[:, None].astype(np.float32, copy=False),
                "query_code": queries.code[:, None].astype(np.int64),
                "query_value": queries.value[:, None].astype(np.float32, copy=False),
            }
        events = events if events is not None and count else self._no_events(1)
        feed |= {
            "source": events.source[None].astype(np.int64),
            "code": events.code[None].astype(np.int64),
            "value": events.value[None].astype(np.float32, copy=False),
            "extra": events.extra[None].astype(np.float32, copy=False),
            "days": events.days[None].astype(np.float32, copy=False),
            "query_position": np.array([[count]], dtype=np.int64),
            "cached": np.array([[cached]], dtype=np.int64),
        }
        if state is not None and cached:
            memory, total, final = state.memory, state.total, state.final
        else:
            memory = np.zeros((2 * self._blocks, 1, self._width), np.float32)
            total, final = np.zeros(self._width), np.zeros(self._width, np.float32)
        parts = memory.reshape(2 * self._blocks, -1, 1, self._heads, self._width // self._heads)
        feed |= {f"key_{i}": parts[2 * i] for i in range(self._blocks)}
        feed |= {f"value_{i}": parts[2 * i + 1] for i in range(self._blocks)}
        feed |= {"total": total[None], "final": final[None]}
        found = self.session.run(self._outputs, {name: feed[name] for name in self._inputs})
        return dict(zip(self._outputs, found, strict=True))

    def _no_events(self, count: int = 0) -> EncodedEvents:
        """So many events of zeros, in the shapes that the graph reads."""
        shapes = {i.name: i.shape for i in self.session.get_inputs()}
        slots = shapes["code"][2] if "code" in shapes else 0
        extra = shapes["extra"][2]
        return EncodedEvents(
            source=np.zeros(count, np.int16),
            code=np.zeros((count, slots), np.int32),
            value=np.zeros((count, slots), np.float32),
            extra=np.zeros((count, extra), np.float32),
            days=np.zeros(count, np.float32),
        )


def rows_of(events: EncodedEvents, start: int, stop: int) -> EncodedEvents:
    """Some consecutive events, without copying."""
    return EncodedEvents(*(getattr(events, f.name)[start:stop] for f in fields(events)))


def _joined(first: EncodedEvents, second: EncodedEvents) -> EncodedEvents:
    """Events behind others."""
    return EncodedEvents(
        *(np.concatenate([getattr(first, n), getattr(second, n)]) for n in COLUMNS)
    )


def _checksum(array: np.ndarray) -> int:
    """Sum of an array's bytes as 16-bit words: enough to see a flipped bit or a lost block."""
    return int(array.reshape(-1).view(np.uint16).sum(dtype=np.uint64))


Kept = tuple[EntityState | None, Callable[[EntityState, bool], None]]


@dataclass(frozen=True)
class Following:
    """What `FeatureBuilder.table` runs for some samples in place of the backbone's whole graph.

    The samples go through the backbone one after the other, through all else together.

    Attributes:
        kept: per sample the state kept of its entity, None for nothing, and what gets the state of
            this history and whether it had to be rebuilt.
    """

    encoder: IncrementalEncoder
    kept: Sequence[Kept]

    @property
    def heavy(self) -> bool:
        """See `finetune.features.Follow`."""
        return self.encoder.heavy

    def __call__(self, histories: Histories, timeline: Timeline) -> tuple[np.ndarray, np.ndarray]:
        """States [S, 3 D] and forecast log-odds [S, T] of these samples."""
        if len(histories) != len(self.kept):
            raise InternalError(
                f"a kept state answers for one sample: {len(self.kept)} states, "
                f"{len(histories)} samples"
            )
        answers = []
        for i, (state, keep) in enumerate(self.kept):
            start, stop = int(histories.cut.start[i]), int(histories.cut.stop[i])
            carry = Carry().after(_seen(timeline, start, stop))
            events = rows_of(histories.events, start, stop)
            query = histories.take(np.array([i])).queries
            answer, fresh, rebuilt = self.encoder.follow(state, events, carry, query)
            keep(fresh, rebuilt)
            answers.append(answer)
        states, forecasts = zip(*((a.states, a.forecasts) for a in answers), strict=True)
        return np.concatenate(states), np.concatenate(forecasts)


def _seen(timeline: Timeline, start: int, stop: int) -> Timeline:
    """Consecutive events of one entity, with nothing but their times and sources."""
    part = slice(start, stop)
    return replace(
        timeline,
        entity_ids=timeline.entity_ids[:1],
        offsets=np.array([0, stop - start], dtype=np.int64),
        known_us=timeline.known_us[part],
        event_us=timeline.event_us[part],
        source=timeline.source[part],
        row=timeline.row[part],
    )
