"""Which parameter a tensor is a view of: by identity, through views, of swapped modules."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from wua_mlflow.usage.tracing.parameters import ParameterIndex, ParameterView, kind_of, layer_names


def weights(*shape: int) -> nn.Module:
    model = nn.Module()
    model.own = nn.Parameter(torch.arange(float(torch.Size(shape).numel())).reshape(shape))
    return model


VIEWS = {
    "itself": lambda w: w, "transposed": lambda w: w.T, "columns": lambda w: w[:, 2:5],
    "every other row": lambda w: w[::2], "one of two": lambda w: w.unflatten(0, (2, 2))[1],
    "with a dimension more": lambda w: w[..., None], "a view of a view": lambda w: w.T[1:3].T}


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_view_finds_its_parameter_and_the_same_view_of_another_tensor(view, grad):
    model, other = weights(4, 6), torch.randn(4, 6)
    with torch.set_grad_enabled(grad):
        located = ParameterIndex(model).find(view(model.own))
    assert located.parameter == "own" and torch.equal(located.of(other), view(other))


def test_what_is_no_view_of_a_parameter():
    model = weights(4, 6)
    index = ParameterIndex(model)
    for tensor in (model.own * 1, model.own.clone(), torch.randn(4, 6), model.own[0] + 0):
        assert index.find(tensor) is None
    assert index.find(model.own.detach()).parameter == "own"


CUTS = [(slice(0, 2), slice(0, 6)), (slice(2, 4), slice(0, 6)), (slice(0, 4), slice(0, 3)),
        (slice(0, 4), slice(3, 6)), (slice(1, 3), slice(2, 4)), (slice(0, 4), slice(0, 6)),
        (slice(3, 4), slice(5, 6)), (slice(0, 1), slice(1, 2))]


def test_overlaps_of_slices_are_exact():
    model = weights(4, 6)
    index = ParameterIndex(model)
    for first_slice, second_slice in itertools.product(CUTS, repeat=2):
        first, second = model.own[first_slice], model.own[second_slice]
        entries, others = set(first.flatten().tolist()), set(second.flatten().tolist())
        view = index.find(first)
        for other in (index.find(second), index.find(second.T)):
            assert view.overlaps(other) == other.overlaps(view) == bool(entries & others)
            assert view.is_same_as(other) == (entries == others)


def test_overlaps_of_other_strides_are_never_missed():
    model = weights(12, 4)
    index = ParameterIndex(model)
    slices = [model.own[a::b, c::d] for a in (0, 2) for b in (1, 2, 3) for c in (0, 1)
              for d in (1, 2)] + [model.own.view(6, 8)[:, 2:6], model.own.view(-1)[7:30, None]]
    for first, second in itertools.product(slices, repeat=2):
        if set(first.flatten().tolist()) & set(second.flatten().tolist()):
            assert index.find(first).overlaps(index.find(second))


def test_a_parameter_that_is_swapped_during_a_forward_goes_by_its_module():
    model = nn.Sequential(nn.Linear(3, 3))
    index = ParameterIndex(model)
    model[0].weight = nn.Parameter(torch.ones(3, 3))
    assert index.find(model[0].weight) is None
    index.running = ["", "0"]
    assert index.find(model[0].weight).parameter == "0.weight"


def test_names_of_tied_and_of_wrapped_parts():
    model = nn.Sequential(nn.Linear(3, 3), torch.compile(nn.Linear(3, 3), backend="eager"))
    model[1]._orig_mod.weight = model[0].weight
    index = ParameterIndex(model)
    assert index.find(model[0].weight).parameter == "0.weight"
    assert index.aliases == {"0.weight": ["0.weight", "1.weight"], "0.bias": ["0.bias"],
                             "1.bias": ["1.bias"]}
    assert "1" in layer_names(model)


@pytest.mark.parametrize(("module", "attribute", "expected"), [
    (type("Mine", (nn.Linear,), {})(2, 2), "weight", "Mine"),
    (parametrizations.weight_norm(nn.Conv1d(2, 2, 1)), "weight", "Conv1d"),
    (nn.modules.linear.NonDynamicallyQuantizableLinear(2, 2), "weight", "Linear"),
    (nn.Module(), "own", "Parameter"), (nn.Module(), "weight", "Conv"),
    (nn.MultiheadAttention(4, 2), "in_proj_weight", "MultiheadAttention")])
def test_kinds(module, attribute, expected):
    assert kind_of(module, attribute, "conv") == expected


def test_the_subscript_of_a_view_that_repeats_a_row():
    assert ParameterView("w", (3, 4), (0, 1), 0).subscript(torch.zeros(1, 4)) == "0"
