"""The MLflow run that the user's trainer finds active: its variant's own, or a child run of it.

So a trainer that logs, or has autolog on, logs where its network belongs, under ``wua run`` and
``mlflow run`` alike. Tests: ``tests/pipeline/test_trainer_runs.py``.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import fluent

from wua_mlflow.tracking.names import Kind, Tag
from wua_mlflow.tracking.store import Store, ended, new_run

__all__ = ["active_run_for", "trainer_logs_to"]


@dataclass(frozen=True)
class _Target:
    """Where trainers log: ``own`` for the network that the run is of, else children of ``parent``.
    """

    store: Store
    own: str | None = None
    parent: str | None = None


_target: ContextVar[_Target | None] = ContextVar("target", default=None)
_silent: set[str] = set()
"""Trainers that logged nothing to their network's own run: they get no child runs."""


@contextlib.contextmanager
def trainer_logs_to(
    store: Store, *, own: str | None = None, parent: str | None = None
) -> Iterator[None]:
    """For the block: trainers log to the run ``own``, or each to a child run of ``parent``."""
    token = _target.set(_Target(store, own, parent))
    try:
        yield
    finally:
        _target.reset(token)


@contextlib.contextmanager
def active_run_for(trainer: str, label: str) -> Iterator[None]:
    """The run that a call of the user's trainer finds active; what it leaves open is closed.

    ``mlflow.start_run()`` without arguments gives that run again, rather than an error. A child run
    has the kind ``trial``.

    Args:
        trainer: the trainer's name.
        label: of a child run.
    """
    target = _target.get()
    if target is None or (target.own is None and trainer in _silent):
        yield
        return
    if target.own is not None:
        before = _logged(target.store, target.own)
        with _active(target.store, target.own):
            yield
        unchanged = _logged(target.store, target.own) == before
        (_silent.add if unchanged else _silent.discard)(trainer)
        return
    tags = {Tag.KIND: Kind.TRIAL, "mlflow.runName": label}
    child = new_run(target.store, label, tags, parent=target.parent)
    with ended(target.store, child), _active(target.store, child):
        yield
    if not any(_logged(target.store, child)):
        with contextlib.suppress(MlflowException):
            target.store.client.delete_run(child)


def _logged(store: Store, run_id: str) -> tuple[object, ...]:
    """What a trainer may have added to a run."""
    run = store.client.get_run(run_id)
    inputs = run.inputs.dataset_inputs if run.inputs else []
    outputs = run.outputs.model_outputs if run.outputs else []
    artifacts = [file.path for file in store.client.list_artifacts(run_id)]
    return dict(run.data.params), dict(run.data.metrics), len(inputs), len(outputs), artifacts


_VARIABLES = ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME")


@contextlib.contextmanager
def _active(store: Store, run_id: str) -> Iterator[None]:
    """The run as MLflow's active one, also for processes that the trainer starts."""
    saved = {name: os.environ.pop(name, None) for name in _VARIABLES}
    outer = _active_id()
    experiment = fluent._active_experiment_id  # of the user's own session; MLflow has no getter
    try:
        mlflow.set_experiment(experiment_id=store.experiment_id)  # the trainer may set another
        opened = mlflow.start_run(run_id=run_id, nested=True, log_system_metrics=False)
        os.environ |= {"MLFLOW_RUN_ID": run_id, "MLFLOW_EXPERIMENT_ID": store.experiment_id}
        with _start_run_gives(opened, store.experiment_id):
            yield
    finally:
        while _active_id() not in (None, outer):
            mlflow.end_run()
        store.client.update_run(run_id, status="RUNNING")  # the pipeline's own to end
        fluent._active_experiment_id = experiment
        for name, value in saved.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _active_id() -> str | None:
    current = mlflow.active_run()
    return None if current is None else str(current.info.run_id)


@contextlib.contextmanager
def _start_run_gives(opened: mlflow.ActiveRun, experiment_id: str) -> Iterator[None]:
    """For the block ``mlflow.start_run()`` gives the run that is open, where it is the only one."""
    original: Callable[..., mlflow.ActiveRun] = mlflow.start_run

    @functools.wraps(original)
    def start_run(*args: Any, **options: Any) -> mlflow.ActiveRun:
        run_id = args[0] if args else options.get("run_id")
        ours = opened.info.run_id
        if _active_id() not in (None, ours) or options.get("nested") or run_id not in (None, ours):
            os.environ.pop("MLFLOW_RUN_ID", None)  # or that run is given once more
            with _own_names():
                made = original(*args, **options)
            os.environ["MLFLOW_RUN_ID"] = ours
            return made
        if _active_id() is None:  # the trainer ended it, and may have set another experiment
            mlflow.set_experiment(experiment_id=experiment_id)
            return original(run_id=ours)
        if options.get("tags"):
            mlflow.set_tags(options["tags"])
        again: Callable[..., mlflow.ActiveRun] = _Again
        return again(opened)

    mlflow.start_run = start_run
    try:
        yield
    finally:
        mlflow.start_run = original


@contextlib.contextmanager
def _own_names() -> Iterator[None]:
    """MLflow draws a run's name from Python's stream: not from the one that training is seeded by.
    """
    state = random.getstate()
    random.seed()
    try:
        yield
    finally:
        random.setstate(state)


class _Again(mlflow.ActiveRun):
    """A run that is open already: leaving its block does not end it."""

    def __exit__(self, *_: Any) -> None:
        """Nothing."""
