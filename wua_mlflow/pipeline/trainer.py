"""The user's own trainer: calling it, and seeing that what it returns can be kept.

May import: torch, dotted, hooks, the pipeline's data and models.
Tests: ``tests/pipeline/test_recipe.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from wua_mlflow.dotted import one_line
from wua_mlflow.hooks import evaluating, unwrapped
from wua_mlflow.pipeline.data import DataSplit
from wua_mlflow.pipeline.models import naming

__all__ = ["Trainer", "check_kept", "trained_by"]

Trainer = Callable[[nn.Module, tuple[TensorDataset, TensorDataset], int, int], nn.Module]
"""(model, (train, validation), epochs, seed) -> the model, trained."""


def trained_by(
    trainer: Trainer, name: str, model: nn.Module, split: DataSplit, *, epochs: int, seed: int
) -> nn.Module:
    """What ``trainer``, called ``name``, makes of ``model``; a compiled one is unwrapped.

    Raises:
        ValueError: it raises anything, or returns no module.
    """
    data = (TensorDataset(split.train.inputs, split.train.targets),
            TensorDataset(split.validation.inputs, split.validation.targets))
    with naming(f"train: {name} failed", ours=False):
        trained = trainer(model, data, epochs, seed)
    if not isinstance(trained, nn.Module):
        raise ValueError(f"train: expected {name} to return the trained torch.nn.Module, but it "
                         f"returned {type(trained).__name__}")
    return unwrapped(trained)


def check_kept(name: str, trained: nn.Module, again: nn.Module, inputs: Tensor) -> None:
    """Whether factory and state alone make the trained network again, since a run keeps no more.

    Args:
        name: of the trainer.
        trained: what it returned.
        again: a network fresh from the factory, which is given the state of ``trained``.
        inputs: some, on which the two must agree.

    Raises:
        ValueError: the trainer returned another network than the one it was given.
    """
    what = f"train: expected {name} to return the network it was given, trained, but it returned"
    try:
        again.load_state_dict(trained.state_dict())
    except RuntimeError as error:
        raise ValueError(f"{what} one of other parameters: {one_line(error)}") from error
    with naming(f"{what} one that fails"), evaluating(trained), evaluating(again):
        outputs = trained(inputs), again(inputs)
        if not torch.allclose(*outputs, rtol=1e-3, atol=1e-5, equal_nan=True):
            raise ValueError(f"{what} one that computes something else")
