"""Which layers a name stands for, and what is said of a name that stands for none."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from tests.networks import rows, tokens
from wua_mlflow.usage.analyze import NOT_ASKED, analyze, layer_importance


class Stack(nn.Module):
    """Three slices of one parameter, one after another."""

    def __init__(self, along: int = 0) -> None:
        super().__init__()
        self.along = along
        self.up = nn.Parameter(torch.randn(3, 4, 4) if along == 0 else torch.randn(4, 4, 3))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        for number in range(3):
            x = (x @ self.up.select(self.along, number)).tanh()
        return self.head(x)


@pytest.mark.parametrize("along", [0, 2])
def test_slices_that_lie_side_by_side_or_interleaved(along):
    names = [f"up[{number}]" if along == 0 else f"up[:, :, {number}]" for number in range(3)]
    usage = analyze(Stack(along), rows(6, 4))
    assert list(usage.layers) == names and list(usage.skipped) == ["head"]
    one = analyze(Stack(along), rows(6, 4), layers=names[1:2])
    assert list(one.layers) == names[1:2]
    assert one.skipped == dict.fromkeys(["head", names[0], names[2]], NOT_ASKED)


@pytest.mark.parametrize("name", ["up[9]", "up[1", "head[0]", "nothing"])
def test_a_slice_that_there_is_not_is_an_error(name):
    with pytest.raises(ValueError, match=f"^layers: expected .*, but got '{re.escape(name)}"):
        analyze(Stack(), rows(6, 4), layers=["head", name])


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.rnn = nn.LSTM(8, 8, 2, batch_first=True)
        self.at = nn.MultiheadAttention(8, 2, batch_first=True)
        self.body = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8))
        self.out = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.rnn(self.embed(x))[0]
        h = h + self.at(h, h, h, need_weights=False)[0]
        return self.out((h + self.body(h)).mean(1))


@pytest.mark.parametrize(("asked", "found"), [
    ("rnn", [f"rnn.weight_{part}_l{layer}" for layer in (0, 1) for part in ("ih", "hh")]),
    ("at", ["at.q_proj", "at.k_proj", "at.v_proj", "at.out_proj"]),
    ("body", ["body.0", "body.2"]),
    ("body.2", ["body.2"]),
])
def test_a_modules_name_stands_for_all_its_layers(asked, found):
    model, x = Parts(), tokens(3)
    assert list(analyze(model, x, layers=[asked]).layers) == found
    assert list(layer_importance(model, x, [asked])) == found
    usage = analyze(model, x, layers=[asked, "embed"])
    assert set(usage.layers) == {*found, "embed"}
    assert set(usage.skipped.values()) == {NOT_ASKED}


def test_the_fused_weight_of_attention_goes_by_its_parts():
    with pytest.raises(ValueError, match="did you mean|expected names among"):
        analyze(Parts(), tokens(3), layers=["at.in_proj_weight"])
