"""A tag for each token, padding ignored, by a recurrent network of one's own."""

from __future__ import annotations

from pathlib import Path

from tests.first_hour.hour import answer, tried

MINE = '''
import torch
from torch import nn

def part(n, seed):
    """A word's tag depends on the word before it; short sentences end in padding."""
    made = torch.Generator().manual_seed(seed)
    words = torch.randint(1, 12, (n, 10), generator=made)
    tags = (words % 3).roll(1, 1)
    tags[:, 0] = 0
    ends = torch.randint(4, 11, (n, 1), generator=made)
    padding = torch.arange(10) >= ends
    return words.masked_fill(padding, 0), tags.masked_fill(padding, -100)

def data(seed):
    return part(500, 1), part(150, 2), part(400, 3)

class Tagger(nn.Module):
    def __init__(self, widths):
        super().__init__()
        self.words = nn.Embedding(12, 8)
        self.lstm = nn.LSTM(8, widths[0], batch_first=True)
        self.tags = nn.Linear(widths[0], 3)

    def forward(self, words):
        return self.tags(self.lstm(self.words(words))[0])
'''


def hour(folder: Path) -> None:
    """One command."""
    (folder / "mine.py").write_text(MINE)
    printed = answer(folder, "run", "--data", "mine:data", "--model", "mine:Tagger", "--hidden",
                     "32", "--epochs", "10", "--lr", "0.01", "--null-draws", "5")
    assert "taken as token_classification" in printed


if __name__ == "__main__":
    tried(hour)
