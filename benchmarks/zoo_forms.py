"""Small models of many forms for ``zoo.py``, by the operations that tie their units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

Example = tuple[nn.Module, Any]
Form = Callable[[], Example]


class Made(nn.Module):
    """A forward of its own over the parts that it is given; others are plain attributes."""

    def __init__(self, run: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self, *args, **kwargs)


@dataclass
class Scores:
    """Outputs as a dataclass."""

    scores: Tensor
    parts: tuple[Tensor, ...]


X, IMAGE, SERIES = (4, 16), (2, 3, 16, 16), (2, 6, 12)


def rows(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def tokens(*shape: int, below: int = 20) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(2))


def skips() -> Example:
    return Made(lambda m, x: m.out(sum(((h := m.first(x).relu()), m.second(h).relu()))),
                first=nn.Linear(16, 24), second=nn.Linear(24, 24), out=nn.Linear(24, 3)), rows(*X)


def residual_norm() -> Example:
    block = lambda: Made(lambda m, x: x + m.down(m.up(m.norm(x)).relu()),  # noqa: E731
                         norm=nn.LayerNorm(32), up=nn.Linear(32, 64), down=nn.Linear(64, 32))
    return nn.Sequential(nn.Linear(16, 32), block(), block(), nn.LayerNorm(32),
                         nn.Linear(32, 3)), rows(*X)


def unet() -> Example:
    def run(m: Any, x: Tensor) -> Tensor:
        one = m.one(x).relu()
        two = m.two(functional.max_pool2d(one, 2)).relu()
        up = m.up(two)
        return m.out(m.both(torch.cat([one, up], 1)).relu())

    return Made(run, one=nn.Conv2d(3, 16, 3, padding=1), two=nn.Conv2d(16, 32, 3, padding=1),
                up=nn.ConvTranspose2d(32, 16, 2, 2), both=nn.Conv2d(32, 16, 3, padding=1),
                out=nn.Conv2d(16, 2, 1)), rows(*IMAGE)


def convolutions(*middle: nn.Module, width: int = 16, last: int | None = None) -> Example:
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), *middle, nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(last or width, 3)), rows(*IMAGE)


def grouped() -> Example:
    return convolutions(nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1, groups=4), nn.BatchNorm2d(32),
                        nn.ReLU(), nn.Conv2d(32, 32, 1, groups=4), last=32)


def depthwise() -> Example:
    return convolutions(nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 24, 1), last=24)


def shuffled() -> Example:
    return convolutions(nn.Conv2d(16, 16, 1, groups=2), nn.ChannelShuffle(2),
                        nn.Conv2d(16, 16, 3, groups=2))


def group_norm() -> Example:
    return convolutions(nn.GroupNorm(4, 16), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.GroupNorm(8, 32),
                        last=32)


def instance_norm(*, statistics: bool = False) -> Example:
    return convolutions(nn.InstanceNorm2d(16, affine=True, track_running_stats=statistics),
                        nn.Conv2d(16, 24, 3), nn.InstanceNorm2d(24), last=24)


def gated() -> Example:
    def run(m: Any, x: Tensor) -> Tensor:
        one, other = m.both(x).chunk(2, -1)
        three = m.three(one * other.sigmoid()).split((8, 8, 8), -1)
        return m.out(three[0] * three[1].tanh() + three[2])

    return Made(run, both=nn.Linear(16, 48), three=nn.Linear(24, 24), out=nn.Linear(8, 3)), rows(*X)


def unflattened() -> Example:
    return nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Unflatten(1, (12, 2, 2)),
                         nn.Conv2d(12, 16, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)), rows(*X)


def pixels() -> Example:
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 1),
                         nn.PixelShuffle(2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
                         nn.PixelUnshuffle(2), nn.Conv2d(32, 2, 1)), rows(*IMAGE)


def einsum_attention() -> Example:
    def run(m: Any, x: Tensor) -> Tensor:
        q, k, v = torch.einsum("bld,cdhe->cbhle", x, m.qkv)
        logits = torch.einsum("bhqe,bhke->bhqk", q, k) / 8**0.5
        return m.out(x + torch.einsum("bhqk,bhke,hed->bqd", logits.softmax(-1), v, m.o))

    return Made(run, qkv=nn.Parameter(0.2 * rows(3, 12, 4, 8)), out=nn.Linear(12, 3),
                o=nn.Parameter(0.2 * rows(4, 8, 12))), rows(*SERIES)


def biased_attention() -> Example:
    """A table of biases by head; the head's size is what is left over."""
    def run(m: Any, x: Tensor) -> Tensor:
        q, k, v = m.qkv(x).reshape(*x.shape[:2], 3, m.heads, -1).permute(2, 0, 3, 1, 4)
        logits = q @ k.transpose(-2, -1) * m.scale + m.bias
        mixed = logits.softmax(-1) @ v
        return m.head(x + m.out(mixed.transpose(1, 2).flatten(2)))

    return Made(run, heads=4, scale=8**-0.5, qkv=nn.Linear(12, 96), out=nn.Linear(32, 12),
                bias=nn.Parameter(0.02 * rows(4, 6, 6)), head=nn.Linear(12, 3)), rows(*SERIES)


