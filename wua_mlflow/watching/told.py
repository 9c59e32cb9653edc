"""What a layer learns from one product, one recurrence, or a ReLU that comes after it.

May import: torch, its own package. Tests: ``tests/watching/test_told.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wua_mlflow.watching.calls import Product
from wua_mlflow.watching.layer import Alive, Layer
from wua_mlflow.watching.masks import Mask
from wua_mlflow.watching.recurrent import Recurrence
from wua_mlflow.watching.sums import by_unit, input_sums, output_sums

__all__ = ["Needs", "Positions", "mark", "pass_on", "see_relu", "tell_product", "tell_recurrence"]


@dataclass(frozen=True)
class Needs:
    """What is gathered: sums of outputs, sums of |x|^power of inputs, gradients, sampled rows."""

    output: bool = True
    powers: frozenset[int] = frozenset()
    gradient: bool = False
    rows: bool = False


@dataclass(frozen=True)
class Positions:
    """Which positions of the batch count, and whether they come before the samples just now."""

    mask: Mask | None = None
    time_first: bool = False

    def masked(self, rows: Tensor, lead: Any) -> Tensor:
        """Rows of activations with those that do not count set to zero."""
        found = self.mask.rows(lead, time_first=self.time_first) if self.mask else None
        return rows if found is None else rows.masked_fill(~found[0].unsqueeze(-1), 0)


def tell_product(
    layer: Layer, product: Product, output: Tensor, needs: Needs, positions: Positions
) -> None:
    """Add a product's sums to the layer's."""
    mask, first = positions.mask, positions.time_first
    layer.calls += 1
    if layer.computed is not None and layer.calls == 2:
        layer.changes = not torch.equal(layer.computed, product.weight.detach())
    if needs.output:
        layer.output.add(*output_sums(product, output, mask, time_first=first))
    for power in needs.powers:
        layer.inputs[power].add(*input_sums(product, output, power, mask, time_first=first))
    rows = by_unit(output, product.spatial, product.unit_dim)
    if layer.alive is None:
        layer.alive = Alive(layer.units, output.device, above=False)
    layer.alive.see(positions.masked(rows, output.shape[:-1]) if rows.dim() == 2 else rows)


def tell_recurrence(
    layer: Layer, one: Recurrence, needs: Needs, positions: Positions
) -> None:
    """Add a recurrent layer's sums: of its hidden states, and of what its weight multiplies."""
    layer.calls += 1
    if one.outputs is not None:
        rows = one.outputs.reshape(-1, layer.units)
        if needs.output:
            layer.output.add(*_summed(one.outputs, 0, positions))
        layer.alive = layer.alive or Alive(layer.units, rows.device, above=False)
        layer.alive.see(positions.masked(rows, one.outputs.shape[:-1]))
    for power in needs.powers if one.inputs else ():
        sums, count = _summed(one.inputs[0], power, positions)
        for extra, sign in (*((x, 1) for x in one.inputs[1:]), *((x, -1) for x in one.minus)):
            more, amount = _summed(extra, power, Positions())
            sums, count = sums + sign * more, count + sign * amount
        layer.inputs[power].add(sums.unsqueeze(0), count)


def _summed(tensor: Tensor, power: int, positions: Positions) -> tuple[Tensor, int]:
    """Σ x (power 0) or Σ |x|^power of the last dimension's entries."""
    product, first = Product("linear", tensor, (tensor,)), positions.time_first
    if power == 0:
        return output_sums(product, tensor, positions.mask, time_first=first)
    sums, count = input_sums(product, tensor, power, positions.mask, time_first=first)
    return sums.squeeze(0), count


def mark(output: Tensor, layer: Layer) -> None:
    """Note on the tensor itself whose units it has, for what comes after."""
    output.wua_layer = layer  # type: ignore[attr-defined]


def pass_on(source: Any, result: Tensor) -> None:
    """After a function that leaves the units in their places."""
    layer = getattr(source, "wua_layer", None)
    if layer is not None and result is not source:
        mark(result, layer)


def see_relu(tensor: Any) -> None:
    """A ReLU is about to be applied to what a layer gave: is any of its units above zero?"""
    layer = getattr(tensor, "wua_layer", None)
    if layer is None:
        return
    rows = by_unit(tensor.detach(), layer.spatial)
    if rows.shape[1] == layer.units:
        if layer.alive_after_relu is None:
            layer.alive_after_relu = Alive(layer.units, tensor.device, above=True)
        layer.alive_after_relu.see(rows)
