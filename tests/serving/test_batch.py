"""Rows score together as they score alone."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings

from foundation.aggregates import AggregateSpec
from foundation.history import build_timeline, cut
from foundation.schema import schema_from_dict
from foundation.tokenizer import Tokenizer
from serving.batch import join, score_together
from serving.requests import RequestReader, ScoringInput
from serving.routes.scoring import read_envelope
from tests.serving.fake_package import SCHEMA, Package
from tests.serving.request_frames import frames_of
from tests.serving.test_requests import NOW, request_of

READ_SCHEMA = schema_from_dict(SCHEMA)
READER = RequestReader(READ_SCHEMA)


def row(seed: int, events: int) -> ScoringInput:
    """A request with a random history; some without any, some without profile and context."""
    import msgspec

    body = request_of(events, seed=seed) if events else {"entity_id": "c1"}
    if seed % 3 == 0:
        body = body | {"profile": {"age": seed % 90, "class": "ab"[seed % 2]}}
    if seed % 2 == 0:
        body = body | {"context": {"amount": float(seed % 7), "term": 12}}
    return READER.read(read_envelope(msgspec.json.encode(body)), NOW)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 999), st.integers(0, 40)), min_size=1, max_size=8))
def test_every_column_is_that_of_the_row_alone(shapes: list[tuple[int, int]]) -> None:
    rows = [row(*shape) for shape in shapes]
    learned = row(7, 60)
    timeline = build_timeline(READ_SCHEMA, frames_of(learned))
    tokenizer = Tokenizer.fit(READ_SCHEMA, timeline)
    spec = AggregateSpec.fit(READ_SCHEMA, timeline, None, max_columns=40)
    together = join(rows)
    cuts = cut(together.timeline, together.entity_ids, together.as_of_us)
    values = spec.compute(
        together.timeline, cuts, together.profile, together.entity_ids, together.context
    )
    events = tokenizer.encode_events(together.timeline)
    queries = tokenizer.encode_query(
        cuts, together.timeline, together.profile, together.context, together.entity_ids
    )
    for i, each in enumerate(rows):
        alone = each.population()
        own = cut(alone.timeline, alone.entity_ids, alone.as_of_us)
        one = spec.compute(alone.timeline, own, alone.profile, alone.entity_ids, alone.context)
        np.testing.assert_array_equal(values[i], one[0])
        mine = tokenizer.encode_events(alone.timeline)
        for name, column in vars(mine).items():
            other = getattr(events, name)[cuts.start[i] : cuts.stop[i]]
            np.testing.assert_array_equal(other, column[own.start[0] : own.stop[0]], name)
        asked = tokenizer.encode_query(
            own, alone.timeline, alone.profile, alone.context, alone.entity_ids
        )
        for name, column in vars(asked).items():
            np.testing.assert_array_equal(getattr(queries, name)[i], column[0], name)


def test_a_row_that_cannot_be_scored_fails_alone() -> None:
    class Picky(Package):
        def score_population(self, population, reasons=False):  # type: ignore[no-untyped-def]
            if len(population.timeline) % 5 == 4 or len(population) > 1:
                raise ValueError("poison")
            return super().score_population(population, reasons)

    rows = [row(seed, events) for seed, events in ((1, 3), (2, 4), (3, 0))]
    found = score_together(Picky({}, READ_SCHEMA), rows, False)
    kinds = [isinstance(each, ValueError) for each in found]
    expected = [len(each.population().timeline) % 5 == 4 for each in rows]
    assert kinds == expected and any(kinds) and not all(kinds)
    plain = Package({}, READ_SCHEMA)
    alone = plain.score_population(rows[2].population())[0]
    assert found[2].score == alone.score  # type: ignore[union-attr]
    assert score_together(plain, [], False) == []


def test_the_last_row_may_have_no_event() -> None:
    """Where the other rows' events are all of one source."""
    import msgspec

    body = {
        "entity_id": "c",
        "events": {"statement": [{"event_time": "2019-01-01", "status": "1"}]},
    }
    rows = [
        READER.read(read_envelope(msgspec.json.encode(each)), NOW)
        for each in (body, body, {"entity_id": "c"})
    ]
    spec = AggregateSpec.fit(READ_SCHEMA, build_timeline(READ_SCHEMA, frames_of(row(7, 60))), None)
    found = []
    for population in (join(rows), rows[0].population(), rows[2].population()):
        cuts = cut(population.timeline, population.entity_ids, population.as_of_us)
        found.append(spec.compute(
            population.timeline, cuts, None, population.entity_ids, population.context
        ))  # fmt: skip
    together, alone, empty = found
    np.testing.assert_array_equal(together, np.concatenate([alone, alone, empty]))
