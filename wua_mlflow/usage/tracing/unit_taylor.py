"""First-order Taylor terms Σ a·g of units, where the gradients of their weights do not give them.

For a unit Σ w x + b, Σ a·g is Σ w · gradient + b · gradient: no activation is needed. That fails
for the hidden state of a recurrent layer and for a unit whose weight is used elsewhere too: there
hooks sum the products of activation and gradient while the backward runs.
Tests: ``tests/usage/tracing/test_unit_taylor.py``.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from wua_mlflow.hooks import on_gradient
from wua_mlflow.usage.tracing.layer import TracedLayer
from wua_mlflow.usage.tracing.recurrent import UnitConsumers
from wua_mlflow.usage.tracing.sums import by_unit, unit_sums, wide

__all__ = ["UnitTaylor"]


class UnitTaylor:
    """Σ a·g of one batch, by layer, shape (units,); of the loss whose backward came last."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self._weights: dict[tuple[str, int], Tensor] = {}

    def track_output(self, layer: TracedLayer, output: Tensor) -> None:
        """Sum over a product's output, the activations of the units."""
        self._track(layer.name, output,
                    lambda terms: unit_sums(by_unit(terms, layer.spatial, layer.unit_dim)))

    def track_bias(self, layer: TracedLayer, bias: Tensor, result: Tensor) -> None:
        """Add what a bias that is added later contributes to an output that is tracked."""
        if result.requires_grad:
            values = bias.detach().reshape(-1).clone()
            on_gradient(result, lambda gradient: self._add(layer.name, values * unit_sums(
                by_unit(gradient, layer.spatial, layer.unit_dim))))

    def track_states(self, layer: TracedLayer, consumers: UnitConsumers) -> None:
        """Sum over all that reads the units of a recurrent layer.

        For an LSTM and a plain RNN the sum is the hidden state's own. What a GRU's unit carries
        over by itself to its next step is no reader. A state that the layer was given counts where
        it was made, not once more as what the weight multiplies; so does every state of a cell.
        """
        if consumers.state is not None:
            self._track(layer.name, consumers.state, unit_sums)
            return
        if consumers.states is not None:
            outputs, first, last, direction = consumers.states
            units = layer.units

            def over_samples(terms: Tensor) -> Tensor:
                return unit_sums(terms[direction].reshape(-1, units))

            self._track(layer.name, outputs, lambda terms: unit_sums(
                terms.narrow(-1, direction * units, units).reshape(-1, units)))
            self._track(layer.name, last, over_samples)
            self._track(layer.name, first, lambda terms: -over_samples(terms))
        if consumers.weight.requires_grad:
            self._weights[layer.name, id(consumers.weight)] = consumers.weight

    def weights(self) -> list[tuple[str, Tensor]]:
        """Each layer's name with the weight that reads its units; ``add_gradient`` wants these."""
        return [(name, weight) for (name, _), weight in self._weights.items()]

    def add_gradient(self, name: str, weight: Tensor, gradient: Tensor | None) -> None:
        """Add the terms of a layer's units that a weight reads through its columns."""
        if gradient is not None:
            self._add(name, (weight.detach() * gradient.detach()).sum(0, dtype=wide(weight)))

    def _track(self, name: str, output: Tensor, by_units: Callable[[Tensor], Tensor]) -> None:
        if output.requires_grad:
            values = output.detach().clone()  # a function in place may change them
            on_gradient(output, lambda gradient: self._add(name, by_units(values * gradient)))

    def _add(self, name: str, sums: Tensor) -> None:
        exact = sums if sums.device.type == "mps" else sums.double()
        self.sums[name] = self.sums[name] + exact if name in self.sums else exact
