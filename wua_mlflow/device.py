"""What of this machine torch may use: the device, how many threads, which kernels.

Tests: ``tests/pipeline/test_replicates.py``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import torch

__all__ = ["device_of", "rows_at_once", "same_on_every_processor", "take_own_gpu",
           "use_threads"]


MOST_THREADS = 1024
"""Where a process does not get its threads, torch ends it without a word."""


def device_of(name: str) -> torch.device:
    """The device; ``auto`` is the GPU where there is one.

    Raises:
        ValueError: it cannot be used here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"device: {name} cannot be used here: {reason}") from None
    return torch.device(name)


def take_own_gpu(name: str, processes: int) -> bool:
    """Make the GPU of ``LOCAL_RANK`` this process's own; whether the device is a GPU at all.

    Raises:
        ValueError: a GPU is named by its number, or there are fewer than processes.
    """
    if device_of(name).type != "cuda":
        return False
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if ":" in name:
        raise ValueError(f"device: expected cuda, cpu or auto for {processes} processes, each of "
                         f"which takes a GPU of its own, but got {name}")
    if local >= torch.cuda.device_count():
        raise ValueError(f"device: expected a GPU for each process, but process {local} of this "
                         f"machine has none: there are {torch.cuda.device_count()}")
    torch.cuda.set_device(local)
    return True


def use_threads(count: int | None) -> None:
    """Give torch so many threads; its own choice, if None.

    Raises:
        ValueError: more than a process gets.
    """
    if count is not None and count > MOST_THREADS:
        raise ValueError(f"threads: expected at most {MOST_THREADS}, but got {count}")
    if count is not None:
        torch.set_num_threads(count)


def same_on_every_processor() -> None:
    """Have MKL multiply matrices the same way whatever the processor, if nobody chose otherwise.

    Its AVX-512 kernels round otherwise than the rest, which training carries into the tutorial's
    last printed digit: effective weights 15.7752 instead of 15.7751. It costs speed on large
    layers, and acts only in a process that has not multiplied matrices yet. (Intel oneMKL,
    "Conditional Numerical Reproducibility".)
    """
    os.environ.setdefault("MKL_CBWR", "COMPATIBLE")


MOST_ROWS, MOST_NUMBERS = 1024, 2**22


def rows_at_once(shape: Sequence[int]) -> int:
    """At most 1,024 samples, and at most 4 million numbers in them, but at least one sample.

    Args:
        shape: of the data, (samples, ...).

    >>> rows_at_once((60_000, 784)), rows_at_once((10, 3, 224, 224)), rows_at_once((2, 2**30))
    (1024, 27, 1)
    """
    return max(1, min(MOST_ROWS, MOST_NUMBERS // max(1, math.prod(shape[1:]))))
