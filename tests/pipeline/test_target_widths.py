"""The widths of the slim network: given, of a method, or of networks that a search trains."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.pipeline.slimming_cases import HERE, recipe_of, settings_of, variant_of, with_split
from wua_mlflow.config import Settings
from wua_mlflow.data.datasets import Part
from wua_mlflow.pipeline import target_widths
from wua_mlflow.pipeline.networks import NetworkFactory, cached, from_scratch
from wua_mlflow.pipeline.recipe import Recipe, Trained, train_one
from wua_mlflow.pipeline.slim import SlimmingContext
from wua_mlflow.pipeline.target_widths import dimensions_of, folds_of, validation_scores
from wua_mlflow.pipeline.variant import ModelVariant
from wua_mlflow.usage.analyze import analyze
from wua_mlflow.usage.results import ModelUsage
from wua_mlflow.widths.recommend import recommend_widths


@cache
def trained() -> ModelVariant:
    return variant_of(recipe_of(hidden="12,6", epochs=8))


def slim_settings(**options: object) -> Settings:
    return settings_of(**{"hidden": "12,6", "epochs": 2, "search_runs": 4, "margin": 0.2,
                          "how": "prune", **options})


def context_of(settings: Settings, variant: ModelVariant) -> SlimmingContext:
    make = cached(variant.make, first=variant.trained)
    return SlimmingContext(settings, variant, variant, make, make)


def chosen(variant: ModelVariant | None = None, usage: ModelUsage | None = None, **options: object):
    settings, variant = slim_settings(**options), variant or trained()
    context = context_of(settings, variant)
    return target_widths.choose_widths(settings, variant, context.dimensions, context.search_setup,
                                       usage)


@pytest.mark.parametrize("how", ["prune", "rebuild"])
def test_the_tutorials_rule(how, monkeypatch):
    """floor(effective weights ÷ weights × units) of the settings' first criterion."""
    variant = trained()
    usage = analyze(variant.model, variant.recipe.split.train.inputs, criterion="magnitude")
    expected = tuple(int(usage.layers[name].effective_weights / usage.layers[name].weights * units)
                     for name, units in (("fc1", 12), ("fc2", 6)))
    goal = chosen(how=how, width_method="effective", criterion="magnitude,output")
    assert goal.widths == expected < (12, 6)
    assert goal.keep == {"fc1": expected[0], "fc2": expected[1]}
    assert (goal.method, goal.searched) == ("effective", None)
    for layer, name in zip(goal.recommendation.layers, ("fc1", "fc2"), strict=True):
        most = np.sort(usage.layers[name].unit_importance)[::-1]
        assert layer.curve.widths == tuple(range(1, layer.units + 1))
        assert layer.curve.scores == pytest.approx(
            [most[:k].sum() / most.sum() for k in layer.curve.widths])
        assert layer.curve.threshold == layer.curve.scores[layer.width - 1]
    monkeypatch.delattr(target_widths, "analyze")  # a usage that is there is not measured again
    assert chosen(usage=usage, how=how, width_method="effective").widths == expected


@pytest.mark.parametrize(("method", "how"), [
    ("rank", "rebuild"), ("rank", "prune"), ("projection", "prune"), ("ablation", "prune")])
def test_methods_fit_on_the_training_part_and_score_on_the_validation_part(method, how):
    variant = trained()
    split = variant.recipe.split
    expected = recommend_widths(
        variant.model, (split.validation.inputs, split.validation.targets), method=method,
        margin=0.1, fit_data=None if method == "ablation" else split.train.inputs,
        loss=functional.cross_entropy, task="multiclass", seed=42)
    goal = chosen(how=how, width_method=method, margin=0.1)
    assert goal.recommendation == expected
    assert goal.widths == tuple(layer.width for layer in expected.layers) < (12, 6)


def scrambled(part: Part) -> Part:
    draw = torch.Generator().manual_seed(0)
    order = torch.randperm(len(part), generator=draw)
    return Part(3 * torch.randn(part.inputs.shape, generator=draw), part.targets[order])


@pytest.mark.parametrize(("method", "how"), [("effective", "prune"), ("search", "rebuild")])
def test_selection_does_not_look_at_the_test_part(method, how):
    """Another test part gives the same widths, by way of the same figures."""
    other = with_split(trained(), lambda split: replace(split, test=scrambled(split.test)))
    goals = [chosen(variant, how=how, width_method=method) for variant in (trained(), other)]
    assert goals[0].to_json() == goals[1].to_json()
    assert goals[0].widths < (12, 6)


