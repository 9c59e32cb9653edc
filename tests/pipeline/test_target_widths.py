"""How narrow the slim network is to be: the widths given, or those of each method."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.pipeline.slimming_cases import HERE, recipe_of, settings_of, variant_of, with_split
from wua_mlflow.config import Settings
from wua_mlflow.data.datasets import DataSplit, Part
from wua_mlflow.pipeline import target_widths
from wua_mlflow.pipeline.networks import cached
from wua_mlflow.pipeline.slim import SlimmingContext
from wua_mlflow.pipeline.target_widths import (
    NoNarrowerError,
    choose_widths,
    dimensions_of,
)
from wua_mlflow.pipeline.variant import ModelVariant
from wua_mlflow.results import TargetWidths
from wua_mlflow.usage.analyze import analyze
from wua_mlflow.widths import recommend as recommend_module

METHODS = ("effective", "rank", "projection", "ablation", "search")


@cache
def trained(**given: object) -> ModelVariant:
    return variant_of(recipe_of(**{"hidden": "12,6", "epochs": 8, **given}))


def asked(**given: object) -> Settings:
    return settings_of(**{"hidden": "12,6", "epochs": 2, "search_runs": 4, "margin": 0.2,
                          "how": "prune", **given})


def context_of(settings: Settings, variant: ModelVariant) -> SlimmingContext:
    make = cached(variant.make, first=variant.trained)
    return SlimmingContext(settings, variant, variant, make, make)


def found(variant: ModelVariant | None = None, **given: object) -> TargetWidths:
    settings, variant = asked(**given), variant or trained()
    context = context_of(settings, variant)
    return choose_widths(settings, variant, context.dimensions, context.search_setup)


def activations(variant: ModelVariant, part: Part) -> dict[str, np.ndarray]:
    """After each ReLU, in float64."""
    state = {name: one.double().numpy() for name, one in variant.model.state_dict().items()}
    first = np.maximum(part.inputs.double().numpy() @ state["fc1.weight"].T + state["fc1.bias"], 0)
    return {"fc1": first,
            "fc2": np.maximum(first @ state["fc2.weight"].T + state["fc2.bias"], 0)}


@pytest.mark.parametrize("how", ["prune", "rebuild"])
def test_the_tutorials_rule(how: str) -> None:
    """floor(effective weights ÷ weights × units) of the settings' first criterion."""
    variant = trained()
    usage = analyze(variant.model, variant.recipe.split.train.inputs, criterion="magnitude")
    expected = tuple(int(usage.layers[name].effective_weights / usage.layers[name].weights * units)
                     for name, units in (("fc1", 12), ("fc2", 6)))
    goal = found(how=how, width_method="effective", criterion="magnitude,output")
    assert goal.widths == expected < (12, 6)
    assert goal.keep == {"fc1": expected[0], "fc2": expected[1]}
    assert (goal.method, goal.searched) == ("effective", None)
    assert goal.recommendation is not None
    for one, name in zip(goal.recommendation.layers, ("fc1", "fc2"), strict=True):
        most = np.sort(usage.layers[name].unit_importance)[::-1]
        assert one.curve.widths == tuple(range(1, one.units + 1))
        assert one.curve.scores == pytest.approx(
            [most[:k].sum() / most.sum() for k in one.curve.widths])
        assert one.curve.threshold == one.curve.scores[one.width - 1]


def test_the_usage_that_is_there_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    variant, settings = trained(), asked(width_method="effective")
    usage = analyze(variant.model, variant.recipe.split.train.inputs, criterion="wanda")
    monkeypatch.delattr(target_widths, "measured")
    context = context_of(settings, variant)
    goal = choose_widths(settings, variant, context.dimensions, context.search_setup, usage)
    assert goal.widths == tuple(int(usage.layers[name].effective_share * units + 1e-9)
                                for name, units in (("fc1", 12), ("fc2", 6)))


@pytest.mark.parametrize("how", ["prune", "rebuild"])
def test_the_effective_rank_of_the_training_part(how: str) -> None:
    """exp of the entropy of the singular values' shares, of what the next layer reads."""
    variant = trained()
    state = variant.model.state_dict()
    goal = found(how=how, width_method="rank")
    assert goal.recommendation is not None
    curves = {one.layer: one.curve for one in goal.recommendation.layers}
    for name, reader, width in zip(("fc1", "fc2"), ("fc2", "fc3"), goal.widths, strict=True):
        values = activations(variant, variant.recipe.split.train)[name]
        scale = np.linalg.norm(state[f"{reader}.weight"].double().numpy(), axis=0)
        singular = np.linalg.svd((values - values.mean(0)) * scale, compute_uv=False)
        shares = singular[singular > 0] / singular.sum()
        rank = np.exp(-(shares * np.log(shares)).sum())
        assert width == int(np.ceil(rank)), name
        assert curves[name].scores[:4] == pytest.approx(np.cumsum(shares)[:4], rel=1e-5)


