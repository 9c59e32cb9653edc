"""A checkpoint from elsewhere, as Lightning writes it: names with a prefix, and masks."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import prune

from tests.first_hour.hour import answer, tried

MINE = '''
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(8, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(),
                         nn.Linear(96, 2))

def part(n, seed):
    x = torch.rand(n, 8, generator=torch.Generator().manual_seed(seed))
    return x, ((x[:, :4].sum(1) - x[:, 4:].sum(1)) > 0).long()

def data(seed):
    return part(900, 1), part(300, 2), part(1500, 3)
'''


def hour(folder: Path) -> None:
    """The model is trained and saved by other code; then one command."""
    (folder / "mine.py").write_text(MINE)
    mine: dict[str, object] = {}
    exec(MINE, mine)
    torch.manual_seed(0)
    model, (x, y) = mine["build"](), mine["part"](900, 1)  # type: ignore[operator]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    prune.l1_unstructured(model[0], "weight", amount=0.2)
    torch.save({"epoch": 150, "pytorch-lightning_version": "2.5.0",
                "hyper_parameters": {"lr": 0.01}, "state_dict": {
                    f"model.{name}": value for name, value in model.state_dict().items()}},
               folder / "best.ckpt")
    printed = answer(folder, "slim", "--model", "mine:build", "--state", "best.ckpt", "--data",
                     "mine:data", "--slim-epochs", "10")
    assert "its entry 'state_dict' is taken" in printed
    assert "the prefix 'model.' of its names is taken away" in printed


if __name__ == "__main__":
    tried(hour)