def test_a_search_goes_on_from_the_rank_and_stays_within_its_runs():
    goal = chosen(width_method="search", search_runs=4)
    assert goal.recommendation.method == "rank"
    tried = [trial.widths for trial in goal.searched.trials]
    assert len(tried) <= 4
    assert tried[:2] == [(12, 6), chosen(width_method="rank").widths]
    assert goal.widths in tried
    costs = {trial.widths: trial.cost for trial in goal.searched.trials}
    assert costs == {(a, b): 2 * (6 * a + a * b + b * 3) for a, b in tried}, "of one sample"
    record = json.loads(goal.to_json())
    assert record["search"]["looks"] == goal.searched.looks
    assert [each["width"] for each in record["widths"]] == list(goal.widths)


@pytest.mark.parametrize(("options", "method"), [
    ({"how": "rebuild"}, "search"), ({"how": "prune"}, "search"),
    ({"how": "rebuild", "width_method": "effective"}, "effective"),
    ({"how": "prune", "margin": 0.02}, "rank"), ({"how": "rebuild", "margin": 0.02}, "search"),
    ({"how": "rebuild", "train": "own:trainer"}, "rank"), ({"how": "rebuild", "margin": 0}, "rank"),
])
def test_the_default_method(options, method, monkeypatch):
    monkeypatch.setattr(target_widths, "search", lambda *_: SimpleNamespace(widths=(3, 3)))
    assert chosen(**options).method == method


@pytest.mark.parametrize("method", ["rank", "search"])
def test_nothing_narrower(method, monkeypatch):
    with pytest.raises(target_widths.NoNarrowerError, match="80 validation examples show nothing "
                       "at this margin: it takes at least 3,838"):
        chosen(width_method="search", margin=0.001, search_runs=2)

    def all_units(*args, **options):
        real = recommend_widths(*args, **options)
        return replace(real, layers=tuple(replace(each, width=each.units) for each in real.layers))

    monkeypatch.setattr(target_widths, "recommend_widths", all_units)
    monkeypatch.setattr(target_widths, "search", lambda *_: SimpleNamespace(
        widths=(12, 6), note="nearest came 11,6"))
    with pytest.raises(target_widths.NoNarrowerError) as caught:
        chosen(width_method=method)
    note = ": nearest came 11,6" if method == "search" else ""
    assert str(caught.value) == (
        f"The method {method} finds no width below those that the network has (12,6){note}. "
        f"Another method may (--width-method), or name the widths (--slim-hidden).")
    assert caught.value.goal and caught.value.goal.widths == (12, 6)


@pytest.mark.parametrize("how", ["prune", "rebuild"])
def test_widths_that_were_given_are_taken_as_they_are(how):
    assert [(each.name, each.units, each.layers) for each in dimensions_of(trained(), how)] == [
        ("fc1", 12, ("fc1",)), ("fc2", 6, ("fc2",))]
    record = json.loads(chosen(how=how, slim_hidden="12,2").to_json())
    assert (record["method"], record["recommendation"], record["search"]) == ("given", None, None)
    assert [each["width"] for each in record["widths"]] == [12, 2]


def test_a_factorys_width_is_spread_over_the_groups_that_it_sets():
    branched = {"model": f"{HERE}:branched", "hidden": "8"}
    variant = variant_of(recipe_of(**branched))
    for widths, keep in (("5", {"0": 5, "2": 10}), ("3,9", {"0": 3, "2": 9})):
        goal = chosen(variant, slim_hidden=widths, **branched)
        assert goal.keep == keep
        context = context_of(slim_settings(**branched), variant)
        assert context.factory_widths(goal) == (5,), "also 9 of 16 is more than 4 of 8"
    (dimension,) = dimensions_of(variant, "rebuild")
    assert (dimension.units, set(dimension.layers)) == (8, {"0", "2"})


def test_a_factory_that_ignores_its_widths():
    variant = variant_of(recipe_of(model=f"{HERE}:ignoring", hidden="8"))
    with pytest.raises(ValueError) as caught:
        dimensions_of(variant, "rebuild")
    assert str(caught.value) == ("model: expected a factory that builds the widths it is given, "
                                 "but width 1 of 1 (8) changes no layer")
    assert [each.units for each in dimensions_of(variant, "prune")] == [8]


# What a search trains and validates


