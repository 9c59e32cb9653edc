"""The tutorial's pipeline, run once a worker, to be read by many tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from wua_mlflow.config import load_settings
from wua_mlflow.pipeline.workflow import SlimmingResult, run_pipeline
from wua_mlflow.tracking.store import Store, connect

SEEDS = 6


@dataclass(frozen=True)
class Finished:
    """A pipeline that ran, and the store that it ran in."""

    outcome: SlimmingResult
    store: Store
    folder: Path
    calls: dict[str, list[str]]

    @property
    def client(self) -> MlflowClient:
        return self.store.client

    def run(self, variant: str | None = None) -> Run:
        """The pipeline's run, or a variant's, read back."""
        if variant is None:
            return self.client.get_run(self.outcome.run_id)
        (found,) = [v for v in self.outcome.variants if v.variant == variant]
        return self.client.get_run(found.run_id)


@pytest.fixture(scope="session")
def usecase(
    tmp_path_factory: pytest.TempPathFactory, migrated_database: Path
) -> Iterator[Finished]:
    """``wua run`` with fewer replicates; every call to the tracking client is written down."""
    import mlflow

    folder = tmp_path_factory.mktemp("usecase")
    shutil.copy(migrated_database, folder / "mlflow.db")
    before = os.getcwd()
    os.chdir(folder)
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    patch = pytest.MonkeyPatch()
    try:
        store = connect("usecase")
        calls = count_calls(patch)
        outcome = run_pipeline(store, load_settings(None, {"seeds": SEEDS, "null_draws": 5}))
        patch.undo()
        yield Finished(outcome, store, folder, calls)
    finally:
        patch.undo()
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
        os.chdir(before)


def count_calls(patch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Names of the client's methods that are called from outside it, by the step under way."""
    from wua_mlflow.pipeline import slim, workflow

    calls: dict[str, list[str]] = {}
    state = {"depth": 0, "step": "chain", "number": 0}

    def counted(name: str, method: object) -> object:
        def call(self: MlflowClient, *args: object, **kwargs: object) -> object:
            if state["depth"] == 0:
                calls.setdefault(str(state["step"]), []).append(name)
            state["depth"] += 1
            try:
                return method(self, *args, **kwargs)  # type: ignore[operator]
            finally:
                state["depth"] -= 1
        return call

    def stepping(name: str, step: object) -> object:
        def call(*args: object, **kwargs: object) -> object:
            before = state["step"]
            state["number"] += 1
            state["step"] = f"{name} {state['number']}"
            try:
                return step(*args, **kwargs)  # type: ignore[operator]
            finally:
                state["step"] = before
        return call

    for name, method in vars(MlflowClient).items():
        if callable(method) and not name.startswith("_"):
            patch.setattr(MlflowClient, name, counted(name, method))
    for module, names in ((workflow, ("train_variant", "analyze_variant")),
                          (slim, ("train_variant", "analyze_variant", "compare_variants"))):
        for name in names:
            patch.setattr(module, name, stepping(name, getattr(module, name)))
    return calls
