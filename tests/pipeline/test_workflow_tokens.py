"""Inputs that are places in an embedding's table: kept whole, and slimmed to the registry."""

from __future__ import annotations

from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from safetensors.torch import save_model
from torch.utils.data import TensorDataset

from tests.pipeline.slimming_cases import store  # noqa: F401 - a fixture
from tests.pruning.cutting_cases import Tokens
from wua_mlflow.cli.output import slimmed_text
from wua_mlflow.config import load_settings
from wua_mlflow.data.datasets import split_of
from wua_mlflow.pipeline import workflow
from wua_mlflow.tracking.store import Store

HERE, TOKENS = "tests.pipeline.test_workflow_tokens", 9


def texts(seed: int) -> list[tuple[Any, Any]]:
    """What follows is the first token again."""
    draw = torch.Generator().manual_seed(seed)
    inputs = [torch.randint(TOKENS, (rows, 4), generator=draw) for rows in (160, 80, 200)]
    return [(one, one[:, 0]) for one in inputs]


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize(("given", "kept"), [
    (torch.int64, torch.int64), (torch.int32, torch.int64), (torch.uint8, torch.float32),
    (torch.float64, torch.float32)])
def test_whole_numbers_of_tensors_are_places(
    given: torch.dtype, kept: torch.dtype, stacked: bool
) -> None:
    three = [(x.to(given), y) for x, y in texts(1)]
    split = split_of([TensorDataset(*one) for one in three] if stacked else three, "mine:data")
    for part, (x, _) in zip((split.train, split.validation, split.test), three, strict=True):
        assert part.inputs.dtype == kept
        assert torch.equal(part.inputs, x.to(kept))


def test_whole_numbers_of_arrays_are_numbers() -> None:
    parts = [(np.arange(60).reshape(30, 2), np.arange(30) % 3) for _ in range(3)]
    assert split_of(parts, "mine:data").train.inputs.dtype == torch.float32


def test_a_model_of_tokens_goes_all_the_way_to_the_registry(store: Store) -> None:  # noqa: F811
    torch.manual_seed(0)
    save_model(Tokens(), "w.safetensors")
    given = {"model": f"{HERE}:Tokens", "state": "w.safetensors", "data": f"{HERE}:texts",
             "slim_hidden": "6,4", "slim_epochs": 2, "null_draws": 0, "margin": 0.5,
             "register": "texts"}
    outcome = workflow.slim_run(store, load_settings(None, given))
    slim = outcome.variants[-1].model
    assert (slim.up.out_features, slim.down.in_features) == (4, 4)
    assert slim.head.weight is slim.emb.weight
    said = slimmed_text(outcome).splitlines()
    assert said[2:4] == ["  up: 4 left", "  head: not cut: its units are the network's outputs"]
    assert outcome.registered == "Registered as 'texts' version 1, alias slim."
    inputs = texts(7)[2][0]
    served = mlflow.pyfunc.load_model("models:/texts@slim").predict(inputs[:3].numpy())
    with torch.no_grad():
        np.testing.assert_allclose(served, slim(inputs[:3]).numpy(), rtol=1e-5, atol=1e-6)
