"""Images from DataLoaders, augmented anew in every epoch: nothing is stacked, nothing is frozen."""

from __future__ import annotations

from pathlib import Path

from tests.first_hour.hour import answer, tried

MINE = '''
import torch
from torch.utils.data import DataLoader, Dataset

class Shapes(Dataset):
    """A bright bar: across, down, or aslant; the training part is shifted at random."""

    def __init__(self, n, seed, shifted):
        made = torch.Generator().manual_seed(seed)
        self.kinds = torch.randint(3, (n,), generator=made)
        self.noise = torch.rand(n, 1, 12, 12, generator=made)
        self.places = torch.randint(2, 10, (n,), generator=made)
        self.shifted = shifted

    def __len__(self):
        return len(self.kinds)

    def __getitem__(self, i):
        image, place = self.noise[i].clone(), int(self.places[i])
        if self.kinds[i] == 0:
            image[0, place] += 0.9
        elif self.kinds[i] == 1:
            image[0, :, place] += 0.9
        else:
            image[0] += 0.9 * torch.eye(12).roll(place, 1)
        if self.shifted:
            image = image.roll(int(torch.randint(-1, 2, ())), 2)
        return image, self.kinds[i]

def data(seed):
    return (DataLoader(Shapes(600, 1, True), batch_size=50, shuffle=True),
            DataLoader(Shapes(200, 2, False), batch_size=100),
            DataLoader(Shapes(500, 3, False), batch_size=100))
'''


def hour(folder: Path) -> None:
    """One command; the network is the built-in one for images."""
    (folder / "mine.py").write_text(MINE)
    printed = answer(folder, "run", "--data", "mine:data", "--model", "cnn", "--hidden", "24,24",
                     "--epochs", "6", "--lr", "0.01")
    assert "FLOPs" in printed


if __name__ == "__main__":
    tried(hour)
