"""Which runs belong together: the controls of an original, the result of a pipeline.

May import: mlflow, names. Tests: ``tests/tracking/test_lineage.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException

from wua_mlflow.tracking.names import Tag, Variant, step_tag

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

__all__ = ["controls_of", "find_control", "is_slim", "result_of"]


def is_slim(variant: str) -> bool:
    """Whether a value of the tag ``wua.variant`` is a slim one's: ``slim``, ``slim-2``, …

    >>> is_slim("slim-2"), is_slim("oversized-same-budget")
    (True, False)
    """
    return variant == Variant.SLIM or variant.startswith(f"{Variant.SLIM}-")


def find_control(
    client: MlflowClient, experiment_id: str, original: str, epochs: int
) -> str | None:
    """The trained control of ``original`` with that budget, in one search; None where none is."""
    found = client.search_runs(
        [experiment_id], order_by=["attributes.start_time DESC"],
        filter_string=f"tags.`{Tag.BASELINE}` = '{original}' AND "
                      f"tags.`{Tag.VARIANT}` = '{Variant.SAME_BUDGET}' AND "
                      f"tags.`{step_tag('train')}` = 'done'")
    same = [run.info.run_id for run in found if run.data.params.get("epochs") == str(epochs)]
    return same[0] if same else None


def controls_of(client: MlflowClient, experiment_id: str, slim: str) -> list[str]:
    """The runs of what was trained beside a slim variant, those that are still there.

    One from before they were noted has the control of its epochs.
    """
    run = client.get_run(slim)
    told = run.data.tags.get(Tag.CONTROLS)
    if told is None:
        found = find_control(client, experiment_id, run.data.tags.get(Tag.BASELINE, ""),
                             int(run.data.params.get("epochs", 0)))
        return [found] if found else []
    return [one for one in told.split(",") if _is_there(client, one)]


def _is_there(client: MlflowClient, run_id: str) -> bool:
    try:
        return client.get_run(run_id).info.lifecycle_stage == LifecycleStage.ACTIVE
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False  # removed for good


def result_of(client: MlflowClient, pipeline: str) -> str | None:
    """The run of the slim variant that the pipeline's own run shows."""
    return client.get_run(pipeline).data.tags.get(Tag.RESULT)
