"""Which runs belong together: the controls of an original, the result of a pipeline.

May import: mlflow's client as a type, names. Tests: ``tests/tracking/test_lineage.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wua_mlflow.tracking.names import Tag, Variant, step_tag

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

__all__ = ["find_control", "is_slim", "result_of"]


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


def result_of(client: MlflowClient, pipeline: str) -> str | None:
    """The run of the slim variant that the pipeline's own run shows."""
    return client.get_run(pipeline).data.tags.get(Tag.RESULT)
