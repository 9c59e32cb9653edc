"""Why a part of the model was not analysed, module by module: nothing is left out silently.

Tests: ``tests/usage/test_model_forms.py``, ``tests/usage/test_analyze.py``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import takewhile

import torch
from torch import nn

from wua_mlflow.usage.tracing.parameters import ParameterIndex
from wua_mlflow.usage.tracing.registry import LayerRegistry

__all__ = ["NEVER_CALLED", "OUTPUT_LAYER", "explain_skipped", "skipped_outputs"]


NEVER_CALLED = "never called in the forward"
OUTPUT_LAYER = "the output layer: its units are the model's outputs"
NO_MATRIX = "a parameter of its own that is no matrix"
_ONE_PRODUCT = frozenset(kind.forward for kind in (
    nn.Linear, nn.Embedding, nn.Bilinear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d,
    nn.ConvTranspose2d, nn.ConvTranspose3d))
"""Forwards that multiply with the weight once a call."""


def explain_skipped(registry: LayerRegistry, calls: Mapping[str, int]) -> dict[str, str]:
    """The reason by module, or by parameter where the rest of its module was analysed.

    Args:
        registry: of the model's layers, after the forward.
        calls: of each module.
    """
    index, unsupported = registry.index, registry.unsupported
    layers = registry.layers.values()
    traced = {layer.parameter: layer.name for layer in layers if layer.parameter}
    computing = {layer.module for layer in layers if layer.view is None}
    reasons = {layer.name: "its weight is computed anew from the data"
               for layer in layers if layer.changes} | unsupported
    for name, module in index.modules.items():
        parameters = _parameters(index, module)
        untraced = {parameter: is_matrix for parameter, is_matrix in parameters.items()
                    if parameter not in traced}
        if name in computing:
            reasons.update({parameter: _used_through(None) for parameter in untraced
                            if parameter and untraced[parameter]
                            and parameter not in registry.other_uses})
        elif any(name.startswith(f"{other}.parametrizations".lstrip(".")) for other in computing):
            continue
        else:
            reasons.update(_module_reasons(registry, name, untraced, calls.get(name, 0)))
    reasons |= {name: reason for name, reason in _packed_weights(index.modules, calls).items()
                if name not in reasons}
    reasons.update(_tied_names(index, traced))
    for parameter, partial in _partly_traced(registry, calls).items():
        key = f"{parameter}[...]"
        reasons[key] = f"{reasons[key]}; {partial}" if key in reasons else partial
    return reasons


def skipped_outputs(output_layers: Sequence[str], traced: Sequence[str]) -> dict[str, str]:
    """The reason for the layers that make the model's outputs, unless no other layer was traced.

    Args:
        output_layers: whose units these are (``WeightTracer.output_layers``).
        traced: all layers.
    """
    others = set(traced) - set(output_layers)
    return dict.fromkeys(output_layers, OUTPUT_LAYER) if others else {}


def _parameters(index: ParameterIndex, module: nn.Module) -> dict[str, bool]:
    """The names of a module's own parameters, and whether each has more than one dimension."""
    return {index.name(parameter) or "": parameter.dim() > 1
            for parameter in module.parameters(recurse=False)}


def _module_reasons(
    registry: LayerRegistry, name: str, untraced: Mapping[str, bool], calls: int
) -> dict[str, str]:
    """The reasons for the parameters of a module that are in no layer, or for all of it."""
    module, unsupported = registry.index.modules[name], registry.unsupported
    weight = f"{name}.weight" if name in unsupported else ""
    unexplained = [parameter for parameter in untraced
                   if parameter not in unsupported and parameter != weight]
    matrices = {parameter: registry.other_uses.get(parameter) for parameter in unexplained
                if untraced[parameter]}
    if len(unexplained) < len(_parameters(registry.index, module)) or (matrices and not name) \
            or len(set(matrices.values())) > 1:
        return {parameter: _used_through(function) for parameter, function in matrices.items()}
    if not unexplained:
        return {}
    if any(True for _ in module.children()):
        return {parameter: _used_through(matrices[parameter]) if parameter in matrices
                else NO_MATRIX for parameter in unexplained}
    if not matrices and name in {refused.rpartition(".")[0] for refused in unsupported}:
        return {}
    kind, function = type(module).__name__, next(iter(matrices.values()), None)
    if function is not None:
        return {name: _used_through(function)}
    if not calls:
        return {name: NEVER_CALLED}
    if matrices:
        return {name: f"{kind} was called {calls} times, but no product of its weight was seen"}
    return {name: f"{kind} is not a kind of layer that is analysed"}


def _packed_weights(
    modules: Mapping[str, nn.Module], calls: Mapping[str, int]
) -> dict[str, str]:
    """The reason by module whose weights no parameter holds, but an object of a kernel's own.

    As those that ``torch.ao`` quantised. Parts whose names begin with an underscore, as
    ``_packed_params``, belong to the module that has them.
    """
    reasons = {}
    for name, module in modules.items():
        for value in vars(module).values():
            if isinstance(value, torch.ScriptObject):
                kind = str(value._type()).rpartition(".")[2]
                owner = ".".join(takewhile(lambda part: part[:1] != "_", name.split(".")))
                reasons[owner] = f"its weights are packed ({kind}), not parameters" \
                    if calls.get(owner) else NEVER_CALLED
    return reasons


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
