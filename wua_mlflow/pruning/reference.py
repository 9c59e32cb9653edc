"""What a network computes without some of its units, whose norms go over those that stay.

The reference of a cut: the original, in which what reads the units is zero, and each norm, mean or
sum over units goes over those that stay. Tests: ``tests/pruning/test_reference.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wua_mlflow.pruning.axes import plain_operations
from wua_mlflow.pruning.labels import FREE, Labels, any_
from wua_mlflow.pruning.operations import REDUCTIONS, reduced_dims, uses_batch
from wua_mlflow.pruning.tracer import Tracer
from wua_mlflow.pruning.unit_groups import UnitGroup, UnitGroups, masked

__all__ = ["outputs_without"]


def outputs_without(
    model: nn.Module, structure: UnitGroups, removed: Mapping[str, Sequence[int]],
    run: Callable[[], Any],
) -> Any:
    """What a model gives without these units.

    Args:
        model: in eval mode; left as found.
        structure: its groups.
        removed: by name of a group the units that go.
        run: runs its forward, and returns what that returns.
    """
    streams = [structure.group(name) for name in removed if structure.group(name).kind == "stream"]
    with masked(model, structure, removed):
        if not streams:
            return run()
        labels, gone = _labels(model, streams, removed)
        with plain_operations():
            return _Without(gone).run(model, labels, run)


def _labels(
    model: nn.Module, groups: Sequence[UnitGroup], removed: Mapping[str, Sequence[int]]
) -> tuple[dict[tuple[str, int], Labels], np.ndarray]:
    """The groups' units by dimension of the parameters; and which of them go."""
    sizes = {name: tensor.shape for name, tensor in (
        *model.named_parameters(), *model.named_buffers())}
    labels: dict[tuple[str, int], Labels] = {}
    gone: list[bool] = []
    for group in groups:
        going = set(removed[group.name])
        for slice_ in (*group.makers, *group.readers):
            place = (slice_.parameter, slice_.dim)
            if slice_.parameter not in sizes:
                continue  # a number that a module states
            column = labels.setdefault(place, np.full((sizes[place[0]][place[1]], 1), FREE))
            for unit, positions in enumerate(slice_.columns):
                column[list(positions), 0] = len(gone) + unit
        gone += [unit in going for unit in range(group.units)]
    return labels, np.array(gone)


class _Without(Tracer):
    """A forward in which norms and means go over the units that stay."""

    def __init__(self, gone: np.ndarray) -> None:
        super().__init__(len(gone))
        self._gone = gone

    def compute(self, func: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The operation, without the units that go where it sums over them."""
        if name in ("native_layer_norm", "_fused_rms_norm", "rms_norm", "layer_norm"):
            return self._layer_norm(func, args, kwargs)
        if name == "native_group_norm":
            return self._group_norm(func, args)
        if "batch_norm" in name and uses_batch(args):
            return self._batch_norm(func, args, kwargs)
        if name in REDUCTIONS:
            inputs = args[0]
            for dim in reduced_dims(name, args, kwargs):
                staying = self._staying(self.layout(args[0])[dim])
                if staying is not None:
                    inputs = inputs.index_select(dim, staying.to(inputs.device))
            return func(inputs, *args[1:], **kwargs)
        return func(*args, **kwargs)

    def constant(self, size: int) -> Labels:
        """Labels of a tensor that the forward makes: none of the units."""
        return any_(size)

    def _staying(self, labels: Labels) -> Tensor | None:
        """The positions that stay; None where all do."""
        going = ((labels >= 0) & self._gone[np.maximum(labels, 0)]).any(1)
        return torch.tensor(np.flatnonzero(~going)) if going.any() else None

    def _layer_norm(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        inputs, shape, *rest = args
        staying = self._staying(self.layout(inputs)[-1])
        if staying is None:
            return func(*args, **kwargs)
        staying = staying.to(inputs.device)
        parts = [each.index_select(-1, staying) if isinstance(each, Tensor) else each
                 for each in rest]
        outputs = func(inputs.index_select(-1, staying), [*shape[:-1], len(staying)], *parts,
                       **kwargs)
        return _spread(outputs, inputs, -1, staying)

    def _group_norm(self, func: Any, args: Sequence[Any]) -> Any:
        inputs, weight, bias, samples, channels, places, groups, eps = args
        staying = self._staying(self.layout(inputs)[1])
        if staying is None:
            return func(*args)
        staying = staying.to(inputs.device)
        left = int(torch.unique(staying // (channels // groups)).numel())
        outputs = func(inputs.index_select(1, staying).contiguous(), *(
            None if each is None else each[staying] for each in (weight, bias)),
            samples, len(staying), places, left, eps)
        return _spread(outputs, inputs, 1, staying)


    def _batch_norm(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """As standardised weights are made: over the inputs that stay, along the last dim."""
        inputs = args[0]
        staying = self._staying(self.layout(inputs)[-1]) if inputs.dim() > 2 else None
        if staying is None:
            return func(*args, **kwargs)
        staying = staying.to(inputs.device)
        outputs = func(inputs.index_select(-1, staying), *args[1:], **kwargs)
        return _spread(outputs, inputs, -1, staying)


def _spread(outputs: Any, like: Tensor, dim: int, staying: Tensor) -> Any:
    """The outputs of the units that stay, at their places; zero at the others."""
    first, *others = outputs if isinstance(outputs, tuple) else (outputs,)
    whole = torch.zeros_like(like).index_copy(dim, staying, first)
    return (whole, *others) if isinstance(outputs, tuple) else whole
