"""``UsageMonitor``: how a model's weights are used while it trains, as metrics by epoch.

Tests: ``tests/tracking/test_monitor.py``. What it costs: ``benchmarks/monitor.py``.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from wua_mlflow.data.batches import DATASET_BATCH, Batches, leaves, mapped
from wua_mlflow.distributed import alone, is_sharded, rank
from wua_mlflow.errors import WORDED, one_line
from wua_mlflow.hooks import unwrapped
from wua_mlflow.rng import isolated
from wua_mlflow.tracking.log import usage_history, write_history
from wua_mlflow.tracking.log_results import run_of
from wua_mlflow.usage.analyze import analyze
from wua_mlflow.usage.criteria import Criterion
from wua_mlflow.usage.results import ModelUsage

__all__ = ["UsageMonitor", "fixed_sample"]


BUDGET = 0.02
"""The share of the training time that watching it may cost by its own clock; measured from outside
it was 1.5 to 2.0% (medians; ``docs/benchmarks.md``), of a goal of 3%."""
HEADROOM = 1.25
"""A point may cost so many times what the last one did."""
SAMPLES = 128
"""Examples that a watched model is measured on."""


class UsageMonitor:
    """Measures a model every few epochs, on the same few examples, and logs it to a run.

    The points are those of ``usage/effective_weights``, ``usage/entropy``, ``usage/dead_units`` and
    ``usage/effective_rank``, the step being the epoch; the first is of the model as it was given,
    at the step before the first epoch. Each costs a forward of the sample and a call of MLflow's.
    All of it together is kept below ``budget`` of the training time, which is the time between
    the calls: where a point would cost more it is left out and taken as soon as there is room for
    it; a line on standard error says so once. Only the first point is taken whatever it costs,
    which nobody knows before; those that follow make it good. What fails while the model trains is
    a warning, once; the training goes on.

    Training is not disturbed: the model's mode, gradients, hooks and buffers and all random streams
    are as before. Of several processes the first one measures its own copy, and waits for none.

    Args:
        model: what is trained; a compiled or data-parallel one is unwrapped.
        data: as for ``analyze``: ``samples`` of its examples are kept, spread over all of them
            where it has a length (a DataLoader by its Dataset), else the first.
        every: epochs from one point to the next.
        samples: how many examples.
        budget: the share of the training time, above 0.
        criterion: as for ``analyze``, but ``taylor``.
        batch_to_inputs: as for ``analyze``.
        run_id: the run; the active one, if None.
        client: MLflow's; of the tracking URI that is set, if None.
        clock: seconds; replaced in tests.

    Raises:
        ValueError: no run, a number out of range, a model that is sharded, data that can be gone
            over only once, or what ``analyze`` refuses.

    Attributes:
        trained_s: seconds of training so far.
        spent_s: seconds that watching it has cost so far, the first point included.
        skipped: how many points there was no room for.
    """

    def __init__(  # noqa: PLR0913 - the options of a watch, each by name
        self,
        model: nn.Module,
        data: Any,
        every: int = 5,
        *,
        samples: int = SAMPLES,
        budget: float = BUDGET,
        criterion: str | Criterion = "output",
        batch_to_inputs: Callable[[Any], Any] | None = None,
        run_id: str | None = None,
        client: MlflowClient | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        for name, value in (("every", every), ("samples", samples)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: expected a whole number of at least 1, but got {value}")
        if not budget > 0:
            raise ValueError(f"budget: expected a share above 0, but got {budget}")
        self.model, self.every, self.budget = unwrapped(model), every, budget
        self.trained_s = self.spent_s = 0.0
        self.skipped = 0
        self._criterion, self._to_inputs, self._clock = criterion, batch_to_inputs, clock
        self._last_point: int | None = None
        self._pending: dict[int, dict[str, float]] = {}
        self._due = self._warned = False
        self._watches = rank() == 0
        if not self._watches:
            return
        if is_sharded(self.model):
            raise ValueError("model: expected one that is whole in this process, but it is sharded")
        came = self._now()
        if client is None or run_id is None:
            client, run_id = run_of(run_id)
        self._client, self._run_id = client, run_id
        self._sample = fixed_sample(data, samples)
        began = self._now()
        self._check_run()  # it takes about as long as a point takes to log
        self._first = usage_history(self._usage())
        self._left = self._now()
        self._cost_s, self.spent_s = self._left - began, self._left - came

    def step(self, epoch: int) -> None:
        """To be called after each epoch.

        Args:
            epoch: its number; larger from call to call.
        """
        if not self._watches:
            return
        came = self._now()
        self.trained_s += came - self._left
        if self._last_point is None:
            self._last_point = max(epoch - 1, 0)
            self._pending[self._last_point] = self._first
        self._due |= epoch % self.every == 0 or epoch - self._last_point >= self.every
        if self._due:
            if self._cost_by_then_s <= self.budget * self.trained_s:
                self._try_to_measure(epoch)
                self._cost_s = self._now() - came
            else:
                self._skip(epoch)
        self._left = self._now()
        self.spent_s += self._left - came

    __call__ = step

    def _check_run(self) -> None:
        try:
            self._client.get_run(self._run_id)
        except MlflowException as error:
            raise ValueError(f"run_id: expected one that can be read, but got '{self._run_id}': "
                             f"{one_line(error)}") from error

    def _try_to_measure(self, epoch: int) -> None:
        try:
            with isolated():  # MLflow draws random numbers, too, where it tries again
                self._pending[epoch] = usage_history(self._usage())
                write_history(self._client, self._run_id, self._pending)
        except Exception as error:  # training is what matters here
            if not self._warned:
                reason = one_line(error, bare=WORDED)
                warnings.warn(f"wua: usage of epoch {epoch} not logged: {reason}", stacklevel=3)
            self._warned = True
        else:
            self._pending.clear()
        self._last_point, self._due = epoch, False

    @property
    def _cost_by_then_s(self) -> float:
        return self.spent_s + HEADROOM * self._cost_s

    def _skip(self, epoch: int) -> None:
        if not self.skipped:
            print(f"wua: note: usage of epoch {epoch} not measured: by then it would have cost "
                  f"{self._cost_by_then_s:.2g} s, more than {self.budget:.2%} of "
                  f"{self.trained_s:.2g} s of training (budget={self.budget:g}); it is as soon as "
                  f"there is room for it", file=sys.stderr)
        self.skipped += 1

    def _usage(self) -> ModelUsage:
        with alone():
            return analyze(self.model, self._sample, criterion=self._criterion,
                           batch_to_inputs=self._to_inputs, effective_rank=True)

    def _now(self) -> float:
        """Seconds, once a GPU has done what it was given before."""
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return self._clock()


def fixed_sample(data: Any, samples: int) -> Any:
    """So many examples of a user's data, copied, in a form that ``analyze`` takes.

    They are spread evenly where the data have a length (a DataLoader by its Dataset, so that
    neither its order nor its generator is touched), else the first ones.

    Raises:
        ValueError: the data can be gone over only once.

    >>> fixed_sample(torch.arange(10), 5).tolist()
    [0, 2, 4, 6, 8]
    """
    if isinstance(data, Tensor | np.ndarray):
        return _rows(data, samples)
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[1], _NUMBERS) and \
            len({len(part) for part in leaves(data, _NUMBERS)}) == 1:
        return [mapped(data, _NUMBERS, lambda part: _rows(part, samples))]  # inputs and targets
    if isinstance(data, Dataset):
        data = DataLoader(data, batch_size=DATASET_BATCH)
    with isolated():
        if isinstance(data, DataLoader) and not isinstance(data.dataset, IterableDataset):
            data = _loader_of_some(data, samples)
        elif Batches(data, nn.Identity()).once:
            raise ValueError("data: expected batches that can be gone over again, but got an "
                             "iterator; give a DataLoader or a list")
        return _first(data, samples)


_NUMBERS = (Tensor, np.ndarray)


def _rows(data: Any, samples: int) -> Any:
    rows = data[_spread(len(data), samples)]
    return rows.clone() if isinstance(rows, Tensor) else rows.copy()


def _spread(length: int, samples: int) -> list[int]:
    count = min(length, samples)
    return [number * length // count for number in range(count)]


def _loader_of_some(loader: DataLoader[Any], samples: int) -> DataLoader[Any]:
    """Without workers, sampler and generator of its own."""
    some = Subset(loader.dataset, _spread(len(loader.dataset), samples))  # type: ignore[arg-type]
    size = None if loader.batch_sampler is None else loader.batch_size or DATASET_BATCH
    return DataLoader(some, batch_size=size, collate_fn=loader.collate_fn)


def _first(batches: Any, samples: int) -> list[Any]:
    """Batches with the first examples, the last one cut where all its tensors are as long."""
    kept: list[Any] = []
    for batch in batches:
        tensors = [each for each in leaves(batch, _NUMBERS) if each.ndim]
        lengths = {len(each) for each in tensors}
        if len(lengths) == 1 and max(lengths) > samples:
            batch = mapped(batch, _NUMBERS,
                           lambda each: each[:samples] if each.ndim else each)  # noqa: B023
        kept.append(mapped(batch, Tensor, Tensor.clone))
        samples -= max(lengths, default=1)
        if samples <= 0:
            break
    return kept
