"""All pages of a search: of runs, of experiments.

May import: mlflow, dotted, store. Tests: ``tests/tracking/test_runs.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

from mlflow.entities import Experiment, LifecycleStage, Run
from mlflow.tracking import MlflowClient

from wua_mlflow.dotted import nearest
from wua_mlflow.tracking.store import shown_uri

__all__ = ["active", "experiment_ids", "pages"]

PAGE = 1000


def pages(
    client: MlflowClient,
    experiments: Sequence[str],
    clause: str,
    order_by: Sequence[str],
    limit: int | None,
) -> list[Run]:
    """The runs of these experiments that a clause of MLflow's finds, at most ``limit``."""
    found: list[Run] = []
    token = None
    while experiments and (limit is None or len(found) < limit):
        size = PAGE if limit is None else min(PAGE, limit - len(found))
        page = client.search_runs(list(experiments), clause, order_by=list(order_by),
                                  max_results=size, page_token=token)
        found.extend(page)
        token = page.token
        if not token:
            break
    return found


def experiment_ids(client: MlflowClient, experiment: str | Sequence[str] | None) -> list[str]:
    """Of the experiment or experiments of these names; of all that are not deleted, if None.

    Raises:
        ValueError: there is none of a name, or it is deleted.
    """
    if experiment is None:
        return [found.experiment_id for found in active(client)]
    ids = []
    for name in [experiment] if isinstance(experiment, str) else experiment:
        found = client.get_experiment_by_name(name)
        if found is None:
            raise ValueError(f"experiment: none is called '{name}' in {shown_uri()}"
                             f"{nearest(name, [one.name for one in active(client)])}")
        if found.lifecycle_stage != LifecycleStage.ACTIVE:
            raise ValueError(f"experiment: '{name}' is deleted")
        ids.append(found.experiment_id)
    return ids


def active(client: MlflowClient) -> list[Experiment]:
    """All experiments that are not deleted."""
    found: list[Experiment] = []
    token = None
    while True:
        page = client.search_experiments(page_token=token)
        found.extend(page)
        token = page.token
        if not token:
            return found
