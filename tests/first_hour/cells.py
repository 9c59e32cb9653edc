"""A class for each pixel, judged by the intersection over union of each image."""

from __future__ import annotations

from pathlib import Path

from tests.first_hour.hour import answer, tried

MINE = '''
import torch
from torch import nn

def part(n, seed):
    """Bright discs on noise."""
    made = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    centre = torch.randint(4, 12, (n, 2, 1, 1), generator=made)
    inside = (rows - centre[:, 0]) ** 2 + (columns - centre[:, 1]) ** 2 < 12
    images = torch.rand(n, 1, 16, 16, generator=made) + inside[:, None]
    return images, inside.long()

def data(seed):
    return part(300, 1), part(80, 2), part(250, 3)

def model(widths):
    return nn.Sequential(
        nn.Conv2d(1, widths[0], 5, padding=2), nn.ReLU(),
        nn.Conv2d(widths[0], widths[1], 5, padding=2), nn.ReLU(), nn.Conv2d(widths[1], 2, 1))
'''


def hour(folder: Path) -> None:
    """One command."""
    (folder / "mine.py").write_text(MINE)
    printed = answer(folder, "run", "--data", "mine:data", "--model", "mine:model", "--hidden",
                     "16,16", "--epochs", "12", "--lr", "0.01", "--null-draws", "5")
    assert "taken as segmentation" in printed
    assert "iou" in printed


if __name__ == "__main__":
    tried(hour)