def encoder() -> Example:
    layer = nn.TransformerEncoderLayer(16, 4, 48, batch_first=True)
    return nn.Sequential(nn.Linear(12, 16), nn.TransformerEncoder(
        layer, 2, enable_nested_tensor=False), nn.Linear(16, 3)), rows(*SERIES)


def decoder() -> Example:
    layer = nn.TransformerDecoderLayer(16, 4, 32, batch_first=True, norm_first=True)
    return Made(lambda m, x, y: m.out(m.decoder(m.embed(x), m.embed(y))), embed=nn.Linear(12, 16),
                decoder=nn.TransformerDecoder(layer, 2), out=nn.Linear(16, 3)), (
        rows(*SERIES), rows(2, 5, 12))


def whole_transformer() -> Example:
    return Made(lambda m, x, y: m.out(m.both(m.embed(x), m.embed(y))), embed=nn.Linear(12, 16),
                both=nn.Transformer(16, 4, 1, 1, 32, batch_first=True), out=nn.Linear(16, 3)), (
        rows(*SERIES), rows(2, 5, 12))


def recurrent(kind: type[nn.RNNBase], **options: Any) -> Example:
    both = 2 if options.get("bidirectional") else 1
    size = options.get("proj_size") or 16
    return Made(lambda m, x: m.out(m.rnn(m.embed(x))[0][:, -1]), embed=nn.Embedding(20, 12),
                rnn=kind(12, 16, 2, batch_first=True, **options),
                out=nn.Linear(size * both, 3)), tokens(4, 6)


def cell() -> Example:
    def run(m: Any, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), m.cell.hidden_size)
        for step in x.unbind(1):
            state = m.cell(step, state)
        return m.out(state)

    return Made(run, cell=nn.GRUCell(12, 16), out=nn.Linear(16, 3)), rows(*SERIES)


def tied() -> Example:
    made = Made(lambda m, x: m.head(m.down(m.up(m.embed(x)).relu())), embed=nn.Embedding(20, 16),
                up=nn.Linear(16, 48), down=nn.Linear(48, 16), head=nn.Linear(16, 20, bias=False))
    made.head.weight = made.embed.weight
    return made, tokens(4, 6)


def two_heads(kind: Callable[..., Any]) -> Form:
    def make() -> Example:
        return Made(lambda m, x: kind(m.one(h := m.body(x).relu()), m.two(h)),
                    body=nn.Linear(16, 48), one=nn.Linear(48, 2), two=nn.Linear(48, 3)), rows(*X)
    return make


def dict_inputs() -> Example:
    return Made(lambda m, x, mask: m.out((m.body(x) * mask[..., None]).relu().sum(1)),
                body=nn.Linear(12, 32), out=nn.Linear(32, 3)), {
        "x": rows(*SERIES), "mask": torch.ones(2, 6)}


