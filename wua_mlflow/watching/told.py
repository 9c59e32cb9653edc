"""What a layer learns from one product, one recurrence, or a ReLU that comes after it.

May import: torch, its own package. Tests: ``tests/watching/test_told.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from wua_mlflow.watching.calls import Product
from wua_mlflow.watching.layer import Alive, Layer
from wua_mlflow.watching.marks import mark, noted
from wua_mlflow.watching.masks import Mask
from wua_mlflow.watching.recurrent import Recurrence
from wua_mlflow.watching.sums import by_unit, input_sums, kept, output_sums

__all__ = ["Needs", "Positions", "late_bias", "pass_on", "pass_on_product",
           "see_relu", "tell_bias", "tell_product",
           "tell_recurrence"]


@dataclass(frozen=True)
class Needs:
    """What is gathered: sums of outputs, sums of |x|^power of inputs, gradients, sampled rows."""

    output: bool = True
    powers: frozenset[int] = frozenset()
    gradient: bool = False
    rows: bool = False


@dataclass(frozen=True)
class Positions:
    """Which positions of the batch count, and whether they come before the samples just now.

    ``packed``: rows are of sequences of several lengths, and of no sample that could be told.
    """

    mask: Mask | None = None
    time_first: bool = False
    packed: bool = False

    def masked(self, rows: Tensor, lead: Any) -> Tensor:
        """Activations by unit with those that do not count set to zero."""
        return kept(rows, lead, self.mask, time_first=self.time_first)[0]


def tell_product(
    layer: Layer, product: Product, output: Tensor, needs: Needs, positions: Positions
) -> None:
    """Add a product's sums to the layer's."""
    mask, first = positions.mask, positions.time_first
    layer.calls += 1
    layer.flops += product.flops(output)
    if layer.computed is not None and layer.calls == 2:
        layer.changes = not torch.equal(layer.computed, product.weight.detach())
    if needs.output:
        layer.output.add(*output_sums(product, output, mask, time_first=first))
    for power in needs.powers:
        sums, count = input_sums(product, output, power, mask, time_first=first)
        layer.inputs[power].add(sums, count)
        if power == 2:
            _see_overflow(layer, sums, product.inputs)
    rows = by_unit(output, product.spatial, product.unit_dim)
    if layer.alive is None:
        layer.alive = Alive(layer.units, output.device, above=False)
    layer.alive.see(positions.masked(rows, product.lead(output)))


def tell_recurrence(
    layer: Layer, one: Recurrence, needs: Needs, positions: Positions
) -> None:
    """Add a recurrent layer's sums: of its hidden states, and of what its weight multiplies."""
    layer.calls += 1
    layer.flops += one.flops
    if one.outputs is not None:
        rows = one.outputs.reshape(-1, layer.units)
        if needs.output:
            layer.output.add(*_summed(one.outputs, 0, positions))
        layer.alive = layer.alive or Alive(layer.units, rows.device, above=False)
        layer.alive.see(positions.masked(rows, one.outputs.shape[:-1]))
    met = one.met() if needs.powers else None
    for power in needs.powers if one.given is not None else ():
        if met is not None:
            sums, count = _summed(met, power, positions)
        else:
            sums, count = _of_packed_states(one, power)
        layer.inputs[power].add(sums.unsqueeze(0), count)
        if power == 2:
            _see_overflow(layer, sums, (cast(Tensor, one.given if met is None else met),))


def _see_overflow(layer: Layer, sums: Tensor, inputs: Sequence[Tensor]) -> None:
    """Are sums infinite though the inputs are finite? A GPU would have to wait: not asked there."""
    if sums.is_cuda or math.isfinite(float(sums.detach().sum())):  # none is below 0
        return
    if not bool(sums.isfinite().all()) and all(bool(one.isfinite().all()) for one in inputs):
        layer.overflow = sums.dtype


