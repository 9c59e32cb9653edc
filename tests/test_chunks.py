"""The memory bound of a forward holds wherever the data come whole."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from wua_mlflow.data.parts import Part
from wua_mlflow.device import MOST_NUMBERS, MOST_ROWS, rows_at_once
from wua_mlflow.training.evaluation import evaluate
from wua_mlflow.training.fit import Budget, fit
from wua_mlflow.usage.analyze import analyze


def test_analysis_evaluation_and_validation_go_in_chunks():
    for shape in ((5, 1), (10**6, 3), (100, 3, 64, 64), (3, 2**25), (1, 0)):
        rows = rows_at_once(shape)
        assert 1 <= rows <= MOST_ROWS
        assert rows == 1 or rows * torch.Size(shape[1:]).numel() <= MOST_NUMBERS
    torch.manual_seed(0)
    inputs, targets = torch.rand(5000, 2), torch.rand(5000, 1)
    model, sizes = nn.Linear(2, 1), [0]
    model.register_forward_pre_hook(
        lambda module, args: sizes.append(0 if module.training else len(args[0])))
    analyze(model, inputs)
    analyze(model, Part(inputs, targets).batches(model))
    evaluate(model, inputs, targets, task="regression", kind="values")
    steps = fit(model, (inputs, targets), nn.functional.mse_loss, Budget(1),
                generator=torch.Generator(), validation=(inputs, targets))
    (record,) = list(steps)
    assert max(sizes) == MOST_ROWS
    with torch.no_grad():
        whole = nn.functional.mse_loss(model(inputs), targets).item()
    assert record.validation_loss == pytest.approx(whole, rel=1e-6)
