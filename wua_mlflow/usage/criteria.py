"""Importance criteria of weights, as pure functions of tensors.

The parameters of a criterion name what it needs. A function of your own may use the same names:

``weight``
    shape (units, weights of a unit), a convolution's kernels flattened.
``mean_output``
    shape (units, 1): the mean of each unit's signed output, before its activation.
``mean_input``
    E|x| of what each weight multiplies; broadcasts against ``weight``.
``input_norm``
    ‖x‖₂ over all samples and positions of the same; broadcasts against ``weight``.
``gradient``
    shape of ``weight``: the mean over samples of the loss's gradient.
Tests: ``tests/usage/test_criteria.py``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

__all__ = [
    "CRITERIA", "Criterion", "WeightedImportance", "activation", "inputs_of", "magnitude", "output",
    "taylor", "taylor_units", "wanda",
]


Criterion = Callable[..., Tensor]
EVIDENCE = ("mean_output", "mean_input", "input_norm", "gradient")
"""What a criterion may ask for beside the weight."""


def output(weight: Tensor, mean_output: Tensor) -> Tensor:
    """|w| · |mean z|: the tutorial's criterion.

    The mean over samples and positions is taken of the *signed* output, then its absolute value.
    Scaling a unit's incoming weights by c scales its importance by c².

    Args:
        weight: shape (units, weights of a unit).
        mean_output: shape (units, 1).

    >>> import torch
    >>> output(torch.tensor([[1.0, -2.0]]), torch.tensor([[-3.0]]))
    tensor([[3., 6.]])
    """
    return (weight * mean_output).abs_()


def activation(weight: Tensor, mean_input: Tensor) -> Tensor:
    """|w| · E|x|, x being what the weight multiplies: the criterion ``input``.

    A first-order bound of what the unit's input loses without the weight (Hu et al. 2016, arXiv
    1607.03250, look at E|x| alone).

    >>> import torch
    >>> activation(torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 0.25]]))
    tensor([[0.5000, 0.5000]])
    """
    return (weight * mean_input).abs_()


def wanda(weight: Tensor, input_norm: Tensor) -> Tensor:
    """|w| · ‖x‖₂ (Sun et al. 2023, arXiv 2306.11695, equation 1).

    >>> import torch
    >>> wanda(torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0, 4.0]]))
    tensor([[3., 8.]])
    """
    return (weight * input_norm).abs_()


def magnitude(weight: Tensor) -> Tensor:
    """|w|, whatever the data (Han et al. 2015, arXiv 1506.02626).

    >>> import torch
    >>> magnitude(torch.tensor([[1.0, -2.0]]))
    tensor([[1., 2.]])
    """
    return weight.abs()


def taylor(weight: Tensor, gradient: Tensor) -> Tensor:
    """|w · mean gradient|: what the loss changes, to first order, without the weight (Molchanov et
    al. 2019, arXiv 1906.10771, equation 8, before the square).

    >>> import torch
    >>> taylor(torch.tensor([[1.0, -2.0]]), torch.tensor([[-0.5, 0.25]]))
    tensor([[0.5000, 0.5000]])
    """
    return (weight * gradient).abs_()


def taylor_units(
    weight: Tensor, gradient: Tensor, bias: Tensor | None, bias_gradient: Tensor | None
) -> Tensor:
    """Σ a·g of each unit's output a and its gradient g, signed: its absolute value is the unit's
    importance (Molchanov et al. 2017, arXiv 1611.06440, equation 8). It does not change when a
    unit's weights are scaled and its readers' divided.

    A unit's output is Σ w x + b and the gradient of w is Σ g x, so that Σ a·g over samples and
    positions is Σ w · gradient + b · its gradient: no activation need be kept.

    Args:
        weight: shape (units, weights of a unit).
        gradient: mean over samples, the weight's shape.
        bias: shape (units,), if the units have one.
        bias_gradient: likewise.

    >>> import torch
    >>> taylor_units(torch.tensor([[1.0, -2.0]]), torch.tensor([[-0.5, 0.25]]), None, None)
    tensor([-1.], dtype=torch.float64)
    """
    total = (weight.double() * gradient.double()).sum(1)
    if bias is not None and bias_gradient is not None:
        total = total + bias.double() * bias_gradient.double()
    return total


CRITERIA: dict[str, Criterion] = {
    "output": output,
    "input": activation,
    "wanda": wanda,
    "magnitude": magnitude,
    "taylor": taylor,
}


@dataclass(frozen=True)
class WeightedImportance:
    """The importance |weight · factor| of any tile; every built-in criterion has this form.

    Attributes:
        weight: shape (units, weights of a unit).
        factor: broadcasts against it; None for 1.

    >>> import torch
    >>> WeightedImportance(torch.tensor([[1.0, -2.0]]), torch.tensor([[-3.0]]))(
    ...     slice(None), slice(1, 2))
    tensor([[6.]])
    """

    weight: Tensor
    factor: Tensor | None

    def __call__(self, rows: slice, columns: slice) -> Tensor:
        return self._tile(rows, columns, self.weight.dtype)

    def exact(self, rows: slice, columns: slice) -> Tensor:
        """The same tile in float64."""
        return self._tile(rows, columns, torch.float64)

    def _tile(self, rows: slice, columns: slice, dtype: torch.dtype) -> Tensor:
        tile = self.weight[rows, columns].to(dtype)
        if self.factor is None:
            return tile.abs()
        height, width = self.factor.shape
        factor = self.factor[rows if height > 1 else slice(None),
                             columns if width > 1 else slice(None)]
        return (tile * factor.to(dtype)).abs_()


@cache
def inputs_of(criterion: Criterion) -> tuple[str, ...]:
    """The parameters of a criterion beside the weight.

    Raises:
        ValueError: a function of one's own whose parameters are others.

    >>> inputs_of(wanda), inputs_of(magnitude)
    (('input_norm',), ())
    """
    try:
        names = list(inspect.signature(criterion).parameters)
    except ValueError:  # a function that is not written in Python
        names = []
    unknown = [name for name in names[1:] if name not in EVIDENCE]
    if names[:1] != ["weight"] or unknown:
        raise ValueError(f"criterion: expected a function of weight and some of "
                         f"{', '.join(EVIDENCE)}, but got one of {', '.join(names) or 'nothing'}")
    return tuple(names[1:])
