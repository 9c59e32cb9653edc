"""transformers: a ``TrainerCallback`` that logs usage, FLOPs and pictures to its MLflow run.

Tests: ``tests/integrations/test_transformers.py``.
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from wua_mlflow.tracking.fit_log import FitLog, FitOptions

__all__ = ["WuaCallback"]


class WuaCallback(TrainerCallback):
    """At the end of training: how the weights are used, beside networks that learned nothing.

    To the run that is active, which is that of transformers' own ``MLflowCallback`` if it is there,
    else to one of its own. A failure is a warning, and the training goes on.

    Args:
        options: of ``FitOptions``: ``every=1`` follows usage from epoch to epoch.
    """

    def __init__(self, **options: Any) -> None:
        self._options = FitOptions(**options)
        self._log = FitLog(self._options)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Find the run, which transformers' own callback has opened by now."""
        if state.is_world_process_zero:
            self._log = FitLog(self._options)
            self._log.begin(rest["model"], rest["train_dataloader"])

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """A point on the way."""
        if state.is_world_process_zero:
            self._log.step(round(state.epoch or 0))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """All that is known at the end."""
        if state.is_world_process_zero:
            self._log.end(rest["model"], rest["train_dataloader"], epochs=state.epoch)
