"""The one place that hooks a model, switches its mode, or turns gradients on and off.

Success or exception, the model and the global random streams are left as found.
Tests: ``tests/test_hooks.py``.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wua_mlflow.module_attributes import attributes_kept, put_back
from wua_mlflow.rng import isolated

__all__ = [
    "Call", "Running", "evaluating", "noting", "on_gradient", "reading", "running",
    "take_by_place", "unwrapped",
]


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside ``torch.compile`` (hooks on a compiled one never fire) or data parallelism.

    Raises:
        ValueError: it is no module, or one of TorchScript, whose forward shows nothing.

    >>> layer = nn.Linear(2, 3)
    >>> unwrapped(nn.DataParallel(layer)) is layer
    True
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise ValueError("model: expected a torch.nn.Module that runs in Python, but got "
                         f"{type(model).__name__}")
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    inner = model.module if isinstance(model, parallel) else getattr(model, "_orig_mod", None)
    return unwrapped(inner) if isinstance(inner, nn.Module) else model


@contextmanager
def evaluating(model: nn.Module, *, grad: bool = False) -> Iterator[nn.Module]:
    """The model in eval mode; afterwards it is as before, also when the block raises.

    Every submodule's mode, buffers and attributes, embeddings that a lookup renormalises,
    ``requires_grad`` and the global random streams are put back, whatever the forward does to them;
    not the dtype, where the forward itself converts the model, nor hooks that it registers. A graph
    loaded from ``pt2`` has a fixed mode and refuses ``eval()``; it is taken as it is. Compiled
    parts run as plain Python.

    Args:
        model: any module.
        grad: whether gradients of every floating-point parameter can be taken; none, if False.

    Raises:
        ValueError: gradients are asked for of parameters that were made in inference mode.

    >>> model = nn.Dropout()
    >>> with evaluating(model):
    ...     model.training, torch.is_grad_enabled()
    (False, False)
    >>> model.training
    True
    """
    if grad and any(parameter.is_inference() for parameter in model.parameters()):
        raise ValueError("model: expected parameters that can have gradients, but got some that "
                         "were made in inference mode; build or copy the model outside of it")
    modes = [(module, module.training) for module in model.modules()]
    required = [(p, p.requires_grad) for p in model.parameters()
                if p.is_leaf and (p.is_floating_point() or p.is_complex())]
    try:
        for module, _ in modes:
            module.training = False
        for parameter, was in required:
            if grad and not was:
                parameter.requires_grad_(True)
        with isolated(), _eager(), _buffers_kept(model), \
                attributes_kept(model), torch.inference_mode(False), \
                torch.set_grad_enabled(grad):
            yield model
    finally:
        for module, training in modes:
            module.training = training
        for parameter, was in required:
            if parameter.requires_grad != was:
                parameter.requires_grad_(was)


@contextmanager
def running(model: nn.Module, names: Mapping[nn.Module, str]) -> Iterator[Running]:
    """Keeps the names of the modules whose forward is under way, and counts their calls.

    Args:
        model: any module.
        names: of its modules; those that are not in it are not watched.

    >>> net = nn.Sequential(nn.Linear(2, 3))
    >>> with running(net, {net: "net", net[0]: "first"}) as state:
    ...     _ = net(torch.zeros(1, 2))
    >>> dict(state.calls), state.stack
    ({'net': 1, 'first': 1}, [])
    """
    state = Running()
    with ExitStack() as hooks:
        for module, name in names.items():
            hooks.enter_context(module.register_forward_pre_hook(partial(state.enter, name)))
            hooks.enter_context(module.register_forward_hook(partial(state.leave, name)))
        yield state


@contextmanager
def reading(readers: Mapping[nn.Module, Callable[[Tensor], Tensor | None]]) -> Iterator[None]:
    """Each module's input passes through its function before each call.

    Args:
        readers: by module a function of its first argument; what it returns is read instead, unless
            that is None. A first argument that is no tensor is let through.

    >>> net = nn.Linear(2, 1, bias=False)
    >>> with reading({net: torch.zeros_like}):
    ...     net(torch.ones(1, 2)).tolist()
    [[0.0]]
    """
    with ExitStack() as hooks:
        for module, function in readers.items():
            hooks.enter_context(
                module.register_forward_pre_hook(_through(function), with_kwargs=True))
        yield


class Call(NamedTuple):
    """A module's call, its first argument and what it returned; only those of tensors are noted."""

    module: nn.Module
    inputs: Tensor
    outputs: Tensor


