"""From measurements to recommended widths.

May import: usage, randomness. Tests: ``tests/test_widths.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from wua_mlflow.randomness import isolated
from wua_mlflow.usage import ModelUsage

__all__ = ["Factory", "WidthRecommendation", "layers_by_width", "recommend_widths"]

Factory = Callable[[Sequence[int]], nn.Module]

_ROUNDING = 1e-9
"""Relative slack before rounding down: of 20 equal weights exp(entropy) is 19.999999999999996."""


@dataclass(frozen=True)
class WidthRecommendation:
    """A width for each entry of the factory's ``widths``, and the layers that each sets."""

    method: str
    original: tuple[int, ...]
    widths: tuple[int, ...]
    layers: tuple[tuple[str, ...], ...]


def layers_by_width(factory: Factory, widths: Sequence[int]) -> tuple[tuple[str, ...], ...]:
    """Which layers each entry of ``widths`` sets: found by building the network one unit wider.

    Where the factory refuses that, or it changes nothing (heads, groups, even numbers), twice and
    half the width are tried. The global random streams are left alone.

    Returns:
        For each entry the names of the layers whose number of units it sets; none where it sets
        only parameters of another kind, those of an ``LSTM`` for example.

    Raises:
        ValueError: an entry changes nothing, so the factory ignores it; or every other width near
            it is refused.

    >>> layers_by_width(lambda w: nn.Sequential(nn.Linear(2, w[0]), nn.Linear(w[0], 1)), [10])
    (('0',),)
    """
    with isolated():
        original = factory(tuple(widths))
        return tuple(_set_by(factory, widths, index, original) for index in range(len(widths)))


def _set_by(
    factory: Factory, widths: Sequence[int], index: int, original: nn.Module
) -> tuple[str, ...]:
    error: Exception | None = None
    built = False
    width, units, shapes = widths[index], _units(original), _shapes(original)
    for other in (width + 1, 2 * width, width // 2):
        if other in (0, width):
            continue
        try:
            model = factory((*widths[:index], other, *widths[index + 1:]))
        except Exception as refused:  # the user's code: any error means "not this width"
            error = refused
            continue
        built = True
        if _shapes(model) != shapes:
            return tuple(name for name, count in _units(model).items() if count != units.get(name))
    if not built:
        raise ValueError(f"model: the factory refuses every width near {width}: {error}")
    raise ValueError(f"model: expected a factory that builds the widths it is given, but width "
                     f"{index + 1} of {len(widths)} ({width}) changes no layer")


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _units(model: nn.Module) -> dict[str, int]:
    """Number of units of each layer that has a weight of several dimensions."""
    weights = {name: getattr(module, "weight", None) for name, module in model.named_modules()}
    return {name: len(weight) for name, weight in weights.items()
            if isinstance(weight, Tensor) and weight.dim() > 1}


def recommend_widths(
    usage: ModelUsage,
    original: Sequence[int],
    layers: Sequence[Sequence[str]],
    *,
    method: str = "effective",
) -> WidthRecommendation:
    """Widths by the tutorial's rule: floor(effective weights ÷ weights × units), at least 1.

    An entry that sets several layers takes the largest of theirs. The rule describes how
    concentrated the importance is; whether the narrower network is as good is for the verdict.

    Args:
        usage: of the original network.
        original: its widths.
        layers: for each entry the layers that it sets, from ``layers_by_width``.
        method: ``effective``.

    Raises:
        ValueError: unknown method, ``layers`` of another length than ``original``, or an entry none
            of whose layers was analysed.

    >>> import torch
    >>> from wua_mlflow.analysis import analyze
    >>> model = nn.Sequential(nn.Linear(2, 10), nn.ReLU(), nn.Linear(10, 1))
    >>> usage = analyze(model, torch.rand(100, 2), criterion="magnitude")
    >>> 1 <= recommend_widths(usage, [10], [["0"]]).widths[0] <= 10
    True
    """
    if method != "effective":
        raise ValueError(f"width_method: expected 'effective', but got '{method}'")
    if len(layers) != len(original):
        raise ValueError(f"layers: expected {len(original)} entries, one a width, "
                         f"but got {len(layers)}")
    widths = []
    for index, names in enumerate(layers):
        shares = [usage.layers[name].effective_share for name in names if name in usage.layers]
        if not shares:
            raise ValueError(f"slim_hidden: no width can be derived for entry {index + 1}, since "
                             f"none of its layers was analysed; give the widths, e.g. "
                             f"slim_hidden={','.join(str(w) for w in original)}")
        exact = max(shares) * original[index] * (1 + _ROUNDING)
        widths.append(max(1, min(original[index], math.floor(exact))))
    return WidthRecommendation(method, tuple(original), tuple(widths),
                               tuple(tuple(names) for names in layers))