def list_inputs() -> Example:
    return Made(lambda m, images: torch.stack([m.out(m.body(each[None]).relu().mean((2, 3)))[0]
                                               for each in images]),
                body=nn.Conv2d(3, 16, 3), out=nn.Linear(16, 2)), ([rows(3, 8, 8), rows(3, 9, 7)],)


def fusion() -> Example:
    """BiFPN's: weights of two inputs, normalised by their sum (Tan et al. 2020)."""
    def run(m: Any, x: Tensor) -> Tensor:
        weights = m.weights.relu()
        weights = weights / (weights.sum() + 1e-4)
        return m.out((weights[0] * m.one(x) + weights[1] * m.two(x)).relu().mean((2, 3)))

    return Made(run, weights=nn.Parameter(torch.ones(2)), one=nn.Conv2d(3, 24, 1),
                two=nn.Conv2d(3, 24, 3, padding=1), out=nn.Linear(24, 3)), rows(*IMAGE)


def squeezed() -> Example:
    def run(m: Any, x: Tensor) -> Tensor:
        h = m.body(x).relu()
        return m.out((h * m.up(m.down(h.mean((2, 3))).relu()).sigmoid()[..., None, None])
                     .mean((2, 3)))

    return Made(run, body=nn.Conv2d(3, 32, 3), down=nn.Linear(32, 8), up=nn.Linear(8, 32),
                out=nn.Linear(32, 3)), rows(*IMAGE)


def low_rank() -> Example:
    return Made(lambda m, x: m.out((x @ m.a @ m.b).relu()), a=nn.Parameter(rows(16, 4)),
                b=nn.Parameter(rows(4, 32)), out=nn.Linear(32, 3)), rows(*X)


def normed(norm: Callable[[nn.Module], nn.Module]) -> Form:
    return lambda: (nn.Sequential(norm(nn.Linear(16, 32)), nn.ReLU(), norm(nn.Linear(32, 24)),
                                  nn.ReLU(), nn.Linear(24, 3)), rows(*X))


def siamese() -> Example:
    return Made(lambda m, a, b: m.out((m.body(a).relu() - m.body(b).relu()).abs()),
                body=nn.Linear(16, 32), out=nn.Linear(32, 1)), (rows(*X), rows(*X).flip(0))


def experts() -> Example:
    def run(m: Any, x: Tensor) -> Tensor:
        weights = m.router(x).softmax(-1)
        return m.out(sum(weights[:, i:i + 1] * expert(x) for i, expert in enumerate(m.experts)))

    expert = lambda: nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))  # noqa: E731
    return Made(run, router=nn.Linear(16, 3), out=nn.Linear(16, 3),
                experts=nn.ModuleList([expert() for _ in range(3)])), rows(*X)


def grouped_experts() -> Example:
    """All experts in one parameter, as Mixtral has them."""
    def run(m: Any, x: Tensor) -> Tensor:
        h = torch.einsum("bd,edh->ebh", x, m.up).relu()
        return m.out(torch.einsum("ebh,ehd,be->bd", h, m.down, m.router(x).softmax(-1)))

    return Made(run, router=nn.Linear(16, 3), up=nn.Parameter(0.3 * rows(3, 16, 40)),
                down=nn.Parameter(0.3 * rows(3, 40, 16)), out=nn.Linear(16, 3)), rows(*X)


def maxima() -> Example:
    return Made(lambda m, x: m.out(torch.maximum(m.body(x), torch.zeros(()))),
                body=nn.Linear(16, 32), out=nn.Linear(32, 3)), rows(*X)


def branching() -> Example:
    return Made(lambda m, x: m.out(m.one(x) if float(x.sum()) > 0 else m.one(x) + m.two(x)),
                one=nn.Linear(16, 32), two=nn.Linear(16, 32), out=nn.Linear(32, 3)), rows(*X)


def series() -> Example:
    return nn.Sequential(nn.Conv1d(6, 24, 3, padding=1), nn.BatchNorm1d(24), nn.ReLU(),
                         nn.ConvTranspose1d(24, 16, 2, 2), nn.ReLU(), nn.Conv1d(16, 2, 1)
                         ), rows(*SERIES)


