"""``observe``: the one place that hooks a model, switches its mode, or turns gradients off.

Success or exception, the model is left as found. May import: torch. Tests: ``tests/test_hooks.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["evaluating", "observe"]

Seen = Callable[[str, Tensor], None]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode and without gradients; afterwards every submodule's mode is restored.

    A graph loaded from ``pt2`` has a fixed mode and refuses ``eval()``; it is taken as it is.
    """
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        with torch.no_grad():
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
        model: any module.
        modules: the modules by name, or the names of submodules.
        seen: called with the module's name and its output, in the order of the forward, once a
            call of the module.

    Yields:
        The model, in eval mode and without gradients.

    >>> seen = []
    >>> with observe(nn.Sequential(nn.Linear(2, 3)), ["0"], lambda n, z: seen.append(z.shape)) as m:
    ...     _ = m(torch.zeros(5, 2))
    >>> seen
    [torch.Size([5, 3])]
    """
    if not isinstance(modules, Mapping):
        modules = {name: model.get_submodule(name) for name in modules}
    handles = []
    try:
        for name, module in modules.items():
            handles.append(module.register_forward_hook(
                lambda _module, _inputs, output, name=name: seen(name, output)))
        with evaluating(model):
            yield model
    finally:
        for handle in handles:
            handle.remove()
