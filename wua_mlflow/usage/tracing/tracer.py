"""``WeightTracer``: adds every product of a weight in a forward to the layer of that weight.

A ``TorchFunctionMode`` sees the function calls themselves, so that it does not matter whether a
module, a subclass, a fused attention or the model's own code makes them.
Tests: ``tests/usage/tracing/test_tracer.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.overrides import TorchFunctionMode

from wua_mlflow.usage.tracing.attention import (
    ATTENTION,
    attention,
    heads_of,
    is_time_first,
    split_qkv,
)
from wua_mlflow.usage.tracing.calls import CALL_PARSERS, WeightCall, name_of
from wua_mlflow.usage.tracing.layer import RequiredStats, TracedLayer
from wua_mlflow.usage.tracing.op_tables import (
    PRODUCTS,
    RESHAPE_OPS,
    SUMS,
    UNITWISE_OPS,
    is_metadata_op,
    is_relu,
)
from wua_mlflow.usage.tracing.parameters import (
    ParameterIndex,
    ParameterView,
    UnregisteredWeights,
    integer_quantised,
    kind_of,
    layer_name,
)
from wua_mlflow.usage.tracing.recurrent import RECURRENT, RecurrentCall, run_by_layer
from wua_mlflow.usage.tracing.sums import PaddingMask, ValidPositions
from wua_mlflow.usage.tracing.tags import (
    find_added_bias,
    propagate_output,
    propagate_units,
    tag,
    tag_of,
)
from wua_mlflow.usage.tracing.unit_taylor import UnitTaylor

__all__ = ["WeightTracer"]


class WeightTracer(TorchFunctionMode):
    """A mode to enter around each forward; before each set ``mask``, ``unit_taylor`` and the like.

    Attributes:
        index: the model's parameters and modules.
        required: which statistics are gathered.
        is_requested: whether a layer of a name is to be analysed.
        layers: by name, in the order of their first calls.
        output_layers: those of the last product so far; the model's outputs are their units.
        unsupported: by layer, why its weight cannot be analysed.
        other_uses: by parameter, the function that computed with it in another way.
        not_requested: layers that were called and are not to be analysed.
        running: the modules whose forward is under way, the innermost last (``hooks.running``).
        mask: which positions of the batch are real; all, if None.
        computed_weights: of the batch: the weights that modules computed, each with its layer.
        unit_taylor: of the batch.
        on_call: called with a layer, its call, its output and the positions that count.
    """

    def __init__(
        self, model: nn.Module, required: RequiredStats, is_requested: Callable[[str], bool]
    ) -> None:
        super().__init__()
        self.index = ParameterIndex(model)
        self.required, self.is_requested = required, is_requested
        self.layers: dict[str, TracedLayer] = {}
        self.output_layers: list[TracedLayer] = []
        self.unsupported: dict[str, str] = {}
        self.other_uses: dict[str, str] = {}
        self.not_requested: set[str] = set()
        self.running: list[str] = []
        self.mask: PaddingMask | None = None
        self.computed_weights: list[tuple[TracedLayer, Tensor]] = []
        self.unit_taylor = UnitTaylor()
        self.on_call: Callable[[TracedLayer, WeightCall, Tensor, ValidPositions], object] | None \
            = None
        self._unregistered = UnregisteredWeights(self.index)
        self._time_first = False
        self._layer_by_weight: dict[object, TracedLayer | None] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is ATTENTION:
            return self._run_attention(args, kwargs)
        if func in RECURRENT and not kwargs:
            self.output_layers = []
            return run_by_layer(func, args, self._add_recurrent_call)
        name = name_of(func)
        result = self._add_late_bias(func, args, kwargs) if name in SUMS else None
        if result is not None:
            self._record_other_uses(name, args, kwargs)
            return result
        result = self._run(func, name, args, kwargs)
        parse = CALL_PARSERS.get(func)
        if parse is not None:
            if is_functorch_wrapped_tensor(result):
                name += " inside torch.func"
            elif any(self._add_call(call, result) for call in parse(args, kwargs)):
                return result
        if not is_metadata_op(name, result):
            self._record_other_uses(name, args, kwargs)
        return result

    def _run(self, func: Any, name: str, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """The function's result, tagged where it has a layer's units in their places."""
        if name not in UNITWISE_OPS and name not in RESHAPE_OPS:
            return func(*args, **kwargs)
        source: Any = args[0] if args else None
        before, relu = tag_of(source), is_relu(name, args, kwargs)
        if relu and before.layer is not None and not before.flat:
            before.layer.record_relu_input(source, self._valid_positions())
        result = func(*args, **kwargs)
        if not isinstance(result, Tensor):
            return result
        if name in RESHAPE_OPS and args:
            propagate_output(source, result)
        elif result is not source or tag_of(source).layer is not before.layer:
            propagate_units(before, result, flattened=name == "flatten")
        if relu:
            tag(result, positive=True)
        return result

    def _run_attention(self, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """Run attention's own code in this mode: its four projections are products like others."""
        before, self._time_first = self._time_first, True
        try:
            with self:
                return attention(*args, **kwargs)
        finally:
            self._time_first = before

    def _add_late_bias(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """The result of a sum that adds a bias to a layer's product; None for any other sum."""
        terms = find_added_bias((*args, *kwargs.values()))
        view = None if terms is None else self.index.find(terms[2], self.running)
        if terms is None or view is None or terms[1].bias not in (None, view):
            return None
        (product, layer, bias), result = terms, func(*args, **kwargs)
        layer.bias = view
        tag(product, product=None)  # it may be added once more to the same product
        layer.add_bias(bias, result, self.required, self._valid_positions())
        if self.required.gradient and layer.has_own_taylor:
            self.unit_taylor.track_bias(layer, bias, result)
        return result

    def _record_other_uses(self, name: str, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Record the parameters that a function computed with, other than in a traced product."""
        for value in (*args, *kwargs.values()):
            for tensor in value if isinstance(value, list | tuple) else (value,):
                if not isinstance(tensor, Tensor):
                    continue
                source = tensor if tensor._base is None else tensor._base
                if isinstance(source, nn.Parameter) and source.dim() > 1:
                    parameter = self.index.name(source, self.running)
                    if parameter is not None:
                        self.other_uses.setdefault(parameter, name)
                        if name in PRODUCTS:
                            self.output_layers = []

    def _add_call(self, call: WeightCall, output: Any) -> bool:
        """Whether a call multiplied with a weight; if so, it is added to the weight's layer."""
        weight = call.weight
        if not isinstance(output, Tensor) or not isinstance(weight, Tensor) or weight.dim() < 2:
            return False
        view = self.index.find(weight, self.running)
        if view is None and not self._is_computed_weight(call):
            return False
        if view is not None and self.index.find(call.inputs[0], self.running):
            return False  # two parameters make a weight
        for part, part_output, part_view in split_qkv(
                call, output, view, self.index, self.running):
            layer = self._layer_of(part, part_view)
            if layer is not None:
                self._add_to_layer(layer, part, part_output)
        return True

    def _is_computed_weight(self, call: WeightCall) -> bool:
        """Whether a weight that is no parameter was computed by the running module.

        Functions that always take a weight are trusted to; a plain matrix product is not.
        """
        module_name = self.running[-1] if self.running else None
        computed = False
        if module_name is not None and call.always_a_weight:
            module = self.index.modules[module_name]
            computed = any(True for _ in module.parameters(recurse=False)) \
                or torch.nn.utils.parametrize.is_parametrized(module)
        reason = self._unregistered.explain(call, module_name, computed=computed)
        if reason is not None:
            self.unsupported.setdefault(*reason)
        return computed and reason is None

    def _add_to_layer(self, layer: TracedLayer, call: WeightCall, result: Tensor) -> None:
        output, positions = result.detach(), self._valid_positions()
        if self.on_call is not None:
            self.on_call(layer, call, output, positions)
        layer.add_call(call, output, self.required, positions)
        if self.required.gradient and layer.computed is not None:
            self.computed_weights.append((layer, call.weight))
        if self.required.gradient and layer.has_own_taylor:
            self.unit_taylor.track_output(layer, result)
        if layer.unit_dim == -1:
            tag(result, layer=layer, call=layer.calls, product=layer)
        else:
            tag(result, product=layer)

    def _valid_positions(self) -> ValidPositions:
        time_first = self._time_first
        if self.mask is not None and not time_first:
            time_first = any(is_time_first(self.index.modules[name]) for name in self.running)
        return ValidPositions(self.mask, time_first)

    def _layer_of(self, call: WeightCall, view: ParameterView | None) -> TracedLayer | None:
        """The layer of a call's weight, made at its first call; None if it is not analysed."""
        module_name = self.running[-1] if self.running else ""
        weight, geometry = call.weight, call.geometry
        identity = view or (module_name, tuple(weight.shape), weight.storage_offset())
        key = (identity, call.operation, geometry and (geometry.transposed, geometry.groups))
        if key not in self._layer_by_weight:
            layer = self._new_layer(call, view, module_name)
            if layer is not None:
                self.layers[layer.name] = layer
            self._layer_by_weight[key] = layer
        layer = self._layer_by_weight[key]
        self.output_layers = [] if layer is None else [layer]
        return layer

    def _new_layer(
        self, call: WeightCall, view: ParameterView | None, module_name: str
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
        units = shape[1] * groups if transposed else shape[
            1 if call.operation == "embedding" else 0]
        bias = None if call.bias is None else self.index.find(call.bias, self.running)
        heads, head_parts = heads_of(self.index, owner, units)
        return TracedLayer(
            name,
            kind_of(self.index.modules.get(owner, nn.Module()), attribute, call.operation),
            owner,
            call.operation,
            units,
            spatial=len(shape) - 2 if geometry else 0,
            view=view,
            computed=call.weight.detach() if view is None else None,
            bias=bias,
            groups=groups,
            transposed=transposed,
            heads=heads,
            head_parts=head_parts,
            has_own_taylor=self.index.is_tied(view) or self.index.may_share_bias(bias, owner)
            or (bias is None and call.bias is not None),
        )

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

    def _add_recurrent_call(self, call: RecurrentCall) -> None:
        """Add the call of one weight of a recurrent network to its layer."""
        view = self.index.find(call.weight, self.running)
        key = (view, "recurrent")
        if key not in self._layer_by_weight:
            self._layer_by_weight[key] = self._new_recurrent_layer(call, view)
        layer = self._layer_by_weight[key]
        if layer is None:
            return
        self.output_layers.append(layer)
        positions = ValidPositions(self.mask, call.time_first is True, call.time_first is None)
        if self.on_call is not None and call.outputs is not None:
            self.on_call(layer, WeightCall("linear", call.weight, (call.outputs,)),
                         call.outputs.detach(), positions)
        layer.add_recurrent_call(call, self.required, positions)
        if self.required.gradient and call.consumers is not None:
            self.unit_taylor.track_states(layer, call.consumers)

    def _new_recurrent_layer(
        self, call: RecurrentCall, view: ParameterView | None
    ) -> TracedLayer | None:
        if view is None or not self.is_requested(view.parameter):
            return None
        owner = view.parameter.rpartition(".")[0]
        layer = TracedLayer(
            view.parameter,
            kind_of(self.index.modules[owner], "weight", "recurrent"),
            owner,
            "recurrent",
            call.weight.shape[0] // call.gates,
            view=view,
            bias=self.index.find(call.biases[0], self.running) if call.biases else None,
            gates=call.gates,
            hidden_input=call.inputs is None,
            hidden_output=call.outputs is None,
            has_own_taylor=True,
        )
        self.layers[layer.name] = layer
        return layer
