"""All steps at once against torch's own, step after step: the same counts and the same shapes."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.example_modules import Inner
from wua_mlflow import flops
from wua_mlflow.flops import FlopCount, count_flops
from wua_mlflow.flops.meta_run import FusedTimeSteps, OperatorLog

zeros = torch.zeros
KINDS = {
    "LSTM": lambda **options: nn.LSTM(6, 8, **options),
    "projected": lambda **options: nn.LSTM(6, 8, proj_size=3, **options),
    "GRU": lambda **options: nn.GRU(6, 8, **options),
    "RNN": lambda **options: nn.RNN(6, 8, nonlinearity="relu", **options),
}
OPTIONS = [
    {"num_layers": 1, "bidirectional": False, "bias": True, "batch_first": False},
    {"num_layers": 2, "bidirectional": True, "bias": False, "batch_first": True},
]


class Keep(nn.Module):
    """Gives some of a recurrent layer's outputs only: the others need no backward."""

    def __init__(self, module: nn.Module, what: str) -> None:
        super().__init__()
        self.module, self.what = module, what

    def forward(self, *inputs: Tensor) -> Any:
        outputs, states = self.module(*inputs)
        h, c = states if isinstance(states, tuple) else (states, states)
        return {"all": outputs, "first step": outputs[0], "last step": outputs[-1], "h": h, "c": c,
                "layer": h[0]}[self.what]


class Started(nn.Module):
    """From a state at the start that is trained; ``which`` of the states need a gradient."""

    def __init__(self, module: nn.LSTM, which: tuple[bool, bool]) -> None:
        super().__init__()
        self.module = module
        h, c = zeros(1, 2, module.proj_size or 8), zeros(1, 2, 8)
        self.h, self.c = nn.Parameter(h, which[0]), nn.Parameter(c, which[1])

    def forward(self, x: Tensor) -> Any:
        return self.module(x, (self.h, self.c))


def both_ways(model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> list[FlopCount]:
    counts = [count_flops(model, x)]
    with monkeypatch.context() as patch:
        patch.setattr(flops, "FusedTimeSteps", nullcontext)
        counts.append(count_flops(model, x))
    assert all(count.on_meta and count.forward_flops for count in counts)
    return counts


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("steps", [1, 3])
def test_counts_equal_those_step_by_step(
    kind: str, options: dict[str, Any], steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = (2, steps, 6) if options["batch_first"] else (steps, 2, 6)
    ours, torchs = both_ways(Inner(KINDS[kind](**options)), zeros(shape), monkeypatch)
    assert ours.forward_flops == torchs.forward_flops
    assert ours.backward_flops == torchs.backward_flops
    assert ours.by_module == torchs.by_module
    assert ours.uncounted == torchs.uncounted == {}


@pytest.mark.parametrize("kind", ["projected", "GRU"])
@pytest.mark.parametrize("what", ["first step", "last step", "c", "layer"])
def test_backward_from_some_of_the_outputs(
    kind: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Keep(KINDS[kind](num_layers=2), what)
    ours, torchs = both_ways(model, zeros(3, 2, 6), monkeypatch)
    assert ours.backward_flops == torchs.backward_flops > 0


@pytest.mark.parametrize("which", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("frozen", [False, True])
def test_backward_to_a_trained_start(
    which: tuple[bool, bool], frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Started(KINDS["projected"]().requires_grad_(not frozen), which)
    ours, torchs = both_ways(model, zeros(3, 2, 6), monkeypatch)
    assert ours.backward_flops == torchs.backward_flops > 0


@pytest.mark.parametrize("name", [name for name, _ in KINDS["projected"]().named_parameters()])
@pytest.mark.parametrize("frozen", [False, True])
def test_backward_to_some_of_the_parameters(
    name: str, frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = KINDS["projected"]().requires_grad_(frozen)
    model.get_parameter(name).requires_grad_(not frozen)
    ours, torchs = both_ways(model, zeros(3, 2, 6), monkeypatch)
    assert ours.backward_flops == torchs.backward_flops > 0


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_have_the_shapes_of_the_layers_own(kind: str) -> None:
    def shapes(outputs: Any) -> list[torch.Size]:
        return [tensor.shape for tensor in flops.tensors_in(outputs)]

    for options in OPTIONS:
        for shape in ((4, 2, 6), (4, 6)):
            with torch.device("meta"):
                layer, x = KINDS[kind](**options), zeros(shape)
            expected = shapes(layer(x))
            with FusedTimeSteps():
                assert shapes(layer(x)) == expected


def test_as_many_operators_for_any_number_of_steps() -> None:
    def operators(steps: int) -> int:
        with torch.device("meta"), FusedTimeSteps(), OperatorLog() as log:
            nn.LSTM(6, 8)(zeros(steps, 2, 6))
        return sum(log.calls.values())

    assert operators(500) == operators(5) > 0


def test_real_tensors_keep_their_values() -> None:
    torch.manual_seed(0)
    layer, x = nn.LSTM(6, 8), torch.randn(4, 2, 6)
    expected = layer(x)[0]
    with FusedTimeSteps():
        assert torch.equal(layer(x)[0], expected)


@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3)])
def test_packed_sequences_count_their_steps_only(kind: str, gates: int) -> None:
    """They are left to torch, and run for real: their lengths are data."""
    packed = nn.utils.rnn.pack_padded_sequence(zeros(4, 2, 6), torch.tensor([4, 2]))
    count = count_flops(KINDS[kind](), (packed,), backward=False)
    assert count.forward_flops == 2 * (4 + 2) * gates * 8 * (6 + 8)
    assert not count.on_meta