@pytest.mark.parametrize("margin", [0.05, 0.4])
def test_projection_keeps_the_score_of_the_validation_part(margin: float) -> None:
    """The one hidden layer of 6-12-3, projected by hand on the training part's directions."""
    variant = trained(hidden="12")
    goal = found(variant, hidden="12", width_method="projection", margin=margin)
    split, state = variant.recipe.split, variant.model.state_dict()
    fit, values = (np.maximum(
        part.inputs.double().numpy() @ state["fc1.weight"].double().numpy().T
        + state["fc1.bias"].double().numpy(), 0) for part in (split.train, split.validation))
    centre = fit.mean(0)
    scale = np.linalg.norm(state["fc2.weight"].double().numpy(), axis=0)
    right = np.linalg.svd((fit - centre) * scale, full_matrices=False)[2]

    def score(k: int) -> float:
        kept = ((values - centre) * scale) @ right[:k].T @ right[:k] / scale + centre
        logits = kept @ state["fc2.weight"].double().numpy().T + state["fc2.bias"].numpy()
        return float((logits.argmax(1) == split.validation.targets.numpy()).mean())

    enough = [score(k) >= score(12) - margin - 1e-9 for k in range(1, 13)]
    assert goal.widths == (min(k for k in range(1, 13) if all(enough[k - 1:])),)
    assert goal.recommendation is not None
    curve = goal.recommendation.layers[0].curve
    assert curve.scores == pytest.approx([score(k) for k in curve.widths])
    assert (goal.widths == (1,)) is (margin == 0.4)
    assert goal.widths < (12,)


@pytest.mark.parametrize("margin", [0.05, 0.4])
def test_ablation_keeps_the_score_of_the_validation_part(margin: float) -> None:
    """Units go from the least important up, zeroed by hand."""
    variant = trained(hidden="12")
    goal = found(variant, hidden="12", width_method="ablation", margin=margin)
    part, model = variant.recipe.split.validation, variant.model
    weight: Any = model.fc2.weight
    hidden = torch.relu(model.fc1(part.inputs)).detach()  # type: ignore[operator]
    loss = functional.cross_entropy(hidden @ weight.T + model.fc2.bias, part.targets)
    gradient, = torch.autograd.grad(loss, weight)
    order = (weight * gradient).sum(0).abs().argsort(descending=True)

    def score(k: int) -> float:
        kept = torch.zeros(12).index_fill(0, order[:k], 1.0)
        logits = (hidden * kept) @ weight.T + model.fc2.bias
        return float((logits.argmax(1) == part.targets).double().mean())

    enough = [score(k) >= score(12) - margin - 1e-9 for k in range(1, 13)]
    assert goal.widths == (min(k for k in range(1, 13) if all(enough[k - 1:])),)
    assert (goal.widths < (3,)) is (margin == 0.4)
    assert goal.widths < (12,)


def scrambled(part: Part, seed: int = 0) -> Part:
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(part), generator=draw)
    return Part(3 * torch.randn(part.inputs.shape, generator=draw), part.targets[rows])


@pytest.mark.parametrize(("method", "how"), [
    *((method, "prune") for method in METHODS[:-1]), ("search", "rebuild")])
def test_selection_does_not_look_at_the_test_part(method: str, how: str) -> None:
    """Another test part gives the same widths, by way of the same figures."""
    other = with_split(trained(), lambda split: replace(split, test=scrambled(split.test)))
    goals = [found(variant, how=how, width_method=method) for variant in (trained(), other)]
    assert goals[0].to_json() == goals[1].to_json()
    assert goals[0].widths < (12, 6)


@pytest.mark.parametrize(("method", "part"), [
    ("rank", "train"), ("projection", "train"), ("projection", "validation"),
    ("ablation", "validation"), ("search", "validation")])
def test_selection_looks_at_the_other_parts(method: str, part: str) -> None:
    """Else the test above would show nothing."""
    def changed(split: DataSplit) -> DataSplit:
        return replace(split, **{part: scrambled(getattr(split, part))})

    goals = []
    for variant in (trained(), with_split(trained(), changed)):
        try:
            goals.append(found(variant, width_method=method, margin=0.2).to_json())
        except NoNarrowerError as error:
            goals.append(str(error))
    assert goals[0] != goals[1]


