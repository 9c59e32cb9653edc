"""The widths of the slim network: given, of a method, or of networks that a search trains."""

from __future__ import annotations

import json
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
from wua_mlflow.pipeline.recipe import Recipe
from wua_mlflow.pipeline.replicates import Trained, train_one, train_replicate
from wua_mlflow.pipeline.slim import SlimmingContext
from wua_mlflow.pipeline.target_widths import dimensions_of
from wua_mlflow.pipeline.variant import ModelVariant
from wua_mlflow.results import WidthParameter
from wua_mlflow.usage.analyze import analyze
from wua_mlflow.usage.results import ModelUsage
from wua_mlflow.widths.recommend import recommend_widths
from wua_mlflow.widths.results import SearchResult, Trial


@cache
def trained() -> ModelVariant:
    return variant_of(recipe_of(hidden="12,6", epochs=8))


def slim_settings(**options: object) -> Settings:
    return settings_of(**{"hidden": "12,6", "epochs": 2, "limit": 4, "margin": 0.2,
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
    goal = chosen(how=how, slim_hidden="effective", criterion="magnitude,output")
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
    assert chosen(usage=usage, how=how, slim_hidden="effective").widths == expected


@pytest.mark.parametrize(("method", "how"), [
    ("rank", "rebuild"), ("rank", "prune"), ("projection", "prune"), ("ablation", "prune")])
def test_methods_fit_on_the_training_part_and_score_on_the_validation_part(method, how):
    variant = trained()
    split = variant.recipe.split
    expected = recommend_widths(
        variant.model, (split.validation.inputs, split.validation.targets), method=method,
        margin=0.1, fit_data=None if method == "ablation" else split.train.inputs,
        loss=functional.cross_entropy, task="multiclass", seed=42)
    goal = chosen(how=how, slim_hidden=method, margin=0.1)
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
    goals = [chosen(variant, how=how, slim_hidden=method) for variant in (trained(), other)]
    assert goals[0].to_json() == goals[1].to_json()
    assert goals[0].widths < (12, 6)


def test_a_search_goes_on_from_the_rank_and_stays_within_its_runs():
    goal = chosen(slim_hidden="search", limit=4)
    assert goal.recommendation.method == "rank"
    tried = [trial.widths for trial in goal.searched.trials]
    assert len(tried) <= 4
    assert tried[:2] == [(12, 6), chosen(slim_hidden="rank").widths]
    assert goal.widths in tried
    costs = {trial.widths: trial.cost for trial in goal.searched.trials}
    assert costs == {(a, b): 2 * (6 * a + a * b + b * 3) for a, b in tried}, "of one sample"
    record = json.loads(goal.to_json())
    assert record["search"]["looks"] == goal.searched.looks
    assert [each["width"] for each in record["widths"]] == list(goal.widths)


@pytest.mark.parametrize(("options", "method"), [
    ({"how": "rebuild"}, "search"), ({"how": "prune"}, "search"),
    ({"how": "rebuild", "slim_hidden": "effective"}, "effective"),
    ({"how": "prune", "margin": 0.02}, "search"), ({"how": "rebuild", "margin": 0.02}, "search"),
    ({"how": "rebuild", "train": "own:trainer"}, "rank"), ({"how": "rebuild", "margin": 0}, "rank"),
])
def test_the_default_method(options, method, monkeypatch):
    monkeypatch.setattr(target_widths, "search",
                        lambda *_, **__: SimpleNamespace(widths=(3, 3)))
    assert chosen(**options).method == method


@pytest.mark.parametrize("method", ["rank", "search"])
def test_nothing_narrower(method, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(
            target_widths.NoNarrowerError, match="80 validation examples tell little at this "
                                                 "margin: it takes at least 3,838"):
        patch.setattr(target_widths, "train_replicate",
                      lambda *_: SimpleNamespace(validation_scores=np.zeros(80)))
        chosen(slim_hidden="search", margin=0.001, limit=2)

    def all_units(*args, **options):
        real = recommend_widths(*args, **options)
        return replace(real, layers=tuple(replace(each, width=each.units) for each in real.layers))

    monkeypatch.setattr(target_widths, "recommend_widths", all_units)
    monkeypatch.setattr(target_widths, "search", lambda *_, **__: SimpleNamespace(
        widths=(12, 6), note="nearest came 11,6"))
    with pytest.raises(target_widths.NoNarrowerError) as caught:
        chosen(slim_hidden=method)
    note = ": nearest came 11,6" if method == "search" else ""
    assert str(caught.value) == (
        f"The method {method} finds no width below those that the network has (12,6){note}. "
        f"Another method may, or name the widths (--slim-hidden).")
    assert caught.value.goal and caught.value.goal.widths == (12, 6)


def test_where_validation_data_show_nothing_the_best_there_is_taken(monkeypatch, capsys):
    """One example less right than the original: fails at this margin, and is not shown to."""
    own = trained().replicates[0].validation_scores.copy()
    own[np.flatnonzero(own)[0]] = 0
    monkeypatch.setattr(target_widths, "train_replicate",
                        lambda *_: SimpleNamespace(validation_scores=own))
    goal = chosen(slim_hidden="search", margin=0.001, limit=3)
    tried = [trial for trial in goal.searched.trials if trial.outcome != "original"]
    assert all(not trial.holds for trial in tried)
    assert goal.widths in {trial.widths for trial in tried} and goal.widths != (12, 6)
    assert "the best there was taken" in goal.searched.note
    settings = trained().settings.model_copy(update={"margin": 0.001})
    target_widths.say_what_validation_shows(trained().recipe.split, settings)
    assert "80 examples can show nothing at a margin of" in capsys.readouterr().err
    wide = settings.model_copy(update={"margin": 0.5})
    target_widths.say_what_validation_shows(trained().recipe.split, wide)
    assert capsys.readouterr().err == ""


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
    """A search whose networks, all from scratch, are written down."""

    options: dict[str, object]
    trained: list[tuple[tuple[int, ...], int, int]] = field(default_factory=list)

    def make(self, recipe: Recipe, widths: tuple[int, ...]) -> NetworkFactory:
        train = from_scratch(recipe, widths, 1)

        def noting(number: int, seed: int, label: str | None = None) -> Trained:
            self.trained.append((widths, number, seed))
            return train(number, seed, label)

        return noting

    def baseline(self) -> np.ndarray:
        recipe = recipe_of(**self.options)
        make = from_scratch(recipe, (8,), 1)
        return np.stack([train_replicate(recipe, make, number).validation_scores
                         for number in range(5)])

    def run(self, units: tuple[int, ...], suggestion: tuple[int, ...], **options: Any) -> Any:
        widen = options.pop("widen", False)
        setup = target_widths.SearchSetup(recipe_of(**self.options), self.make, sum, self.baseline)
        settings = settings_of(**self.options, **options)
        return target_widths.search(settings, setup, units, suggestion, widen=widen)

    @property
    def widths(self) -> list[tuple[int, ...]]:
        return list(dict.fromkeys(widths for widths, *_ in self.trained))


MANY = {"data": f"{HERE}:many"}
"""400 validation examples."""


@pytest.mark.parametrize(("seeds", "most"), [(4, 1), (5, 8), ("auto", 8)])
def test_candidates_have_seeds_of_their_own(seeds, most):
    """None of those of a variant's replicates; one network where there is no recipe verdict."""
    before = torch.get_rng_state()
    run = Search({**MANY, "seeds": seeds})
    result = run.run((8,), (4,), limit=2)
    assert torch.equal(torch.get_rng_state(), before)
    numbers = [(number, seed) for _, number, seed in run.trained]
    assert numbers == [(1000 + i, 42 + 1000 + i) for i in range(len(numbers))]
    assert len(numbers) == result.trials[1].seeds <= most
    assert min(number for number, _ in numbers) >= settings_of().most_seeds


@pytest.mark.parametrize("runs", [2, 12])
@pytest.mark.parametrize(("seeds", "most"), [(4, 1), (5, 8), ("auto", 8)])
def test_how_many_networks_a_width_may_have_is_no_matter_of_how_many_widths(
    seeds, most, runs, monkeypatch
):
    given = {}

    def searched(*_, **options):
        given.update(options)
        return SimpleNamespace(stopped="")

    monkeypatch.setattr(target_widths, "search_widths", searched)
    Search({**MANY, "seeds": seeds}).run((8,), (4,), limit=runs)
    assert (given["most_seeds"], given["runs"]) == (most, runs)


def test_what_it_compares_is_the_validation_part():
    run = Search({**MANY, "seeds": 5})
    trial = run.run((8,), (4,), limit=2).trials[1]
    recipe = recipe_of(**MANY)
    part = recipe.split.validation
    right = []
    for widths, _, seed in run.trained:
        model = train_one(recipe, widths, 1, seed=seed).model
        right.append((model(part.inputs).argmax(1) == part.targets).double().mean().item())
    assert trial.score == pytest.approx(np.mean(right))
    assert trial.delta == pytest.approx(np.mean(right) - run.baseline().mean())


@pytest.mark.parametrize(("limit", "most"), [
    (3, 2), (6, 5), ("1e-6s", 1)])
def test_no_more_widths_are_trained_than_allowed(limit, most):
    """One candidate is trained whatever it takes; else nothing is known."""
    run = Search({**MANY, "hidden": "16,8"})
    result = run.run((16, 8), (9, 5), limit=limit)
    assert len(run.widths) == len(result.trials) - 1 <= most
    assert run.widths[0] == (9, 5)


def test_a_search_that_widens_goes_up_from_its_start_alone(monkeypatch):
    scores = {(3,): 0.2, (5,): 0.2, (8,): 0.2, (12,): 0.9}

    def replicate(recipe, make, number):
        share = scores.get(make, 0.9)
        return SimpleNamespace(validation_scores=np.arange(400) % 100 < 100 * share)

    monkeypatch.setattr(target_widths, "train_replicate", replicate)
    setup = target_widths.SearchSetup(recipe_of(**MANY), lambda _, widths: widths, sum,
                                      lambda: np.stack([np.arange(400) % 100 < 90] * 5))
    found = target_widths.search(settings_of(**MANY), setup, (64,), (3,), widen=True)
    assert [trial.widths for trial in found.trials] == [(64,), (3,), (5,), (8,), (12,)]
    assert (found.widths, found.stopped, found.note) == ((12,), "converged", "")
    few = settings_of(**MANY, limit=3)
    found = target_widths.search(few, setup, (64,), (3,), widen=True)
    assert (found.widths, found.stopped) == ((64,), "budget")
    assert found.note.startswith("stopped after 2 of 2 widths; wider ones were not tried")


@pytest.mark.parametrize(("widths", "held", "expected"), [
    ((4,), [], (6,)), ((4,), [(5,), (6,), (3,)], (5,)), ((4,), [(9,)], (6,)), ((50,), [], (64,)),
    ((64,), [], (64,))])
def test_the_next_wider(widths, held, expected):
    trials = [Trial(each, sum(each), "holds", 0, 0, 0, 0.9) for each in held]
    searched = SearchResult((4,), (*trials, Trial((5,), 5, "fails", 0, 0, 0, 0.9))[:len(held)],
                            "converged", "", 0.02)
    assert target_widths.wider(widths, (WidthParameter("fc1", 64, ()),), searched) == expected


def test_a_failure_names_the_replicate():
    recipe = recipe_of(seeds=5)

    def failing(number, seed, label=None):
        raise ValueError("broken")

    setup = target_widths.SearchSetup(recipe, lambda *_: failing, sum,
                                      lambda: np.ones((5, len(recipe.split.validation))))
    with pytest.raises(ValueError, match=r"^broken \(in replicate 1000, seed 1042\)$"):
        target_widths.search(settings_of(seeds=5), setup, (8,), (4,))
