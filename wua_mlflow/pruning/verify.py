"""Whether a cut network is what was planned: shapes, parameters, FLOPs, ties, batches, outputs.

Independent of the library that did the cutting. May import: torch, flops, hooks, randomness,
slimming. Tests: ``tests/slimming/test_cutting.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wua_mlflow.flops import FlopCount, count_flops, count_parameters
from wua_mlflow.hooks import evaluating
from wua_mlflow.pruning.dependency_graph import uncached
from wua_mlflow.pruning.examples import called, noise_like, resized, tensors_in
from wua_mlflow.pruning.masking import masked
from wua_mlflow.pruning.unit_groups import UnitGroups, names_by_tensor

__all__ = ["WrongCutError", "check_cut", "planned_shapes", "ties_of", "worded"]


Removed = Mapping[str, Sequence[int]]
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Of the outputs, relative to the largest of them: fewer summands are added in another order."""


class WrongCutError(Exception):
    """A cut network is not what was planned; the message says in what."""


def check_cut(
    original: nn.Module, cut: nn.Module, structure: UnitGroups, removed: Removed, example: Any
) -> tuple[FlopCount, FlopCount]:
    """The FLOPs of both networks, where the cut one is what was planned.

    Args:
        original: left as found.
        cut: the same without the units.
        structure: of the original.
        removed: by group the units that went.
        example: a batch as the model takes it.

    Raises:
        WrongCutError: it is not.
    """
    shapes = {name: tuple(one.shape) for name, one in cut.state_dict().items()
              if isinstance(one, Tensor)}
    planned = planned_shapes(original, structure, removed)
    for name, shape in planned.items():
        if shapes.get(name) != shape:
            raise WrongCutError(f"{name} has the shape {shapes.get(name)} instead of {shape}: the "
                                f"units are divided on their way, as into heads, or joined with "
                                f"others")
    if ties_of(cut) != ties_of(original):
        raise WrongCutError("weights that were tied are not any more")
    with uncached(original, cut):
        _check_outputs(original, cut, structure, removed, example)
        return _check_flops(original, cut, example)


def planned_shapes(
    model: nn.Module, structure: UnitGroups, removed: Removed
) -> dict[str, tuple[int, ...]]:
    """The shapes of all parameters and buffers without these units, by hand."""
    shapes = {name: list(one.shape) for name, one in model.state_dict(keep_vars=True).items()
              if isinstance(one, Tensor)}
    same = names_by_tensor(model)
    for name, units in removed.items():
        group = structure.group(name)
        lost = [(one.parameter, one.dim, len(one.of(units)))
                for one in (*group.makers, *group.readers)]
        taken = set()
        for parameter, dim, count in lost:
            for alias in same.get(parameter, [parameter]):
                if (alias, dim) not in taken and alias in shapes:
                    shapes[alias][dim] -= count
                    taken.add((alias, dim))
    return {name: tuple(shape) for name, shape in shapes.items()}


def ties_of(model: nn.Module) -> set[tuple[str, ...]]:
    """The names of each parameter and of each module that has several."""
    modules: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        modules.setdefault(id(module), []).append(name)
    groups = [*names_by_tensor(model).values(), *modules.values()]
    return {tuple(sorted(names)) for names in groups if len(names) > 1}


def _check_outputs(
    original: nn.Module, cut: nn.Module, structure: UnitGroups, removed: Removed, example: Any
) -> None:
    """At several batch sizes, on the example and on noise like it, against the masked original."""
    for inputs in (example, noise_like(example), *(resized(example, count) for count in (1, 2, 5))):
        with evaluating(original), evaluating(cut), torch.no_grad():
            with masked(original, structure, removed):
                expected = called(original, inputs)
            try:
                found = called(cut, inputs)
            except Exception as error:  # whatever the cut made of the forward
                raise WrongCutError(f"its forward fails: {worded(error)}") from error
        for one, other in zip(tensors_in(expected), tensors_in(found), strict=True):
            if one.shape != other.shape:
                raise WrongCutError(f"it gives outputs of the shape {tuple(other.shape)} instead "
                                    f"of {tuple(one.shape)}")
            if one.is_floating_point() and not _close(one, other):
                raise WrongCutError("its outputs are not those of the original without the units")


def worded(error: Exception) -> str:
    """An error of the library, or of a forward that was cut, in one line."""
    said = " ".join(str(error).split())
    reason = f"{type(error).__name__}: {said if len(said) <= 100 else f'{said[:99]}…'}"
    if isinstance(error, RuntimeError) and "is invalid for input of size" in reason:
        return f"the forward divides its units by a fixed number, as into heads ({reason})"
    if isinstance(error, KeyError) and "already exists" in reason:
        return f"its weight is computed from others (parametrised, {reason})"
    return reason


def _close(one: Tensor, other: Tensor) -> bool:
    finite = one[torch.isfinite(one)]
    scale = float(finite.abs().max()) if len(finite) else 1.0
    tolerance = TOLERANCE.get(one.dtype, 1e-4)
    return torch.allclose(other, one, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def _check_flops(
    original: nn.Module, cut: nn.Module, example: Any
) -> tuple[FlopCount, FlopCount]:
    """FLOPs and parameters fall; those of a layer as its weights."""
    arguments = example if isinstance(example, Mapping | tuple) else (example,)
    before = count_flops(original, arguments, backward=False)
    after = count_flops(cut, arguments, backward=False)
    sizes = [count_parameters(model) for model in (original, cut)]
    if sizes[1] >= sizes[0] or after.forward_flops > before.forward_flops:
        raise WrongCutError(f"it has {sizes[1]:,} parameters and {after.forward_flops:,} FLOPs, "
                            f"not fewer than {sizes[0]:,} and {before.forward_flops:,}")
    weights = dict(original.named_modules())
    for name, module in cut.named_modules():
        if isinstance(module, nn.Linear) and before.by_module.get(name):
            planned = before.by_module[name] * module.weight.numel() / \
                weights[name].weight.numel()
            if after.by_module.get(name, 0) != planned:
                raise WrongCutError(f"{name} takes {after.by_module.get(name, 0):,} FLOPs instead "
                                    f"of {planned:,.0f}")
    return before, after
