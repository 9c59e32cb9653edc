"""Which pictures a model gets."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from wua_mlflow.analysis import analyze
from wua_mlflow.pipeline.pictures import usage_pictures

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
        "plots/layers.png", "plots/importance_0.png", "plots/importance_2.png",
        "plots/network.png"}


def test_a_cnn_gets_no_diagram(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    assert _drawn(model, torch.rand(5, 1, 4, 4), tmp_path) == {
        "plots/layers.png", "plots/importance_0.png"}


def test_branches_are_no_chain(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 2), nn.Linear(3, 4), nn.Linear(6, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(torch.cat([self.a(x), self.b(x)], 1))

    torch.manual_seed(0)
    assert "plots/network.png" not in _drawn(Two(), torch.rand(5, 3), tmp_path)
