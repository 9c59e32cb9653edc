"""``Watch``: every product of a weight in a forward is told to the layer that the weight makes up.

A ``TorchFunctionMode`` sees the calls themselves, so that it does not matter whether a module, a
subclass, a fused attention or the model's own code makes them, and nothing is left out silently.
May import: torch, its own package. Tests: ``tests/watching/test_watch.py``.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from wua_mlflow.watching.calls import READERS, Product, name_of
from wua_mlflow.watching.layer import Layer
from wua_mlflow.watching.masks import Mask
from wua_mlflow.watching.owners import Owners, View, kind_of, layer_name
from wua_mlflow.watching.recurrent import RECURRENT, Recurrence, run_by_layer
from wua_mlflow.watching.told import (
    Needs,
    Positions,
    mark,
    pass_on,
    see_relu,
    tell_product,
    tell_recurrence,
)

__all__ = ["Watch"]

ATTENTION = functional.multi_head_attention_forward
_LOOKS = frozenset([
    "__get__", "__set__", "__len__", "__getitem__", "__format__", "__repr__", "__hash__",
    "__deepcopy__", "_is_view", "bfloat16", "chunk", "contiguous", "data_ptr", "detach", "detach_",
    "dim", "double", "element_size", "expand", "flatten", "float", "half", "is_complex", "is_conj",
    "is_contiguous", "is_floating_point", "is_inference", "is_neg", "is_same_size", "movedim",
    "narrow", "nelement", "numel", "permute", "requires_grad_", "reshape", "size", "split",
    "squeeze", "storage_offset", "stride", "swapaxes", "t", "to", "transpose", "type", "type_as",
    "unbind", "unflatten", "unsqueeze", "untyped_storage", "view", "view_as",
])
"""Functions that look at a parameter without computing with it."""
_UNITS_STAY = frozenset([
    "relu", "relu_", "relu6", "gelu", "silu", "silu_", "tanh", "sigmoid", "leaky_relu",
    "leaky_relu_", "elu", "elu_", "hardtanh", "hardtanh_", "hardswish", "hardswish_", "mish",
    "softplus", "batch_norm", "dropout", "dropout_", "dropout2d", "max_pool1d", "max_pool2d",
    "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "adaptive_avg_pool3d", "flatten", "contiguous",
])
"""Functions after which the units are still the same ones, each in its place."""
_PRODUCTS = frozenset(["einsum", "bmm", "baddbmm", "tensordot", "embedding_bag", "mv", "inner"])
"""Products that are not read: after one, the last layer seen is not the model's output."""
_RELU = frozenset(["relu", "relu_", "relu6"])


