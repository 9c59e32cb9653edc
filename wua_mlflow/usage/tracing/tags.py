"""Tags on tensors: whose units a tensor has. A tag ends where the tensor is changed in place.

Tests: ``tests/usage/tracing/test_layer.py``, ``tests/usage/test_units.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from wua_mlflow.usage.tracing.layer import TracedLayer

__all__ = ["UnitTag", "find_added_bias", "propagate_output", "propagate_units", "tag", "tag_of"]


@dataclass(frozen=True)
class UnitTag:
    """What is known of a tensor that came out of a layer.

    Attributes:
        layer: the layer whose units the tensor has, each in its place.
        call: from which call of that layer they came.
        flat: whether images were flattened into rows since.
        product: the layer whose product this is; its bias may still be added.
        positive: whether no entry is below zero.
    """

    layer: TracedLayer | None = None
    call: int | None = None
    flat: bool = False
    product: TracedLayer | None = None
    positive: bool = False


_NO_TAG = UnitTag()


def tag(tensor: Tensor, **changes: Any) -> None:
    """Change fields of a tensor's tag; what was tagged before a change in place is dropped.

    >>> import torch
    >>> x = torch.zeros(2)
    >>> tag(x, call=1)
    >>> tag_of(x).call, tag_of(x.add_(1)).call
    (1, None)
    """
    changed = replace(tag_of(tensor), **changes)
    tensor.wua_tag = (_version(tensor), changed)  # type: ignore[attr-defined]


def tag_of(tensor: Any) -> UnitTag:
    """The tag of a tensor as it is now; an empty one for any other object."""
    tagged: tuple[int, UnitTag] | None = getattr(tensor, "wua_tag", None)
    return tagged[1] if tagged is not None and tagged[0] == _version(tensor) else _NO_TAG


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def propagate_units(source: UnitTag, result: Tensor, *, flattened: bool) -> None:
    """Tag the result of a function that leaves a layer's units in their places.

    Args:
        source: the tag of what the function was given.
        result: of the function.
        flattened: whether the function may have flattened images into rows.
    """
    if source.layer is None:
        return
    flat = (flattened or source.flat) and source.layer.spatial > 0
    if not flat or result.dim() == 2:
        tag(result, layer=source.layer, call=source.call, product=None, flat=flat)


def propagate_output(source: Tensor, result: Tensor) -> None:
    """Tag the view of a product that leaves its rows whole: a bias may still be added to it."""
    source_tag = tag_of(source)
    layer = source_tag.product
    if layer is not None and not layer.spatial and layer.unit_dim == -1 \
            and result.shape[-1:] == source.shape[-1:]:
        tag(result, layer=layer, call=source_tag.call, product=layer)


def find_added_bias(terms: tuple[Any, ...]) -> tuple[Tensor, TracedLayer, Tensor] | None:
    """The product, its layer, and what may be its bias, of the two terms of a sum; None if none."""
    for product, bias in (terms, terms[::-1]) if len(terms) == 2 else ():
        layer = tag_of(product).product
        if layer is None or not isinstance(bias, Tensor):
            continue
        unit_dim = bias.dim() - 1 - layer.spatial if layer.unit_dim == -1 else bias.dim() - 2
        if unit_dim >= 0 and bias.shape[unit_dim] == layer.units == bias.numel():
            return product, layer, bias
    return None
