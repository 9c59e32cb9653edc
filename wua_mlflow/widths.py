"""From measurements to recommended widths.

May import: usage, randomness. Tests: ``tests/test_widths.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from wua_mlflow.randomness import isolated
from wua_mlflow.usage import ModelUsage

__all__ = ["WidthRecommendation", "layers_by_width", "recommend_widths"]

Factory = Callable[[Sequence[int]], nn.Module]


@dataclass(frozen=True)
class WidthRecommendation:
    """A width for each entry of the factory's ``widths``, and the layers that each was read from."""

    method: str
    original: tuple[int, ...]
    widths: tuple[int, ...]
    layers: tuple[tuple[str, ...], ...]


def layers_by_width(factory: Factory, widths: Sequence[int]) -> tuple[tuple[str, ...], ...]:
    """Which layers each entry of ``widths`` sets: found by building the network one unit wider.

    Torch's random state is left alone.

    Raises:
        ValueError: an entry changes nothing: the factory ignores it.
    """
    with isolated():
        original = _units(factory(tuple(widths)))
        found = []
        for index, width in enumerate(widths):
            changed = _changed(factory, widths, index, original)
            if not changed:
                raise ValueError(f"model: expected a factory that builds the widths it is given, "
                                 f"but width {index + 1} of {len(widths)} ({width}) changes no "
                                 f"layer")
            found.append(changed)
    return tuple(found)


def _changed(
    factory: Factory, widths: Sequence[int], index: int, original: Mapping[str, int]
) -> tuple[str, ...]:
    """One unit more; twice as many where the factory refuses that (heads, groups)."""
    error: Exception | None = None
    for wider in (widths[index] + 1, widths[index] * 2):
        try:
            units = _units(factory((*widths[:index], wider, *widths[index + 1:])))
        except Exception as refused:  # the user's code: any error means "not this width"
            error = refused
            continue
        return tuple(name for name in units if units[name] != original.get(name))
    raise ValueError(f"model: the factory refuses every width near {widths[index]}: {error}")


def _units(model: nn.Module) -> dict[str, int]:
    return {
        name: len(module.weight)
        for name, module in model.named_modules()
        if isinstance(getattr(module, "weight", None), nn.Parameter) and module.weight.dim() > 1
    }


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
        ValueError: unknown method, or an entry none of whose layers was analysed.
    """
    if method != "effective":
        raise ValueError(f"width_method: expected 'effective', but got '{method}'")
    widths = []
    for index, names in enumerate(layers):
        analysed = [usage.layers[name] for name in names if name in usage.layers]
        if not analysed:
            raise ValueError(f"slim_hidden: no width can be derived for entry {index + 1}, since "
                             f"none of its layers was analysed; give the widths, e.g. "
                             f"slim_hidden={','.join(str(w) for w in original)}")
        shares = [layer.effective_share for layer in analysed]
        widths.append(max(1, min(original[index], math.floor(max(shares) * original[index]))))
    return WidthRecommendation(method, tuple(original), tuple(widths),
                               tuple(tuple(names) for names in layers))
