"""Effective rank and projection of a group's activations, against NumPy."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.model_forms import Layers
from tests.networks import mlp, numpys, rows
from tests.widths.network_cases import trained, with_copies
from wua_mlflow.pruning.cut import unit_groups
from wua_mlflow.pruning.unit_groups import ParameterSlice, UnitGroup
from wua_mlflow.usage.activation_sample import effective_rank
from wua_mlflow.widths.spectrum import rank_width, score_projected, spectra


def spectrum(model, inputs, name="0"):
    groups = {group.name: group for group in unit_groups(model, inputs[:2]).groups}
    by_group, skipped = spectra(model, [groups[name]], lambda: model(inputs))
    assert skipped == {}
    return by_group[name]


@pytest.mark.parametrize("kept", [1, 3, 6, 7])
def test_directions_and_a_projection_by_hand(kept):
    model, (inputs, _) = trained(7)
    measured = spectrum(model, inputs)
    hidden, weight = numpys(model[:2](inputs)), numpys(model[2].weight)
    scale, mean = np.linalg.norm(weight, axis=0), hidden.mean(0)
    _, values, directions = np.linalg.svd((hidden - mean) * scale)
    assert numpys(measured.scale) == pytest.approx(scale)
    assert numpys(measured.values) == pytest.approx(values, abs=1e-6 * values[0])
    assert numpys(measured.directions.T @ measured.directions) == pytest.approx(np.eye(7), abs=1e-9)
    projected = mean + (hidden - mean) * scale @ directions[:kept].T @ directions[:kept] / scale
    outputs = []
    score_projected({"0": measured}, {"0": kept}, lambda: outputs.append(model(inputs)) or 0.0)
    assert numpys(outputs[0]) == pytest.approx(
        projected @ weight.T + numpys(model[2].bias), abs=1e-4)
    assert kept < 7 or torch.equal(outputs[0], model(inputs))  # all units are left as they are


def test_the_rank_is_that_of_roy_and_vetterli_rounded_up():
    model, (inputs, _) = trained(10)
    exact = effective_rank(model[:2](inputs).detach(), model[2].weight.detach().norm(dim=0))
    measured = spectrum(model, inputs)
    width, values = rank_width(measured), numpys(measured.values)
    assert 1 < exact < 10 and width.width == width.alone == int(np.ceil(exact))
    assert f"effective rank {exact:.2f}" in width.curve.axis
    assert width.curve.widths == tuple(range(1, 11))
    assert width.curve.scores == pytest.approx(np.cumsum(values) / values.sum())
    assert width.curve.threshold == width.curve.scores[width.width - 1]


@pytest.mark.parametrize("directions", [1, 2, 3, 4])
def test_equal_directions_in_float32_count_as_so_many(directions):
    """In exact arithmetic the rank is a whole number, which rounding must not push over."""
    model = nn.Sequential(nn.Linear(4, 24), nn.Identity(), nn.Linear(24, 2))
    model[0].weight.data.copy_(torch.eye(4)[torch.arange(24) % directions])
    model[2].weight.data.fill_(1.0)
    signs = torch.tensor([[1.0 if i >> j & 1 else -1.0 for j in range(4)] for i in range(16)])
    assert rank_width(spectrum(model, signs * 0.3)).width == directions
    values = numpys(spectrum(model, signs * 0.3).values)
    assert (values > 1e-4 * values[0]).sum() == directions


def test_dead_units_have_a_rank_of_one():
    model = mlp(3, 6, 2)
    nn.init.constant_(model[0].bias, -100.0)
    width = rank_width(spectrum(model, rows(20, 3)))
    assert width.width == 1 and width.curve.scores == (1.0,) * 6


def test_a_unit_that_nothing_reads_becomes_its_mean():
    model, (inputs, _) = with_copies(read=False)
    measured = spectrum(model, inputs)
    assert (measured.values > 1e-4 * measured.values[0]).sum() == rank_width(measured).width == 3
    hidden = model[:2](inputs)
    back = measured.project(hidden, mean=measured.means[0], kept=3)
    assert torch.allclose(back[:, :3], hidden[:, :3].double(), atol=1e-5)
    assert torch.allclose(back[:, 3:], hidden.double().mean(0)[3:].expand(200, -1), atol=1e-5)


def test_a_convolutions_positions_are_rows():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 2, 1),
                          nn.Flatten(), nn.Linear(2 * 16, 3)).eval()
    inputs = rows(30, 1, 6, 6)
    hidden = model[:3](inputs).permute(0, 2, 3, 1).reshape(-1, 5).detach()
    exact = effective_rank(hidden, model[3].weight.detach().transpose(0, 1).flatten(1).norm(dim=1))
    assert f"effective rank {exact:.2f}" in rank_width(spectrum(model, inputs)).curve.axis
    flat = model[:4](inputs).permute(0, 2, 3, 1).reshape(-1, 2).detach()
    exact = effective_rank(flat, model[5].weight.detach().reshape(3, 2, 16).norm(dim=(0, 2)))
    assert f"effective rank {exact:.2f}" in rank_width(spectrum(model, inputs, "3")).curve.axis


def test_a_layer_that_is_not_called_shows_nothing():
    model = Layers(lambda model, x: nn.functional.linear(model.first(x), model.second.weight),
                   first=nn.Linear(3, 4), second=nn.Linear(4, 2))
    readers = (ParameterSlice("second.weight", 1, tuple((unit,) for unit in range(4))),)
    group = UnitGroup("first", ("first",), readers, 4)
    by_group, skipped = spectra(model, [group], lambda: model(rows(5, 3)))
    assert by_group == {}
    assert skipped == {"first": "a layer that reads it is not called as a module"}
