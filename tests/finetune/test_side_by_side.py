"""Independent fits on several threads: order, errors, and leaving early."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_info

from finetune.blend import BlendRecipe
from finetune.fusion import FusionRecipe
from finetune.ladder import LadderResult, run_ladder
from finetune.linear import LinearRecipe, ProbeRecipe
from finetune.recipes import Recipe
from finetune.scorecard import ScorecardRecipe
from finetune.side_by_side import one_core_each, side_by_side, stop_if_asked, usable_cores
from foundation.errors import SampleError
from tests.finetune.small_tables import settings, small_table


@given(st.integers(0, 12), st.integers(1, 4))
def test_results_come_in_the_order_of_the_tasks(count: int, workers: int) -> None:
    def task(number: int) -> int:
        time.sleep(0.002 * (number % 3 == 0))
        return number

    assert list(side_by_side([partial(task, i) for i in range(count)], workers)) == [*range(count)]


def test_the_first_error_is_raised_in_its_turn_and_the_rest_never_begins() -> None:
    begun: list[int] = []

    def task(number: int) -> int:
        begun.append(number)
        if number in (2, 3):
            raise SampleError(f"task {number}")
        time.sleep(0.01)
        return number

    seen = []
    with (
        pytest.raises(SampleError, match="task 2"),
        closing(side_by_side([partial(task, i) for i in range(50)], 2)) as found,
    ):
        for number in found:
            seen.append(number)
    assert seen == [0, 1] and len(begun) < 10


def test_long_fits_end_when_nobody_waits_any_more() -> None:
    running = threading.active_count()
    steps: list[int] = []

    def endless() -> None:
        for step in range(10_000):
            stop_if_asked()
            steps.append(step)
            time.sleep(0.002)

    began = time.monotonic()
    with (
        pytest.raises(KeyboardInterrupt),
        closing(side_by_side([lambda: None, *[endless] * 5], 2)) as found,
    ):
        for _ in found:
            raise KeyboardInterrupt
    assert time.monotonic() - began < 18 and len(steps) < 30_000
    assert threading.active_count() == running
    stop_if_asked()  # on a thread of its own nobody asks


def test_cores_are_those_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert usable_cores() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert usable_cores() >= 1


def test_products_stay_on_one_core_and_the_setting_comes_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_core_each():
            blas = [i["num_threads"] for i in threadpool_info() if i["user_api"] == "blas"]
            threads = list(side_by_side([torch.get_num_threads] * 3, 2))
            assert set(blas) == {1} and torch.get_num_threads() == 1 and set(threads) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_ladder_does_not_depend_on_how_many_folds_are_fitted_at_a_time() -> None:
    table, y = small_table(100, seed=7)
    members: tuple[Recipe, ...] = (
        ScorecardRecipe(),
        LinearRecipe(),
        ProbeRecipe(),
        FusionRecipe(),
    )
    recipes = [*members, BlendRecipe(members)]

    def ladder(workers: int) -> LadderResult:
        return run_ladder(table, y, *settings(100), recipes, repeats=1, folds=3, workers=workers)

    one, three = ladder(1), ladder(3)
    fits, again = one.fit_all(table, 0, workers=1), three.fit_all(table, 0, workers=3)
    assert list(fits) == list(again) == [r.name for r in recipes]
    for result in one.results:
        assert result.status == "ok"
        np.testing.assert_array_equal(result.logits, three[result.name].logits)
        name = result.name
        np.testing.assert_array_equal(fits[name].logit(table), again[name].logit(table))
    assert one.blend_weights == three.blend_weights


def test_progress_and_reasons_are_those_of_one_fold_after_the_other() -> None:
    table, y = small_table(120, seed=8)

    class Picky(LinearRecipe):
        def fit(self, table, y, weight, groups, seed):  # type: ignore[no-untyped-def]
            if len(y) % 2 == 0:
                raise SampleError(f"{len(y)} rows, first {table.values[0, 0]:.6f}")
            return super().fit(table, y, weight, groups, seed)

    told: dict[int, list[tuple[str, int, int]]] = {1: [], 3: []}
    reasons = {}
    for workers, seen in told.items():
        recipes = [LinearRecipe(), Picky(name="probe")]
        result = run_ladder(
            table,
            y,
            *settings(120),
            recipes,
            repeats=1,
            progress=lambda *a, seen=seen: seen.append(a),  # type: ignore[misc]
            workers=workers,
        )
        reasons[workers] = result["probe"].reason
    assert reasons[1] == reasons[3] and "rows, first" in reasons[1]
    assert told[1] == told[3] and told[1][-6:] == [("linear", i, 5) for i in range(6)]
