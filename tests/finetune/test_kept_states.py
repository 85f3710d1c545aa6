"""A package scores from a kept state what it scores from the whole history."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from finetune.features import Population
from finetune.incremental import EntityState, Following
from finetune.package import Package
from foundation.errors import InternalError
from tests.finetune.small_packages import Lender, lender, write


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lender, list[Package]]:
    folder = tmp_path_factory.mktemp("kept")
    world = lender(folder)
    return world, [write(world, folder / f"p{seed}", seed) for seed in (1, 2)]


def at(world: Lender, entity: str, as_of_us: int) -> Population:
    """One customer at one moment."""
    whole = world.population
    ids = pl.Series("entity_id", [entity], dtype=pl.String)
    return Population(whole.timeline, whole.profile, ids, np.array([as_of_us]), None)


def test_states_are_shared_by_channels_and_equal_the_whole_graph(
    made: tuple[Lender, list[Package]],
) -> None:
    world, packages = made
    timeline = world.population.timeline
    assert packages[0].encoder is not None
    assert packages[0].encoder.backbone == packages[1].encoder.backbone  # type: ignore[union-attr]
    rebuilds, compared = [], 0
    for e, entity in enumerate(timeline.entity_ids.to_list()[:8]):
        known = timeline.known_us[timeline.offsets[e] : timeline.offsets[e + 1]]
        moments = np.unique(np.quantile(known, [0.3, 0.6, 0.9, 1.0]).astype(np.int64) + 1)
        kept: EntityState | None = None
        for i, moment in enumerate(moments):
            sample = at(world, entity, int(moment))
            for package in packages:
                encoder = package.encoder
                assert encoder is not None
                fresh: list[tuple[EntityState, bool]] = []
                follow = Following(encoder, [(kept, lambda *made, to=fresh: to.append(made))])
                found = package.score_population(sample, follow=follow)[0]
                [(kept, rebuilt)] = fresh
                rebuilds.append((i == 0, rebuilt))
                plain = package.score_population(sample)[0]
                assert found.score == pytest.approx(plain.score, abs=1e-5)
                for name, value in plain.forecasts.items():
                    assert found.forecasts[name] == pytest.approx(value, abs=1e-5)
                compared += 1
    assert compared > 40
    # Only the first of the two channels builds a state, at the first moment.
    assert sum(rebuilt for _, rebuilt in rebuilds) == 8
    assert all(first for first, rebuilt in rebuilds if rebuilt)


def test_a_state_answers_for_one_sample(made: tuple[Lender, list[Package]]) -> None:
    world, (package, _) = made
    assert package.encoder is not None
    follow = Following(package.encoder, [(None, lambda state, rebuilt: None)])
    with pytest.raises(InternalError, match="one sample"):
        package.score_population(world.population, follow=follow)
