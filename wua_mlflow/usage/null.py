"""The null distribution of a usage: the same measurement on networks that learned nothing.

Each draw re-initialises every module that has ``reset_parameters`` or ``_reset_parameters``. Then
it calls a model's own ``_init_weights`` (transformers, timm). It sees the same inputs. A layer
whose weights none of these changes has its weights permuted.
Tests: ``tests/usage/test_null.py``.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from wua_mlflow.errors import one_line
from wua_mlflow.module_attributes import copied
from wua_mlflow.rng import Purpose, isolated, torch_generator
from wua_mlflow.usage.results import PERMUTED, REINITIALISED, LayerUsage, ModelUsage, NullUsage
from wua_mlflow.usage.tracing.parameters import clean

__all__ = ["with_null"]


RESETS = ("reset_parameters", "_reset_parameters")
"""Methods that re-initialise a module; the first that it has is called."""
FEWEST_DRAWS = 5
"""So many are drawn however long they take."""
clock: Callable[[], float] = time.monotonic
"""Seconds; replaced in tests."""
VACUOUS = "magnitude"
"""The criterion whose shares a permutation cannot change: permuted layers have no null then."""


def with_null(
    usages: Mapping[str, ModelUsage],
    model: nn.Module,
    measure: Callable[[nn.Module], Mapping[str, ModelUsage]],
    *,
    draws: int,
    seed: int,
    seconds: float = math.inf,
) -> dict[str, ModelUsage]:
    """The usages, with the null's range added to the model and to each of its layers.

    Under the criterion ``magnitude`` a permuted layer has none, since its share stays the same; nor
    has the model where all of its layers are permuted. A draw that does not call a layer, as a
    mixture of experts that routes elsewhere, says nothing of it: a layer that no draw calls has
    none, and the model's is of the draws that call all layers.

    Args:
        usages: the measurements of ``model``, by criterion.
        model: left as found; the draws work on one copy.
        measure: the same measurements, of a copy that has forgotten.
        draws: how many networks, at least 1.
        seed: of this function's own random numbers.
        seconds: no more draws than fit into these by the first one's time, and at least 5.

    Raises:
        ValueError: ``draws`` below 1, or a model that cannot be copied.
    """
    if draws < 1:
        raise ValueError(f"draws: expected a whole number of at least 1, but got {draws}")
    nulls: list[Mapping[str, ModelUsage]] = []
    generator = torch_generator(seed, Purpose.NULL)
    with isolated(), torch.inference_mode(False):  # or the copies could have no gradients
        permuted = _find_permuted(model, {name for usage in usages.values()
                                          for name in usage.layers})
        names_to_permute = {name: None for names in permuted.values() for name in names}
        untrained = _copy_model(model)
        began, most = clock(), draws
        while len(nulls) < most:
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            _reset(untrained)
            parameters = _parameters_by_name(untrained)
            _permute(parameters[name] for name in names_to_permute)
            nulls.append(measure(untrained))
            if len(nulls) == 1:
                most = _draws_within(seconds, clock() - began, draws)
    return {name: _add_null(usage, [null[name] for null in nulls], permuted)
            for name, usage in usages.items()}


def _draws_within(seconds: float, first: float, draws: int) -> int:
    """How many draws fit, where the first took so many seconds.

    >>> _draws_within(20.0, 2.5, 20), _draws_within(20.0, 9.0, 20), _draws_within(20.0, 9.0, 3)
    (8, 5, 3)
    >>> _draws_within(20.0, 0.1, 20), _draws_within(math.inf, 9.0, 20)
    (20, 20)
    """
    fitting = draws if seconds >= draws * first else math.floor(seconds / first)
    return min(draws, max(FEWEST_DRAWS, fitting))


def _add_null(
    usage: ModelUsage, nulls: Sequence[ModelUsage], permuted: Mapping[str, object]
) -> ModelUsage:
    layers = dict(usage.layers)
    is_vacuous = usage.criterion == VACUOUS
    for name, layer in layers.items():
        draws = [null.layers[name] for null in nulls if name in null.layers]
        if draws and not (is_vacuous and name in permuted):
            kind = PERMUTED if name in permuted else REINITIALISED
            layers[name] = replace(layer, null=_null_range(kind, layer, draws))
    count = sum(name in permuted for name in layers)
    complete = [null for null in nulls if len(null.layers) == len(layers)]
    if is_vacuous and count == len(layers) or not complete:
        return replace(usage, layers=layers)
    kind = _model_null_kind(count, len(layers))
    return replace(usage, layers=layers, null=_null_range(kind, usage, complete))


def _model_null_kind(permuted: int, layers: int) -> str:
    """How the nulls of a whole model were made.

    >>> _model_null_kind(2, 7)
    're-initialised, but 2 of 7 layers permuted'
    """
    if permuted in (0, layers):
        return PERMUTED if permuted else REINITIALISED
    return f"{REINITIALISED}, but {permuted:,} of {layers:,} layers {PERMUTED}"


def _find_permuted(model: nn.Module, layers: Iterable[str]) -> dict[str, list[str]]:
    """By layer, the parameters of its weight that cannot be re-initialised, where there are any."""
    not_reset = _parameters_not_reset(model)
    by_layer = {layer: [name for name in _weight_parameters(model, layer) if name in not_reset]
                for layer in sorted(layers)}
    return {layer: names for layer, names in by_layer.items() if names}


def _copy_model(model: nn.Module) -> nn.Module:
    try:
        return copied(model)
    except Exception as error:
        raise ValueError("model: cannot be copied, which the null needs: "
                         f"{one_line(error)}; use null=0") from error


def _parameters_not_reset(model: nn.Module) -> set[str]:
    """Names of the parameters that no module of the model re-initialises, tried on a copy."""
    probe = _copy_model(model)
    with torch.no_grad():
        for parameter in probe.parameters():
            if parameter.is_floating_point() or parameter.is_complex():
                parameter.fill_(math.nan)
    _reset(probe)
    return {name for name, parameter in _parameters_by_name(probe).items()
            if not parameter.is_floating_point() or bool(parameter.isnan().any())}


def _weight_parameters(model: nn.Module, layer: str) -> list[str]:
    """Names of the parameters that a layer's weight is, or is computed from."""
    parameters = _parameters_by_name(model)
    base = layer.partition("[")[0]  # a slice's name: weight[1:3]
    for name in (base, f"{base}.weight".lstrip(".")):
        if name in parameters:
            return [name]
    modules = {clean(name) for name, _ in model.named_modules()}
    owner = base
    while owner not in modules:
        owner = owner.rpartition(".")[0]
    inside = {name: name.removeprefix(f"{owner}.") if owner else name for name in parameters
              if not owner or name.startswith(f"{owner}.")}
    return [name for name, inner in inside.items() if parameters[name].dim() != 1
            and ("." not in inner or inner.startswith("parametrizations."))]