def volumes() -> Example:
    return nn.Sequential(nn.Conv3d(1, 16, 3), nn.PReLU(16), nn.Conv3d(16, 24, 1), nn.ReLU(),
                         nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(24, 3)
                         ), rows(2, 1, 6, 6, 6)


def radial() -> Example:
    """Distances to centres, which are parameters."""
    return Made(lambda m, x: m.out((-torch.cdist(x, m.centres).square()).exp()),
                centres=nn.Parameter(rows(24, 16)), out=nn.Linear(24, 3)), rows(*X)


def graph() -> Example:
    def run(m: Any, x: Tensor, edges: Tensor) -> Tensor:
        h = m.one(x).relu()
        h = h + torch.zeros_like(h).index_add(0, edges[1], m.two(h)[edges[0]])
        return m.out(h.relu())

    return Made(run, one=nn.Linear(16, 32), two=nn.Linear(32, 32), out=nn.Linear(32, 3)), (
        rows(6, 16), torch.tensor([[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 0]]))


def mixer() -> Example:
    def run(m: Any, x: Tensor) -> Tensor:
        h = m.embed(x)
        h = h + m.mix(m.norm(h).transpose(1, 2)).transpose(1, 2)
        return m.out((h + m.down(m.up(m.last(h)).relu())).mean(1))

    return Made(run, embed=nn.Linear(12, 16), norm=nn.LayerNorm(16), last=nn.LayerNorm(16),
                mix=nn.Sequential(nn.Linear(6, 24), nn.GELU(), nn.Linear(24, 6)),
                up=nn.Linear(16, 48), down=nn.Linear(48, 16), out=nn.Linear(16, 3)), rows(*SERIES)


def bilinear() -> Example:
    return Made(lambda m, x: m.out(m.both(m.one(x).relu(), m.two(x).relu())),
                one=nn.Linear(16, 12), two=nn.Linear(16, 12), both=nn.Bilinear(12, 12, 24),
                out=nn.Linear(24, 3)), rows(*X)


FORMS: dict[str, Form] = {
    "skips": skips, "residual + LayerNorm": residual_norm, "U-Net": unet,
    "grouped convolutions": grouped, "depthwise": depthwise, "channel shuffle": shuffled,
    "GroupNorm": group_norm, "InstanceNorm": instance_norm,
    "InstanceNorm, running statistics": lambda: instance_norm(statistics=True),
    "GLU by chunk and split": gated, "Unflatten": unflattened, "PixelShuffle": pixels,
    "einsum attention": einsum_attention, "attention, bias by head": biased_attention,
    "TransformerEncoder": encoder, "TransformerDecoder": decoder, "Transformer": whole_transformer,
    "LSTM": lambda: recurrent(nn.LSTM, bidirectional=True), "GRU": lambda: recurrent(nn.GRU),
    "RNN": lambda: recurrent(nn.RNN), "LSTM, projected": lambda: recurrent(nn.LSTM, proj_size=8),
    "GRU cell": cell, "tied embedding": tied,
    "two heads, tuple": two_heads(lambda a, b: (a, b)),
    "two heads, dict": two_heads(lambda a, b: {"a": a, "b": b}),
    "two heads, dataclass": two_heads(lambda a, b: Scores(a, (b,))),
    "two heads, object": two_heads(lambda a, b: SimpleNamespace(a=a, b=b)),
    "inputs in a dict": dict_inputs, "inputs in a list": list_inputs,
    "BiFPN's fusion": fusion, "squeeze-and-excitation": squeezed, "low rank": low_rank,
    "weight norm": normed(parametrizations.weight_norm),
    "spectral norm": normed(parametrizations.spectral_norm),
    "siamese": siamese, "experts": experts, "grouped experts": grouped_experts,
    "maximum": maxima, "branching": branching, "1-d, transposed": series, "3-d": volumes,
    "radial basis": radial, "graph": graph, "mixer": mixer, "bilinear": bilinear,
}
