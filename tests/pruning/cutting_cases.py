"""Networks to be cut, each with its narrower self built by hand and its units removed by hooks.

``build(**widths)`` makes the network of any widths, so that a cut one can be compared with what the
factory makes; ``silent(model, case)`` silences the units where they are read, by hooks of torch,
and knows nothing of the package. ``greedy`` selects units by least squares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tests.example_modules import Conv1D
from tests.networks import Layers


class Units(NamedTuple):
    """What stays of a group.

    ``width``: the argument of ``build`` that sets how many units there are. ``readers``: the
    modules whose input's channels the units are; ``name:dim`` for another dimension.
    """

    width: str
    kept: Sequence[int]
    readers: Sequence[str]


@dataclass(frozen=True)
class Case:
    """A network, its widths, what stays of it by group, and the shape of a sample."""

    build: Callable[..., nn.Module]
    widths: Mapping[str, int]
    groups: Mapping[str, Units]
    shape: tuple[int, ...]

    @property
    def keep(self) -> dict[str, Sequence[int]]:
        return {name: group.kept for name, group in self.groups.items()}

    @property
    def units(self) -> dict[str, tuple[int, int]]:
        """By group how many units there are and how many stay."""
        return {name: (self.widths[group.width], len(group.kept))
                for name, group in self.groups.items()}

    @property
    def removed(self) -> dict[str, list[int]]:
        return {name: sorted(set(range(self.widths[group.width])) - set(group.kept))
                for name, group in self.groups.items()}

    def example(self, samples: int) -> Tensor:
        generator = torch.Generator().manual_seed(samples)
        return torch.randn(samples, *self.shape, generator=generator)

    def whole(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        model = self.build(**self.widths)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -0.3, 0.3)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
        return model.eval()

    def narrow(self) -> nn.Module:
        """What the factory makes of the widths that remain."""
        remaining = {group.width: len(group.kept) for group in self.groups.values()}
        return self.build(**{**self.widths, **remaining}).eval()


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


@contextmanager
def silent(model: nn.Module, case: Case) -> Iterator[nn.Module]:
    """The model whose readers get zero for the units that go."""
    with ExitStack() as stack:
        for group, units in case.removed.items():
            for reader in case.groups[group].readers:
                name, _, dim = reader.partition(":")
                hook = partial(_zeroed, int(dim or 1), torch.tensor(units))
                stack.callback(model.get_submodule(name).register_forward_pre_hook(hook).remove)
        yield model


def _zeroed(dim: int, units: Tensor, _: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    return inputs[0].index_fill(dim, units, 0)


def residual(stem: int, inner: int) -> nn.Module:
    """A stem, a block whose output is added to its input, a head."""

    def forward(net, x):
        skip = net.bn0(net.stem(x)).relu()
        block = net.bn2(net.conv2(net.bn1(net.conv1(skip)).relu()))
        return net.head((skip + block).relu().mean((2, 3)))

    conv = partial(nn.Conv2d, kernel_size=3, padding=1, bias=False)
    return Layers(forward, stem=conv(3, stem), bn0=nn.BatchNorm2d(stem),
                  conv1=conv(stem, inner), bn1=nn.BatchNorm2d(inner),
                  conv2=conv(inner, stem), bn2=nn.BatchNorm2d(stem), head=nn.Linear(stem, 4))


class Tokens(nn.Module):
    """The mean of tokens, a block, a head tied to the embedding."""

    def __init__(self):
        super().__init__()
        self.emb, self.up, self.down = nn.Embedding(9, 6), nn.Linear(6, 8), nn.Linear(8, 6)
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.emb.weight

    def forward(self, x):
        hidden = self.emb(x.long()).mean(1)
        return self.head(hidden + self.down(torch.relu(self.up(hidden))))


def feed_forward(inner: int) -> nn.Module:
    """A block of GPT-2's kind."""
    return Layers(lambda net, x: net.head((x + net.block(net.norm(x))).mean(1)),
                  norm=nn.LayerNorm(6), head=nn.Linear(6, 3),
                  block=nn.Sequential(Conv1D(6, inner), nn.GELU(), Conv1D(inner, 6)))


