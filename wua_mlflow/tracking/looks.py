"""How often a test set was looked at: verdicts on slim variants, and those of any two models.

May import: mlflow's client as a type, names, pages. Tests: ``tests/tracking/test_looks.py``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wua_mlflow.tracking.names import Kind, Tag, looks_tag
from wua_mlflow.tracking.pages import active, pages

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

__all__ = ["count_looks", "look_of", "record_pair"]

_MOST = 500
"""Pairs that an experiment's tag has room for; further ones are not kept apart."""


def look_of(margin: float, confidence: float) -> str:
    """What makes a verdict on the same two models another look."""
    return f"{margin:g} at {confidence:g}"


def count_looks(client: MlflowClient, digest: str, *, besides: str = "") -> int:
    """How many verdicts of the whole store are on the test set with this digest.

    Args:
        client: MLflow's.
        digest: of the test set.
        besides: the run of a slim variant whose verdicts are not counted.
    """
    clause = (f"tags.`{Tag.TEST_DIGEST}` = '{digest}' AND tags.`{Tag.VERDICT}` != '' "
              f"AND tags.`{Tag.KIND}` = '{Kind.VARIANT}'")
    experiments = active(client)
    found = pages(client, [one.experiment_id for one in experiments], clause, (), None)
    variants = sum(1 + run.data.tags.get(Tag.LOOKED, "").count(",") for run in found
                   if run.info.run_id != besides)
    pairs = {pair for one in experiments for pair in _pairs(one.tags.get(looks_tag(digest)))}
    return variants + len(pairs)


def record_pair(
    client: MlflowClient, experiment_id: str, digest: str, pair: Sequence[str], look: str
) -> None:
    """Note a verdict on any two models in an experiment's tag; the same one once.

    Args:
        client: MLflow's.
        experiment_id: where it is kept.
        digest: of the test set.
        pair: how the two were named.
        look: as ``look_of`` gives it.
    """
    tag = looks_tag(digest)
    known = _pairs(client.get_experiment(experiment_id).tags.get(tag))
    own = hashlib.sha256("\n".join((*pair, look)).encode()).hexdigest()[:8]
    if own not in known and len(known) < _MOST:
        client.set_experiment_tag(experiment_id, tag, ",".join([*known, own]))


def _pairs(tag: str | None) -> list[str]:
    return tag.split(",") if tag else []
