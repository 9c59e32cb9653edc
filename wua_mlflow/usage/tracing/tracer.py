"""``Watch``: every product of a weight in a forward is told to the layer that the weight makes up.

A ``TorchFunctionMode`` sees the calls themselves, so that it does not matter whether a module, a
subclass, a fused attention or the model's own code makes them, and nothing is left out silently.
May import: torch, its own package. Tests: ``tests/watching/test_watch.py``.
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
from wua_mlflow.usage.tracing.layer import (
    RequiredStats,
    TracedLayer,
    ValidPositions,
    add_bias,
    add_call,
    add_recurrent_call,
    find_added_bias,
    propagate_output,
    propagate_units,
    record_relu_input,
)
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
    kind_of,
    layer_name,
)
from wua_mlflow.usage.tracing.recurrent import RECURRENT, RecurrentCall, run_by_layer
from wua_mlflow.usage.tracing.sums import PaddingMask
from wua_mlflow.usage.tracing.tags import tag, tag_of
from wua_mlflow.usage.tracing.unit_taylor import UnitTaylor

__all__ = ["WeightTracer"]


class WeightTracer(TorchFunctionMode):
    """A mode to enter around each forward; ``layers`` fills in the order of the first calls.

    Before each, set ``mask`` and renew ``used`` and ``felt``. Inside, ``running`` names the modules
    whose forward is under way (``hooks.running`` keeps it).
    """

    def __init__(
        self, model: nn.Module, needs: RequiredStats, wanted: Callable[[str], bool]
    ) -> None:
        super().__init__()
        self.owners = ParameterIndex(model)
        self.strangers = UnregisteredWeights(self.owners)
        self.needs, self.wanted = needs, wanted
        self.running: list[str] = []
        self.layers: dict[str, TracedLayer] = {}
        self.last: list[TracedLayer] = []
        self.refused: dict[str, str] = {}
        self.others: dict[str, str] = {}
        self.unasked: set[str] = set()
        self.mask: PaddingMask | None = None
        self.used: list[tuple[TracedLayer, Tensor]] = []
        self.felt = UnitTaylor()
        self.told: Callable[..., object] = lambda *_: (
            None
        )
        self._time_first = False
        self._keys: dict[object, TracedLayer | None] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is ATTENTION:
            return self._inside_attention(args, kwargs)
        if func in RECURRENT and not kwargs:
            self.last = []
            return run_by_layer(func, args, self._recurrence)
        name = name_of(func)
        if name in SUMS and (total := self._add_bias(func, args, kwargs)) is not None:
            self._note(name, args, kwargs)
            return total
        result = self._called(func, name, args, kwargs)
        reader = CALL_PARSERS.get(func)
        if reader is not None:
            if is_functorch_wrapped_tensor(result):
                name += " inside torch.func"
            elif any(self._product(product, result) for product in reader(args, kwargs)):
                return result
        if not is_metadata_op(name, result):
            self._note(name, args, kwargs)
        return result

    def _called(self, func: Any, name: str, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """What a function gives; where it is one of units in their places, that is noted."""
        cuts = is_relu(name, args, kwargs)
        if cuts and args:
            record_relu_input(args[0], self._positions())
        given = args[0] if args and name in UNITWISE_OPS else None
        layer, call, flat = (tag_of(given, what) for what in ("layer", "call", "flat"))
        result = func(*args, **kwargs)
        kept = result is given and tag_of(given, "layer") is layer  # given back with its notes
        if isinstance(result, Tensor) and layer is not None and not kept:
            propagate_units(layer, result, flat=bool(flat) or name == "flatten", call=call)
        elif isinstance(result, Tensor) and name in RESHAPE_OPS and args:
            propagate_output(args[0], result)
        if isinstance(result, Tensor) and cuts:
            tag(result, positive=True)
        return result

    def _add_bias(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """What a sum gives, where it adds a product's own bias to it; else None."""
        found = find_added_bias((*args, *kwargs.values()))
        view = None if found is None else self.owners.find(found[2], self.running)
        if found is None or view is None or found[1].bias not in (None, view):
            return None
        (product, layer, bias), result = found, func(*args, **kwargs)
        layer.bias = view
        tag(product, product=None)  # it may be added once more to the same product
        add_bias(layer, bias, result, self.needs, self._positions())
        if self.needs.gradient and layer.followed:
            self.felt.bias(layer, bias, result)
        return result

    def _inside_attention(self, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """Attention's own code with this mode on: its four projections are products like others."""
        before, self._time_first = self._time_first, True
        try:
            with self:
                return attention(*args, **kwargs)
        finally:
            self._time_first = before

    def _note(self, name: str, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Parameters that are computed with in another way."""
        for value in (*args, *kwargs.values()):
            for tensor in value if isinstance(value, list | tuple) else (value,):
                if not isinstance(tensor, Tensor):
                    continue
                source = tensor if tensor._base is None else tensor._base
                if isinstance(source, nn.Parameter) and source.dim() > 1:
                    parameter = self.owners.name(source, self.running)
                    if parameter is not None:
                        self.others.setdefault(parameter, name)
                        if name in PRODUCTS:
                            self.last = []

    def _product(self, product: WeightCall, output: Any) -> bool:
        """Whether it was a product of a weight; the layer is told then."""
        weight = product.weight
        if not isinstance(output, Tensor) or not isinstance(weight, Tensor) or weight.dim() < 2:
            return False
        view = self.owners.find(weight, self.running)
        if view is None:
            made, running = self._computes(product), self.running
            stranger = self.strangers.of(product, running[-1] if running else None, made=made)
            if stranger is not None:
                self.refused.setdefault(*stranger)
            if stranger is not None or not made:
                return False
        if view is not None and self.owners.find(product.inputs[0], self.running):
            return False  # two parameters make a weight
        for part, piece, place in split_qkv(product, output, view, self.owners, self.running):
            layer = self._layer(part, place)
            if layer is not None:
                self._tell(layer, part, piece)
        return True

    def _computes(self, product: WeightCall) -> bool:
        """Whether a weight that is no parameter is the running module's own, made in its forward.

        Functions that always take a weight are trusted to; a plain matrix product is not.
        """
        if not self.running or not product.sure:
            return False
        module = self.owners.modules[self.running[-1]]
        own = any(True for _ in module.parameters(recurse=False))
        return own or torch.nn.utils.parametrize.is_parametrized(module)

    def _layer(self, product: WeightCall, view: ParameterView | None) -> TracedLayer | None:
        """The layer of a weight, made at its first use; None where it is not to be told."""
        module_name = self.running[-1] if self.running else ""
        at, weight = product.geometry, product.weight
        made = (module_name, tuple(weight.shape), weight.storage_offset())
        key = (view or made, product.operation, at and (at.transposed, at.groups))
        if key not in self._keys:
            self._keys[key] = self._made(product, view, module_name)
        layer = self._keys[key]
        self.last = [layer] if layer is not None else []
        return layer

    def _made(
        self, product: WeightCall, view: ParameterView | None, module_name: str
    ) -> TracedLayer | None:
        weight = product.weight
        if view is not None:
            owner, _, attribute = view.parameter.rpartition(".")
            module = self.owners.modules.get(owner, nn.Module())
            name = self._named(layer_name(view.parameter, view, module), view,
                               product.operation)
        else:
            module, attribute, owner = self.owners.modules[module_name], "weight", module_name
            others = sum(layer.module == module_name and layer.view is None
                         for layer in self.layers.values())
            name = module_name if not others else f"{module_name}[{others + 1}]"
        if name is None:
            return None
        if weight.is_complex() or not weight.is_floating_point():
            self.refused[name] = "its weight is complex" if weight.is_complex() else \
                f"its weight is integer-quantised ({str(weight.dtype).removeprefix('torch.')})"
            return None
        if not weight.numel():
            self.refused[name] = f"it has no weights: its shape is {tuple(weight.shape)}"
            return None
        if not self.wanted(name):
            self.unasked.add(name)
            return None
        geometry = product.geometry
        transposed = geometry is not None and geometry.transposed
        groups = geometry.groups if geometry else 1
        units = weight.shape[1] * groups if transposed else weight.shape[
            1 if product.operation == "embedding" else 0]
        bias = None if product.bias is None else self.owners.find(product.bias, self.running)
        heads, parts = heads_of(self.owners, owner, units)
        layer = TracedLayer(name, kind_of(module, attribute, product.operation), owner,
                      product.operation, units, product.spatial, view,
                      weight.detach() if view is None else None, bias, groups,
                      transposed=transposed, heads=heads, head_parts=parts,
                      followed=self.owners.is_shared(view) or self.owners.is_lent(bias, owner)
                      or (bias is None and product.bias is not None))
        self.layers[name] = layer
        return layer

    def _named(self, name: str, view: ParameterView, operation: str) -> str | None:
        """The name, with its index where it is of a part; None where it overlaps another."""
        index = view.index(self.owners.parameters[view.parameter])
        if index is not None and not view.parameter.endswith("in_proj_weight"):
            name = f"{name}[{index}]"
        for layer in self.layers.values():
            if layer.view and layer.view.parameter == view.parameter and layer.view.overlaps(view):
                if not layer.view.is_same_as(view):
                    shown = name if name != layer.name else f"{name}[{view.offset}]"
                    self.refused[shown] = f"overlaps '{layer.name}', which is counted"
                elif len(self.owners.aliases[view.parameter]) == 1:  # else a name says it
                    self.others.setdefault(view.parameter, operation)
                return None
        return name

    def _tell(self, layer: TracedLayer, product: WeightCall, result: Tensor) -> None:
        output = result.detach()
        positions = self._positions()
        if self.needs.rows:
            self.told(layer, product, output, positions)
        add_call(layer, product, output, self.needs, positions)
        if self.needs.gradient and layer.computed is not None:
            self.used.append((layer, product.weight))
        if self.needs.gradient and layer.followed:
            self.felt.product(layer, result)
        if product.unit_dim == -1:
            tag(result, layer=layer, call=layer.calls)
        tag(result, product=layer)

    def _positions(self) -> ValidPositions:
        first = self._time_first
        if self.mask is not None and not first:
            first = any(is_time_first(self.owners.modules[name]) for name in self.running)
        return ValidPositions(self.mask, first)

    def _recurrence(self, one: RecurrentCall) -> None:
        view = self.owners.find(one.weight, self.running)
        key = (view, "recurrent")
        if key not in self._keys:
            self._keys[key] = self._recurrent_layer(one, view)
        layer = self._keys[key]
        if layer is not None:
            self.last.append(layer)
            positions = ValidPositions(self.mask, one.time_first is True, one.time_first is None)
            if self.needs.rows and one.outputs is not None:
                self.told(layer, WeightCall("linear", one.weight, (one.outputs,)),
                          one.outputs.detach(), positions)
            add_recurrent_call(layer, one, self.needs, positions)
            if self.needs.gradient and one.readers is not None:
                self.felt.states(layer, one.readers)

    def _recurrent_layer(
        self, one: RecurrentCall, view: ParameterView | None
    ) -> TracedLayer | None:
        if view is None or not self.wanted(view.parameter):
            return None
        owner = view.parameter.rpartition(".")[0]
        bias = self.owners.find(one.biases[0], self.running) if one.biases else None
        layer = TracedLayer(
            view.parameter,
            kind_of(self.owners.modules[owner], "weight", "recurrent"),
            owner,
            "recurrent",
            one.weight.shape[0] // one.gates,
            view=view,
            bias=bias,
            gates=one.gates,
            hidden_input=one.given is None,
            hidden_output=one.outputs is None,
            followed=True,
        )
        self.layers[layer.name] = layer
        return layer
