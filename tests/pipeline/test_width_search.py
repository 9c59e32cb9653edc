"""Networks of other widths, trained and validated: on which rows, how many, by whom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.pipeline.slimming_cases import HERE, recipe_of, settings_of
from wua_mlflow.pipeline.networks import NetworkFactory, from_scratch
from wua_mlflow.pipeline.recipe import Recipe, Trained, train_one
from wua_mlflow.pipeline.target_widths import SearchSetup, folds_of, search, validation_scores

Seen = list[tuple[tuple[int, ...], int, int, Recipe]]


def watched(seen: Seen, epochs: int = 1) -> Callable[[Recipe, tuple[int, ...]], NetworkFactory]:
    """Makers from scratch that write down the widths, the replicate, its seed and the recipe."""
    def make(recipe: Recipe, widths: tuple[int, ...]) -> NetworkFactory:
        train = from_scratch(recipe, widths, epochs)

        def one(number: int, seed: int, label: str | None = None) -> Trained:
            seen.append((widths, number, seed, recipe))
            return train(number, seed, label)

        return one

    return make


def retraining(seen: Seen, *, anew: bool = True, **given: object) -> SearchSetup:
    return SearchSetup(recipe_of(**given), watched(seen), lambda widths: float(sum(widths)), anew)


def rows_of(part: object) -> Counter[tuple[float, ...]]:
    inputs, targets = part.inputs, part.targets  # type: ignore[attr-defined]
    return Counter(tuple([*one.tolist(), float(target)])
                   for one, target in zip(inputs, targets, strict=True))


def test_folds_validate_each_example_once_and_leave_the_test_part() -> None:
    split = recipe_of().split
    folds = folds_of(split, 5, seed=3)
    whole = rows_of(split.train) + rows_of(split.validation)
    assert len(whole) == 240
    together: Counter[tuple[float, ...]] = Counter()
    for fold in folds:
        assert rows_of(fold.train) + rows_of(fold.validation) == whole
        assert len(fold.validation) == 48
        assert fold.test is split.test
        together += rows_of(fold.validation)
    assert together == whole
    assert torch.equal(folds_of(split, 5, seed=3)[1].validation.inputs, folds[1].validation.inputs)
    assert not torch.equal(folds_of(split, 5, seed=4)[1].validation.inputs,
                           folds[1].validation.inputs)


def test_the_callers_stream_is_left_alone() -> None:
    before = torch.get_rng_state()
    folds_of(recipe_of().split, 5, seed=3)
    search(settings_of(search_runs=2), retraining([]), (8,), (4,))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("given", "anew", "parts"), [
    ({}, True, 5),                                # 80 examples, margin 0.1: it takes 4 · 35
    ({"data": f"{HERE}:many"}, True, 1),          # 400
    ({"data": f"{HERE}:many", "margin": 0.02}, True, 5),
    ({"data": f"{HERE}:many", "margin": 0}, True, 5),
    ({}, False, 1),                               # a cut network has seen the training part
])
def test_a_small_validation_part_is_folded(
    given: dict[str, object], anew: bool, parts: int
) -> None:
    seen: Seen = []
    found = search(settings_of(search_runs=2, **given), retraining(seen, anew=anew, **given), (8,),
                   (4,))
    assert [widths for widths, *_ in seen] == [(8,)] * parts + [(4,)] * parts
    own = recipe_of(**given).split
    sizes = [len(recipe.split.validation) for *_, recipe in seen[:parts]]
    if parts == 1:
        assert torch.equal(seen[0][-1].split.validation.inputs, own.validation.inputs)
    else:
        assert sum(sizes) == len(own.train) + len(own.validation)
    assert {torch.equal(recipe.split.test.inputs, own.test.inputs) for *_, recipe in seen} == {True}
    assert found.looks == 1


@pytest.mark.parametrize(("seeds", "trained"), [(1, 1), (4, 1), (5, 5), (9, 5)])
def test_as_many_seeds_as_a_recipes_verdict_needs(seeds: int, trained: int) -> None:
    seen: Seen = []
    given = {"seeds": seeds, "data": f"{HERE}:many"}
    search(settings_of(search_runs=2, **given), retraining(seen, **given), (8,), (4,))
    assert [(number, seed) for widths, number, seed, _ in seen if widths == (4,)] == [
        (number, 42 + number) for number in range(trained)]


@pytest.mark.parametrize("runs", [2, 3, 6])
def test_no_more_widths_are_trained_than_allowed(runs: int) -> None:
    seen: Seen = []
    given = {"hidden": "16,8", "data": f"{HERE}:many"}
    found = search(settings_of(search_runs=runs, **given), retraining(seen, **given), (16, 8),
                   (9, 5))
    widths = [widths for widths, *_ in seen]
    assert len(widths) == len(set(widths)) == len(found.trials) <= runs
    assert widths[:2] == [(16, 8), (9, 5)]


def test_no_width_is_begun_once_the_seconds_are_over() -> None:
    """The original and one candidate are trained whatever it takes; else nothing is known."""
    seen: Seen = []
    given = {"hidden": "16,8", "data": f"{HERE}:many"}
    search(settings_of(search_seconds=1e-6, **given), retraining(seen, **given), (16, 8), (9, 5))
    assert [widths for widths, *_ in seen] == [(16, 8), (9, 5)]


def test_scores_of_the_folds_follow_each_other() -> None:
    """Each network by hand on the rows that it did not see."""
    recipe = recipe_of()
    folds = folds_of(recipe.split, 2, seed=1)
    recipes = [replace(recipe, split=split) for split in folds]
    found = validation_scores([(one, from_scratch(one, (4,), 2)) for one in recipes], 2)
    assert found.shape == (2, 240)
    for number in range(2):
        right = []
        for one in recipes:
            model = train_one(one, (4,), 2, seed=42 + number).model
            part = one.split.validation
            right.append((model(part.inputs).argmax(1) == part.targets).double().numpy())
        assert np.array_equal(found[number], np.concatenate(right))


def test_a_failure_names_the_replicate() -> None:
    recipe = recipe_of(seeds=5)

    def failing(number: int, seed: int, label: str | None = None) -> Trained:
        if number == 2:
            raise ValueError("broken")
        return train_one(recipe, (4,), 1, seed=seed)

    with pytest.raises(ValueError, match=r"^broken \(in replicate 2, seed 44\)$"):
        validation_scores([(recipe, failing)], 5)
