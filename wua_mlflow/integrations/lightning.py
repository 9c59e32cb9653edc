"""Lightning: a callback that logs usage, FLOPs and pictures to the run of its ``MLFlowLogger``.

Tests: ``tests/integrations/test_lightning.py``.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import MLFlowLogger

from wua_mlflow.tracking.fit_log import FitLog, FitOptions

__all__ = ["WuaCallback"]


class WuaCallback(Callback):
    """At the end of a fit: how the weights are used, beside networks that learned nothing.

    To the run of the trainer's ``MLFlowLogger``, else to the active one, else to one of its own. A
    failure is a warning, and the training goes on.

    Args:
        options: of ``FitOptions``: ``every=1`` follows usage from epoch to epoch.
    """

    def __init__(self, **options: Any) -> None:
        self._options = FitOptions(**options)
        self._log = FitLog(self._options)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the run."""
        if trainer.is_global_zero:
            self._log = FitLog(self._options)
            target: dict[str, Any] = {}
            for logger in trainer.loggers:
                if isinstance(logger, MLFlowLogger):
                    target = {"client": logger.experiment, "run_id": logger.run_id}
            self._log.begin(pl_module, trainer.train_dataloader, **target)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A point on the way."""
        if trainer.is_global_zero:
            self._log.step(trainer.current_epoch + 1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """All that is known at the end."""
        if trainer.is_global_zero:
            data = getattr(trainer.train_dataloader, "dataset", ())
            self._log.end(pl_module, epochs=trainer.current_epoch,
                          train_samples=len(data) if hasattr(data, "__len__") else None)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
                     ) -> None:
        """A run of its own has failed."""
        self._log.close()
