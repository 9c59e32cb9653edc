"""What a trainer's callback logs of one fit: usage on the way; usage, FLOPs, pictures at its end.

Tests: ``tests/tracking/test_fit_log.py``, by trainer: ``tests/integrations``.
"""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import mlflow
from mlflow.tracking import MlflowClient, fluent
from torch import nn

from wua_mlflow.data.batches import Batches
from wua_mlflow.distributed import alone, is_sharded
from wua_mlflow.errors import WORDED, one_line
from wua_mlflow.flops import CONVENTION, count_flops
from wua_mlflow.hooks import unwrapped
from wua_mlflow.rng import isolated
from wua_mlflow.tracking.log import flop_metrics, last_step, write
from wua_mlflow.tracking.log_results import usage_record
from wua_mlflow.tracking.monitor import BUDGET, UsageMonitor, fixed_sample
from wua_mlflow.tracking.names import Metric, Tag
from wua_mlflow.tracking.store import connect, inherited_run, new_run
from wua_mlflow.usage.analyze import analyze
from wua_mlflow.usage.criteria import Criterion

__all__ = ["FitLog", "FitOptions"]


@dataclass(frozen=True)
class FitOptions:
    """What is measured of a fit, and on what.

    Attributes:
        data: as for ``analyze``; the trainer's own training data, if None.
        every: epochs between two points of usage on the way; 0 for none.
        samples: how many examples of the data are looked at.
        null: how many networks that learned nothing are measured beside it at the end.
        budget: the share of the training time that the points on the way may cost.
        criterion: as for ``analyze``, but ``taylor``.
        batch_to_inputs: as for ``analyze``.
    """

    data: Any = None
    every: int = 0
    samples: int = 256
    null: int = 20
    budget: float = BUDGET
    criterion: str | Criterion = "output"
    batch_to_inputs: Callable[[Any], Any] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name, least in (("every", 0), ("samples", 1), ("null", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}: expected a whole number of at least {least}, but got "
                                 f"{value}")


class FitLog:
    """The log of one fit, in the process that logs.

    Nothing here raises: what fails is a warning. Where the beginning fails nothing more is tried,
    since a server that does not answer would be waited for each time. Only a run that was made here
    is ended here, as FAILED where the trainer never says that it is done.
    """

    def __init__(self, options: FitOptions) -> None:
        self._options = options
        self._client: MlflowClient | None = None
        self._run_id = ""
        self._sample: Any = None
        self._monitor: UsageMonitor | None = None
        self._own: weakref.finalize[..., Any] | None = None

    def begin(
        self, model: nn.Module, data: Any, *, client: MlflowClient | None = None,
        run_id: str | None = None,
    ) -> None:
        """Training begins.

        Args:
            model: what is trained.
            data: the trainer's training data.
            client: that of the trainer's own logger, if it has one.
            run_id: the run of that; else the active one, else a new one of this fit's own.
        """
        options, model = self._options, unwrapped(model)
        with self._warning("nothing of this fit is logged"), isolated():
            if is_sharded(model):
                raise ValueError("model: expected one that is whole in this process, but it is "
                                 "sharded")
            self._sample = fixed_sample(data if options.data is None else options.data,
                                        options.samples)
            if client is None or run_id is None:
                client, run_id = self._found_or_made()
            if options.every:
                self._monitor = UsageMonitor(
                    model, self._sample, options.every, samples=options.samples,
                    budget=options.budget, criterion=options.criterion,
                    batch_to_inputs=options.batch_to_inputs, client=client, run_id=run_id)
            self._client, self._run_id = client, run_id
            return
        self.close()

    def step(self, epoch: int) -> None:
        """An epoch is over; the first is 1."""
        if self._monitor is not None:
            self._monitor.step(epoch)

    def end(
        self, model: nn.Module, data: Any = None, *, epochs: float | None = None,
        batches: int | None = None,
    ) -> None:
        """Training is over.

        Args:
            model: what was trained.
            data: the trainer's training data: a DataLoader's Dataset says how many samples.
            epochs: how often these were trained on.
            batches: the same in batches of the DataLoader, where that is what is known.
        """
        if self._client is not None:
            with self._warning("usage and FLOPs are not logged"):
                if batches is not None and (length := _length(data)):
                    epochs = batches / length
                samples = _length(getattr(data, "dataset", None))
                self._log_end(self._client, unwrapped(model), samples, epochs)
        self.close("FINISHED")

    def close(self, status: str = "FAILED") -> None:
        """End the run, where it is this fit's own."""
        if self._own is not None and (own := self._own.detach()):
            _, _, (client, run_id), _ = own
            with self._warning(f"run {run_id} is not ended"):
                client.set_terminated(run_id, status)

    def _found_or_made(self) -> tuple[MlflowClient, str]:
        active = mlflow.active_run()
        if found := active.info.run_id if active else inherited_run():
            return MlflowClient(), str(found)
        store = connect()
        # the experiment that mlflow.set_experiment chose; MLflow has no public getter
        made = new_run(replace(store, experiment_id=str(fluent._get_experiment_id())), "fit", {})
        self._own = weakref.finalize(self, _end_as_failed, store.client, made)
        return store.client, made

    def _log_end(
        self, client: MlflowClient, model: nn.Module, train_samples: int | None,
        epochs: float | None,
    ) -> None:
        options = self._options
        with isolated(), alone():
            usage = analyze(model, self._sample, criterion=options.criterion, null=options.null,
                            batch_to_inputs=options.batch_to_inputs, effective_rank=True)
            record = usage_record(usage, model)
            with self._warning("FLOPs are not logged"):
                batch = next(iter(Batches(self._sample, model, options.batch_to_inputs)))
                count = count_flops(model, batch.accepted_example(model, 2))
                record["metrics"] |= flop_metrics(count, train_samples=train_samples, epochs=epochs)
                record["tags"][Tag.FLOP_CONVENTION] = CONVENTION
            step = last_step(client, self._run_id, Metric.USAGE_ENTROPY) if options.every else 0
            write(client, self._run_id, step=step, **record)

    @contextlib.contextmanager
    def _warning(self, consequence: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the training is what matters
            warnings.warn(f"wua: {consequence}: {one_line(error, bare=WORDED)}",
                          stacklevel=5)


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except TypeError:  # a stream's DataLoader has the method, and not the number
        return None


def _end_as_failed(client: MlflowClient, run_id: str) -> None:
    with contextlib.suppress(Exception):
        client.set_terminated(run_id, "FAILED")
