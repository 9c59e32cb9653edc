"""Run a model on copies of its tensors, on the meta device or for real, and leave it as it was.

May import: torch, ``randomness``. Tests: ``tests/test_sandbox.py``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from wua_mlflow.randomness import isolated

__all__ = ["borrowed", "copier", "meta_copy", "plain_operators", "real_copy"]


@contextmanager
def plain_operators(*, grad: bool, meta: bool) -> Iterator[None]:
    """Torch's global settings such that every operator shows as what it is, put back afterwards.

    Encoder layers, attention and recurrent layers run as plain products; tensors made on the way
    are on the meta device if ``meta``. The random streams are put back too.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast_path)
        torch.backends.mha.set_fastpath_enabled(False)
        stack.enter_context(isolated())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(grad))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if meta:
            stack.enter_context(torch.device("meta"))
            _set(stack, nn.modules.transformer, "_detect_is_causal_mask", _as_told)
        else:
            _set(stack, torch.backends.mkldnn, "enabled", False)
            _set(stack, torch.backends.cudnn, "enabled", False)
        yield


def _as_told(mask: Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:
    """In place of torch's own, which compares the mask's values; the products are the same."""
    return bool(is_causal)


def _set(stack: ExitStack, owner: Any, name: str, value: object) -> None:
    stack.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


@contextmanager
def borrowed(model: nn.Module, copy: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Puts a copy in place of every tensor of ``model``, in eval mode; puts all back at the end.

    Works on the modules' own dicts, so that it bypasses what a module does on assignment and
    ``eval()``, and undoes whatever the forward assigns. Tied tensors stay tied. What the model
    reaches otherwise (a closure, an object that is no module) is left in place.
    """
    copied = copier(copy)
    found = [(vars(module), dict(vars(module))) for module in _modules(model)]
    contents = [
        (value, value.copy())
        for _, before in found
        for value in before.values()
        if type(value) in (dict, OrderedDict)
    ]
    try:
        for attributes, before in found:
            attributes.update({name: copied(value) for name, value in before.items()})
            attributes["training"] = False
        yield
    finally:
        for attributes, before in found:
            attributes.clear()
            attributes.update(before)
        for container, content in contents:  # a hook that removed itself did so in here
            container.clear()
            container.update(content)


def _modules(value: Any) -> list[nn.Module]:
    """The modules in ``value``, each once, those held in plain lists, tuples and dicts too."""
    found: list[nn.Module] = []
    seen: set[int] = set()
    left = [value]
    while left:
        item = left.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, nn.Module):
            found.append(item)
            left.extend(vars(item).values())
        elif type(item) in (list, tuple, set):
            left.extend(item)
        elif type(item) in (dict, OrderedDict):
            left.extend(item.values())
    return found


def copier(copy: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
    """A function that copies each tensor once, within lists, tuples, sets and dicts too.

    A compiled module comes out as the module that was compiled.
    """
    copies: dict[int, Tensor] = {}

    def mapped(value: Any) -> Any:
        if isinstance(value, Tensor):
            if id(value) not in copies:
                copies[id(value)] = copy(value)
            return copies[id(value)]
        if isinstance(value, nn.Module):
            return getattr(value, "_orig_mod", value)
        if type(value) in (list, tuple, set):
            return type(value)(mapped(item) for item in value)
        if type(value) in (dict, OrderedDict):
            return type(value)((key, mapped(item)) for key, item in value.items())
        return value

    return mapped


def meta_copy(tensor: Tensor) -> Tensor:
    """A tensor of the same shape, strides and kind that holds nothing."""
    empty = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")
    return _same_kind(tensor, empty)


def real_copy(tensor: Tensor) -> Tensor:
    """A tensor of the same values and kind, off the graph."""
    return _same_kind(tensor, tensor.detach().clone())


def _same_kind(tensor: Tensor, values: Tensor) -> Tensor:
    if isinstance(tensor, nn.Parameter):
        values = nn.Parameter(values, requires_grad=tensor.requires_grad)
    else:
        values.requires_grad_(tensor.requires_grad and tensor.is_leaf)
    vars(values).update(vars(tensor))
    return values
