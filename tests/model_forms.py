"""One model of every form that the analysis meets, with data for it: see ``FORMS``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tests.networks import Layers, cnn, encoder, mlp, reader, restless, rows, tokens


def net(seed: int = 0, **others: nn.Module | nn.Parameter) -> dict[str, Any]:
    """Two layers, and others."""
    torch.manual_seed(seed)
    return {"first": nn.Linear(3, 4), **others, "head": nn.Linear(4, 2)}


def matrix(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(1)))


def through(middle: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """first, then ``middle``, then head."""
    return lambda model, x: model.head(middle(model, torch.relu(model.first(x))))


def exported(model: nn.Module, x: Tensor) -> nn.Module:
    batch = torch.export.Dim("batch", min=2)
    return torch.export.export(model.eval(), (x,), dynamic_shapes=({0: batch},)).module()


def with_part(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return Layers(through(lambda model, h: model.inner(h)), **net(inner=wrap(nn.Linear(4, 4))))


def swapped(model: Any, h: Tensor) -> Tensor:
    halves = {name: weight / 2 for name, weight in model.inner.named_parameters()}
    return torch.func.functional_call(model.inner, halves, (h,))


def bag() -> nn.Module:
    torch.manual_seed(0)
    return Layers(lambda model, ids: model.head(model.first(model.bag(ids))), bag=nn.EmbeddingBag(
        20, 3), first=nn.Linear(3, 4), head=nn.Linear(4, 2))


def complex_part() -> nn.Module:
    parts = net(wave=nn.Linear(4, 4, dtype=torch.complex64))
    return Layers(through(lambda model, h: model.wave(h.to(
        torch.complex64)).abs().to(h.dtype)), **parts)


def integer_part() -> nn.Module:
    parts = net(codes=nn.Parameter(torch.randint(-3, 3, (4, 4)), requires_grad=False))
    return Layers(through(lambda model, h: functional.linear(
        (4 * h).long(), model.codes).to(h.dtype)), **parts)


def dequantised_part() -> nn.Module:
    """A weight-only quantised layer: whole numbers and a scale, multiplied in the forward."""
    parts = net(codes=nn.Parameter(torch.randint(-3, 3, (4, 4)), requires_grad=False),
                scale=nn.Parameter(torch.full((4, 1), 0.1)))
    return Layers(through(lambda model, h: functional.linear(
        h, model.codes * model.scale)), **parts)


def every_part() -> nn.Module:
    """Everything that is no product which is analysed, in one model."""
    torch.manual_seed(0)
    return Layers(
        through(lambda model, h: torch.einsum("bi,ij->bj", h, model.ein)
                + torch.bmm(h[:, None], model.experts[0].expand(len(h), -1, -1))[:, 0]
                + (h @ model.stack).sum(0) + torch.tensordot(h, model.dot, 1)
                + model.norm(h) + model.cell(h) + (h @ model.column)[:, None]
                + model.prelu(h) + model.gain * h),
        **net(ein=matrix(4, 4), experts=matrix(2, 4, 4), stack=matrix(2, 4, 4), dot=matrix(4, 4),
              norm=nn.LayerNorm(4), cell=nn.RNNCell(4, 4), column=matrix(4), spare=matrix(2, 2),
              prelu=nn.PReLU(4), gain=matrix(1, 4), never=nn.Bilinear(2, 2, 2)))


FORMS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Any], tuple[str, ...]]] = {
    "mlp": (lambda: mlp(3, 16, 8, 2), lambda n: rows(n, 3), ()),
    "cnn": (cnn, lambda n: rows(n, 3, 8, 8), ()),
    "attention": (encoder, tokens, ()),
    "lstm": (reader, tokens, ()),
    "restless": (restless, lambda n: rows(n, 3), ()),
    "compiled": (lambda: torch.compile(mlp(3, 4, 2), backend="eager"), lambda n: rows(n, 3), ()),
    "compiled part": (lambda: with_part(functools.partial(torch.compile, backend="eager")),
                      lambda n: rows(n, 3), ()),
    "data parallel": (lambda: nn.DataParallel(mlp(3, 4, 2)), lambda n: rows(n, 3), ()),
    "exported": (lambda: exported(mlp(3, 4, 2), rows(4, 3)), lambda n: rows(n, 3), ()),
    "exported cnn": (lambda: exported(cnn(), rows(4, 3, 8, 8)), lambda n: rows(n, 3, 8, 8), ()),
    "functional call": (lambda: Layers(through(swapped), **net(inner=nn.Linear(4, 4))),
                        lambda n: rows(n, 3), ("inner",)),
    "checkpointed": (lambda: Layers(through(lambda model, h: checkpoint(
        model.inner, h, use_reentrant=False)), **net(inner=nn.Linear(4, 4))),
        lambda n: rows(n, 3), ()),
    "scripted part": (lambda: with_part(torch.jit.script), lambda n: rows(n, 3), ()),
    "bag": (bag, tokens, ()),
    "complex part": (complex_part, lambda n: rows(n, 3), ()),
    "integer part": (integer_part, lambda n: rows(n, 3), ()),
    "dequantised part": (dequantised_part, lambda n: rows(n, 3), ("",)),
    "everything else": (every_part, lambda n: rows(n, 3), ()),
}
"""By name: what makes the model, what makes so many samples, the modules that make a weight."""
