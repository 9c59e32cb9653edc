"""Which units are offered for cutting, what reads them, and what is named as not cut."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.networks import kept_streams, rows, snapshot
from tests.pruning.cutting_cases import CASES, Residual
from wua_mlflow.pruning.cut import unit_groups


@pytest.fixture(autouse=True)
def _seeded():
    with kept_streams():
        torch.manual_seed(0)
        yield


def test_every_group_and_nothing_else(pruned):
    case, model, found = pruned.case, pruned.model, pruned.structure
    assert {group.name: group.units for group in found.groups} == {
        group: case.widths[case.renamed[group]] for group in case.keep}
    layers = {layer for group in found.groups for layer in group.layers} | set(found.not_prunable)
    weighted = {name for name, module in model.named_modules()
                if isinstance(getattr(module, "weight", None), nn.Parameter)
                and module.weight.dim() > 1}
    assert weighted <= layers, "what is not cut is named"
    assert all(reason and "\n" not in reason for reason in found.not_prunable.values())


@pytest.mark.parametrize("name", ["residual", "Conv1D"])
def test_the_model_and_the_streams_are_left_as_found(name):
    case = CASES[name]
    model = case.whole().train()
    before, state = snapshot(model), torch.get_rng_state()
    unit_groups(model, case.example(4))
    assert snapshot(model) == before and torch.equal(torch.get_rng_state(), state)


def test_what_a_residual_sum_ties_and_who_reads_it():
    found = unit_groups(Residual(5, 4), rows(4, 3, 6, 6)).group("stem")
    assert set(found.layers) == {"stem", "bn0", "conv2", "bn2"}
    readers = {reader.parameter: (reader.dim, reader.columns) for reader in found.readers}
    own = tuple((unit,) for unit in range(5))
    assert readers == {"conv1.weight": (1, own), "head.weight": (1, own)}


def test_a_flattened_channel_is_read_by_many_columns():
    found = unit_groups(CASES["convolutions"].whole(), rows(4, 3, 8, 8)).group("5")
    reader, = found.readers
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
        found = self.both(x)
        return self.head(found[..., :4] * found[..., 4:].sigmoid())


class Functional(nn.Module):
    """A weight that no module holds."""

    def __init__(self):
        super().__init__()
        self.first, self.weight = nn.Linear(3, 8), nn.Parameter(torch.randn(2, 8))

    def forward(self, x):
        return nn.functional.linear(self.first(x).relu(), self.weight)


@pytest.mark.parametrize(("model", "layer", "reason"), [
    (Normed(), "embed", "norm (LayerNorm) normalises over these units"),
    (Positions(), "embed", "place of Positions has a place for each of these units, and how it"),
    (nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.Conv2d(8, 2, 1)), "0",
     "1 (GroupNorm) normalises over these units"),
    (nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d(8, 2, 1)), "0",
     "1 is a grouped convolution, which shares them out evenly"),
    (nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), "2",
     "its units are the network's outputs"),
    (nn.Sequential(nn.Linear(3, 1), nn.ReLU(), nn.Linear(1, 2)), "0", "it has one unit"),
])
def test_what_is_not_cut_is_named_with_the_reason(model, layer, reason):
    shape = (4, 3, 8, 8) if isinstance(model[0] if isinstance(model, nn.Sequential) else None,
                                       nn.Conv2d) else (4, 3)
    found = unit_groups(model, rows(*shape))
    assert found.not_prunable[layer].startswith(reason)
    assert layer not in {group.name for group in found.groups}


def test_the_inside_of_a_normed_block_is_cut_all_the_same():
    assert [group.name for group in unit_groups(Normed(), rows(4, 3)).groups] == ["inner"]


@pytest.mark.parametrize(("model", "layer"), [(Sliced(), "both"), (Functional(), "first")])
def test_what_cannot_be_followed_is_never_cut(model, layer):
    """Whatever the library makes of it: the trial cut fails, or it is refused at once."""
    found = unit_groups(model, rows(4, 3))
    assert found.groups == ()
    assert layer in found.not_prunable


@pytest.mark.parametrize(("make", "message"), [
    (lambda: torch.export.export(nn.Sequential(nn.Linear(3, 2)), (rows(4, 3),)).module(),
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
    found = unit_groups(NotBoth(), rows(4, 6))
    assert [group.name for group in found.groups] == ["first", "second", "fourth"]
    assert found.not_prunable == {
        "third": "cut on trial together with others, its forward fails: ValueError: one of both "
                 "has to be whole",
        "head": "its units are the network's outputs"}
