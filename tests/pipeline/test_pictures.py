"""Which pictures a model gets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from wua_mlflow.pipeline.pictures import usage_pictures
from wua_mlflow.usage.analyze import analyze
from wua_mlflow.usage.results import ModelUsage

PNG = b"\x89PNG\r\n\x1a\n"


def _drawn(model: nn.Module, inputs: torch.Tensor, folder: Path) -> set[str]:
    files = usage_pictures(model, analyze(model, inputs))
    for path, save in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        save(target)
        assert target.read_bytes().startswith(PNG)
    return set(files)


def test_a_small_mlp_gets_a_histogram_a_layer_and_the_diagram(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    assert _drawn(model, torch.rand(20, 3), tmp_path) == {
        "plots/layers.png", "plots/units.png", "plots/importance_0.png", "plots/importance_2.png",
        "plots/network.png"}


def test_a_cnn_gets_no_diagram(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    assert _drawn(model, torch.rand(5, 1, 4, 4), tmp_path) == {
        "plots/layers.png", "plots/units.png", "plots/importance_0.png"}


def test_branches_are_no_chain(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 2), nn.Linear(3, 4), nn.Linear(6, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(torch.cat([self.a(x), self.b(x)], 1))

    torch.manual_seed(0)
    assert "plots/network.png" not in _drawn(Two(), torch.rand(5, 3), tmp_path)


def test_units_are_drawn_only_where_a_layer_has_several(tmp_path: Path) -> None:
    torch.manual_seed(0)
    narrow = nn.Sequential(nn.Linear(3, 1), nn.ReLU(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2))
    assert "plots/units.png" not in _drawn(narrow, torch.rand(20, 3), tmp_path)


def _chain(layers: int, width: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))


def test_of_many_layers_the_first_twenty_get_a_histogram_and_none_a_diagram() -> None:
    model = _chain(23, 2)
    files = usage_pictures(model, analyze(model, torch.rand(5, 2)))
    assert set(files) == {"plots/layers.png", "plots/units.png",
                          *(f"plots/importance_{i}.png" for i in range(20))}


@pytest.mark.parametrize(("layers", "width", "drawn"), [
    (20, 2, True), (21, 2, False), (2, 1000, True), (3, 1000, False)])
def test_the_diagram_is_for_networks_of_few_layers_and_weights(
    layers: int, width: int, drawn: bool
) -> None:
    model = _chain(layers, width)
    files = usage_pictures(model, analyze(model, torch.rand(5, width)))
    assert ("plots/network.png" in files) == drawn


@pytest.mark.parametrize(("layers", "drawn"), [(1000, True), (1001, False)])
def test_more_rows_than_can_be_read_are_not_drawn(layers: int, drawn: bool) -> None:
    one = next(iter(analyze(_chain(2, 2), torch.rand(5, 2)).layers.values()))
    usage = ModelUsage("output", 5, {f"fc{i}": replace(one, name=f"fc{i}") for i in range(layers)},
                       {})
    files = usage_pictures(nn.Flatten(), usage)
    assert {"plots/layers.png", "plots/units.png"} & set(files) == (
        {"plots/layers.png", "plots/units.png"} if drawn else set())
    assert len(files) == 20 + 2 * drawn
