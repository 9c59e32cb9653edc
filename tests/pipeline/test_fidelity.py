"""``fidelity/<criterion>`` of an original, against a loop that leaves the units out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.stats import spearmanr
from torch.nn.functional import binary_cross_entropy_with_logits

from tests.pipeline.conftest import Finished
from wua_mlflow.pipeline import fidelity as pipeline_fidelity
from wua_mlflow.pipeline.fidelity import fidelity_metrics
from wua_mlflow.pipeline.variant import Variant, load_variant

pytestmark = pytest.mark.xdist_group("usecase")


@pytest.fixture(scope="module")
def oversized(usecase: Finished) -> Variant:
    return load_variant(usecase.store, usecase.run("oversized").info.run_id, {})


def loss_without(variant: Variant, unit: int | None) -> float:
    fc1, fc2 = variant.model.fc1, variant.model.fc2
    part = variant.recipe.split.validation
    with torch.no_grad():
        hidden = fc1(part.inputs).relu()
        if unit is not None:
            hidden[:, unit] = 0
        return float(binary_cross_entropy_with_logits(fc2(hidden), part.targets))


def test_the_rank_correlation_with_leaving_each_unit_out(
    usecase: Finished, oversized: Variant
) -> None:
    whole = loss_without(oversized, None)
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
    assert 0 < logged["fidelity/reliability"] <= 1


def test_the_slim_one_has_none(usecase: Finished) -> None:
    assert not [name for name in usecase.run("slim").data.metrics if name.startswith("fidelity/")]


def test_what_takes_too_long_is_said(oversized: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_fidelity, "MOST_FLOPS", 10 * 1000 * 100 - 1)
    assert fidelity_metrics(oversized, 100) == ({}, (
        "Fidelity not measured: leaving out each of 10 units on 1,000 examples takes too long "
        "unasked; wua_mlflow.widths.fidelity does it."))
    monkeypatch.setattr(pipeline_fidelity, "MOST_FLOPS", 10 * 1000 * 100)
    assert fidelity_metrics(oversized, 100)[0]


def test_nothing_to_leave_out(oversized: Variant) -> None:
    bare = replace(oversized, trained=replace(oversized.trained, model=torch.nn.Linear(2, 1)))
    assert fidelity_metrics(bare, 4) == (
        {}, "Fidelity not measured: the network has no units that can be removed.")
