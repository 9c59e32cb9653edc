"""Whether a cut network is what was planned: shapes, parameters, FLOPs, ties, batches, outputs.

Independent of the library that did the cutting. Tests: ``tests/pruning/test_cut.py``,
``test_verify.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wua_mlflow.data.batches import mapped
from wua_mlflow.flops import FlopCount, count_flops, count_parameters, tensors_in
from wua_mlflow.hooks import evaluating
from wua_mlflow.pruning.dependency_graph import caches_off, call_model
from wua_mlflow.pruning.unit_groups import UnitGroups, masked, tied_names

__all__ = [
    "Checked", "WrongCutError", "check_cut", "describe_failure", "forward_flops", "planned_shapes",
    "ties_of",
]


Removed = Mapping[str, Sequence[int]]
"""By group the units that are removed."""
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Of the outputs, relative to the largest of them: fewer summands are added in another order."""
NOISE_SEED = 7
BATCH_SIZES = (1, 2, 5)


class WrongCutError(Exception):
    """A cut network is not what was planned; the message says in what."""


class Checked(NamedTuple):
    """What a check found of a cut network that is as planned.

    Attributes:
        before: the FLOPs of the original.
        after: those of the cut network.
        refused: the batches that the original itself does not take, so that they tell nothing.
    """

    before: FlopCount
    after: FlopCount
    refused: tuple[str, ...]


def check_cut(
    original: nn.Module, pruned: nn.Module, structure: UnitGroups, removed: Removed, example: Any,
    *, before: FlopCount | None = None,
) -> Checked:
    """Check that a pruned network is what was planned.

    Args:
        original: left as found.
        pruned: the same without the units.
        structure: of the original.
        removed: by group the units that went.
        example: a batch as the model takes it.
        before: the FLOPs of the original, where ``forward_flops`` has counted them already.

    Raises:
        WrongCutError: it is not.
    """
    whole, shapes = _shapes(original), _shapes(pruned)
    for name, shape in planned_shapes(original, structure, removed).items():
        if shapes.get(name) != shape:
            reason = "the cut does not reach it" if shapes.get(name) == whole[name] else \
                "the units are divided on their way, as into heads, or joined with others"
            raise WrongCutError(f"{name} has the shape {shapes.get(name)} instead of {shape}: "
                                f"{reason}")
    if ties_of(pruned) != ties_of(original):
        raise WrongCutError("weights that were tied are not any more")
    with caches_off(original, pruned):
        refused = _check_outputs(original, pruned, structure, removed, example)
        before = before or forward_flops(original, example)
        after = forward_flops(pruned, example)
    _check_flops(original, pruned, before, after)
    return Checked(before, after, refused)


def forward_flops(model: nn.Module, example: Any) -> FlopCount:
    """The FLOPs of a forward on the example."""
    arguments = example if isinstance(example, Mapping | tuple) else (example,)
    with caches_off(model):
        return count_flops(model, arguments, backward=False)


def planned_shapes(
    model: nn.Module, structure: UnitGroups, removed: Removed
) -> dict[str, tuple[int, ...]]:
    """The shapes of all parameters and buffers without these units, by hand."""
    shapes = {name: list(shape) for name, shape in _shapes(model).items()}
    aliases = tied_names(model)
    for name, units in removed.items():
        group = structure.group(name)
        shortened = set()
        for slice_ in (*group.makers, *group.readers):
            for alias in aliases.get(slice_.parameter, [slice_.parameter]):
                if (alias, slice_.dim) not in shortened and alias in shapes:
                    shapes[alias][slice_.dim] -= len(slice_.positions(units))
                    shortened.add((alias, slice_.dim))
    return {name: tuple(shape) for name, shape in shapes.items()}


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict(keep_vars=True).items()
            if isinstance(value, Tensor)}


def ties_of(model: nn.Module) -> set[tuple[str, ...]]:
    """The sets of names of parameters and modules that have several."""
    modules: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        modules.setdefault(id(module), []).append(name)
    return {tuple(sorted(names)) for names in (*tied_names(model).values(), *modules.values())
            if len(names) > 1}


