"""Σ a·g of units whose own weights do not tell it: summed by hooks while the backward goes.

A unit that is Σ w x + b has Σ a·g = Σ w · gradient + b · its gradient, which needs no activation.
Not so the hidden state of a recurrent layer, nor a unit whose weight is used elsewhere too.
May import: torch, hooks, its own package. Tests: ``tests/watching/test_felt.py``.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from wua_mlflow.hooks import on_gradient
from wua_mlflow.usage.tracing.layer import TracedLayer
from wua_mlflow.usage.tracing.recurrent import UnitConsumers
from wua_mlflow.usage.tracing.sums import by_unit, wide

__all__ = ["UnitTaylor"]


class UnitTaylor:
    """Σ a·g of one batch, by a name, shape (units,); of the loss whose backward came last."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self._reading: dict[tuple[str, int], Tensor] = {}

    def product(self, layer: TracedLayer, output: Tensor) -> None:
        """Follow a product's output, the units' own."""
        self._follow(layer.name, output, lambda felt: _by_units(layer, felt))

    def bias(self, layer: TracedLayer, bias: Tensor, result: Tensor) -> None:
        """Follow what a bias adds to a product that is followed."""
        if result.requires_grad:
            values = bias.detach().reshape(-1).clone()
            on_gradient(result, lambda gradient: self._add(
                layer.name, values * _by_units(layer, gradient)))

    def states(self, layer: TracedLayer, readers: UnitConsumers) -> None:
        """Follow the units of a recurrent layer to all that reads them.

        Their a·g is summed over the readers: for an LSTM and a plain RNN that is the hidden state's
        own. What a GRU's unit carries over by itself to its next step is no reader. A state that
        the layer was given counts where it was made, not once more as what the weight reads.
        """
        name, units = layer.name, layer.units
        start = readers.direction * units

        def of_steps(felt: Tensor) -> Tensor:
            rows = felt.narrow(-1, start, units).reshape(-1, units)
            return rows.sum(0, dtype=wide(rows))

        def of_ends(felt: Tensor) -> Tensor:
            rows = felt[readers.direction].reshape(-1, units)
            return rows.sum(0, dtype=wide(rows))

        for gave, rule in ((readers.outputs, of_steps), (readers.ends, of_ends)):
            if gave is not None:
                self._follow(name, gave, rule)
        if readers.start is not None:
            self._follow(name, readers.start, lambda felt: -of_ends(felt))
        if readers.weight.requires_grad:
            self._reading[name, id(readers.weight)] = readers.weight

    def reading(self) -> list[tuple[str, Tensor]]:
        """The weights whose gradients ``read`` wants, each with the name that it reads."""
        return [(name, weight) for (name, _), weight in self._reading.items()]

    def read(self, name: str, weight: Tensor, gradient: Tensor | None) -> None:
        """Add what is felt of the units through the columns of a weight that reads them."""
        if gradient is not None:
            self._add(name, (weight.detach() * gradient.detach()).sum(0, dtype=wide(weight)))

    def _follow(self, name: str, output: Tensor, rule: Callable[[Tensor], Tensor]) -> None:
        if not output.requires_grad:
            return
        values = output.detach().clone()  # a function in place may change them
        on_gradient(output, lambda gradient: self._add(name, rule(values * gradient)))

    def _add(self, name: str, felt: Tensor) -> None:
        exact = felt if felt.device.type == "mps" else felt.double()
        self.sums[name] = self.sums[name] + exact if name in self.sums else exact


def _by_units(layer: TracedLayer, felt: Tensor) -> Tensor:
    rows = by_unit(felt, layer.spatial, layer.unit_dim)
    return rows.sum([0, 2] if rows.dim() == 3 else 0, dtype=wide(rows))