def twice(width: int) -> nn.Module:
    """A layer that is called twice, on its own output."""
    again = nn.Sequential(nn.Linear(width, width), nn.ReLU())
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), again, again, nn.Linear(width, 2))


def mlp(a: int, b: int) -> nn.Module:
    return nn.Sequential(nn.Linear(4, a), nn.Sigmoid(), nn.Linear(a, b), nn.ReLU(), nn.Linear(b, 3))


def convolutions(a: int, b: int) -> nn.Module:
    """Batch norm, a depthwise layer, and a flattening that spreads a channel over 16 inputs."""
    return nn.Sequential(
        nn.Conv2d(3, a, 3, padding=1), nn.BatchNorm2d(a), nn.ReLU(),
        nn.Conv2d(a, a, 3, stride=2, padding=1, groups=a), nn.Hardswish(),
        nn.Conv2d(a, b, 1), nn.ReLU(), nn.Flatten(), nn.Linear(b * 16, 2))


def transposed(a: int, b: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, a, 3, stride=2, padding=1), nn.Tanh(),
        nn.ConvTranspose2d(a, b, 2, stride=2), nn.ReLU(), nn.Conv2d(b, 3, 1))


CASES = {
    "mlp": Case(mlp, {"a": 7, "b": 5}, {
        "0": Units("a", [0, 3, 6], ["2"]), "2": Units("b", [1, 4], ["4"])}, (4,)),
    "convolutions": Case(convolutions, {"a": 8, "b": 6}, {
        "0": Units("a", [1, 2, 5], ["5"]), "5": Units("b", [0, 1, 2, 5], ["7"])}, (3, 8, 8)),
    "residual": Case(residual, {"stem": 6, "inner": 5}, {
        "stem": Units("stem", [0, 1, 4], ["conv1", "head"]),
        "conv1": Units("inner", [2, 3], ["conv2"])}, (3, 8, 8)),
    "transposed": Case(transposed, {"a": 6, "b": 5}, {
        "0": Units("a", [0, 5], ["2"]), "2": Units("b", [1, 2, 3], ["4"])}, (3, 8, 8)),
    "signals": Case(lambda a: nn.Sequential(nn.Conv1d(2, a, 3), nn.ReLU(), nn.Conv1d(a, 2, 3)),
                    {"a": 5}, {"0": Units("a", [4], ["2"])}, (2, 12)),
    "volumes": Case(lambda a: nn.Sequential(nn.Conv3d(1, a, 2), nn.ReLU(), nn.Conv3d(a, 1, 2)),
                    {"a": 5}, {"0": Units("a", [0, 2], ["2"])}, (1, 4, 4, 4)),
    "Conv1D": Case(feed_forward, {"inner": 9}, {
        "block.0": Units("inner", [0, 2, 8], ["block.2:2"])}, (4, 6)),
    "twice": Case(twice, {"width": 6}, {
        "0": Units("width", [0, 3, 5], ["2.0", "4"])}, (4,)),
}


def greedy(rows: np.ndarray) -> np.ndarray:
    """What is left of each unit, when it is chosen, after a fit on those chosen before it.

    Args:
        rows: activations, shape (rows, units).
    """
    rows = rows - rows.mean(0)
    sums_when_chosen, chosen = np.zeros(rows.shape[1]), []
    for _ in range(rows.shape[1]):
        basis = rows[:, chosen]
        unexplained = rows - basis @ np.linalg.lstsq(basis, rows, rcond=None)[0]
        sums = (unexplained ** 2).sum(0)
        sums[chosen] = -1
        chosen.append(int(sums.argmax()))
        sums_when_chosen[chosen[-1]] = sums.max()
    return sums_when_chosen


class Stream(nn.Module):
    """Two blocks, each of which adds to the model's width what it makes of its norm."""

    def __init__(self, width: int = 12, inner: int = 16, features: int = 4) -> None:
        super().__init__()
        self.stem = nn.Linear(features, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, inner), nn.ReLU(),
                          nn.Linear(inner, width)) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 3)
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.3, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.norm(x))
