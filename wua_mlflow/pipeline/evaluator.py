"""The plugin ``wua`` of ``mlflow.models.evaluate``: usage of a model's weights, or a verdict on it.

MLflow imports this file whenever anybody evaluates anything, so it imports nothing heavy.
Tests: ``tests/pipeline/test_evaluator.py``.
"""

from __future__ import annotations

import sys
from typing import Any

from mlflow.models.evaluation.base import EvaluationResult, ModelEvaluator

from wua_mlflow.errors import did_you_mean

__all__ = ["KEYS", "WuaEvaluator"]


KEYS = ("baseline", "margin", "confidence", "score", "class_margin", "criterion", "null_draws",
        "seed", "trust")
"""What ``evaluator_config`` may have."""
MODEL_TYPES = ("classifier", "regressor")


class WuaEvaluator(ModelEvaluator):
    """``mlflow.models.evaluate(…, evaluators=["wua"], evaluator_config={"wua": {…}})``."""

    @classmethod
    def can_evaluate(
        cls, *, model_type: str, evaluator_config: dict[str, Any] | None, **_: Any
    ) -> bool:
        """Whether it was asked for: by name, or by a configuration of its own.

        With ``evaluators=None`` MLflow asks all plugins, and gives them a configuration that may be
        meant for others: then one that has our keys alone is taken.
        """
        if model_type not in MODEL_TYPES:
            return False
        config = evaluator_config or {}
        return bool(config) and set(config) <= set(KEYS) or _is_named()

    def evaluate(  # noqa: PLR0913 - MLflow's
        self, *, model_type: str, dataset: Any, run_id: str,
        evaluator_config: dict[str, Any] | None, model: Any = None, predictions: str | None = None,
        model_id: str | None = None, **_: Any,
    ) -> EvaluationResult:
        """The metrics, which MLflow logs where the model has an id, and the files that were logged.

        Raises:
            ValueError: one line; a key of the configuration, or a model that does not fit.
        """
        config = evaluator_config or {}
        unknown = next((str(key) for key in config if key not in KEYS), None)
        if unknown is not None:
            raise ValueError(f"evaluator_config: expected the keys {', '.join(KEYS)}, but got "
                             f"{unknown!r}{did_you_mean(unknown, KEYS)}")
        from wua_mlflow.pipeline.evaluate_logged import Evaluated, evaluate_logged

        return evaluate_logged(
            Evaluated(model, model_id, model_type, dataset, predictions), run_id, config)


def _is_named() -> bool:
    """Whether MLflow asks right before it evaluates, and not while it looks for evaluators.

    Undocumented (MLflow 3.17): the first is done by ``_evaluate``, and of evaluators that were
    named alone. Were it otherwise, ``evaluators=["wua"]`` would need a configuration.
    """
    asks = sys._getframe(2)
    return asks.f_code.co_name == "_evaluate" and \
        asks.f_globals.get("__name__") == "mlflow.models.evaluation.base"
