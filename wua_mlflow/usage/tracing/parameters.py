"""Which parameter a tensor in a function call is a view of, and what its layer is called.

Tests: ``tests/usage/tracing/test_parameters.py``, ``test_unregistered_weights.py``.
"""

from __future__ import annotations

import math
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from wua_mlflow.usage.tracing.calls import WeightCall

__all__ = [
    "ParameterIndex", "ParameterView", "UnregisteredWeights", "clean", "integer_quantised",
    "kind_of", "layer_name", "layer_names",
]


@dataclass(frozen=True)
class ParameterView:
    """A view of a parameter (all of it, a transpose, some rows); hashable, holds no tensor."""

    parameter: str
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def of(self, tensor: Tensor) -> Tensor:
        """The same view of a tensor that lies in memory as the parameter does."""
        return tensor.as_strided(self.size, self.stride, tensor.storage_offset() + self.offset)

    def overlaps(self, other: ParameterView) -> bool:
        """Whether the two share weights: exact for slices, cautious for views of other strides."""
        boxes = self._box(), other._box()
        if [step for step, *_ in boxes[0]] != [step for step, *_ in boxes[1]]:
            boxes = [self._span()], [other._span()]
        return all(a < d and c < b for (_, a, b), (_, c, d) in zip(*boxes, strict=True))

    def is_same_as(self, other: ParameterView) -> bool:
        """Whether the two are the same weights, transposed or not."""
        return self.offset == other.offset and self._steps() == other._steps()

    def subscript(self, parameter: Tensor) -> str | None:
        """How the view is indexed in Python; its offset where it lies otherwise; None for all.

        >>> whole = torch.zeros(4, 6)
        >>> parts = whole[1:3], whole[2], whole[:, 3:], whole.T, whole.view(3, 8)[1:]
        >>> views = [ParameterView("w", tuple(x.shape), x.stride(), x.storage_offset())
        ...          for x in parts]
        >>> [view.subscript(whole) for view in views]
        ['1:3', '2', ':, 3:6', None, '8']
        """
        if math.prod(self.size) == parameter.numel():
            return None
        counts = {step: count for step, count in self._steps() if count > 1}
        rest, indices = self.offset, []
        for size, step in zip(parameter.shape, parameter.stride(), strict=True):
            start, rest = divmod(rest, max(1, step))
            count = counts.pop(step, 1)
            indices.append(":" if count == size else str(start) if count == 1 else
                           f"{start}:{start + count}")
            if start + count > size:
                return str(self.offset)
        while indices and indices[-1] == ":":
            indices.pop()
        return str(self.offset) if counts else ", ".join(indices)

    def _steps(self) -> list[tuple[int, int]]:
        return sorted(zip(self.stride, self.size, strict=True), reverse=True)

    def _box(self) -> list[tuple[int, int, int]]:
        """(stride, start, end) by dimension, the widest first; one span where rows run on."""
        rest, room, box = self.offset, None, []
        for step, count in self._steps():
            start, rest = divmod(rest, max(1, step))
            if room is not None and (start + count) * step > room:
                return [self._span()]
            box.append((step, start, start + count))
            room = step
        if room is not None and room > 1:  # one place along a last dimension
            box.append((1, rest, rest + 1))
        return box

    def _span(self) -> tuple[int, int, int]:
        last = sum((count - 1) * step for step, count in self._steps())
        return 0, self.offset, self.offset + last + 1


