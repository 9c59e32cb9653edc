"""``wua.slim``: what stays, what is refused, and that it equals the original with units masked."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import wua_mlflow as wua
from tests.networks import kept_streams, mlp, snapshot
from tests.pruning.cutting_cases import greedy
from wua_mlflow.pruning.heads import PrunedMultiheadAttention


@pytest.fixture(autouse=True)
def _seeded():
    with kept_streams():
        torch.manual_seed(0)
        yield


ROOT = Path(wua.__file__).parents[1]
DATA = torch.randn(60, 4), torch.arange(60) % 3


def test_the_units_that_stay_are_the_most_important():
    model = mlp(4, 16, 3)
    before = snapshot(model)
    activations = model[0](DATA[0]).relu() * model[2].weight.norm(dim=0)
    stay = sorted(np.argsort(-greedy(activations.detach().double().numpy()))[:5].tolist())
    found = wua.slim(model, DATA, widths={"0": 5})
    assert found.units == {"0": (16, 5)}
    assert torch.equal(found.model[0].weight, model[0].weight[stay])
    assert torch.equal(found.model[2].weight, model[2].weight[:, stay])
    assert found.specification.rounds == ({"0": tuple(stay)},)
    assert snapshot(model) == before
    closer = wua.slim(model, DATA, widths={"0": 5}, fold=True).model
    assert torch.equal(closer[0].weight, model[0].weight[stay])
    whole = model(DATA[0])
    lost = [(one(DATA[0]) - whole).square().mean().item() for one in (closer, found.model)]
    assert lost[0] < 0.5 * lost[1]


def test_a_methods_widths_and_no_more_parameters_than_planned():
    model = mlp(4, 32, 3)
    recommended = wua.recommend_widths(model, DATA, method="rank").widths
    found = wua.slim(model, DATA)
    assert {name: after for name, (_, after) in found.units.items()} == recommended
    width = recommended["0"]
    assert width < 32
    assert found.params_after == 4 * width + width + 3 * width + 3
    assert found.params_after == sum(one.numel() for one in found.model.parameters())


@pytest.mark.parametrize(("widths", "message"), [
    ({"0": 17}, "widths: expected 1 to 16 units of 0, but got 17"),
    ({"0": 0}, "widths: expected 1 to 16 units of 0, but got 0"),
    ({"0": 3.0}, "widths: expected 1 to 16 units of 0, but got 3.0"),
    ({"1": 3}, "widths: expected layers whose units can be cut, but got '1'"),
    ({"2": 2}, "widths: expected layers whose units can be cut, but got '2' ("),
    ({"0": 16}, "keep: expected fewer units than there are in at least one group"),
])
def test_widths_that_are_refused(widths, message):
    model = mlp(4, 16, 3)
    before = snapshot(model)
    with pytest.raises(ValueError) as raised:
        wua.slim(model, DATA, widths=widths)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)
    assert snapshot(model) == before


def test_layers_that_share_their_units():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            h = self.a(x).relu()
            return self.c(h + self.b(h))

    found = wua.slim(Residual(), DATA, widths={"b": 2})
    assert (found.model.a.out_features, found.model.b.out_features) == (2, 2)
    with pytest.raises(ValueError, match="^widths: expected one width for a, b, which share their "
                                         "units, but got 2 and 3$"):
        wua.slim(Residual(), DATA, widths={"a": 2, "b": 3})


def test_nothing_narrower():
    """Each of two units tells one class from the others."""
    model = mlp(2, 2, 3)
    with torch.no_grad():
        for layer, weight in ((model[0], torch.eye(2)), (model[2], torch.eye(3, 2))):
            layer.weight.copy_(weight)
            layer.bias.zero_()
    model[2].bias.data[2] = 0.5
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]).repeat(20, 1)
    with pytest.raises(ValueError, match="^method: expected one that finds widths below"):
        wua.slim(model, (x, torch.arange(3).repeat(20)), method="ablation")


@pytest.mark.parametrize("criterion", ["spanning", "taylor", "magnitude", "random", "output",
                                       "wanda"])
def test_each_criterion_cuts_by_its_own_order(criterion):
    from wua_mlflow.pruning.cut import unit_groups
    from wua_mlflow.pruning.importance import unit_importance

    model = mlp(4, 16, 3)
    order = unit_importance(model, unit_groups(model, DATA[0][:4]), DATA, cross_entropy,
                            criterion=criterion)["0"].argsort(descending=True)
    found = wua.slim(model, DATA, widths={"0": 4}, criterion=criterion)
    assert found.specification.rounds[0]["0"] == tuple(sorted(order[:4].tolist()))


def test_an_old_pickle_of_attention_with_fewer_heads_is_read_in_a_fresh_process(tmp_path):
    """Earlier versions had the class at another path, which is in whole pickled modules."""
    attention = nn.MultiheadAttention(8, 4, batch_first=True)
    content = pickle.dumps(PrunedMultiheadAttention(attention, [0, 2]), protocol=2)
    old = content.replace(b"cwua_mlflow.pruning.heads\nPrunedMultiheadAttention\n",
                          b"cwua_mlflow.slimming.heads\nFewerHeads\n")
    assert old != content
    (tmp_path / "old.pkl").write_bytes(old)
    script = ("import pickle; model = pickle.load(open('old.pkl', 'rb')); "
              "print(model.num_heads, tuple(model.out_proj.weight.shape))")
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True,
                          text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert done.stdout == "2 (8, 4)\n", done.stderr
