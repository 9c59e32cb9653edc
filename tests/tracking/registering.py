"""What the tests of the registry share: a store, slim models in it, and what the registry holds."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from mlflow.entities import LoggedModelOutput
from torch import nn

from wua_mlflow.tracking.models import log_model
from wua_mlflow.tracking.registry import Registration, register
from wua_mlflow.tracking.store import Store, connect, ended, new_run
from wua_mlflow.verdict.compare import compare

GOOD = compare(np.ones(1000), np.where(np.arange(1000) < 5, 0, 1), margin=0.02)
COMPARISON = "c" * 32


@pytest.fixture
def store(store_uri) -> Store:
    return connect("registry")


def saved_slim(store: Store, model: nn.Module | None = None, status: str = "READY") -> str:
    """A run with a saved model; without ``model`` an entry that has no files."""
    with ended(store, new_run(store, "slim", {"wua.variant": "slim"})) as run_id:
        if model:
            log_model(store.client, run_id, store.experiment_id, model, torch.rand(5, 3))
            return run_id
        entry = store.client.create_logged_model(store.experiment_id, name="model",
                                                 source_run_id=run_id)
        store.client.finalize_logged_model(entry.model_id, status)
        if status == "READY":
            store.client.log_outputs(run_id, [LoggedModelOutput(entry.model_id, step=0)])
    return run_id


def register_slim(store: Store, run_id: str, name: str = "digits", **changed) -> Registration:
    return register(store.client, name, run_id=run_id,
                    **{"verdict": GOOD, "comparison_run_id": COMPARISON, **changed})


def aliases_of(store: Store, name: str = "digits") -> dict[str, str]:
    aliases = store.client.get_registered_model(name).aliases
    return {alias: str(version) for alias, version in aliases.items()}


def names_in(store: Store) -> list[str]:
    return [model.name for model in store.client.search_registered_models()]


def links_of(store: Store, run_id: str) -> list[dict[str, str]]:
    """What the run's saved model says of its versions."""
    model_id = store.client.get_run(run_id).outputs.model_outputs[0].model_id
    links = json.loads(store.client.get_logged_model(model_id).tags["mlflow.modelVersions"])
    return [{key: str(value) for key, value in link.items()} for link in links]


def somebodys(store: Store, name: str = "digits") -> str:
    """A version that was registered by hand."""
    run_id = saved_slim(store)
    model_id = store.client.get_run(run_id).outputs.model_outputs[0].model_id
    if name not in names_in(store):
        store.client.create_registered_model(name)
    return str(store.client.create_model_version(name, f"models:/{model_id}", run_id,
                                                 model_id=model_id).version)