class ParameterIndex:
    """The parameters of a model by identity, and the modules that hold them.

    A parameter that has several names (a tied weight, a shared module) goes by the first.
    ``running`` names the modules whose forward is under way, the innermost last
    (``hooks.running``): that one's parameters are looked at too, since sharded ones are swapped
    for a forward's time.
    """

    def __init__(self, model: nn.Module) -> None:
        self.running: list[str] = []
        self.modules = {clean(name): module for name, module in model.named_modules()}
        self.parameters: dict[str, Tensor] = {}
        self.aliases: dict[str, list[str]] = {}
        self._name_by_id: dict[int, str] = {}
        self._swapped_in: dict[int, tuple[Tensor, str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            first = self._name_by_id.setdefault(id(parameter), clean(name))
            self.parameters[first] = parameter
            self.aliases.setdefault(first, []).append(clean(name))
        self._name_by_address = {
            parameter.data_ptr(): name for name, parameter in self.parameters.items()
            if type(parameter) in (nn.Parameter, Tensor) and not parameter.is_meta
            and parameter.layout is torch.strided}

    def find(self, tensor: Tensor) -> ParameterView | None:
        """The view of a parameter that a function's argument is; None where it is none."""
        if tensor.layout is not torch.strided:
            return None
        base, name = tensor, self.name(tensor)
        if name is None and tensor._base is not None:
            base, name = tensor._base, self.name(tensor._base)
        name = name or self._name_by_memory(tensor)
        if name is None:
            return None
        offset = int(tensor.storage_offset()) - int(base.storage_offset())
        return ParameterView(name, tuple(tensor.shape), tuple(tensor.stride()), offset)

    def name(self, tensor: Tensor) -> str | None:
        """The name of a parameter; None where the tensor is none."""
        if id(tensor) in self._name_by_id:
            return self._name_by_id[id(tensor)]
        if not isinstance(tensor, nn.Parameter):
            return None
        if id(tensor) in self._swapped_in:
            return self._swapped_in[id(tensor)][1]
        for module_name in self.running[-1:]:
            for inner, parameter in self.modules[module_name].named_parameters():
                if parameter is tensor:
                    name = f"{module_name}.{clean(inner)}".lstrip(".")
                    self._swapped_in[id(tensor)] = tensor, name  # held, so that the id stays its
                    return name
        return None

    def is_tied(self, view: ParameterView | None) -> bool:
        """Whether the parameter has several names: its gradient is of all its uses."""
        return view is not None and len(self.aliases[view.parameter]) > 1

    def may_share_bias(self, bias: ParameterView | None, module: str) -> bool:
        """Whether the bias of a module's weight may be added to other products, too.

        Args:
            bias: None where there is none, or it is yet to be added.
            module: the name of the one that holds the weight.
        """
        holder = self.modules.get(module, nn.Module())
        matrices = sum(parameter.dim() > 1 for parameter in holder.parameters(recurse=False))
        if matrices > 1 and not type(holder).__module__.startswith("torch.nn."):
            return True
        return bias is not None and (
            self.is_tied(bias) or bias.parameter.rpartition(".")[0] != module)

    def _name_by_memory(self, tensor: Tensor) -> str | None:
        """The name of the parameter of which a tensor is a detached alias."""
        if tensor.is_meta or type(tensor) is not Tensor:
            return None
        name = self._name_by_address.get(tensor.data_ptr())
        parameter = tensor if name is None else self.parameters[name]
        same = (parameter.data_ptr(), parameter.shape, parameter.stride()) == (
            tensor.data_ptr(), tensor.shape, tensor.stride())
        return name if same and tensor.numel() else None


def clean(name: str) -> str:
    """A module's or parameter's name without what ``torch.compile`` puts into it."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def layer_name(parameter: str, view: ParameterView, module: nn.Module) -> str:
    """What the layer of a weight is called.

    A ``weight`` goes by its module's name, a projection of ``nn.MultiheadAttention`` by
    ``q_proj``, ``k_proj`` or ``v_proj`` beside its ``out_proj``; any other parameter by its own.
    """
    owner, _, attribute = parameter.rpartition(".")
    if isinstance(module, nn.MultiheadAttention):
        if attribute == "in_proj_weight":
            third = view.offset // max(1, module.embed_dim * module.embed_dim)
            attribute = f"{'qkv'[min(third, 2)]}_proj"
        return f"{owner}.{attribute.removesuffix('_weight')}".lstrip(".")
    return owner if attribute == "weight" else parameter


def layer_names(model: nn.Module) -> list[str]:
    """Every name that a layer of the model may have, before it was run."""
    names: dict[str, None] = {}
    for module_name, module in model.named_modules():
        prefix, parameters = clean(module_name), dict(module.named_parameters(recurse=False))
        if parameters or hasattr(module, "parametrizations"):
            names[prefix] = None
        attributes = [name for name, parameter in parameters.items()
                      if parameter.dim() > 1 and name != "weight"]
        if isinstance(module, nn.MultiheadAttention):
            attributes = [name for name in attributes if name != "in_proj_weight"]
            attributes += [f"{part}_proj" for part in "qkv"]
        names.update(dict.fromkeys(f"{prefix}.{name}".lstrip(".") for name in attributes))
    return list(names)


def kind_of(module: nn.Module, attribute: str, operation: str) -> str:
    """What kind of layer it is: its module's class, without what a parametrisation made of it.

    A weight of another name in a module of another kind is a ``Parameter``; in an exported graph,
    whose modules have no class of their own, the operation says what it is.
    """
    cls: type[nn.Module] = type(module)
    if torch.nn.utils.parametrize.is_parametrized(module):
        cls = cls.__bases__[0]
    if issubclass(cls, nn.Linear) and cls.__module__.startswith("torch."):
        return "Linear"
    if attribute != "weight" and not isinstance(module, nn.MultiheadAttention | nn.RNNBase):
        return "Parameter"
    return operation.capitalize() if cls is nn.Module else cls.__name__


OWN_FORWARD = "the model's own forward"
_UNREGISTERED = "it is in a module that the model does not register"
_PLAIN = "its weight is a plain tensor, not a parameter"
_CODE = (type, types.FunctionType, types.MethodType, types.ModuleType)
_MOST_ENTRIES = 1000
_DEPTH = 2


class UnregisteredWeights:
    """What a model multiplies with and does not register, found before it runs.

    Plain tensors among a module's attributes, also within lists, dicts and objects there,
    parameters of modules in these, and the integers that a module may make its weight of.
    """

    def __init__(self, index: ParameterIndex) -> None:
        self._index = index
        held = [(name, _base(tensor),
                 _UNREGISTERED if isinstance(_base(tensor), nn.Parameter) else _PLAIN)
                for module_name, module in index.modules.items()
                for attribute, value in vars(module).items()
                for name, tensor in _tensors(f"{module_name}.{attribute}".lstrip("."), value)
                if tensor.dim() > 1 and index.name(tensor) is None]
        held += [(clean(name), buffer, "its weight is a buffer, not a parameter")
                 for name, buffer in index.modules[""].named_buffers()]
        self._held: dict[int, tuple[str, Tensor, str]] = {}  # the tensor, so that the id stays its
        for name, tensor, reason in held:
            self._held.setdefault(id(tensor), (name, tensor, reason))

    def explain(
        self, call: WeightCall, module: str | None, *, computed: bool
    ) -> tuple[str, str] | None:
        """What to call a weight that is no parameter of the model, and why it is not analysed.

        Args:
            call: of such a weight, or of activations alone.
            module: the innermost one that is running.
            computed: whether that module may have computed the weight of its parameters.

        Returns:
            None where it is to be analysed, or is no weight.
        """
        name, _, reason = self._held.get(id(_base(call.weight)), ("", None, ""))
        if name and (reason == _UNREGISTERED or not computed):
            return name, reason
        if not call.always_a_weight or module is None:
            return None
        quantised = _integer_weight(module, self._index.modules[module])
        if quantised is not None or computed:
            return quantised
        return module or OWN_FORWARD, \
            f"the weight of its {call.operation} is neither a parameter nor a buffer"


def _base(tensor: Tensor) -> Tensor:
    return tensor if tensor._base is None else tensor._base


def _integer_weight(name: str, module: nn.Module) -> tuple[str, str] | None:
    """The largest integer matrix that a module itself holds, and why it is not analysed."""
    held = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    matrices = [(attribute, tensor) for attribute, tensor in held
                if tensor.dim() > 1 and "int" in str(tensor.dtype)]
    if not matrices:
        return None
    attribute, largest = max(matrices, key=lambda matrix: matrix[1].numel())
    return f"{name}.{attribute}".lstrip("."), integer_quantised(largest.dtype)


def integer_quantised(dtype: torch.dtype) -> str:
    """Why a weight of integers is not analysed."""
    return f"its weight is integer-quantised ({str(dtype).removeprefix('torch.')})"


def _tensors(name: str, value: Any, depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """The tensors, by name, of an attribute that registers none."""
    if name.rpartition(".")[2] in ("_parameters", "_buffers", "_modules"):
        return
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, nn.Module):
        for inner, parameter in value.named_parameters():
            yield f"{name}.{inner}".removesuffix(".weight"), parameter
    elif isinstance(value, list | tuple | Mapping) and depth < _DEPTH:
        parts = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, part in islice(parts, _MOST_ENTRIES):
            yield from _tensors(f"{name}[{key}]", part, depth + 1)
    elif hasattr(value, "__dict__") and not isinstance(value, _CODE) and depth < _DEPTH:
        for key, part in islice(vars(value).items(), _MOST_ENTRIES):
            yield from _tensors(f"{name}.{key}", part, depth + 1)
