"""Whether a cut network is what was planned: shapes, parameters, FLOPs, ties, batches, outputs.

Outputs are compared at the weights that the networks have and at others, since at these alone a
wrong cut can hide. Tests: ``tests/pruning/test_cut.py``,
``test_verify.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wua_mlflow.data.batches import mapped
from wua_mlflow.flops import FlopCount, count_flops, count_parameters, tensors_in
from wua_mlflow.hooks import evaluating
from wua_mlflow.module_attributes import copied
from wua_mlflow.pruning.axes import plain_operations
from wua_mlflow.pruning.drawn_weights import (
    Draw,
    random_weights,
    replaced_weights,
    sharpened_weights,
    without,
)
from wua_mlflow.pruning.layers import caches_off, call_model, main_outputs
from wua_mlflow.pruning.reference import outputs_without
from wua_mlflow.pruning.unit_groups import UnitGroups, tied_names

__all__ = [
    "Checked", "WrongCutError", "check_cut", "check_trial", "check_weights", "describe_failure",
    "forward_flops", "planned_shapes", "ties_of",
]


Removed = Mapping[str, Sequence[int]]
"""By group the units that are removed."""
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Of the outputs, relative to the largest of them: fewer summands are added in another order."""
DRAWN_TOLERANCE = 2e-2
"""At drawn weights, of a model that cannot be run in double precision: layers add to its errors."""
NOISE_SEED = 7


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
) -> Checked:
    """Check that a pruned network is what was planned: by four batches and the FLOPs, ten forwards.

    Args:
        original: left as found.
        pruned: the same without the units.
        structure: of the original.
        removed: by group the units that went.
        example: a batch as the model takes it.

    Raises:
        WrongCutError: it is not.
    """
    check_weights(original, pruned, structure, removed)
    batches = [("", example, None), ("noise like the example", _noise_like(example), None),
               ("a batch of 1", _resized(example, 1), random_weights),
               ("a batch of 5", _resized(example, 5), sharpened_weights)]
    compared = _Compared(original, pruned, structure, removed)
    with caches_off(original, pruned):
        refused = []
        for name, inputs, draw in batches:
            if not compared.agree(inputs, draw, name):
                refused.append(name)
                if draw is not None:  # these weights are to be seen on some batch
                    compared.agree(example, draw, "")
        before, after = forward_flops(original, example), forward_flops(pruned, example)
    _check_flops(original, pruned, before, after)
    return Checked(before, after, tuple(refused))


def check_trial(
    original: nn.Module, pruned: nn.Module, structure: UnitGroups, removed: Removed, example: Any,
) -> None:
    """Check a trial cut: its weights, and its outputs at random weights; two forwards.

    Raises:
        WrongCutError: it is not what was planned.
    """
    check_weights(original, pruned, structure, removed)
    with caches_off(original, pruned):
        _Compared(original, pruned, structure, removed).agree(example, random_weights, "")


def check_weights(
    original: nn.Module, pruned: nn.Module, structure: UnitGroups, removed: Removed
) -> None:
    """Check that a pruned network holds the original's weights without those that should go.

    Raises:
        WrongCutError: it does not.
    """
    whole, shapes = _shapes(original), _shapes(pruned)
    for name, shape in planned_shapes(original, structure, removed).items():
        if shapes.get(name) != shape:
            reason = "the cut does not reach it" if shapes.get(name) == whole[name] else \
                "the units are divided on their way, as into heads, or joined with others"
            raise WrongCutError(f"{name} has the shape {shapes.get(name)} instead of {shape}: "
                                f"{reason}")
    values, gone = pruned.state_dict(), _gone(original, structure, removed)
    for name, value in original.state_dict().items():
        if name in gone and not torch.equal(values[name], without(value, gone[name])):
            raise WrongCutError(f"{name} does not hold the weights of the units that stay")
    if ties_of(pruned) != ties_of(original):
        raise WrongCutError("weights that were tied are not any more")
    if sum(map(math.prod, shapes.values())) >= sum(map(math.prod, whole.values())):
        raise WrongCutError("it has no fewer parameters")


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
    for name, dims in _gone(model, structure, removed).items():
        for dim, positions in dims.items():
            if name in shapes:
                shapes[name][dim] -= len(positions)
    return {name: tuple(shape) for name, shape in shapes.items()}


def _gone(
    model: nn.Module, structure: UnitGroups, removed: Removed
) -> dict[str, dict[int, set[int]]]:
    """By parameter or buffer, under all of its names, and by dimension the positions that go."""
    aliases = tied_names(model)
    gone: dict[str, dict[int, set[int]]] = {}
    for name, units in removed.items():
        group = structure.group(name)
        for slice_ in (*group.makers, *group.readers):
            for alias in aliases.get(slice_.parameter, [slice_.parameter]):
                gone.setdefault(alias, {}).setdefault(slice_.dim, set()).update(
                    slice_.positions(units))
    return gone


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