@contextmanager
def noting(modules: Iterable[nn.Module]) -> Iterator[list[Call]]:
    """The calls of these modules, in their order, with the graph that autograd made of them.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> with noting([net[0]]) as calls:
    ...     _ = net(torch.zeros(1, 2))
    >>> [tuple(call.outputs.shape) for call in calls]
    [(1, 3)]
    """
    calls: list[Call] = []

    def hook(module: nn.Module, args: Any, kwargs: Mapping[str, Any], outputs: Any) -> None:
        first = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(first, Tensor) and isinstance(outputs, Tensor):
            calls.append(Call(module, first, outputs))

    with ExitStack() as hooks:
        for module in modules:
            hooks.enter_context(module.register_forward_hook(hook, with_kwargs=True))
        yield calls


def _through(function: Callable[[Tensor], Tensor | None]) -> Callable[..., Any]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = next(iter(kwargs), "")
        first = args[0] if args else kwargs.get(name)
        changed = function(first) if isinstance(first, Tensor) else None
        if changed is None:
            return None
        if args:
            return (changed, *args[1:]), kwargs
        return args, {**kwargs, name: changed}

    return hook


@dataclass
class Running:
    """``stack``: names of the modules that are running, the innermost last; ``calls`` by name.

    Where a forward raises, the stack stays as it was then.
    """

    stack: list[str] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)

    def enter(self, name: str, *_: Any) -> None:
        self.stack.append(name)
        self.calls[name] += 1

    def leave(self, name: str, *_: Any) -> None:
        """It returns None: anything else would replace the module's output."""
        while self.stack and self.stack.pop() != name:
            pass  # of a module that raised, in a forward that went on


def on_gradient(tensor: Tensor, function: Callable[[Tensor], object]) -> None:
    """Give a function the gradient of a tensor, detached, when a backward comes by it."""
    def hook(gradient: Tensor) -> None:
        function(gradient.detach())

    tensor.register_hook(hook)


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    saved = [(module._buffers, dict(module._buffers)) for module in model.modules()]
    shrinking = [module.weight for module in model.modules()
                 if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm]
    tensors = [*shrinking, *(tensor for _, buffers in saved for tensor in buffers.values())]
    values = {id(tensor): (tensor, tensor.detach().clone()) for tensor in tensors
              if tensor is not None and not tensor.is_inference()}
    try:
        yield
    finally:
        for current, before in saved:
            if isinstance(current, dict):  # those of a TorchScript part cannot be replaced
                current.clear()
                current.update(before)
        with torch.no_grad():
            for tensor, value in values.values():
                put_back(tensor, value)


def _eager() -> AbstractContextManager[Any]:
    """Compiled functions run as Python, if any were compiled in this process."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def take_by_place(model: nn.Module) -> None:
    """From now on an only argument that comes with a name is given to the model without it.

    A model that was exported with one argument knows its place alone; batches that are dicts have
    its name.

    >>> identity = nn.Identity()
    >>> take_by_place(identity)
    >>> identity(anything=3)
    3
    """
    model.register_forward_pre_hook(_by_place, with_kwargs=True, prepend=True)


def _by_place(
    _: nn.Module, places: tuple[Any, ...], names: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (places, names) if places or len(names) != 1 else (tuple(names.values()), {})
