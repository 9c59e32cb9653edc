"""``fidelity/<criterion>`` of an original, against a loop that leaves the units out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch.nn.functional import binary_cross_entropy_with_logits

from tests.pipeline.conftest import Finished
from tests.pruning.selection_cases import greedy
from wua_mlflow.pipeline import analyze as pipeline_fidelity
from wua_mlflow.pipeline.analyze import fidelity_metrics
from wua_mlflow.pipeline.variant import ModelVariant, load_variant


@pytest.fixture(scope="module")
def oversized(usecase: Finished) -> ModelVariant:
    return load_variant(usecase.store, usecase.run("oversized").info.run_id, {})


def loss_without(variant: ModelVariant, *units: int) -> float:
    fc1, fc2 = variant.model.fc1, variant.model.fc2
    part = variant.recipe.split.validation
    with torch.no_grad():
        hidden = fc1(part.inputs).relu()
        hidden[:, list(units)] = 0
        return float(binary_cross_entropy_with_logits(fc2(hidden), part.targets))


def test_the_rank_correlation_with_leaving_each_unit_out(
    usecase: Finished, oversized: ModelVariant
) -> None:
    whole = loss_without(oversized)
    changes = [loss_without(oversized, unit) - whole for unit in range(10)]
    train = oversized.recipe.split.train
    activation = oversized.model.fc1(train.inputs).relu().detach().requires_grad_()
    loss = binary_cross_entropy_with_logits(oversized.model.fc2(activation), train.targets)
    gradient, = torch.autograd.grad(loss, activation)
    taylor = (activation * gradient).sum(0).abs().detach()
    signed = oversized.model.fc1(train.inputs).mean(0).abs().detach()
    output = (oversized.model.fc1.weight.abs() * signed[:, None]).sum(1).detach()
    logged = usecase.run("oversized").data.metrics
    assert logged["fidelity/taylor"] == pytest.approx(spearmanr(taylor, changes).statistic)
    assert logged["fidelity/output"] == pytest.approx(spearmanr(output, changes).statistic)
    norms = oversized.model.fc2.weight.detach().double().norm(dim=0).numpy()
    spanning = greedy(activation.detach().double().numpy() * norms)
    assert logged["fidelity/spanning"] == pytest.approx(spearmanr(spanning, changes).statistic)
    assert 0 < logged["fidelity/reliability"] <= 1


def test_the_area_lies_between_chance_and_the_greedy_order(
    usecase: Finished, oversized: ModelVariant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chance by many more orders than are drawn, so not to the last digit."""
    def area(order: Sequence[int]) -> float:
        return float(np.mean([loss_without(oversized, *order[:gone]) for gone in range(1, 10)]))

    greedy: list[int] = []
    while len(greedy) < 10:
        left = set(range(10)).difference(greedy)
        greedy.append(min(left, key=lambda unit: loss_without(oversized, *greedy, unit)))
    draw = np.random.default_rng(0)
    chance = [area(draw.permutation(10).tolist()) for _ in range(400)]
    signed = oversized.model.fc1(oversized.recipe.split.train.inputs).mean(0).abs().detach()
    output = (oversized.model.fc1.weight.abs() * signed[:, None]).sum(1).detach()
    span = area(greedy) - np.mean(chance)
    expected = (area(output.argsort().tolist()) - np.mean(chance)) / span
    logged = usecase.run("oversized").data.metrics["fidelity_area/output"]
    assert logged == pytest.approx(expected, abs=4 * np.std(chance) / 10**0.5 / abs(span))
    assert 0 < logged <= 1
    monkeypatch.setattr(pipeline_fidelity, "MOST_FORWARDS", 99)
    assert not [name for name in fidelity_metrics(oversized, 1)[0] if "area" in name]


def test_the_slim_one_has_none(usecase: Finished) -> None:
    assert not [name for name in usecase.run("slim").data.metrics if name.startswith("fidelity")]


def test_what_takes_too_long_is_said(
    oversized: ModelVariant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_fidelity, "MOST_FLOPS", 10 * 1000 * 100 - 1)
    assert fidelity_metrics(oversized, 100) == ({}, (
        "Fidelity not measured: leaving out each of 10 units on 1,000 examples takes too long "
        "unasked; wua_mlflow.widths.fidelity does it."))
    monkeypatch.setattr(pipeline_fidelity, "MOST_FLOPS", 10 * 1000 * 100)
    assert fidelity_metrics(oversized, 100)[0]


def test_nothing_to_leave_out(oversized: ModelVariant) -> None:
    bare = replace(oversized, trained=replace(oversized.trained, model=torch.nn.Linear(2, 1)))
    assert fidelity_metrics(bare, 4) == (
        {}, "Fidelity not measured: the network has no units that can be removed.")
