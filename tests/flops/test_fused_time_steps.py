"""All steps at once against torch's own, step after step: the same counts and the same shapes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.example_modules import Apply
from wua_mlflow import flops
from wua_mlflow.flops import FlopCount, count_flops
from wua_mlflow.flops.meta_run import FusedTimeSteps, OperatorLog

zeros = torch.zeros
KINDS = {
    "LSTM": lambda **options: nn.LSTM(6, 8, **options),
    "projected": lambda **options: nn.LSTM(6, 8, proj_size=3, **options),
    "GRU": lambda **options: nn.GRU(6, 8, **options),
    "RNN": lambda **options: nn.RNN(6, 8, nonlinearity="relu", **options)}
OPTIONS: list[dict[str, Any]] = [
    {}, {"num_layers": 2, "bidirectional": True, "bias": False, "batch_first": True}]


@pytest.fixture
def both_ways(monkeypatch):
    """Counts a model with all steps at once, and step by step."""
    def counts(model: nn.Module, x: Tensor) -> tuple[FlopCount, FlopCount]:
        fused = count_flops(model, x)
        with monkeypatch.context() as patch:
            patch.setattr(flops, "FusedTimeSteps", nullcontext)
            stepwise = count_flops(model, x)
        assert fused.on_meta and stepwise.on_meta and fused.forward_flops
        assert fused.backward_flops == stepwise.backward_flops > 0
        return fused, stepwise

    return counts


OUTPUTS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "first step": lambda outputs, states: outputs[0],
    "last step": lambda outputs, states: outputs[-1], "cell": lambda outputs, states: states[1],
    "layer": lambda outputs, states: (states[0] if isinstance(states, tuple) else states)[0]}


@pytest.mark.parametrize(("kind", "what"), [
    *(("projected", what) for what in OUTPUTS), ("GRU", "last step"), ("GRU", "layer")])
def test_backward_from_some_of_the_outputs(kind, what, both_ways):
    rnn = KINDS[kind](num_layers=2)
    both_ways(Apply(lambda x: OUTPUTS[what](*rnn(x)), rnn=rnn), zeros(2, 2, 6))


@pytest.mark.parametrize("which", [(True, False), (False, True)])
@pytest.mark.parametrize("frozen", [False, True])
def test_backward_to_a_trained_start(which, frozen, both_ways):
    """``which`` of the states at the start need a gradient."""
    rnn = KINDS["projected"]().requires_grad_(not frozen)
    model = Apply(lambda x, h, c: rnn(x, (h, c)), (1, 2, 3), (1, 2, 8), rnn=rnn)
    for state, trained in zip(model.weights, which, strict=True):
        state.requires_grad_(trained)
    both_ways(model, zeros(2, 2, 6))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", ["weight_ih_l0", "bias_hh_l0"])
def test_backward_to_some_of_the_parameters(name, frozen, both_ways):
    model = KINDS["projected"]().requires_grad_(frozen)
    model.get_parameter(name).requires_grad_(not frozen)
    both_ways(model, zeros(2, 2, 6))


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_have_the_shapes_of_the_layers_own(kind):
    def shapes(outputs: Any) -> list[torch.Size]:
        return [tensor.shape for tensor in flops.tensors_in(outputs)]

    for options in OPTIONS:
        for shape in ((3, 2, 6), (3, 6)):
            with torch.device("meta"):
                layer, x = KINDS[kind](**options), zeros(shape)
            expected = shapes(layer(x))
            with FusedTimeSteps():
                assert shapes(layer(x)) == expected


def test_as_many_operators_for_any_number_of_steps():
    def operators(steps: int) -> int:
        with torch.device("meta"), FusedTimeSteps(), OperatorLog() as log:
            nn.LSTM(6, 8)(zeros(steps, 2, 6))
        return sum(log.calls.values())

    assert operators(500) == operators(5) > 0


def test_real_tensors_keep_their_values():
    torch.manual_seed(0)
    layer, x = nn.LSTM(6, 8), torch.randn(4, 2, 6)
    expected = layer(x)[0]
    with FusedTimeSteps():
        assert torch.equal(layer(x)[0], expected)


@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3)])
def test_packed_sequences_count_their_steps_only(kind, gates):
    """They are left to torch, and run for real: their lengths are data."""
    packed = nn.utils.rnn.pack_padded_sequence(zeros(4, 2, 6), torch.tensor([4, 2]))
    count = count_flops(KINDS[kind](), (packed,), backward=False)
    assert count.forward_flops == 2 * (4 + 2) * gates * 8 * (6 + 8) and not count.on_meta