def _of_packed_states(one: Recurrence, power: int) -> tuple[Tensor, int]:
    """All states and the one before them, without the last ones; never below zero by rounding."""
    given, (first, last) = cast(Tensor, one.given), cast(tuple[Tensor, Tensor], one.ends)
    sums, count = _summed(given, power, Positions())
    before, after = (_summed(end, power, Positions())[0] for end in (first, last))
    return (sums + before - after).clamp_min(0), count


def _summed(tensor: Tensor, power: int, positions: Positions) -> tuple[Tensor, int]:
    """Σ x (power 0) or Σ |x|^power of the last dimension's entries."""
    product, first = Product("linear", tensor, (tensor,)), positions.time_first
    if power == 0:
        return output_sums(product, tensor, positions.mask, time_first=first)
    sums, count = input_sums(product, tensor, power, positions.mask, time_first=first)
    return sums.squeeze(0), count


def late_bias(terms: Sequence[Any]) -> tuple[Tensor, Layer, Tensor] | None:
    """Of what is added up a product, its layer, and what may be its bias; None where neither is."""
    for product, bias in (terms, terms[::-1]) if len(terms) == 2 else ():
        layer = noted(product, "product")
        if layer is not None and isinstance(bias, Tensor) and _is_by_unit(layer, bias):
            return product, layer, bias
    return None


def _is_by_unit(layer: Layer, tensor: Tensor) -> bool:
    """Whether a tensor has one number a unit, in the dimension that counts a layer's units."""
    place = tensor.dim() - 1 - layer.spatial if layer.unit_dim == -1 else tensor.dim() - 2
    return place >= 0 and tensor.shape[place] == layer.units == tensor.numel()


def tell_bias(
    layer: Layer, bias: Tensor, result: Tensor, needs: Needs, positions: Positions
) -> None:
    """A product's own bias was added to it afterwards: as if the product had had it."""
    rows = by_unit(result.detach(), layer.spatial, layer.unit_dim)
    shape = result.shape
    lead = shape[:-1] if layer.unit_dim == -1 else (*shape[:-2], shape[-1])
    if needs.output:
        count = kept(rows, lead, positions.mask, time_first=positions.time_first)[1]
        layer.output.add(bias.detach().reshape(-1).double() * count, 0)
    if layer.alive is not None:
        layer.alive.see(positions.masked(rows, lead))
    if layer.unit_dim == -1:
        mark(result, layer=layer, call=layer.calls, product=None)


def pass_on(layer: Layer, result: Tensor, *, flat: bool, call: int | None = None) -> None:
    """After a function that leaves a layer's units in their places.

    Args:
        layer: whose units the function was given.
        result: what it made of them.
        flat: whether it laid images out in rows, or was given such rows.
        call: of which call of the layer they came.
    """
    if flat and layer.spatial > 0:
        if result.dim() == 2:
            mark(result, layer=layer, call=call, product=None, flat=True)
    else:
        mark(result, layer=layer, call=call, product=None)


def pass_on_product(given: Tensor, result: Tensor) -> None:
    """After a view that leaves a product's rows whole: a bias may still be added to it."""
    layer = noted(given, "product")
    if layer is not None and not layer.spatial and layer.unit_dim == -1 \
            and result.shape[-1:] == given.shape[-1:]:
        mark(result, layer=layer, call=noted(given, "call"), product=layer)


def see_relu(tensor: Any, positions: Positions) -> None:
    """A ReLU is about to be applied to what a layer gave: is any of its units above zero?"""
    layer = noted(tensor, "layer")
    if layer is None or noted(tensor, "flat"):
        return
    rows = by_unit(tensor.detach(), layer.spatial)
    if rows.shape[1] == layer.units:
        if layer.alive_after_relu is None:
            layer.alive_after_relu = Alive(layer.units, tensor.device, above=True)
        layer.alive_after_relu.see(positions.masked(rows, tensor.shape[:-1]), noted(tensor, "call"))
