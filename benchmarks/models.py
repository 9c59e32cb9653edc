"""Models of four families with their forward multiply-accumulates counted by hand.

Written out here, so that no model library has to be installed. The counts take matrix products,
convolutions and attention (causal as the full square) and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own habit
from torch import Tensor, nn

__all__ = ["MODELS", "Example"]


@dataclass(frozen=True)
class Example:
    """A model, the inputs of one call, and its multiply-accumulates by hand."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    macs: int


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions beside the identity, or beside a 1 × 1 one where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        beside = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + beside)


def resnet18() -> nn.Module:
    """He et al. 2016, table 1, 18 layers, 224 × 224 pixels, 1,000 classes."""
    widths = [64, 64, 128, 256, 512]
    blocks = [block for stage in range(4) for block in (
        BasicBlock(widths[stage], widths[stage + 1], 2 if stage else 1),
        BasicBlock(widths[stage + 1], widths[stage + 1], 1))]
    return nn.Sequential(
        nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(512, 1000))


def resnet18_macs(pixels: int) -> int:
    stem = (pixels // 2) ** 2 * 64 * 3 * 7**2
    first = (pixels // 4) ** 2 * 4 * 64 * 64 * 3**2
    later = sum(
        (pixels // stride) ** 2 * (wide * wide // 2 * 3**2 + 3 * wide * wide * 3**2
                                   + wide * wide // 2)
        for stride, wide in ((8, 128), (16, 256), (32, 512)))
    return stem + first + later + 512 * 1000


class FusedAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(batch, tokens, width))


class ViTBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = FusedAttention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """The shape of vit_tiny_patch16_224: 196 patches and a class token, width 192, 12 blocks."""

    def __init__(self, width: int = 192, depth: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 197, width))
        self.blocks = nn.Sequential(*(ViTBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


def vit_macs() -> int:
    tokens, width = 197, 192
    block = 12 * tokens * width**2 + 2 * tokens**2 * width
    return 196 * width * 3 * 16**2 + 12 * block + width * 1000


class Conv1D(nn.Module):
    """As in GPT-2: a Linear with the weight transposed, that calls ``torch.addmm`` itself."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.nf = outputs
        self.weight = nn.Parameter(0.02 * torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:-1], self.nf)
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(shape)


class GPT2Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.attn_proj = Conv1D(3 * width, width), Conv1D(width, width)
        self.c_fc, self.mlp_proj = Conv1D(4 * width, width), Conv1D(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = (
            part.view(batch, tokens, self.heads, -1).transpose(1, 2)
            for part in self.c_attn(self.ln_1(x)).split(width, 2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn_proj(y.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class GPT2(nn.Module):
    """The head's weight is the embedding's."""

    def __init__(self, words: int = 5000, width: int = 256, depth: int = 4) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(words, width), nn.Embedding(128, width)
        self.h = nn.ModuleList(GPT2Block(width, 4) for _ in range(depth))
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, words, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


def gpt2_macs() -> int:
    tokens, width, words = 128, 256, 5000
    block = 12 * tokens * width**2 + 2 * tokens**2 * width
    return 4 * block + tokens * width * words


class LSTMClassifier(nn.Module):
    """Embedding, LSTM, and a Linear on the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, 32)
        self.lstm = nn.LSTM(32, 64, batch_first=True)
        self.head = nn.Linear(64, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.lstm(self.embed(ids))[0][:, -1])


def lstm_macs(steps: int) -> int:
    return steps * 4 * 64 * (32 + 64) + 64 * 2


MODELS = {
    "resnet18-like": Example(resnet18, lambda: torch.randn(1, 3, 224, 224), resnet18_macs(224)),
    "resnet18-like, 32 px": Example(resnet18, lambda: torch.randn(1, 3, 32, 32), resnet18_macs(32)),
    "ViT-like": Example(ViT, lambda: torch.randn(1, 3, 224, 224), vit_macs()),
    "GPT-2-like": Example(GPT2, lambda: torch.randint(5000, (1, 128)), gpt2_macs()),
    "LSTM, 5 steps": Example(LSTMClassifier, lambda: torch.randint(100, (1, 5)), lstm_macs(5)),
    "LSTM, 500 steps": Example(
        LSTMClassifier, lambda: torch.randint(100, (1, 500)), lstm_macs(500)),
}
