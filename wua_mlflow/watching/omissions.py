"""What was not analysed, module by module, and why: nothing is left out silently.

May import: torch, its own package. Tests: ``tests/watching/test_omissions.py``.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from wua_mlflow.watching.layer import Layer
from wua_mlflow.watching.owners import Owners

__all__ = ["NEVER_CALLED", "omissions"]

NEVER_CALLED = "never called in the forward"
_QUANTISED = ("torch.ao.nn.quantized", "torch.nn.quantized", "torch.ao.nn.intrinsic.quantized")


def omissions(
    owners: Owners,
    layers: Mapping[str, Layer],
    calls: Mapping[str, int],
    others: Mapping[str, str],
    refused: Mapping[str, str],
) -> dict[str, str]:
    """The reason by module, or by parameter where the rest of its module was analysed.

    Args:
        owners: the model's parameters.
        layers: what was analysed, or would have been if it had been asked for.
        calls: of each module.
        others: by parameter, the function that computed with it otherwise.
        refused: by layer, why its weight cannot be analysed.
    """
    covered = {layer.covers: layer.name for layer in layers.values() if layer.covers}
    computed = {layer.module for layer in layers.values() if layer.view is None}
    found = {layer.name: "its weight is computed anew from the data"
             for layer in layers.values() if layer.changes}
    found.update(refused)
    for name, module in owners.modules.items():
        if _within(name, computed):
            continue
        if type(module).__module__.startswith(_QUANTISED) and hasattr(module, "weight"):
            found[name] = "its weight is integer-quantised"
            continue
        own = {owners.name(parameter) or "": attribute
               for attribute, parameter in module.named_parameters(recurse=False)}
        if own and not set(own) & set(covered) and name not in refused:
            found[name] = _of_module(module, own, calls.get(name, 0), others)
        for parameter in set(own) - set(covered) if set(own) & set(covered) else ():
            if owners.parameters[parameter].dim() > 1:
                found[parameter] = _through(others.get(parameter))
    found.update(_tied(owners, covered))
    return found


def _within(name: str, computed: set[str]) -> bool:
    return any(name == one or name.startswith(f"{one}.parametrizations".lstrip("."))
               for one in computed)


def _of_module(
    module: nn.Module, own: Mapping[str, str], calls: int, others: Mapping[str, str]
) -> str:
    kind = type(module).__name__
    matrices = [name for name, parameter in zip(own, module.parameters(recurse=False), strict=False)
                if parameter.dim() > 1]
    used = [others[name] for name in matrices if name in others]
    if not calls and not used:
        return NEVER_CALLED
    if used:
        return _through(used[0])
    if matrices and calls:
        return f"{kind} was called {calls} times, but no product of its weight was seen"
    return f"{kind} is not a kind of layer that is analysed"


def _through(function: str | None) -> str:
    if function is None:
        return "never used in the forward"
    return f"used through {function}, which is not a product that is analysed"


def _tied(owners: Owners, covered: Mapping[str, str]) -> dict[str, str]:
    """The other names of a weight that was counted."""
    found = {}
    for parameter, layer in covered.items():
        for alias in owners.aliases.get(parameter, [])[1:]:
            owner, _, attribute = alias.rpartition(".")
            if attribute != "bias":
                found[owner if attribute == "weight" else alias] = \
                    f"shares its weight with '{layer}', where it is counted"
    return found
