"""Which layers each number of a model factory's widths sets: found by building it one unit wider.

Tests: ``tests/widths/test_factory.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from wua_mlflow.rng import isolated

__all__ = ["Factory", "layers_by_width"]


Factory = Callable[[Sequence[int]], nn.Module]


_COUNTS = ("out_features", "out_channels", "embedding_dim")


def layers_by_width(factory: Factory, widths: Sequence[int]) -> tuple[tuple[str, ...], ...]:
    """Which layers each entry of ``widths`` sets: found by building the network one unit wider.

    Where the factory refuses that, or it changes nothing (heads, groups, even numbers), twice and
    half the width are tried. The global random streams are left alone.

    Returns:
        For each entry the names of the layers whose number of units it sets (of an ``LSTM``: the
        hidden ones); none where it sets only parameters of another kind.

    Raises:
        ValueError: an entry changes nothing, so the factory ignores it; or every other width near
            it is refused.

    >>> layers_by_width(lambda w: nn.Sequential(nn.Linear(2, w[0]), nn.Linear(w[0], 1)), [10])
    (('0',),)
    """
    with isolated():
        original = factory(tuple(widths))
        return tuple(_layers_set_by(factory, widths, index, original)
                     for index in range(len(widths)))


def _layers_set_by(
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
    units = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.RNNBase):
            units[name] = module.hidden_size
        elif isinstance(weight, Tensor) and weight.dim() > 1:
            counts = (getattr(module, attribute, None) for attribute in _COUNTS)
            units[name] = next((count for count in counts if isinstance(count, int)), len(weight))
    return units