@dataclass(frozen=True)
class _Compared:
    """A cut network, and the original without the units."""

    original: nn.Module
    pruned: nn.Module
    structure: UnitGroups
    removed: Removed

    def agree(self, inputs: Any, draw: Draw | None, name: str) -> bool:
        """Compare the outputs for a batch; False where the original does not take the batch.

        Args:
            inputs: the batch.
            draw: weights for both; those that they have, if None.
            name: of the batch; "" of the one that the original must take.

        Raises:
            WrongCutError: they differ.
        """
        with ExitStack() as stack:
            if draw is not None:
                stack.enter_context(replaced_weights(
                    self.original, self.pruned,
                    _gone(self.original, self.structure, self.removed), draw))
            try:
                expected = self._expected(self.original, inputs)
            except Exception:
                if not name:
                    raise
                return False
            try:
                outputs = _outputs(self.pruned, inputs)
            except Exception as error:  # whatever the cut made of the forward
                raise WrongCutError(f"its forward fails: {describe_failure(error)}") from error
            difference = _difference(expected, outputs)
            if difference and draw is not None and difference != NO_TENSOR:
                difference = self._in_double(inputs, expected, outputs)
        if difference:
            raise WrongCutError(difference)
        return True

    def _expected(self, original: nn.Module, inputs: Any) -> Any:
        with evaluating(original), torch.no_grad(), plain_operations():
            return outputs_without(original, self.structure, self.removed,
                                   partial(call_model, original, inputs))

    def _in_double(self, inputs: Any, expected: Any, outputs: Any) -> str:
        """What differs in double precision, where drawn weights have enlarged rounding errors."""
        inputs = mapped(inputs, Tensor, lambda value: value.double()
                        if value.is_floating_point() else value)
        try:
            expected = self._expected(copied(self.original).double(), inputs)
            outputs = _outputs(copied(self.pruned).double(), inputs)
        except Exception:  # the forward makes tensors of single precision
            return _difference(expected, outputs, DRAWN_TOLERANCE)
        return _difference(expected, outputs, TOLERANCE[torch.float32])


NO_TENSOR = "its outputs hold no tensor that could be compared"


def _outputs(model: nn.Module, inputs: Any) -> Any:
    with evaluating(model), torch.no_grad():
        return call_model(model, inputs)


def _difference(expected: Any, outputs: Any, tolerance: float | None = None) -> str:
    """In what outputs differ from those that are expected; "" where they do not."""
    before, after = (tensors_in(main_outputs(each), objects=True)
                     for each in (expected, outputs))
    if not before:
        return NO_TENSOR
    if len(before) != len(after):
        return f"it gives {len(after)} tensors instead of {len(before)}"
    for one, other in zip(before, after, strict=True):
        if one.shape != other.shape:
            return (f"it gives outputs of the shape {tuple(other.shape)} instead of "
                    f"{tuple(one.shape)}")
        if one.is_floating_point() and not _close(one, other, tolerance):
            return "its outputs are not those of the original without the units"
    return ""


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
    """An error of the forward of a cut network, in one line."""
    message = " ".join(str(error).split())
    message = message if len(message) <= 100 else f"{message[:99]}…"
    reason = f"{type(error).__name__}: {message}"
    if isinstance(error, RuntimeError) and "is invalid for input of size" in reason:
        return f"the forward divides its units by a fixed number, as into heads ({reason})"
    return reason


def _close(expected: Tensor, outputs: Tensor, tolerance: float | None = None) -> bool:
    finite = expected[torch.isfinite(expected)]
    scale = float(finite.abs().max()) if len(finite) else 1.0
    tolerance = tolerance or TOLERANCE.get(expected.dtype, 1e-4)
    return torch.allclose(outputs, expected, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def _check_flops(
    original: nn.Module, pruned: nn.Module, before: FlopCount, after: FlopCount
) -> None:
    """Check that parameters and FLOPs fall, those of a Linear in proportion to its weights."""
    sizes = [count_parameters(model) for model in (original, pruned)]
    if sizes[1] >= sizes[0] or after.forward_flops > before.forward_flops:
        raise WrongCutError(f"it has {sizes[1]:,} parameters and {after.forward_flops:,} FLOPs, "
                            f"not fewer than {sizes[0]:,} and {before.forward_flops:,}")
    for name, module in pruned.named_modules():
        if isinstance(module, nn.Linear) and before.by_module.get(name):
            most = before.by_module[name] * module.weight.numel() / \
                original.get_submodule(name).get_parameter("weight").numel()
            if not 0 < after.by_module.get(name, 0) <= most:  # fewer, where it mixes other units
                raise WrongCutError(f"{name} takes {after.by_module.get(name, 0):,} FLOPs instead "
                                    f"of {most:,.0f}")
