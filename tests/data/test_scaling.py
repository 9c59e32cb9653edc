"""Standardisation within a network and back, by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from wua_mlflow.data.scaling import Scaler, Scaling, WithInputScaling, WithoutInputScaling, raw_rows


def test_constant_columns_and_large_offsets_survive_the_way_back() -> None:
    rng = np.random.default_rng(0)
    rows = np.c_[rng.normal(1.7e9, 300, 50), np.full(50, 0.1)]
    scaling = Scaling(Scaler.fit(rows), Scaler.fit(rows[:, 1:] + rng.normal(size=(50, 1))))
    scaled = torch.from_numpy(scaling.inputs.scale(rows))
    torch.testing.assert_close(raw_rows(scaled, scaling), torch.from_numpy(rows), rtol=1e-9, atol=0)
    content = json.loads(scaling.to_json(["a"]))
    assert content["inputs"]["scale"] == [pytest.approx(np.std(rows[:, 0])), None]
    assert content["inputs"]["mean"] == pytest.approx([rows[:, 0].mean(), 0.1])
    assert content["classes"] == ["a"]
    network = nn.Linear(2, 1)
    served = WithInputScaling(network, scaling)
    by = scaling.targets
    expected = network(scaled).detach().numpy() * by.deviation + by.mean
    np.testing.assert_allclose(served(torch.from_numpy(rows)).detach(), expected, rtol=1e-5)
    torch.testing.assert_close(
        WithoutInputScaling(served, scaling)(scaled), network(scaled), rtol=1e-4, atol=1e-5
    )
    without = Scaling(None, None)
    assert not without
    for none in (without, None):
        plain = WithoutInputScaling(WithInputScaling(network, without), none)
        assert torch.equal(plain(scaled), network(scaled))
