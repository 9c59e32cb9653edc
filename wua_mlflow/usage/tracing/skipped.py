"""What was not analysed, module by module, and why: nothing is left out silently.

May import: torch, its own package. Tests: ``tests/watching/test_omissions.py``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping

from torch import nn

from wua_mlflow.usage.tracing.layer import TracedLayer
from wua_mlflow.usage.tracing.parameters import ParameterIndex

__all__ = ["NEVER_CALLED", "explain_skipped"]


NEVER_CALLED = "never called in the forward"
NO_MATRIX = "a parameter of its own that is no matrix"
_ONCE = frozenset(kind.forward for kind in (
    nn.Linear, nn.Embedding, nn.Bilinear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d,
    nn.ConvTranspose2d, nn.ConvTranspose3d))
"""Forwards that multiply with the weight once a call."""
_QUANTISED = ("torch.ao.nn.quantized", "torch.nn.quantized", "torch.ao.nn.intrinsic.quantized")


def explain_skipped(
    owners: ParameterIndex,
    layers: Mapping[str, TracedLayer],
    calls: Mapping[str, int],
    others: Mapping[str, str],
    refused: Mapping[str, str],
    *,
    unasked: Collection[str] = (),
) -> dict[str, str]:
    """The reason by module, or by parameter where the rest of its module was analysed.

    Args:
        owners: the model's parameters.
        layers: what was analysed, or would have been if it had been asked for.
        calls: of each module.
        others: by parameter, the function that computed with it otherwise.
        refused: by layer, why its weight cannot be analysed.
        unasked: layers that were called and not to be analysed.
    """
    covered = {layer.covers: layer.name for layer in layers.values() if layer.covers}
    computed = {layer.module for layer in layers.values() if layer.view is None}
    found = {layer.name: "its weight is computed anew from the data"
             for layer in layers.values() if layer.changes}
    found.update(refused)
    holders = {one.rpartition(".")[0] for one in refused}
    for name, module in owners.modules.items():
        if _within(name, computed):
            if name in computed:
                found.update(_unused(owners, name, covered, others))
            continue
        if type(module).__module__.startswith(_QUANTISED) and hasattr(module, "weight"):
            found[name] = "its weight is integer-quantised"
            continue
        own = {owners.name(parameter) or "": parameter.dim() > 1
               for parameter in module.parameters(recurse=False)}
        weight = f"{name}.weight" if name in refused else ""
        left = {one: is_matrix for one, is_matrix in own.items()
                if one not in covered and one not in refused and one != weight}
        matrices = {one: others.get(one) for one, is_matrix in left.items() if is_matrix}
        if len(left) < len(own) or (matrices and not name) or len(set(matrices.values())) > 1:
            found.update({one: _through(function) for one, function in matrices.items()})
        elif left and any(True for _ in module.children()):
            found.update({one: _through(others.get(one)) if is_matrix else NO_MATRIX
                          for one, is_matrix in left.items()})
        elif left and (matrices or name not in holders):
            found[name] = _of_module(module, matrices, calls.get(name, 0))
    found.update(_tied(owners, covered))
    for part in (_in_part(owners, layers, unasked), _also(owners, layers, calls, others)):
        for key, reason in part.items():
            found[key] = f"{found[key]}; {reason}" if key in found else reason
    return found


def _within(name: str, computed: set[str]) -> bool:
    return any(name == one or name.startswith(f"{one}.parametrizations".lstrip("."))
               for one in computed)


def _of_module(module: nn.Module, matrices: Mapping[str, str | None], calls: int) -> str:
    """For all of a module, whose matrices have one reason."""
    kind, function = type(module).__name__, next(iter(matrices.values()), None)
    if function is not None:
        return _through(function)
    if not calls:
        return NEVER_CALLED
    if matrices:
        return f"{kind} was called {calls} times, but no product of its weight was seen"
    return f"{kind} is not a kind of layer that is analysed"


def _through(function: str | None) -> str:
    if function is None:
        return "never used in the forward"
    return f"used through {function}, which is not a product that is analysed"


def _tied(owners: ParameterIndex, covered: Mapping[str, str]) -> dict[str, str]:
    """The other names of a weight that was counted."""
    found = {}
    for parameter, layer in covered.items():
        for alias in owners.aliases.get(parameter, [])[1:]:
            owner, _, attribute = alias.rpartition(".")
            if attribute != "bias":
                found[owner if attribute == "weight" else alias] = \
                    f"shares its weight with '{layer}', where it is counted"
    return found


def _unused(
    owners: ParameterIndex, name: str, covered: Mapping[str, str], others: Mapping[str, str]
) -> dict[str, str]:
    """Of a module that computes its weight, the parameters that nothing was computed with."""
    found = {}
    for own in owners.modules[name].parameters(recurse=False):
        parameter = owners.name(own)
        if parameter and own.dim() > 1 and parameter not in covered and parameter not in others:
            found[parameter] = _through(None)
    return found


def _in_part(
    owners: ParameterIndex, layers: Mapping[str, TracedLayer], unasked: Collection[str]
) -> dict[str, str]:
    """Parameters of which only some slices were analysed."""
    seen: Counter[str] = Counter()
    for layer in layers.values():
        if layer.view is not None:
            seen[layer.view.parameter] += math.prod(layer.view.size)
    found, asked_in_part = {}, {one.partition("[")[0] for one in unasked if "[" in one}
    for parameter, count in seen.items():
        total = owners.parameters[parameter].numel()
        if count < total and parameter.removesuffix(".weight") not in asked_in_part:
            found[f"{parameter}[...]"] = \
                f"{total - count} of its {total} weights are in no product that is analysed"
    return found


def _also(
    owners: ParameterIndex, layers: Mapping[str, TracedLayer], calls: Mapping[str, int],
    others: Mapping[str, str],
) -> dict[str, str]:
    """Parameters that are analysed, but not in all that the forward did with them."""
    products: Counter[str] = Counter()
    for layer in layers.values():
        if layer.view is not None:
            products[layer.view.parameter] += layer.calls
    found = {}
    for parameter, seen in products.items():
        owner, _, attribute = parameter.rpartition(".")
        module, called = owners.modules.get(owner, nn.Module()), calls.get(owner, 0)
        reasons = []
        if parameter in others:
            reasons.append(f"also used through {others[parameter]}, which is not counted")
        if attribute == "weight" and 0 < seen < called and type(module).forward in _ONCE:
            reasons.append(f"{called - seen} of {called} calls were not seen")
        if reasons:
            found[f"{parameter}[...]"] = "; ".join(reasons)
    return found
