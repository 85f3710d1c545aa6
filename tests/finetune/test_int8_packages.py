"""Packages whose backbone multiplies 8-bit integers: the same score wherever a row is scored."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import finetune.package
from finetune import quantized
from finetune.export import take
from finetune.features import FLOAT32, INT8, Population
from finetune.incremental import EntityState, Following
from finetune.package import Package, read_manifest
from finetune.quantized import KEPT_TOLERANCE
from finetune.sessions import Sessions
from foundation.errors import ArtifactError, ParityError
from tests.finetune.small_packages import Lender, lender, scores, write
from tests.finetune.test_golden import changed

Made = tuple[Lender, Package, Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A lender with rounded graphs, its package, and the folder of both."""
    folder = tmp_path_factory.mktemp("int8")
    world = lender(folder, INT8)
    return world, write(world, folder / "p", 1), folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lender, Package, Path]:
    """The same in float32."""
    folder = tmp_path_factory.mktemp("float32")
    world = lender(folder)
    return world, write(world, folder / "p", 1), folder


def states(package: Package, population: Population) -> np.ndarray:
    """[S, 3 D] states as heads read them."""
    return package.features(population).block("embedding").values


@settings(deadline=None, max_examples=25)
@given(rows=st.lists(st.integers(0, 29), min_size=1, max_size=12), days=st.integers(0, 900))
def test_a_row_is_the_same_alone_and_in_any_batch(made: Made, rows: list[int], days: int) -> None:
    world, package, _ = made
    whole = world.population
    moved = Population(
        whole.timeline,
        whole.profile,
        whole.entity_ids,
        whole.as_of_us - days * 86_400_000_000,
        None,
    )
    part = take(moved, np.array(rows))
    together, scored = states(package, part), scores(package, part)
    for i in range(len(rows)):
        alone = take(part, np.array([i]))
        np.testing.assert_array_equal(states(package, alone)[0], together[i])
        assert scores(package, alone)[0] == pytest.approx(scored[i], abs=1e-6)


def test_a_kept_state_answers_within_what_is_stated(made: Made) -> None:
    world, package, _ = made
    timeline, whole = world.population.timeline, world.population
    encoder = package.encoder
    assert encoder is not None
    gaps = []
    for e, entity in enumerate(timeline.entity_ids.to_list()[:10]):
        known = timeline.known_us[timeline.offsets[e] : timeline.offsets[e + 1]]
        kept: EntityState | None = None
        for moment in np.unique(np.quantile(known, [0.3, 0.6, 1.0]).astype(np.int64) + 1):
            ids = pl.Series("entity_id", [entity], dtype=pl.String)
            sample = Population(timeline, whole.profile, ids, np.array([moment]), None)
            fresh: list[tuple[EntityState, bool]] = []
            follow = Following(encoder, [(kept, lambda *new, to=fresh: to.append(new))])
            table = package.features(sample, follow=follow)
            [(kept, _)] = fresh
            gaps.append(np.abs(table.block("embedding").values - states(package, sample)).max())
            found = package.probability(package.logit(table))[0]
            assert found == pytest.approx(scores(package, sample)[0], abs=KEPT_TOLERANCE)
    assert max(gaps) <= KEPT_TOLERANCE
    assert np.median(gaps) <= 1e-5


def test_the_manifest_says_it_and_float32_ones_stay_as_they_were(made: Made, plain: Made) -> None:
    assert made[1].manifest["precision"] == INT8
    assert made[1].builder.precision == INT8
    assert not {"precision", "graph_parity"} & set(plain[1].manifest)
    assert plain[1].builder.precision == FLOAT32
    assert made[1].manifest["format"] == plain[1].manifest["format"]
    gap = np.abs(states(made[1], made[0].population) - states(plain[1], plain[0].population))
    assert 1e-4 < gap.max() < quantized.TOLERANCE


def test_nothing_is_shared_with_float32(made: Made, plain: Made) -> None:
    sessions = Sessions()
    first = Package.load(made[2] / "p", sessions=sessions)
    second = Package.load(plain[2] / "p", sessions=sessions)
    assert first.encoder is not None and second.encoder is not None
    assert first.encoder.backbone != second.encoder.backbone
    assert first._ground is not second._ground
    expected = [np.array(p.golden["scores"]) for p in (first, second)]
    assert first.check_golden() <= 1e-5 and second.check_golden() <= 1e-5
    assert not np.array_equal(*expected)


def test_a_processor_that_saturates_is_refused(
    made: Made, plain: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantized, "exact_here", lambda: False)
    with pytest.raises(ArtifactError, match=r"adds 8-bit products exactly.*--precision float32"):
        Package.load(made[2] / "p")
    assert Package.load(plain[2] / "p").check_golden() <= 1e-5


def test_golden_rows_that_come_out_otherwise_say_what_to_do(
    made: Made, plain: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune.package, "golden_difference", lambda *_: 1e-3)
    with pytest.raises(ParityError, match="this kind of processor, or with --precision float32"):
        made[1].check_golden()
    with pytest.raises(ParityError, match=r"does not reproduce the model$"):
        plain[1].check_golden()


def test_loading_needs_no_torch(made: Made) -> None:
    code = (
        "import sys; from finetune.package import Package; Package.load(sys.argv[1]);"
        "print(sorted({'torch', 'finetune.causal_graph'} & set(sys.modules)))"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, str(made[2] / "p")], capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == "[]"


def test_an_unknown_precision_is_refused(made: Made, tmp_path: Path) -> None:
    path = changed(
        made[2] / "p", tmp_path / "p", lambda _, manifest: manifest.update(precision="int4")
    )
    assert read_manifest(path)["precision"] == "int4"
    with pytest.raises(ArtifactError, match=r"precision 'int4' is not known.*float32, int8"):
        Package.load(path)


def test_float32_said_aloud_loads_too(plain: Made, tmp_path: Path) -> None:
    path = changed(
        plain[2] / "p", tmp_path / "p", lambda _, manifest: manifest.update(precision=FLOAT32)
    )
    assert json.loads((path / "manifest.json").read_text())["precision"] == FLOAT32
    assert Package.load(path).check_golden() <= 1e-5
