"""Latency and throughput of models, measured in turns so that noise falls on all alike.

Tests: ``tests/training/test_latency.py``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wua_mlflow.data.batches import Inputs, leaves, mapped
from wua_mlflow.hooks import evaluating
from wua_mlflow.rng import Purpose, numpy_generator

__all__ = ["Latency", "latency_ratio", "measure_latency"]


RESAMPLES = 2_000


@dataclass(frozen=True)
class Latency:
    """Quantiles of one sample's forward, in milliseconds, and samples a second in batches.

    ``times_ms`` are those of each round, in order: the rounds of models timed together pair up.
    """

    p50_ms: float
    p95_ms: float
    samples_per_s: float
    rounds: int
    times_ms: tuple[float, ...] = field(default=(), repr=False)


def measure_latency(
    models: Mapping[str, nn.Module],
    inputs: Inputs,
    *,
    rounds: int = 300,
    budget_s: float = 1.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Latency]:
    """Time the forward of each model at batch 1 and at the batch given, A, B, A, B, ….

    Each model is warmed up first. A round times every model once, in an order that turns by one
    from round to round. On CUDA the device is waited for around each forward.

    Args:
        models: by name; all on the device of the inputs.
        inputs: a tensor of shape (batch, ...), a tuple of arguments or a dict of keyword
            arguments; the first sample alone gives the latency.
        rounds: at most so many rounds at batch 1; at the batch given a tenth of them, at least ten.
        budget_s: stop each of the two measurements after about so many seconds, yet not before ten
            rounds.
        clock: seconds; replaced in tests.

    Raises:
        ValueError: no models, no samples, or ``rounds`` below 1.

    >>> timed = measure_latency({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)}, torch.rand(8, 2),
    ...                         rounds=5)
    >>> timed["a"].rounds, timed["b"].p50_ms <= timed["b"].p95_ms
    (5, True)
    """
    samples = _samples(inputs)
    if not models or not samples:
        raise ValueError(f"models, inputs: expected at least one model and one sample, but got "
                         f"{len(models)} and {samples}")
    if rounds < 1:
        raise ValueError(f"rounds: expected a whole number of at least 1, but got {rounds}")
    inputs = mapped(inputs, Tensor, Tensor.clone)  # a model may write into them
    first = mapped(inputs, Tensor, lambda tensor: tensor[:1]
                   if tensor.dim() and len(tensor) == samples else tensor)
    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(evaluating(model))
        single = _time(models, first, rounds, budget_s, clock)
        batch = _time(models, inputs, max(10, rounds // 10), budget_s, clock)
    return {
        name: Latency(
            p50_ms=float(np.quantile(single[name], 0.5)) * 1e3,
            p95_ms=float(np.quantile(single[name], 0.95)) * 1e3,
            samples_per_s=samples / float(np.quantile(batch[name], 0.5)),
            rounds=len(single[name]),
            times_ms=tuple(1e3 * seconds for seconds in single[name]),
        )
        for name in models
    }


def latency_ratio(
    original: Latency, slim: Latency, *, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """How many times faster the slim model is: original ÷ slim of the medians, with its interval.

    A moving-block bootstrap over the rounds, in which both were timed one right after the other:
    whole stretches of about √rounds are drawn, since a busy machine slows neighbouring rounds alike
    (Künsch 1989). 2,000 resamples.

    Args:
        original: timed together with the slim one.
        slim: its rounds in the same order.
        confidence: of the interval, in (0, 1).
        seed: of a generator of its own.

    Returns:
        The ratio, and the limits of its interval.

    Raises:
        ValueError: the two were not timed in the same number of rounds.

    >>> a, b = Latency(2.0, 2.0, 1.0, 3, (2.0,) * 3), Latency(1.0, 1.0, 1.0, 3, (1.0,) * 3)
    >>> latency_ratio(a, b)
    (2.0, 2.0, 2.0)
    """
    if len(original.times_ms) != len(slim.times_ms) or not original.times_ms:
        raise ValueError(f"original, slim: expected times of the same rounds, but got "
                         f"{len(original.times_ms)} and {len(slim.times_ms)}")
    times = np.array([original.times_ms, slim.times_ms])
    rounds = times.shape[1]
    block = max(1, round(rounds**0.5))
    rng = numpy_generator(seed, Purpose.LATENCY_RATIO)
    starts = rng.integers(rounds - block + 1, size=(RESAMPLES, -(-rounds // block)))
    drawn = (starts[:, :, None] + np.arange(block)).reshape(RESAMPLES, -1)[:, :rounds]
    resampled = np.median(times[:, drawn], axis=2)
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled[0] / resampled[1], (tail, 1 - tail))
    medians = np.median(times, axis=1)
    return float(medians[0] / medians[1]), float(low), float(high)


def _samples(inputs: Inputs) -> int:
    return next((len(tensor) for tensor in leaves(inputs, Tensor) if tensor.dim()), 0)


def _arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, dict):
        return (), inputs
    return inputs if isinstance(inputs, tuple) else (inputs,), {}


def _synchronizer(device: torch.device) -> Callable[[], None]:
    """A function that waits until the device has done its work: a launch alone is no forward."""
    if device.type == "cuda":
        return partial(torch.cuda.synchronize, device)
    return torch.mps.synchronize if device.type == "mps" else (lambda: None)


def _time(
    models: Mapping[str, nn.Module],
    inputs: Inputs,
    rounds: int,
    budget_s: float,
    clock: Callable[[], float],
) -> dict[str, list[float]]:
    synchronize = _synchronizer(leaves(inputs, Tensor)[0].device)
    args, kwargs = _arguments(inputs)
    names = list(models)
    for model in models.values():
        for _ in range(3):
            model(*args, **kwargs)
    synchronize()
    times: dict[str, list[float]] = {name: [] for name in names}
    began = clock()
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            start = clock()
            models[name](*args, **kwargs)
            synchronize()
            times[name].append(clock() - start)
        if turn >= 9 and clock() - began > budget_s:
            break
    return times