def _check_outputs(
    original: nn.Module, pruned: nn.Module, structure: UnitGroups, removed: Removed, example: Any
) -> tuple[str, ...]:
    """Compare with the masked original: the example, noise like it, and several batch sizes.

    Returns:
        Which of these the original refuses, as a graph's nodes are under fixed edges.
    """
    batches = {"": example, "noise like the example": _noise_like(example),
               **{f"a batch of {count}": _resized(example, count) for count in BATCH_SIZES}}
    refused = []
    for name, inputs in batches.items():
        with evaluating(original), evaluating(pruned), torch.no_grad():
            try:
                with masked(original, structure, removed):
                    expected = call_model(original, inputs)
            except Exception:
                if not name:
                    raise
                refused.append(name)
                continue
            try:
                outputs = call_model(pruned, inputs)
            except Exception as error:  # whatever the cut made of the forward
                raise WrongCutError(f"its forward fails: {describe_failure(error)}") from error
        pairs = list(zip(tensors_in(expected), tensors_in(outputs), strict=True))
        if not pairs:
            raise WrongCutError("its outputs hold no tensor that could be compared")
        for before, after in pairs:
            if before.shape != after.shape:
                raise WrongCutError(f"it gives outputs of the shape {tuple(after.shape)} instead "
                                    f"of {tuple(before.shape)}")
            if before.is_floating_point() and not _close(before, after):
                raise WrongCutError("its outputs are not those of the original without the units")
    return tuple(refused)


def _resized(example: Any, samples: int) -> Any:
    """The example with another number of samples: its first ones, repeated where it has fewer."""
    first = next(iter(tensors_in(example)), None)
    if first is None or not first.dim():
        return example
    rows = torch.arange(samples) % len(first)
    return mapped(example, Tensor, lambda value: value[rows.to(value.device)]
                  if value.dim() and len(value) == len(first) else value)


def _noise_like(example: Any) -> Any:
    """Noise of the example's shape, mean and standard deviation, from a generator of its own.

    Whole numbers, which may be places in a table, change places with those of other samples.
    """
    generator = torch.Generator().manual_seed(NOISE_SEED)

    def noise(value: Tensor) -> Tensor:
        if value.dtype == torch.bool or value.is_complex() or not value.dim():
            return value
        whole = not value.is_floating_point() or bool((value == value.round()).all())
        if whole and bool((value != value[0]).any()):
            rows = torch.rand(value.shape, generator=generator).argsort(dim=0)
            return value.gather(0, rows.to(value.device))
        if not value.is_floating_point():
            return value
        spread = value.double().std() if value.numel() > 1 else torch.tensor(1.0)
        normal = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        return (value.double().mean().cpu() + (spread.cpu() + 1e-3) * normal).to(value)

    return mapped(example, Tensor, noise)


def describe_failure(error: Exception) -> str:
    """An error of the library, or of the forward of a cut network, in one line."""
    message = " ".join(str(error).split())
    message = message if len(message) <= 100 else f"{message[:99]}…"
    reason = f"{type(error).__name__}: {message}"
    if isinstance(error, RuntimeError) and "is invalid for input of size" in reason:
        return f"the forward divides its units by a fixed number, as into heads ({reason})"
    if isinstance(error, KeyError) and "already exists" in reason:
        return f"its weight is computed from others (parametrised, {reason})"
    return reason


def _close(expected: Tensor, outputs: Tensor) -> bool:
    finite = expected[torch.isfinite(expected)]
    scale = float(finite.abs().max()) if len(finite) else 1.0
    tolerance = TOLERANCE.get(expected.dtype, 1e-4)
    return torch.allclose(outputs, expected, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def _check_flops(
    original: nn.Module, pruned: nn.Module, before: FlopCount, after: FlopCount
) -> None:
    """Check that parameters and FLOPs fall, those of a Linear in proportion to its weights."""
    sizes = [count_parameters(model) for model in (original, pruned)]
    if sizes[1] >= sizes[0] or after.forward_flops > before.forward_flops:
        raise WrongCutError(f"it has {sizes[1]:,} parameters and {after.forward_flops:,} FLOPs, "
                            f"not fewer than {sizes[0]:,} and {before.forward_flops:,}")
    originals = dict(original.named_modules())
    for name, module in pruned.named_modules():
        if isinstance(module, nn.Linear) and before.by_module.get(name):
            planned = before.by_module[name] * module.weight.numel() / \
                originals[name].weight.numel()
            if after.by_module.get(name, 0) != planned:
                raise WrongCutError(f"{name} takes {after.by_module.get(name, 0):,} FLOPs instead "
                                    f"of {planned:,.0f}")
