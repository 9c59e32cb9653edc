"""Several labels for each example; the score is F1 over all labels."""

from __future__ import annotations

from pathlib import Path

from tests.first_hour.hour import answer, tried

MINE = '''
import torch

def data(seed):
    rule = torch.randn(30, 6, generator=torch.Generator().manual_seed(9))

    def part(n, number):
        x = torch.randn(n, 30, generator=torch.Generator().manual_seed(number))
        return x, (x @ rule > 2).long()

    return part(1500, 1), part(400, 2), part(1000, 3)
'''


def hour(folder: Path) -> None:
    """One command."""
    (folder / "mine.py").write_text(MINE)
    printed = answer(folder, "run", "--data", "mine:data", "--hidden", "64", "--epochs", "15",
                     "--score", "f1")
    assert "taken as multilabel" in printed
    assert "f1" in printed


if __name__ == "__main__":
    tried(hour)
