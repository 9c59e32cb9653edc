"""Lightning: a callback that logs usage, FLOPs and pictures to the run of its ``MLFlowLogger``.

Tests: ``tests/integrations/test_lightning.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

try:
    from lightning.pytorch import Callback
except ModuleNotFoundError:  # the same under its older name
    from pytorch_lightning import Callback  # type: ignore[assignment]

from wua_mlflow.tracking.fit_log import FitLog, FitOptions

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

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
            loggers: list[Any] = [x for x in trainer.loggers if type(x).__name__ == "MLFlowLogger"]
            target = {"client": loggers[0].experiment, "run_id": loggers[0].run_id} \
                if loggers else {}
            self._log = FitLog(self._options)
            self._log.begin(pl_module, trainer.train_dataloader, **target)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A point on the way."""
        if trainer.is_global_zero:
            self._log.step(trainer.current_epoch + 1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """All that is known at the end."""
        if trainer.is_global_zero:
            self._log.end(pl_module, trainer.train_dataloader,
                          batches=trainer.fit_loop.epoch_loop.total_batch_idx + 1)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
                     ) -> None:
        """A run of its own has failed."""
        self._log.close()
