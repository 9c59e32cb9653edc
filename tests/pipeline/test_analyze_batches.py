"""A model's own layers by name, and batches of the user's own kind, as a run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from mlflow.entities import Run
from torch import nn

from tests.pipeline.slimming_cases import without_pictures
from wua_mlflow.config import load_settings
from wua_mlflow.pipeline.analyze import Analysis, analyze_model
from wua_mlflow.tracking.store import Store, connect

PARTS = '''
import torch
from torch import nn

def net(): return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
def records(seed): return [[{"pixels": torch.arange(64.) / 64, "id": n} for n in range(3)]] * 2
def pixels(batch): return torch.stack([one["pixels"] for one in batch])
def left_of_pair(batch):
    inputs, targets = batch
    assert len(inputs) == len(targets)
    return inputs
'''


@pytest.fixture
def store(
    store_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Store]:
    without_pictures(monkeypatch)
    (tmp_path / "kinds.py").write_text(PARTS)
    path = list(sys.path)
    yield connect("own")
    sys.path[:] = path
    sys.modules.pop("kinds", None)


def analysed(store: Store, **given: object) -> tuple[Analysis, Run]:
    found = analyze_model(store, load_settings(None, {"null_draws": 0, **given}))
    return found, store.client.get_run(found.run_id)


def effective(importance: np.ndarray) -> float:
    """exp of the entropy."""
    p = importance / importance.sum()
    return float(np.exp(-(p[p > 0] * np.log(p[p > 0])).sum()))


def test_layers_and_batches_of_a_kind_of_ones_own(store: Store) -> None:
    """The output layer where it is named; the run's configuration says both."""
    found, run = analysed(store, model="kinds:net", data="kinds:records", layers="2, 0,2",
                          batch_to_inputs="kinds:pixels")
    assert list(found.usage.layers) == ["0", "2"]
    torch.manual_seed(42)
    model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    x = torch.arange(64.).repeat(6, 1) / 64
    for name, layer, given in (("0", model[0], x), ("2", model[2], model[:2](x))):
        mean = layer(given).mean(0).abs()[:, None]
        assert found.usage.layers[name].effective_weights == pytest.approx(
            effective((layer.weight.abs() * mean).detach().numpy()), rel=1e-5)
    assert run.data.metrics["flops/forward"] == 2 * (64 * 16 + 16 * 10)
    assert run.data.params["batch_to_inputs"] == "kinds:pixels"
    again = load_settings(None, yaml.safe_load(Path(
        store.client.download_artifacts(run.info.run_id, "config.yaml")).read_text()))
    assert again.layers == ("2", "0")


def test_the_function_is_given_whole_batches_of_a_split_too(store: Store) -> None:
    found, _ = analysed(store, model="kinds:net", data="digits",
                        batch_to_inputs="kinds:left_of_pair")
    assert found.usage.layers["0"].weights == 64 * 16
    assert not found.remarks, "FLOPs are counted"
