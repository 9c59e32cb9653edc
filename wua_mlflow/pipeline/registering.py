"""Registering the result of slimming, if its artifact verdict allows it.

May import: tracking, config, the pipeline's slimming.
Tests: ``tests/pipeline/test_registering.py``.
"""

from __future__ import annotations

from wua_mlflow.config import Settings
from wua_mlflow.pipeline.slimming import Round
from wua_mlflow.tracking.names import Tag
from wua_mlflow.tracking.registry import register
from wua_mlflow.tracking.store import Store

__all__ = ["nothing_to_register", "registered"]


def registered(store: Store, result: Round, settings: Settings) -> str:
    """What became of the registration that ``register`` asks for, in a line; "" where it asks none.

    The line is a tag of the slim run too, and of its pipeline's.

    Raises:
        MlflowException: the registry refuses.
    """
    if settings.register is None:
        return ""
    run_id = result.variant.run_id
    found = register(store.client, settings.register, run_id=run_id,
                     verdict=result.comparison.artifact, comparison_run_id=run_id)
    for one in filter(None, (run_id, result.variant.tags.get(Tag.PIPELINE))):
        store.client.set_tag(one, Tag.REGISTERED, found.sentence)
    return found.sentence


def nothing_to_register(settings: Settings) -> str:
    """The line where slimming has no result; "" where ``register`` asks for nothing."""
    name = settings.register
    return "" if name is None else f"Not registered as {name!r}: there is no slim model."
