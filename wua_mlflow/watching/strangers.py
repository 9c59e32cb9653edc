"""Weights of a product that are no parameter of the model: where they are held, and what they are.

May import: torch, its own package. Tests: ``tests/watching/test_strangers.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from torch import Tensor, nn

from wua_mlflow.watching.calls import Product
from wua_mlflow.watching.owners import Owners

__all__ = ["Strangers"]

OWN_FORWARD = "the model's own forward"
_MOST_LOOKED_AT = 1000
_DEEPEST = 2


class Strangers:
    """What a model multiplies with and does not register, found before it runs.

    Plain tensors among a module's attributes, parameters of modules in a plain list or dict, and
    the whole numbers that a module may make its weight of.
    """

    def __init__(self, owners: Owners) -> None:
        self._owners = owners
        self._held: dict[int, tuple[str, Tensor]] = {}  # the tensor too, so that the id stays its
        self._codes: dict[str, tuple[str, str]] = {}
        for name, module in owners.modules.items():
            if code := _codes(name, module):
                self._codes[name] = code
            for attribute, value in vars(module).items():
                for held, tensor in _tensors(_joined(name, attribute), value):
                    if tensor.dim() > 1 and owners.name(tensor) is None:
                        self._held.setdefault(id(_base(tensor)), (held, tensor))

    def of(self, product: Product, module: str | None, *, made: bool) -> tuple[str, str] | None:
        """What to call a weight that is no parameter of the model, and why it is not analysed.

        Args:
            product: of such a weight, or of activations alone.
            module: the innermost one that is running.
            made: whether the weight is taken for one that this module made of its parameters.

        Returns:
            None where it is to be analysed, or is no weight.
        """
        base = _base(product.weight)
        name, held = self._held.get(id(base), ("", base))
        if name and isinstance(_base(held), nn.Parameter):
            return name, "it is in a module that the model does not register"
        if name and not made:
            return name, "its weight is a plain tensor, not a parameter"
        buffer = self._owners.buffers.get(id(base))
        if buffer is not None and not made:
            return buffer, "its weight is a buffer, not a parameter"
        if not product.sure or module is None:
            return None
        if module in self._codes:
            return self._codes[module]
        if made:
            return None
        return module or OWN_FORWARD, \
            f"the weight of its {product.operation} is neither a parameter nor a buffer"


def _base(tensor: Tensor) -> Tensor:
    return tensor if tensor._base is None else tensor._base


def _joined(module: str, attribute: str) -> str:
    return f"{module}.{attribute}" if module else attribute


def _codes(name: str, module: nn.Module) -> tuple[str, str] | None:
    """The largest matrix of whole numbers that a module has itself, and what it says of it."""
    own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    found = {attribute: tensor for attribute, tensor in own if tensor.dim() > 1
             and "int" in str(tensor.dtype)}
    if not found:
        return None
    largest = max(found, key=lambda one: found[one].numel())
    dtype = str(found[largest].dtype).removeprefix("torch.")
    return _joined(name, largest), f"its weight is integer-quantised ({dtype})"


def _tensors(name: str, value: Any, depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """The tensors of an attribute that registers none, by name."""
    if name.rpartition(".")[2] in ("_parameters", "_buffers", "_modules"):
        return
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, nn.Module):
        for inner, parameter in value.named_parameters():
            yield f"{name}.{inner}".removesuffix(".weight"), parameter
    elif isinstance(value, list | tuple | Mapping) and depth < _DEEPEST:
        parts = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, part in islice(parts, _MOST_LOOKED_AT):
            yield from _tensors(f"{name}[{key}]", part, depth + 1)
