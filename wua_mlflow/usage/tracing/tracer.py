"""``WeightTracer``: adds every product of a weight in a forward to the layer of that weight.

A ``TorchFunctionMode`` sees the function calls themselves, so that it does not matter whether a
module, a subclass, a fused attention or the model's own code makes them.
Tests: ``tests/usage/test_analyze.py``, ``tests/usage/test_model_forms.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.overrides import TorchFunctionMode

from wua_mlflow.data.batches import PaddingMask
from wua_mlflow.usage.tracing.attention import ATTENTION, attention, is_time_first, split_qkv
from wua_mlflow.usage.tracing.calls import CALL_PARSERS, WeightCall, name_of
from wua_mlflow.usage.tracing.flow import Flow
from wua_mlflow.usage.tracing.grouped import grouped_operands, run_by_group
from wua_mlflow.usage.tracing.layer import RequiredStats, TracedLayer
from wua_mlflow.usage.tracing.op_tables import (
    CONTRACTIONS,
    RESHAPE_OPS,
    SUMS,
    UNITWISE_OPS,
    floored_at_zero,
    is_metadata_op,
    is_relu,
)
from wua_mlflow.usage.tracing.recurrent import (
    CELLS,
    RECURRENT,
    RecurrentCall,
    run_by_layer,
    run_cell,
)
from wua_mlflow.usage.tracing.registry import LayerRegistry
from wua_mlflow.usage.tracing.sums import ValidPositions
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
        registry: the model's layers; it fills as they are called.
        required: which statistics are gathered.
        output_layers: whose units the model's outputs are, of all forwards so far.
        mask: which positions of the batch are real; all, if None.
        computed_weights: of the batch: the weights that modules computed, each with its layer.
        unit_taylor: of the batch.
        on_call: called with a layer, its call, its output and the positions that count.
    """

    def __init__(self, registry: LayerRegistry, required: RequiredStats) -> None:
        super().__init__()
        self.registry, self.required = registry, required
        self.output_layers: dict[str, TracedLayer] = {}
        self.mask: PaddingMask | None = None
        self.computed_weights: list[tuple[TracedLayer, Tensor]] = []
        self.unit_taylor = UnitTaylor()
        self.on_call: Callable[[TracedLayer, WeightCall, Tensor, ValidPositions], object] | None \
            = None
        self._time_first = False
        self._flow = Flow()
        self._last_product: list[TracedLayer] = []

    def note_outputs(self, outputs: Any) -> None:
        """Find the layers whose units a forward's outputs are.

        Where that cannot be seen (a function of one's own for autograd, TorchScript) these are
        taken to be the layers of the last product.

        Args:
            outputs: what the model returned: a tensor, or what holds some.
        """
        layers = self._flow.layers_of(outputs)
        found = self._last_product if layers is None else layers
        self.output_layers |= {layer.name: layer for layer in found}
        self._flow, self._last_product = Flow(), []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is ATTENTION:
            return self._run_attention(args, kwargs)
        if func in RECURRENT and not kwargs:
            return self._run_recurrent(func, args)
        if func in CELLS and not kwargs:
            return self._run_cell(func, args)
        name = name_of(func)
        grouped = grouped_operands(name, args, kwargs)
        if grouped is not None:
            with self:
                return run_by_group(*grouped)
        result = self._add_late_bias(func, args, kwargs) if name in SUMS else None
        if result is not None:
            self._flow.hand_on(name, args, kwargs, result)
            self._record_other_uses(name, args, kwargs)
            return result
        result = self._run(func, name, args, kwargs)
        use = self._add_product(func, name, args, kwargs, result)
        if use is not None:
            self._flow.hand_on(name, args, kwargs, result)
            if not is_metadata_op(name, result):
                self._record_other_uses(name, args, kwargs, use)
        return result

    def _add_product(
        self, func: Any, name: str, args: Any, kwargs: Mapping[str, Any], result: Any
    ) -> str | None:
        """Add a product to its layer; of any other call, the words for how it used a parameter."""
        parse = CALL_PARSERS.get(func)
        if parse is None:
            return name
        if is_functorch_wrapped_tensor(result):
            return f"{name} inside torch.func"
        calls = parse(args, kwargs)
        if any(self._add_call(call, result) for call in calls):
            return None
        of_two = any(map(self.registry.is_of_two_parameters, calls))
        return f"{name} of two parameters" if of_two else name

    def _run(self, func: Any, name: str, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """The function's result, tagged where it has a layer's units in their places."""
        source: Any = floored_at_zero(name, args, kwargs)
        relu = source is not None or is_relu(name, args, kwargs)
        if name not in UNITWISE_OPS and name not in RESHAPE_OPS and not relu:
            return func(*args, **kwargs)
        source = args[0] if source is None and args else source
        before = tag_of(source)
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
        view = None if terms is None else self.registry.index.find(terms[2])
        if terms is None or view is None or terms[1].bias not in (None, view):
            return None
        (product, layer, bias), result = terms, func(*args, **kwargs)
        layer.bias = view
        tag(product, product=None)  # it may be added once more to the same product
        layer.add_bias(bias, result, self.required, self._valid_positions())
        if self.required.gradient and layer.has_own_taylor:
            self.unit_taylor.track_bias(layer, bias, result)
        return result

    def _record_other_uses(
        self, name: str, args: Any, kwargs: Mapping[str, Any], use: str = ""
    ) -> None:
        """Record the parameters that a function computed with, other than in a traced product."""
        for tensor in chain.from_iterable(value if isinstance(value, list | tuple) else (value,)
                                          for value in (*args, *kwargs.values())):
            base = tensor._base if isinstance(tensor, Tensor) else None
            source = tensor if base is None else base
            if isinstance(source, nn.Parameter) and source.dim() > 1:
                parameter = self.registry.index.name(source)
                if parameter is not None:
                    self.registry.other_uses.setdefault(parameter, use or name)
                    if name in CONTRACTIONS:
                        self._last_product = []

    def _add_call(self, call: WeightCall, output: Any) -> bool:
        """Whether a call multiplied with a weight; if so, it is added to the weight's layer."""
        weight = call.weight
        if not isinstance(output, Tensor) or not isinstance(weight, Tensor) or weight.dim() < 2:
            return False
        index = self.registry.index
        view = index.find(weight)
        if not self.registry.is_weight(call, view):
            return False
        layers = []
        for part, part_output, part_view in split_qkv(call, output, view, index):
            layer = self.registry.layer_of(part, part_view)
            layers.append(layer)
            if layer is not None:
                self._add_to_layer(layer, part, part_output)
        self._flow.add_product(layers, call.inputs, output)
        self._last_product = [layer for layer in layers[-1:] if layer is not None]
        return True

    def _add_to_layer(self, layer: TracedLayer, call: WeightCall, result: Tensor) -> None:
        output, positions = result.detach(), self._valid_positions()
        if self.on_call is not None:
            self.on_call(layer, call, output, positions)
        layer.add_call(call, output, self.required, positions)
        if self.required.gradient and layer.computed is not None:
            self.computed_weights.append((layer, call.weight))
        if self.required.gradient and layer.has_own_taylor:
            self.unit_taylor.track_output(layer, result)
        units = {"layer": layer, "call": layer.calls} if layer.unit_dim == -1 else {}
        tag(result, product=layer, **units)

    def _valid_positions(self) -> ValidPositions:
        time_first = self._time_first
        if self.mask is not None and not time_first:
            index = self.registry.index
            time_first = any(is_time_first(index.modules[name]) for name in index.running)
        return ValidPositions(self.mask, time_first)

    def _run_recurrent(self, func: Any, args: Any) -> Any:
        """Run a recurrent network; each of its layers is a product, the last one's are returned."""
        layers: list[TracedLayer | None] = []
        outputs, *states = run_by_layer(
            func, args, lambda call: layers.append(self._add_recurrent_call(call)))
        packed = isinstance(args[3], list | tuple)
        weights = len(layers) // args[5 if packed else 4]
        by_depth = [layers[start:start + weights] for start in range(0, len(layers), weights)]
        self._flow.add_recurrent(by_depth, (args[0], args[1 + packed]), outputs, states)
        self._last_product = [layer for layer in layers if layer is not None]
        return outputs, *states

    def _run_cell(self, func: Any, args: Any) -> Any:
        """Run one step of a recurrent layer, which is a product."""
        layers: list[TracedLayer | None] = []
        result = run_cell(func, args, lambda call: layers.append(self._add_recurrent_call(call)))
        self._last_product = [layer for layer in layers if layer is not None]
        self._flow.add_product(layers, (args[0], args[1]), *(
            result if isinstance(result, tuple) else (result,)))
        if not self._last_product:
            self._record_other_uses(name_of(func), args, {})
        return result

    def _add_recurrent_call(self, call: RecurrentCall) -> TracedLayer | None:
        """Add the call of one weight of a recurrent network to its layer."""
        layer = self.registry.recurrent_layer_of(call)
        if layer is None:
            return None
        positions = ValidPositions(self.mask, call.time_first is True, call.time_first is None)
        if self.on_call is not None and call.outputs is not None:
            self.on_call(layer, WeightCall("linear", call.weight, (call.outputs,)),
                         call.outputs.detach(), positions)
        layer.add_recurrent_call(call, self.required, positions)
        if self.required.gradient and call.consumers is not None:
            self.unit_taylor.track_states(layer, call.consumers)
        return layer
