"""Which units are offered for cutting, what reads them, and what is named as not cut."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.networks import mlp, rows
from tests.pruning.cutting_cases import CASES, Residual
from wua_mlflow.pruning.cut import unit_groups


def test_every_group_and_nothing_else(pruned):
    structure = pruned.structure
    assert {group.name: group.units for group in structure.groups} == {
        name: units for name, (units, _) in pruned.case.units.items()}
    layers = {layer for group in structure.groups for layer in group.layers}
    weighted = {name for name, module in pruned.model.named_modules()
                if isinstance(getattr(module, "weight", None), nn.Parameter)
                and module.weight.dim() > 1}
    assert weighted <= layers | set(structure.not_prunable), "what is not cut is named"
    assert all(reason and "\n" not in reason for reason in structure.not_prunable.values())


def test_what_a_residual_sum_ties_and_who_reads_it():
    group = unit_groups(Residual(5, 4), rows(4, 3, 6, 6)).group("stem")
    assert set(group.layers) == {"stem", "bn0", "conv2", "bn2"}
    readers = {reader.parameter: (reader.dim, reader.columns) for reader in group.readers}
    columns = tuple((unit,) for unit in range(5))
    assert readers == {"conv1.weight": (1, columns), "head.weight": (1, columns)}


def test_a_flattened_channel_is_read_by_many_columns():
    reader, = unit_groups(CASES["convolutions"].whole(), rows(4, 3, 8, 8)).group("5").readers
    assert reader.columns == tuple(tuple(range(16 * unit, 16 * unit + 16)) for unit in range(6))


class Normed(nn.Module):
    """The stream is normalised over; the part inside the block is not."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Linear(3, 6), nn.LayerNorm(6)
        self.inner, self.back, self.head = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x):
        x = self.embed(x)
        return self.head(x + self.back(self.inner(self.norm(x)).relu()))


class Positions(nn.Module):
    """A parameter of its own is added to the units."""

    def __init__(self):
        super().__init__()
        self.embed, self.place = nn.Linear(3, 6), nn.Parameter(torch.randn(6))
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.embed(x) + self.place)


class Sliced(nn.Module):
    """Half of the units goes one way, half another, by fixed numbers."""

    def __init__(self):
        super().__init__()
        self.both, self.head = nn.Linear(3, 8), nn.Linear(4, 2)

    def forward(self, x):
        hidden = self.both(x)
        return self.head(hidden[..., :4] * hidden[..., 4:].sigmoid())


class Functional(nn.Module):
    """A weight that no module holds."""

    def __init__(self):
        super().__init__()
        self.first, self.weight = nn.Linear(3, 8), nn.Parameter(torch.randn(2, 8))

    def forward(self, x):
        return nn.functional.linear(self.first(x).relu(), self.weight)


@pytest.mark.parametrize(("model", "shape", "layer", "reason", "groups"), [
    (Normed(), (3,), "embed", "norm (LayerNorm) normalises over these units", ["inner"]),
    (Positions(), (3,), "embed", "place of Positions has a place for each of these units, and how "
                                 "it is cut is not known", []),
    (nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.Conv2d(8, 2, 1)), (3, 8, 8), "0",
     "1 (GroupNorm) normalises over these units", []),
    (nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d(8, 2, 1)),
     (3, 8, 8), "0", "1 is a grouped convolution, which shares them out evenly", []),
    (mlp(3, 8, 2), (3,), "2", "its units are the network's outputs", ["0"]),
    (mlp(3, 1, 2), (3,), "0", "it has one unit", []),
    (Sliced(), (3,), "both", "", []),
    (Functional(), (3,), "first", "", []),
])
def test_what_is_not_cut_is_named_with_the_reason(model, shape, layer, reason, groups):
    """What cannot be followed is never cut, whatever the library makes of it."""
    structure = unit_groups(model, rows(4, *shape))
    assert structure.not_prunable[layer].startswith(reason)
    assert [group.name for group in structure.groups] == groups


@pytest.mark.parametrize(("make", "message"), [
    (lambda: torch.export.export(mlp(3, 2), (rows(4, 3),)).module(),
     "model: expected a module with layers to cut, but got an exported graph (pt2), which has "
     "none; name the module and its weights: --model package.module:factory --state "),
    (lambda: nn.Linear(5, 2), "model: its layers cannot be followed: "),
])
def test_what_is_refused_in_one_line(make, message):
    with pytest.raises(ValueError) as raised:
        unit_groups(make(), rows(4, 3))
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


class NotBoth(nn.Module):
    """Each layer can be cut, the second and the third not together."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.fourth, self.head = (
            nn.Linear(6, 6) for _ in range(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.second.out_features < 6 and self.third.out_features < 6:
            raise ValueError("one of both has to be whole")
        for layer in (self.first, self.second, self.third, self.fourth):
            x = layer(x).relu()
        return self.head(x)


def test_what_cannot_be_cut_together_with_others_is_refused_alone():
    structure = unit_groups(NotBoth(), rows(4, 6))
    assert [group.name for group in structure.groups] == ["first", "second", "fourth"]
    assert structure.not_prunable == {
        "third": "cut on trial together with others, its forward fails: ValueError: one of both "
                 "has to be whole",
        "head": "its units are the network's outputs"}
