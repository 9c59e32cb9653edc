"""What modules hold beside parameters and children: put back after a forward, and copied.

Tests: ``tests/test_module_attributes.py``.
"""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Held", "attributes_kept", "contents_kept", "copied", "held_by", "put_back"]


_OF_TORCH = frozenset(vars(nn.Module()))
"""Parameters, buffers, children, hooks, the mode."""
_MAPPINGS = (dict, OrderedDict, defaultdict, Counter)
_CHANGEABLE = (*_MAPPINGS, list, set, deque)
_WALKED = frozenset((*_CHANGEABLE, tuple, frozenset))


class Held(NamedTuple):
    """What a model reaches: its modules, those in plain containers too, and what these hold.

    Attributes:
        modules: each once, but for those of TorchScript.
        containers: plain lists, sets, dicts and the like among their attributes, nested ones too.
        tensors: among the attributes and in the containers; no parameters or buffers.
    """

    modules: list[nn.Module]
    containers: list[Any]
    tensors: list[Tensor]


def held_by(model: nn.Module) -> Held:
    """What a model and its modules hold beside parameters and buffers.

    >>> net = nn.Linear(1, 1)
    >>> net.spare = [nn.ReLU(), (torch.ones(2), {})]
    >>> [len(part) for part in held_by(net)]
    [2, 2, 1]
    """
    held = Held([], [], [])
    seen: set[int] = set()
    stack: list[Any] = [model]
    while stack:
        item = stack.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            held.tensors.append(item)
        elif isinstance(item, nn.Module) and not isinstance(item, torch.jit.ScriptModule):
            held.modules.append(item)
            stack += filter(_is_walked, (*_own(item).values(), *item._modules.values()))
        elif type(item) in _WALKED:
            if type(item) in _CHANGEABLE:
                held.containers.append(item)
            stack += filter(_is_walked, item.values() if type(item) in _MAPPINGS else item)
    return held


@contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """The attributes of all modules are as before afterwards, whatever the block assigns to them.

    So are the contents of plain lists, sets and dicts among them, and the values of plain tensors.
    Parameters, buffers, children, hooks and modes are not looked at, nor what other objects hold.

    >>> net = nn.Linear(1, 1)
    >>> net.calls, net.seen = 0, []
    >>> with attributes_kept(net):
    ...     net.calls, net.output = 1, net(torch.ones(1))
    ...     net.seen.append(net.output)
    >>> net.calls, net.seen, hasattr(net, "output")
    (0, [], False)
    """
    held = held_by(model)
    attributes = [(vars(module), _own(module)) for module in held.modules]
    values = [(tensor, tensor.detach().clone()) for tensor in held.tensors
              if type(tensor) is Tensor and not tensor.is_inference() and not tensor.is_meta]
    with contents_kept(held.containers):
        try:
            yield
        finally:
            for current, before in attributes:
                for name in set(current) - set(before) - _OF_TORCH:
                    del current[name]
                current.update(before)
            with torch.no_grad():
                for tensor, value in values:
                    put_back(tensor, value)


@contextmanager
def contents_kept(containers: Iterable[Any]) -> Iterator[None]:
    """Lists, sets and dicts hold the same afterwards, whatever the block puts into them.

    >>> seen = [1]
    >>> with contents_kept([seen]):
    ...     seen.append(2)
    >>> seen
    [1]
    """
    contents = [(container, copy.copy(container)) for container in containers]
    try:
        yield
    finally:
        for container, before in contents:
            _refill(container, before)


def copied(model: nn.Module) -> nn.Module:
    """A deep copy, in which tensors that a forward computed and left in the model are detached.

    ``copy.deepcopy`` refuses these: weights that hooks compute (``weight_norm`` as it was before
    parametrizations), activations that are kept.

    >>> net = nn.Linear(1, 1)
    >>> net.output = net(torch.ones(1))
    >>> copied(net).output.requires_grad
    False
    """
    detached = {id(tensor): tensor.detach().clone()
                for tensor in (*held_by(model).tensors, *model.buffers()) if not tensor.is_leaf}
    return copy.deepcopy(model, dict[int, Any](detached))


def put_back(tensor: Tensor, value: Tensor) -> None:
    """A tensor's values, whatever became of it; where they are as before it is not touched."""
    if tensor.layout is not torch.strided or tensor.shape != value.shape:
        tensor.data = value
    elif not torch.equal(tensor, value):  # batch norm's kernel does not count versions
        tensor.copy_(value)


def _own(module: nn.Module) -> dict[str, Any]:
    """What a module holds beside what every module has."""
    return {name: value for name, value in vars(module).items() if name not in _OF_TORCH}


def _is_walked(value: Any) -> bool:
    return type(value) in _WALKED or isinstance(value, Tensor | nn.Module)


def _refill(container: Any, before: Any) -> None:
    """Give a container the contents that it had."""
    if len(container) == len(before) and all(map(_same, _items(container), _items(before))):
        return
    container.clear()
    extend: Callable[[Iterable[Any]], object] = \
        container.extend if isinstance(container, list | deque) else container.update
    extend(before)


def _items(container: Any) -> Iterable[Any]:
    return container.items() if isinstance(container, Mapping) else container


def _same(item: Any, other: Any) -> bool:
    if type(item) is type(other) is tuple and len(item) == len(other):  # a dict's entry
        return all(part is old for part, old in zip(item, other, strict=True))
    return item is other