def _parameters_by_name(model: nn.Module) -> dict[str, Tensor]:
    return {clean(name): parameter
            for name, parameter in model.named_parameters(remove_duplicate=False)}


def _reset(model: nn.Module) -> None:
    with torch.no_grad():
        for module in reversed(list(model.modules())):  # a parent has the last word
            resets = [getattr(module, name, None) for name in RESETS]
            for reset in list(filter(callable, resets))[:1]:
                reset()
        _run_init_weights(model, None)


def _run_init_weights(
    module: nn.Module, initialiser: Callable[[nn.Module], object] | None
) -> None:
    """Call the nearest ``_init_weights`` on each module, after its children.

    One that does not take a module, or fails, is skipped.
    """
    init_weights = getattr(module, "_init_weights", None)
    if callable(init_weights) and _takes_a_module(init_weights):
        initialiser = init_weights
    for child in module.children():
        _run_init_weights(child, initialiser)
    if initialiser is not None:
        with contextlib.suppress(Exception):
            initialiser(module)


def _takes_a_module(function: Callable[..., object]) -> bool:
    try:
        inspect.signature(function).bind(None)
    except (TypeError, ValueError):
        return False
    return True


def _permute(parameters: Iterable[Tensor]) -> None:
    with torch.no_grad():
        for parameter in parameters:
            flat = parameter.flatten()
            order = torch.randperm(flat.numel()).to(flat.device)
            parameter.copy_(flat[order].reshape(parameter.shape))


def _null_range(
    kind: str, usage: LayerUsage | ModelUsage, draws: Sequence[LayerUsage | ModelUsage]
) -> NullUsage:
    shares = [draw.effective_share for draw in draws]
    low, high = np.quantile(shares, [0.025, 0.975])
    shift = float(np.mean([draw.entropy for draw in draws])) - usage.entropy
    return NullUsage(kind=kind, draws=len(draws), share=float(np.mean(shares)), low=float(low),
                     high=float(high), shift=shift)
