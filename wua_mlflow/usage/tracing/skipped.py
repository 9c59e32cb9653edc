"""Why a part of the model was not analysed, module by module: nothing is left out silently.

Tests: ``tests/usage/tracing/test_skipped.py``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from torch import nn

from wua_mlflow.usage.tracing.parameters import ParameterIndex
from wua_mlflow.usage.tracing.registry import LayerRegistry

__all__ = ["NEVER_CALLED", "explain_skipped"]


NEVER_CALLED = "never called in the forward"
NO_MATRIX = "a parameter of its own that is no matrix"
_ONE_PRODUCT = frozenset(kind.forward for kind in (
    nn.Linear, nn.Embedding, nn.Bilinear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d,
    nn.ConvTranspose2d, nn.ConvTranspose3d))
"""Forwards that multiply with the weight once a call."""
_QUANTISED = ("torch.ao.nn.quantized", "torch.nn.quantized", "torch.ao.nn.intrinsic.quantized")


def explain_skipped(registry: LayerRegistry, calls: Mapping[str, int]) -> dict[str, str]:
    """The reason by module, or by parameter where the rest of its module was analysed.

    Args:
        registry: of the model's layers, after the forward.
        calls: of each module.
    """
    index, other_uses, unsupported = registry.index, registry.other_uses, registry.unsupported
    layers = registry.layers
    traced = {layer.parameter: layer.name for layer in layers.values() if layer.parameter}
    computing = {layer.module for layer in layers.values() if layer.view is None}
    reasons = {layer.name: "its weight is computed anew from the data"
               for layer in layers.values() if layer.changes}
    reasons.update(unsupported)
    holders = {name.rpartition(".")[0] for name in unsupported}
    for name, module in index.modules.items():
        if any(name == other or name.startswith(f"{other}.parametrizations".lstrip("."))
               for other in computing):
            if name in computing:
                reasons.update(_unused_parameters(index, name, traced, other_uses))
            continue
        if type(module).__module__.startswith(_QUANTISED) and hasattr(module, "weight"):
            reasons[name] = "its weight is integer-quantised"
            continue
        parameters = {index.name(parameter) or "": parameter.dim() > 1
                      for parameter in module.parameters(recurse=False)}
        weight = f"{name}.weight" if name in unsupported else ""
        untraced = {parameter: is_matrix for parameter, is_matrix in parameters.items()
                    if parameter not in traced and parameter not in unsupported
                    and parameter != weight}
        matrices = {parameter: other_uses.get(parameter)
                    for parameter, is_matrix in untraced.items() if is_matrix}
        if len(untraced) < len(parameters) or (matrices and not name) \
                or len(set(matrices.values())) > 1:
            reasons.update({parameter: _used_through(function)
                            for parameter, function in matrices.items()})
        elif untraced and any(True for _ in module.children()):
            reasons.update({
                parameter: _used_through(other_uses.get(parameter)) if is_matrix else NO_MATRIX
                for parameter, is_matrix in untraced.items()})
        elif untraced and (matrices or name not in holders):
            reasons[name] = _module_reason(module, matrices, calls.get(name, 0))
    reasons.update(_tied_names(index, traced))
    for parameter, partial in _partly_traced(registry, calls).items():
        key = f"{parameter}[...]"
        reasons[key] = f"{reasons[key]}; {partial}" if key in reasons else partial
    return reasons


def _module_reason(module: nn.Module, matrices: Mapping[str, str | None], calls: int) -> str:
    """The reason for all of a module, whose matrices have the same one."""
    kind, function = type(module).__name__, next(iter(matrices.values()), None)
    if function is not None:
        return _used_through(function)
    if not calls:
        return NEVER_CALLED
    if matrices:
        return f"{kind} was called {calls} times, but no product of its weight was seen"
    return f"{kind} is not a kind of layer that is analysed"


def _used_through(function: str | None) -> str:
    if function is None:
        return "never used in the forward"
    return f"used through {function}, which is not a product that is analysed"


def _tied_names(index: ParameterIndex, traced: Mapping[str, str]) -> dict[str, str]:
    """The other names of a weight that was counted."""
    reasons = {}
    for parameter, layer in traced.items():
        for alias in index.aliases.get(parameter, [])[1:]:
            owner, _, attribute = alias.rpartition(".")
            if attribute != "bias":
                reasons[owner if attribute == "weight" else alias] = \
                    f"shares its weight with '{layer}', where it is counted"
    return reasons


def _unused_parameters(
    index: ParameterIndex, name: str, traced: Mapping[str, str], other_uses: Mapping[str, str]
) -> dict[str, str]:
    """Of a module that computes its weight, the matrices that nothing was computed with."""
    names = [index.name(parameter) for parameter in index.modules[name].parameters(recurse=False)
             if parameter.dim() > 1]
    return {parameter: _used_through(None) for parameter in names
            if parameter and parameter not in traced and parameter not in other_uses}


def _partly_traced(registry: LayerRegistry, calls: Mapping[str, int]) -> dict[str, str]:
    """Parameters of which only slices were analysed, or not all that the forward did with them."""
    index, other_uses = registry.index, registry.other_uses
    weights: Counter[str] = Counter()
    products: Counter[str] = Counter()
    for layer in registry.layers.values():
        if layer.view is not None:
            weights[layer.view.parameter] += math.prod(layer.view.size)
            products[layer.view.parameter] += layer.calls
    sliced = {name.partition("[")[0] for name in registry.not_requested if "[" in name}
    reasons = {}
    for parameter, count in weights.items():
        owner, _, attribute = parameter.rpartition(".")
        module, module_calls = index.modules.get(owner, nn.Module()), calls.get(owner, 0)
        total, partial = index.parameters[parameter].numel(), []
        if count < total and parameter.removesuffix(".weight") not in sliced:
            partial.append(f"{total - count} of its {total} weights are in no product that is "
                           "analysed")
        if parameter in other_uses:
            partial.append(f"also used through {other_uses[parameter]}, which is not counted")
        if attribute == "weight" and 0 < products[parameter] < module_calls \
                and type(module).forward in _ONE_PRODUCT:
            partial.append(f"{module_calls - products[parameter]} of {module_calls} calls were "
                           "not seen")
        if partial:
            reasons[parameter] = "; ".join(partial)
    return reasons