@dataclass
class Search:
    """A search whose networks, all from scratch, are written down with their recipes."""

    options: dict[str, object]
    anew: bool = True
    trained: list[tuple[tuple[int, ...], int, int]] = field(default_factory=list)
    recipes: list[Recipe] = field(default_factory=list)

    def make(self, recipe: Recipe, widths: tuple[int, ...]) -> NetworkFactory:
        train = from_scratch(recipe, widths, 1)

        def noting(number: int, seed: int, label: str | None = None) -> Trained:
            self.trained.append((widths, number, seed))
            self.recipes.append(recipe)
            return train(number, seed, label)

        return noting

    def run(self, units: tuple[int, ...], suggestion: tuple[int, ...], **options: object) -> Any:
        setup = target_widths.SearchSetup(recipe_of(**self.options), self.make, sum, self.anew)
        settings = settings_of(**self.options, **options)
        return target_widths.search(settings, setup, units, suggestion)

    @property
    def widths(self) -> list[tuple[int, ...]]:
        return [widths for widths, *_ in self.trained]


MANY = {"data": f"{HERE}:many"}
"""400 validation examples: at a margin of 0.1 it takes 4 · 35 of them."""


def rows_of(part: Part) -> Counter[tuple[float, ...]]:
    return Counter(tuple([*inputs.tolist(), float(target)])
                   for inputs, target in zip(part.inputs, part.targets, strict=True))


def test_folds_validate_each_example_once_and_leave_the_test_part():
    split = recipe_of().split
    folds = folds_of(split, 5, seed=3)
    whole = rows_of(split.train) + rows_of(split.validation)
    validated: Counter[tuple[float, ...]] = Counter()
    for fold in folds:
        assert rows_of(fold.train) + rows_of(fold.validation) == whole
        assert len(fold.validation) == 48
        assert fold.test is split.test
        validated += rows_of(fold.validation)
    assert validated == whole
    first, again, other = (folds_of(split, 5, seed=seed)[1].validation.inputs for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("options", "anew", "parts"), [
    ({}, True, 5), (MANY, True, 1), ({**MANY, "margin": 0.02}, True, 5),
    ({**MANY, "margin": 0}, True, 5),
    ({}, False, 1),  # a cut network has seen the training part
])
def test_a_small_validation_part_is_folded(options, anew, parts):
    before = torch.get_rng_state()
    run = Search(options, anew)
    assert run.run((8,), (4,), search_runs=2).looks == 1
    assert torch.equal(torch.get_rng_state(), before)
    assert run.widths == [(8,)] * parts + [(4,)] * parts
    split = recipe_of(**options).split
    folds = [recipe.split for recipe in run.recipes[:parts]]
    if parts == 1:
        assert torch.equal(folds[0].validation.inputs, split.validation.inputs)
    else:
        assert sum(len(fold.validation) for fold in folds) == \
            len(split.train) + len(split.validation)
    assert all(torch.equal(fold.test.inputs, split.test.inputs) for fold in folds)


@pytest.mark.parametrize(("seeds", "expected"), [(4, 1), (6, 5)])
def test_as_many_seeds_as_a_recipes_verdict_needs(seeds, expected):
    run = Search({**MANY, "seeds": seeds})
    run.run((8,), (4,), search_runs=2)
    assert [(number, seed) for widths, number, seed in run.trained if widths == (4,)] == [
        (number, 42 + number) for number in range(expected)]


@pytest.mark.parametrize(("limit", "most"), [
    ({"search_runs": 3}, 3), ({"search_runs": 6}, 6), ({"search_seconds": 1e-6}, 2)])
def test_no_more_widths_are_trained_than_allowed(limit, most):
    """The original and one candidate are trained whatever it takes; else nothing is known."""
    run = Search({**MANY, "hidden": "16,8"})
    result = run.run((16, 8), (9, 5), **limit)
    assert len(set(run.widths)) == len(run.widths) == len(result.trials) <= most
    assert run.widths[:2] == [(16, 8), (9, 5)]


def test_scores_of_the_folds_follow_each_other():
    """Each network by hand on the rows that it did not see."""
    recipe = recipe_of()
    recipes = [replace(recipe, split=split) for split in folds_of(recipe.split, 2, seed=1)]
    scores = validation_scores([(each, from_scratch(each, (4,), 2)) for each in recipes], 2)
    assert scores.shape == (2, 240)
    parts = [each.split.validation for each in recipes]
    for number in range(2):
        models = [train_one(each, (4,), 2, seed=42 + number).model for each in recipes]
        right = [(model(part.inputs).argmax(1) == part.targets).double().numpy()
                 for model, part in zip(models, parts, strict=True)]
        assert np.array_equal(scores[number], np.concatenate(right))


def test_a_failure_names_the_replicate():
    recipe = recipe_of(seeds=5)

    def failing(number, seed, label=None):
        if number == 2:
            raise ValueError("broken")
        return train_one(recipe, (4,), 1, seed=seed)

    with pytest.raises(ValueError, match=r"^broken \(in replicate 2, seed 44\)$"):
        validation_scores([(recipe, failing)], 5)
