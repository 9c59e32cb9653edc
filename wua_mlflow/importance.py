"""What makes a weight important: the criteria, as pure functions of tensors.

Each takes a layer's weight, shape (units, ...), and the mean of each unit's signed output before
its activation, shape (units,), and gives the importance in the weight's shape.
May import: torch. Tests: ``tests/test_importance.py``.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

__all__ = ["CRITERIA", "Criterion", "magnitude", "output"]

Criterion = Callable[[Tensor, Tensor], Tensor]


def output(weight: Tensor, mean_output: Tensor) -> Tensor:
    """|w| · |mean z|: the tutorial's criterion.

    The mean over samples and positions is taken of the *signed* output, then its absolute value.
    Scaling a unit's incoming weights by c scales its importance by c².

    Args:
        weight: shape (units, ...).
        mean_output: shape (units,).

    >>> import torch
    >>> output(torch.tensor([[1.0, -2.0]]), torch.tensor([-3.0]))
    tensor([[3., 6.]], dtype=torch.float64)
    """
    unit = mean_output.double().abs().reshape(-1, *[1] * (weight.dim() - 1))
    return weight.double().abs() * unit


def magnitude(weight: Tensor, mean_output: Tensor) -> Tensor:
    """|w|, whatever the data (Han et al. 2015, arXiv 1506.02626).

    >>> import torch
    >>> magnitude(torch.tensor([[1.0, -2.0]]), torch.tensor([-3.0]))
    tensor([[1., 2.]], dtype=torch.float64)
    """
    return weight.double().abs()


CRITERIA: dict[str, Criterion] = {"output": output, "magnitude": magnitude}
