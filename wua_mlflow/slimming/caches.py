"""Models that keep what they computed for the next call: off, while a cut is looked for and tried.

May import: torch. Tests: ``tests/slimming/test_caches.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

__all__ = ["uncached"]


@contextmanager
def uncached(*models: nn.Module) -> Iterator[None]:
    """The configurations' ``use_cache``, as transformers' models have it, False for so long.

    With it on, a forward returns keys and values beside its outputs, which the graph of a model
    cannot be followed through; its outputs are the same.

    >>> net = nn.Linear(1, 1)
    >>> net.config = type("Config", (), {"use_cache": True})()
    >>> with uncached(net):
    ...     net.config.use_cache
    False
    >>> net.config.use_cache
    True
    """
    found: list[Any] = [getattr(module, "config", None) for model in models
                        for module in model.modules()]
    configs = {id(one): one for one in found if getattr(one, "use_cache", None) is True}
    try:
        for config in configs.values():
            config.use_cache = False
        yield
    finally:
        for config in configs.values():
            config.use_cache = True
