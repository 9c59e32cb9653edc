"""Amounts with heavy tails, and several of them: judged by what is lost on average."""

from __future__ import annotations

from pathlib import Path

from tests.first_hour.hour import answer, tried

MINE = '''
import torch

def data(seed):
    rule = torch.randn(12, 2, generator=torch.Generator().manual_seed(9))

    def part(n, number):
        made = torch.Generator().manual_seed(number)
        x = torch.randn(n, 12, generator=made)
        tails = torch.distributions.StudentT(3.0)
        torch.manual_seed(number)
        return x, torch.tanh(x @ rule) * 3 + 0.4 * tails.sample((n, 2))

    return part(1200, 1), part(300, 2), part(800, 3)
'''


def hour(folder: Path) -> None:
    """One command; a loss that outliers do not rule, and the mean absolute error as the score."""
    (folder / "mine.py").write_text(MINE + '''
from torch.nn import functional

def robust(outputs, targets):
    return functional.smooth_l1_loss(outputs, targets)
''')
    printed = answer(folder, "run", "--data", "mine:data", "--hidden", "64", "--epochs", "15",
                     "--loss", "mine:robust", "--score", "mae", "--margin", "0.05")
    assert "taken as regression" in printed
    assert "mae" in printed


if __name__ == "__main__":
    tried(hour)
