"""Several processes over one data set: their sums are joined once, at the end.

May import: torch, gradients, sampling, watching. Tests: ``tests/test_processes.py``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed as dist

from wua_mlflow.gradients import Gradients
from wua_mlflow.sampling import Sampler
from wua_mlflow.watching.layer import Alive, Layer

__all__ = ["first_error", "merge", "rank"]


def rank() -> int:
    """Of this process; 0 where there is only one.

    >>> rank()
    0
    """
    return dist.get_rank() if _several() else 0


def first_error(error: Exception | None) -> None:
    """Raise ``error``, or the first that another process met: none waits for one that stopped."""
    if error is not None and not _several():
        raise error
    if not _several():
        return
    met = _gathered(None if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    for number, text in enumerate(met):
        if text is not None:
            raise RuntimeError(f"process {number}: {text}")


def merge(
    layers: dict[str, Layer], samples: int, gradients: Gradients | None, sampler: Sampler | None
) -> int:
    """Join what every process gathered, in place; gives the number of samples of all.

    A layer that a process never met (its share of the data took another path, or was empty) is
    made from another's description.
    """
    if not _several():
        return samples
    for described in _gathered([_described(layer) for layer in layers.values()]):
        for layer in described:
            layers.setdefault(layer.name, layer)
    order = _gathered(list(layers))[0]
    ordered = {name: layers[name] for name in order if name in layers}
    layers.clear()
    layers.update(ordered)
    device = _device(layers)
    for layer in layers.values():
        for total in (layer.output, *layer.inputs.values()):
            _join_total(total, device)
        layer.calls = sum(_gathered(layer.calls))
        layer.changes = any(_gathered(layer.changes))
        layer.alive = _join_alive(layer.alive, layer.units, device, above=False)
        layer.alive_after_relu = _join_alive(layer.alive_after_relu, layer.units, device,
                                             above=True)
    if gradients is not None:
        for name in sorted({n for some in _gathered(list(gradients.parameters)) for n in some}):
            dist.all_reduce(gradients.parameters[name])
        for name in sorted({n for some in _gathered(list(gradients.computed)) for n in some}):
            dist.all_reduce(gradients.computed[name])
        gradients.samples = sum(_gathered(gradients.samples))
    if sampler is not None:
        sampler.join(_gathered(sampler.samples()))
    return sum(_gathered(samples))


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _gathered(value: Any) -> list[Any]:
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def _device(layers: dict[str, Layer]) -> torch.device:
    """Where the collective operations work: NCCL's on a GPU only."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _described(layer: Layer) -> Layer:
    """A layer without its sums, small enough to send."""
    return Layer(layer.name, layer.kind, layer.module, layer.operation, layer.units, layer.spatial,
                 layer.view, None, layer.bias, layer.groups, layer.gates, layer.transposed,
                 hidden_input=layer.hidden_input, hidden_output=layer.hidden_output)


def _join_total(total: Any, device: torch.device) -> None:
    shape = next((s for s in _gathered(None if total.sums is None else tuple(total.sums.shape))
                  if s is not None), None)
    if shape is None:
        return
    sums = torch.zeros(shape, dtype=torch.float64, device=device) if total.sums is None \
        else total.sums.to(device)
    dist.all_reduce(sums)
    total.sums = sums
    total.count = sum(_gathered(total.count))


def _join_alive(
    alive: Alive | None, units: int, device: torch.device, *, above: bool
) -> Alive | None:
    found = _gathered(None if alive is None else (alive.calls, alive.flags.cpu()))
    known = [one for one in found if one is not None]
    if not known:
        return None
    joined = Alive(units, torch.device("cpu"), above=above)
    joined.calls = sum(calls for calls, _ in known)
    joined.flags = torch.stack([flags for _, flags in known]).any(0).to(device)
    return joined