def test_a_search_goes_on_from_the_rank_and_stays_within_its_runs() -> None:
    goal = found(how="prune", width_method="search", search_runs=4)
    assert goal.searched is not None and goal.recommendation is not None
    assert goal.recommendation.method == "rank"
    tried = [trial.widths for trial in goal.searched.trials]
    assert len(tried) <= 4
    assert tried[:2] == [(12, 6), found(how="prune", width_method="rank").widths]
    assert goal.widths in tried
    costs = {trial.widths: trial.cost for trial in goal.searched.trials}
    assert costs == {(a, b): 2 * (6 * a + a * b + b * 3) for a, b in tried}, "of one sample"
    told = json.loads(goal.to_json())
    assert told["search"]["looks"] == goal.searched.looks
    assert [one["width"] for one in told["widths"]] == list(goal.widths)


@pytest.mark.parametrize(("given", "method"), [
    ({"how": "rebuild"}, "search"), ({"how": "prune"}, "search"),
    ({"how": "rebuild", "width_method": "effective"}, "effective"),
    ({"how": "prune", "margin": 0.02}, "rank"), ({"how": "rebuild", "margin": 0.02}, "search"),
    *(({"how": how, **given}, "rank") for how in ("rebuild", "prune")
      for given in ({"train": "own:trainer"}, {"margin": 0.005}, {"margin": 0.0})),
])
def test_the_default_method(given: dict, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_widths, "search", lambda *_: type("Found", (), {"widths": (3, 3)}))
    assert found(**given).method == method


@pytest.mark.parametrize("method", METHODS[1:])
def test_nothing_narrower(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*given: Any, **named: Any) -> Any:
        real = recommend(*given, **named)
        return replace(real, layers=tuple(replace(one, width=one.units) for one in real.layers))

    recommend = recommend_module.recommend_widths
    monkeypatch.setattr(target_widths, "recommend_widths", nothing)
    if method == "search":
        monkeypatch.setattr(target_widths, "search", lambda *_: type(
            "Found", (), {"widths": (12, 6), "note": "nearest came 11,6"}))
    with pytest.raises(NoNarrowerError) as caught:
        found(width_method=method)
    note = ": nearest came 11,6" if method == "search" else ""
    assert str(caught.value) == (
        f"The method {method} finds no width below those that the network has (12,6){note}. "
        f"Another method may (--width-method), or name the widths (--slim-hidden).")
    assert caught.value.goal and caught.value.goal.widths == (12, 6)


def test_a_search_that_can_show_nothing_says_what_it_takes() -> None:
    with pytest.raises(NoNarrowerError) as caught:
        found(width_method="search", margin=0.001, search_runs=2)
    assert "80 validation examples show nothing at this margin: it takes at least 3,838" in \
        str(caught.value)


def test_given_widths_are_taken_as_they_are() -> None:
    for how in ("prune", "rebuild"):
        goal = found(how=how, slim_hidden="12,2")
        assert (goal.widths, goal.method, goal.recommendation) == ((12, 2), "given", None)


def test_a_factorys_width_is_spread_over_the_groups_that_it_sets() -> None:
    variant = variant_of(recipe_of(model=f"{HERE}:branched", hidden="8"))
    settings = asked(model=f"{HERE}:branched", hidden="8", slim_hidden="5")
    context = context_of(settings, variant)
    goal = choose_widths(settings, variant, context.dimensions, context.search_setup)
    assert goal.keep == {"0": 5, "2": 10}
    assert context.factory_widths(goal) == (5,)
    each = asked(model=f"{HERE}:branched", hidden="8", slim_hidden="3,9")
    goal = choose_widths(each, variant, context.dimensions, context.search_setup)
    assert goal.keep == {"0": 3, "2": 9}
    assert context.factory_widths(goal) == (5,), "9 of 16 is more than 4 of 8"
    rebuilt = context_of(asked(how="rebuild", model=f"{HERE}:branched", hidden="8"), variant)
    (one,) = rebuilt.dimensions
    assert (one.units, set(one.layers)) == (8, {"0", "2"})


def test_what_can_be_chosen() -> None:
    for how in ("prune", "rebuild"):
        assert [(one.name, one.units, one.layers) for one in dimensions_of(trained(), how)] == [
            ("fc1", 12, ("fc1",)), ("fc2", 6, ("fc2",))]


def test_a_factory_that_ignores_its_widths() -> None:
    variant = variant_of(recipe_of(model=f"{HERE}:ignoring", hidden="8"))
    with pytest.raises(ValueError) as caught:
        dimensions_of(variant, "rebuild")
    assert str(caught.value) == ("model: expected a factory that builds the widths it is given, "
                                 "but width 1 of 1 (8) changes no layer")
    assert [one.units for one in dimensions_of(variant, "prune")] == [8]


def test_widths_that_were_given_have_no_account() -> None:
    told = json.loads(found(slim_hidden="4,4").to_json())
    assert told["method"] == "given"
    assert (told["recommendation"], told["search"]) == (None, None)
    assert [one["width"] for one in told["widths"]] == [4, 4]
