"""Fixtures: a store whose runs a plain client wrote by hand, and the calls of the reading side."""

from __future__ import annotations

import shutil

import pytest
from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from wua_mlflow.tracking import search
from wua_mlflow.tracking.runs import runs
from wua_mlflow.tracking.store import sqlite_file

BEGAN = 1_700_000_000_000
"""2023-11-14 22:13:20 UTC, in milliseconds."""


class Writer:
    """Makes runs with a plain client, each a second, or some minutes, after the one before."""

    def __init__(self, uri: str, minutes: int = 0):
        self.client, self.made, self.step = MlflowClient(uri), 0, 60_000 * minutes or 1000

    def run(self, name, *, experiment="0", kind="variant", tags=None, params=None,
            metrics=None) -> str:
        start = BEGAN + self.step * self.made
        self.made += 1
        run_id = self.client.create_run(experiment, start, run_name=name).info.run_id
        labels = {**({"wua.kind": kind} if kind else {}), **(tags or {})}
        self.client.log_batch(
            run_id, [Metric(key, value, 0, 0) for key, value in (metrics or {}).items()],
            [Param(key, value) for key, value in (params or {}).items()],
            [RunTag(key, value) for key, value in labels.items()])
        self.client.set_terminated(run_id)
        return run_id


@pytest.fixture
def writer(store_uri):
    return Writer(store_uri)


@pytest.fixture(scope="module")
def written(tmp_path_factory, migrated_database):
    """A database with four variants in two experiments, and runs that are no variants.

    Also their ids by name.
    """
    database = shutil.copy(migrated_database, tmp_path_factory.mktemp("runs") / "mlflow.db")
    writer = Writer(f"sqlite:///{database}")
    digest, other = {"wua.test_digest": "d1"}, writer.client.create_experiment("other")
    made = {
        "oversized 10": writer.run("oversized 10", tags={"wua.variant": "oversized", **digest},
            params={"hidden": "10", "epochs": "50", "lr": "0.01", "batch_size": "full"},
            metrics={"flops/forward": 60.0, "accuracy/test": 0.885, "latency/p50_ms": 0.5}),
        "slim 7": writer.run("slim 7", tags={"wua.verdict": "inconclusive", **digest},
            params={"hidden": "7", "epochs": "60", "lr": "0.01", "batch_size": "64"},
            metrics={"flops/forward": 42.0, "accuracy/test": 0.873, "compare/looks": 1.0}),
        "slim 5": writer.run("slim 5", tags={"wua.verdict": "non_inferior", **digest},
            params={"hidden": "5"}, metrics={"flops/forward": 30.0, "accuracy/test": 0.88}),
        "slim 6": writer.run("slim 6", tags={"wua.verdict": "non_inferior", **digest},
            params={"hidden": "6"}, metrics={"flops/forward": 36.0, "accuracy/test": 0.9},
            experiment=other),
        "pipeline": writer.run(
            "pipeline", kind="pipeline", tags={"wua.verdict": "inferior", **digest}),
        "somebody's": writer.run("somebody's", kind=None, metrics={"flops/forward": 1.0}),
    }
    made["step"] = writer.run("step", kind="step", params={"run_id": made["slim 7"], "name": "x"},
                              tags={"wua.target_run": made["slim 7"]})
    return database, made


@pytest.fixture
def populated(store_uri, written):
    """The ids by name, and the store that has the runs."""
    database, made = written
    shutil.copy(database, sqlite_file(store_uri))
    return made


@pytest.fixture
def calls(monkeypatch):
    """The names of the methods that the reading side calls, each with its keyword arguments."""
    noted = []

    class Counted(MlflowClient):
        def __getattribute__(self, name):
            value = super().__getattribute__(name)
            if name.startswith("_") or not callable(value):
                return value
            return lambda *args, **kwargs: noted.append((name, kwargs)) or value(*args, **kwargs)

    for module in (runs.__globals__, search.__dict__):
        monkeypatch.setitem(module, "open_client", Counted)
    return noted
