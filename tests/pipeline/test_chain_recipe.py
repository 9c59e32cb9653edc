"""The recipe of the tutorial's pipeline, repeated by hand with the next seed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.pipeline.conftest import SEEDS, Finished
from wua_mlflow.config import load_settings
from wua_mlflow.pipeline.recipe import load_recipe, train_one
from wua_mlflow.tracking.names import ArtifactPath

pytestmark = pytest.mark.xdist_group("usecase")


def _mlp(hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, 1), nn.Sigmoid())


def _fit(model: nn.Module, x: torch.Tensor, y: torch.Tensor, epochs: int) -> None:
    optimizer, loss = torch.optim.Adam(model.parameters(), lr=0.01), nn.BCELoss()
    for _ in range(epochs):
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()


def test_replicates_repeat_the_whole_recipe_with_the_next_seeds(usecase: Finished) -> None:
    """Seed 43 by hand: the oversized network, then the slim one from the same stream."""
    points = np.random.RandomState(42).rand(1000, 2)
    x = torch.tensor(points, dtype=torch.float32)
    y = torch.tensor((points.sum(1) > 1).astype(np.float32))[:, None]
    test = usecase.outcome.variants[0].recipe.split.test
    with torch.random.fork_rng():
        torch.manual_seed(43)
        big = _mlp(10)
        _fit(big, x, y, 50)
        small = _mlp(7)
        _fit(small, x, y, 60)
    with torch.no_grad():
        by_hand = [float(((m(test.inputs) > 0.5) == (test.targets > 0.5)).double().mean())
                   for m in (big, small)]
    for variant, accuracy in zip(("oversized", "slim"), by_hand, strict=True):
        path = usecase.client.download_artifacts(usecase.run(variant).info.run_id,
                                                 ArtifactPath.REPLICATES)
        table = json.loads(Path(path).read_text())
        rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
        assert [row["seed"] for row in rows] == list(range(42, 42 + SEEDS))
        assert rows[1]["score/test"] == pytest.approx(accuracy, abs=1e-12)
        metrics = usecase.run(variant).data.metrics
        scores = [row["score/test"] for row in rows]
        assert metrics["accuracy/test_mean"] == pytest.approx(np.mean(scores))
        assert metrics["accuracy/test_std"] == pytest.approx(np.std(scores, ddof=1))
        assert rows[0]["score/test"] == metrics["accuracy/test"]


def test_the_callers_random_stream_is_left_alone(usecase: Finished) -> None:
    before = torch.get_rng_state()
    recipe = load_recipe(load_settings(None, {"epochs": 2}))
    train_one(recipe, (10,), 2, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