def _without_check(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same Python function, without its own look for overrides, so that its calls are seen."""
    plain = cast(types.FunctionType, function)
    names = {**plain.__globals__, "has_torch_function": lambda *_: False}
    copy = types.FunctionType(plain.__code__, names, plain.__name__, plain.__defaults__,
                              plain.__closure__)
    copy.__kwdefaults__ = plain.__kwdefaults__
    return copy


_attention = _without_check(ATTENTION)


class Watch(TorchFunctionMode):
    """A mode to enter around each forward; ``layers`` fills in the order of the first calls.

    Set ``mask`` and ``batch`` before each. Inside, ``running`` names the modules whose forward is
    under way (``hooks.running`` keeps it).
    """

    def __init__(self, model: nn.Module, needs: Needs, wanted: Callable[[str], bool]) -> None:
        super().__init__()
        self.owners = Owners(model)
        self.needs, self.wanted = needs, wanted
        self.running: list[str] = []
        self.layers: dict[str, Layer] = {}
        self.last: list[Layer] = []
        self.refused: dict[str, str] = {}
        self.others: dict[str, str] = {}
        self.mask: Mask | None = None
        self.used: list[tuple[Layer, Tensor]] = []
        self.told: Callable[[Layer, Product, Tensor, Positions], object] = lambda *_: None
        self._time_first = False
        self._keys: dict[object, Layer | None] = {}

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
        if name in _RELU and args:
            see_relu(args[0])
        result = func(*args, **kwargs)
        reader = READERS.get(func)
        if reader is not None:
            for product in reader(args, kwargs):
                if self._product(product, result):
                    return result
        if name not in _LOOKS:
            self._note(name, args, kwargs)
            if name in _UNITS_STAY and args and isinstance(result, Tensor):
                pass_on(args[0], result)
        return result

    def _inside_attention(self, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """Attention's own code with this mode on: its four projections are products like others."""
        before, self._time_first = self._time_first, True
        try:
            with self:
                return _attention(*args, **kwargs)
        finally:
            self._time_first = before

    def _note(self, name: str, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Parameters that are computed with in another way."""
        for value in (*args, *kwargs.values()):
            for tensor in value if isinstance(value, list | tuple) else (value,):
                if isinstance(tensor, nn.Parameter) and tensor.dim() > 1:
                    parameter = self.owners.name(tensor, self.running)
                    if parameter is not None:
                        self.others.setdefault(parameter, name)
                        if name in _PRODUCTS:
                            self.last = []

    def _product(self, product: Product, output: Any) -> bool:
        """Whether it was a product of a weight; the layer is told then."""
        if not isinstance(output, Tensor) or not isinstance(product.weight, Tensor):
            return False
        view = self.owners.find(product.weight, self.running)
        if view is None and not self._computes(product):
            return False
        if view is not None and self.owners.find(product.inputs[0], self.running):
            return False  # two parameters make a weight
        for part, piece, place in self._thirds(product, output, view):
            layer = self._layer(part, place)
            if layer is not None:
                self._tell(layer, part, piece)
        return True

    def _computes(self, product: Product) -> bool:
        """Whether a weight that is no parameter is the running module's own, made in its forward.

        Functions that always take a weight are trusted to; a plain matrix product is not.
        """
        if not self.running or not product.sure or product.weight.dim() < 2:
            return False
        module = self.owners.modules[self.running[-1]]
        own = any(True for _ in module.parameters(recurse=False))
        return own or torch.nn.utils.parametrize.is_parametrized(module)

    def _thirds(
        self, product: Product, output: Tensor, view: View | None
    ) -> list[tuple[Product, Tensor, View | None]]:
        """The rows of attention's fused weight apart: queries, keys, values."""
        owner, _, attribute = view.parameter.rpartition(".") if view else ("", "", "")
        module = self.owners.modules.get(owner)
        if attribute != "in_proj_weight" or not isinstance(module, nn.MultiheadAttention):
            return [(product, output, view)]
        width, parts = module.embed_dim, []
        for start in range(0, product.weight.shape[0], width):
            bias = product.bias
            part = Product("linear", product.weight.narrow(0, start, width), product.inputs,
                           None if bias is None else bias.narrow(0, start, width))
            parts.append((part, output.narrow(-1, start, width),
                          self.owners.find(part.weight, self.running)))
        return parts

    def _layer(self, product: Product, view: View | None) -> Layer | None:
        """The layer of a weight, made at its first use; None where it is not to be told."""
        module_name = self.running[-1] if self.running else ""
        key = (view or module_name, product.operation)
        if key not in self._keys:
            self._keys[key] = self._made(product, view, module_name)
        layer = self._keys[key]
        self.last = [layer] if layer is not None else []
        return layer

    def _made(self, product: Product, view: View | None, module_name: str) -> Layer | None:
        weight = product.weight
        if view is not None:
            owner, _, attribute = view.parameter.rpartition(".")
            module = self.owners.modules.get(owner, nn.Module())
            name = self._named(layer_name(view.parameter, view, module), view)
        else:
            module, name, attribute, owner = (
                self.owners.modules[module_name], module_name, "weight", module_name)
        if name is None:
            return None
        if weight.is_complex() or not weight.is_floating_point():
            self.refused[name] = "its weight is complex" if weight.is_complex() else \
                f"its weight is integer-quantised ({str(weight.dtype).removeprefix('torch.')})"
            return None
        if not self.wanted(name):
            return None
        geometry = product.geometry
        transposed = geometry is not None and geometry.transposed
        groups = geometry.groups if geometry else 1
        units = weight.shape[1] * groups if transposed else weight.shape[
            1 if product.operation == "embedding" else 0]
        bias = None if product.bias is None else self.owners.find(product.bias, self.running)
        layer = Layer(name, kind_of(module, attribute, product.operation), owner,
                      product.operation, units, product.spatial, view,
                      weight.detach() if view is None else None, bias, groups,
                      transposed=transposed)
        self.layers[name] = layer
        return layer

    def _named(self, name: str, view: View) -> str | None:
        """A name of its own for each view of a parameter; None for one that overlaps another."""
        for layer in self.layers.values():
            if layer.view and layer.view.parameter == view.parameter:
                if _overlap(layer.view, view):
                    return None
                name = name if name != layer.name else f"{name}[{view.offset}]"
        return name

    def _tell(self, layer: Layer, product: Product, result: Tensor) -> None:
        output = result.detach()
        positions = self._positions()
        if self.needs.rows:
            self.told(layer, product, output, positions)
        tell_product(layer, product, output, self.needs, positions)
        if self.needs.gradient and layer.computed is not None:
            self.used.append((layer, product.weight))
        if product.unit_dim == -1:
            mark(result, layer)

    def _positions(self) -> Positions:
        return Positions(self.mask, self._time_first)

    def _recurrence(self, one: Recurrence) -> None:
        view = self.owners.find(one.weight, self.running)
        key = (view, "recurrent")
        if key not in self._keys:
            self._keys[key] = self._recurrent_layer(one, view)
        layer = self._keys[key]
        if layer is not None:
            self.last.append(layer)
            tell_recurrence(layer, one, self.needs, Positions(self.mask, one.time_first is True))

    def _recurrent_layer(self, one: Recurrence, view: View | None) -> Layer | None:
        if view is None or not self.wanted(view.parameter):
            return None
        owner = view.parameter.rpartition(".")[0]
        bias = self.owners.find(one.biases[0], self.running) if one.biases else None
        layer = Layer(view.parameter, kind_of(self.owners.modules[owner], "weight", "recurrent"),
                      owner, "recurrent", one.weight.shape[0] // one.gates, view=view, bias=bias,
                      gates=one.gates, hidden_input=not one.inputs,
                      hidden_output=one.outputs is None)
        self.layers[layer.name] = layer
        return layer


def _overlap(one: View, other: View) -> bool:
    """Whether two views of a parameter share memory, taken as spans."""
    ends = [view.offset + sum((n - 1) * step for n, step in
                              zip(view.size, view.stride, strict=True)) for view in (one, other)]
    return one.offset <= ends[1] and other.offset <= ends[0]
