"""``observe``: the one place that hooks a model, switches its mode, or turns gradients off.

Success or exception, the model and the global random streams are left as found.
May import: torch, ``randomness``. Tests: ``tests/test_hooks.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from wua_mlflow.randomness import isolated

__all__ = ["evaluating", "observe", "unwrapped"]

Seen = Callable[[str, Tensor], object]


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside ``torch.compile`` (hooks on a compiled one never fire) or data parallelism.

    >>> layer = nn.Linear(2, 3)
    >>> unwrapped(nn.DataParallel(layer)) is layer
    True
    """
    parallel = nn.DataParallel | nn.parallel.DistributedDataParallel
    inner = model.module if isinstance(model, parallel) else getattr(model, "_orig_mod", None)
    return unwrapped(inner) if isinstance(inner, nn.Module) else model


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode and without gradients; afterwards every submodule's mode is restored.

    The global random streams are restored as well, should the forward draw from them. A graph
    loaded from ``pt2`` has a fixed mode and refuses ``eval()``; it is taken as it is.

    >>> model = nn.Dropout()
    >>> with evaluating(model):
    ...     model.training, torch.is_grad_enabled()
    (False, False)
    >>> model.training
    True
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        with isolated(), torch.no_grad():
            yield model
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def observe(
    model: nn.Module, modules: Mapping[str, nn.Module] | Iterable[str], seen: Seen
) -> Iterator[nn.Module]:
    """Evaluate ``model`` while ``seen(name, output)`` is told each output of the named modules.

    Args:
        model: any module; a compiled one is unwrapped.
        modules: the modules by name, or the names of submodules.
        seen: called with the module's name and its output, in the order of the forward, once a
            call of the module; what it returns is ignored. An in-place activation may overwrite
            the output after the call: keep a copy, not the tensor.

    Yields:
        The model, in eval mode and without gradients.

    Raises:
        AttributeError: the model has no submodule of a given name.

    >>> seen = []
    >>> with observe(nn.Sequential(nn.Linear(2, 3)), ["0"], lambda n, z: seen.append(z.shape)) as m:
    ...     _ = m(torch.zeros(5, 2))
    >>> seen
    [torch.Size([5, 3])]
    """
    model = unwrapped(model)
    if not isinstance(modules, Mapping):
        modules = {name: model.get_submodule(name) for name in modules}
    handles = []
    try:
        for name, module in modules.items():
            handles.append(module.register_forward_hook(_telling(name, seen)))
        with evaluating(model):
            yield model
    finally:
        for handle in handles:
            handle.remove()


def _telling(name: str, seen: Seen) -> Callable[[nn.Module, Any, Tensor], None]:
    """A forward hook; it returns None, since anything else would replace the module's output."""

    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        seen(name, output)

    return hook
