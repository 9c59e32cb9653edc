"""``LayerRegistry``: the layers of a model, each made and named at the first call of its weight.

Tests: ``tests/usage/test_analyze.py``, ``tests/usage/test_layer_kinds.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from wua_mlflow.usage.tracing.attention import heads_of
from wua_mlflow.usage.tracing.calls import WeightCall
from wua_mlflow.usage.tracing.layer import TracedLayer
from wua_mlflow.usage.tracing.parameters import (
    ParameterIndex,
    ParameterView,
    UnregisteredWeights,
    integer_quantised,
    kind_of,
    layer_name,
)
from wua_mlflow.usage.tracing.recurrent import RecurrentCall

__all__ = ["LayerRegistry"]


class LayerRegistry:
    """Finds the layer of a weight, and records why a weight is in none.

    Attributes:
        index: the model's parameters and modules.
        is_requested: whether a layer of a name is to be analysed.
        layers: by name, in the order of their first calls.
        unsupported: by layer, why its weight cannot be analysed.
        other_uses: by parameter, the function that computed with it in another way.
        not_requested: layers that were called and are not to be analysed.
    """

    def __init__(self, model: nn.Module, is_requested: Callable[[str], bool]) -> None:
        self.index = ParameterIndex(model)
        self.is_requested = is_requested
        self.layers: dict[str, TracedLayer] = {}
        self.unsupported: dict[str, str] = {}
        self.other_uses: dict[str, str] = {}
        self.not_requested: set[str] = set()
        self._unregistered = UnregisteredWeights(self.index)
        self._layer_by_weight: dict[object, TracedLayer | None] = {}

    def is_weight(self, call: WeightCall, view: ParameterView | None) -> bool:
        """Whether what a call multiplied with is a parameter's view, or computed by a module.

        Functions that always take a weight are trusted to; a plain matrix product is not.

        Args:
            call: of what may be a weight.
            view: of the parameter that it is, if it is one.
        """
        if view is not None:
            return call.always_a_weight or not self.is_of_two_parameters(call)
        module_name = self.index.running[-1] if self.index.running else None
        computed = False
        if module_name is not None and call.always_a_weight:
            module = self.index.modules[module_name]
            computed = any(True for _ in module.parameters(recurse=False)) \
                or torch.nn.utils.parametrize.is_parametrized(module)
        reason = self._unregistered.explain(call, module_name, computed=computed)
        if reason is not None:
            self.unsupported.setdefault(*reason)
        return computed and reason is None

    def is_of_two_parameters(self, call: WeightCall) -> bool:
        """Whether both factors are parameters: in a plain matrix product, the two make a weight."""
        return all(self.index.find(factor) is not None for factor in (call.weight, call.inputs[0]))

    def layer_of(self, call: WeightCall, view: ParameterView | None) -> TracedLayer | None:
        """The layer of a call's weight; None if it is not analysed.

        Args:
            call: of the weight.
            view: of a parameter, that the weight is; None if a module computed it.
        """
        module_name = self.index.running[-1] if self.index.running else ""
        weight, geometry = call.weight, call.geometry
        identity = view or (module_name, tuple(weight.shape), weight.storage_offset())
        key = (identity, call.operation, geometry and (geometry.transposed, geometry.groups))
        if key not in self._layer_by_weight:
            bias = None if call.bias is None else self.index.find(call.bias)
            self._layer_by_weight[key] = self._new_layer(call, view, bias, module_name)
        return self._layer_by_weight[key]

    def recurrent_layer_of(self, call: RecurrentCall) -> TracedLayer | None:
        """The layer of a weight of a recurrent network; None if it is not analysed."""
        view = self.index.find(call.weight)
        if view is None or not self.is_requested(view.parameter):
            return None
        key = (view, "recurrent")
        if key not in self._layer_by_weight:
            owner = view.parameter.rpartition(".")[0]
            self._layer_by_weight[key] = self.layers[view.parameter] = TracedLayer(
                view.parameter, kind_of(self.index.modules[owner], "weight", "recurrent"), owner,
                "recurrent", call.weight.shape[0] // call.gates, view=view, gates=call.gates,
                bias=self.index.find(call.biases[0]) if call.biases else None,
                hidden_input=call.inputs is None, hidden_output=call.outputs is None,
                has_own_taylor=True)
        return self._layer_by_weight[key]

    def _new_layer(
        self, call: WeightCall, view: ParameterView | None, bias: ParameterView | None,
        module_name: str,
    ) -> TracedLayer | None:
        name: str | None
        if view is None:
            owner, attribute, name = module_name, "weight", self._computed_name(module_name)
        else:
            owner, _, attribute = view.parameter.rpartition(".")
            name = self._name_of_view(view, call.operation)
        if name is None or not self._can_analyse(name, call.weight):
            return None
        shape, geometry = call.weight.shape, call.geometry
        groups, transposed = (geometry.groups, geometry.transposed) if geometry else (1, False)
        unit_dim = 1 if transposed or call.operation == "embedding" else 0
        units = shape[unit_dim] * groups if transposed else shape[unit_dim]
        heads, head_parts = heads_of(self.index, owner, units)
        self.layers[name] = TracedLayer(
            name, kind_of(self.index.modules.get(owner, nn.Module()), attribute, call.operation),
            owner, call.operation, units, spatial=len(shape) - 2 if geometry else 0, view=view,
            computed=call.weight.detach() if view is None else None, bias=bias, groups=groups,
            transposed=transposed, heads=heads, head_parts=head_parts,
            has_own_taylor=self.index.is_tied(view) or self.index.may_share_bias(bias, owner)
            or (bias is None and call.bias is not None))
        return self.layers[name]

    def _computed_name(self, module_name: str) -> str:
        """The name of a weight that a module computed, numbered from its second one on."""
        others = sum(layer.module == module_name and layer.view is None
                     for layer in self.layers.values())
        return f"{module_name}[{others + 1}]" if others else module_name

    def _name_of_view(self, view: ParameterView, operation: str) -> str | None:
        """The name, with its indices where it is of a slice; None where it overlaps another."""
        module = self.index.modules.get(view.parameter.rpartition(".")[0], nn.Module())
        name = layer_name(view.parameter, view, module)
        subscript = view.subscript(self.index.parameters[view.parameter])
        if subscript is not None and not view.parameter.endswith("in_proj_weight"):
            name = f"{name}[{subscript}]"
        for layer in self.layers.values():
            if layer.view and layer.view.parameter == view.parameter and layer.view.overlaps(view):
                if not layer.view.is_same_as(view):
                    shown = name if name != layer.name else f"{name}[{view.offset}]"
                    self.unsupported[shown] = f"overlaps '{layer.name}', which is counted"
                elif len(self.index.aliases[view.parameter]) == 1:  # else a name says it
                    self.other_uses.setdefault(view.parameter, operation)
                return None
        return name

    def _can_analyse(self, name: str, weight: Tensor) -> bool:
        """Whether a weight can be analysed and is to be; the reason is recorded if not."""
        if weight.is_complex():
            self.unsupported[name] = "its weight is complex"
        elif not weight.is_floating_point():
            self.unsupported[name] = integer_quantised(weight.dtype)
        elif not weight.numel():
            self.unsupported[name] = f"it has no weights: its shape is {tuple(weight.shape)}"
        elif not self.is_requested(name):
            self.not_requested.add(name)
        else:
            return True
        return False
