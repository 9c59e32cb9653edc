"""A sample of a layer's activations, and the effective rank of it.

Which rows are taken depends on the inputs alone, so that batches may be cut and ordered at will;
what comes several times is taken once, and counted.
Tests: ``tests/usage/test_activation_sample.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wua_mlflow.usage.batches import Batch
from wua_mlflow.usage.statistics import effective_count
from wua_mlflow.usage.tracing.calls import WeightCall
from wua_mlflow.usage.tracing.layer import TracedLayer
from wua_mlflow.usage.tracing.sums import ValidPositions, by_unit
from wua_mlflow.usage.tracing.tags import tag_of

__all__ = ["ActivationSampler", "MOST_ROWS", "effective_rank"]


MOST_ROWS = 2048
_NUMBERS_A_KEY = 4096
_ODD = 0x9E3779B97F4A7C15 - 2**64
"""2⁶⁴ ÷ the golden ratio, as a signed number."""


def effective_rank(
    rows: Tensor, scale: Tensor | None = None, *, counts: Tensor | None = None
) -> float:
    """exp of the entropy of the normalized singular values (Roy & Vetterli 2007, equation 3).

    Args:
        rows: activations, shape (rows, units); centred here.
        scale: shape (units,): the norm of each unit's outgoing weights.
        counts: shape (rows,): how often each row came; once, if None.

    Returns:
        Between 0 (all rows are alike) and min(rows, units).

    >>> round(effective_rank(torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])), 6)
    2.0
    """
    counts = torch.ones(len(rows), device=rows.device) if counts is None else counts
    weights = counts.double().unsqueeze(1)
    centred = rows.double() - (rows.double() * weights).sum(0) / weights.sum()
    centred = centred * weights.sqrt()  # the singular values of the rows, each so many times
    if scale is not None:
        centred = centred * scale.double()
    values = torch.linalg.svdvals(centred)
    values = values[values > values.max() * max(centred.shape) * torch.finfo(torch.float64).eps]
    return effective_count(values) if len(values) else 0.0


@dataclass
class _Sample:
    """The rows with the smallest keys so far, each key once, and how often it came."""

    keys: Tensor
    rows: Tensor
    counts: Tensor

    def add(self, keys: Tensor, rows: Tensor, counts: Tensor) -> None:
        if len(self.keys) >= MOST_ROWS:
            near = keys <= self.keys[-1]
            keys, rows, counts = keys[near], rows[near], counts[near]
            if not len(keys):
                return
        keys, order = torch.cat([self.keys, keys]).sort(stable=True)
        keys, place, lengths = keys.unique_consecutive(return_inverse=True, return_counts=True)
        first = order[(lengths.cumsum(0) - lengths)[:MOST_ROWS]]
        counts = torch.zeros_like(keys).index_add_(
            0, place, torch.cat([self.counts, counts])[order])
        self.keys, self.counts = keys[:MOST_ROWS].clone(), counts[:MOST_ROWS].clone()
        self.rows = torch.cat([self.rows, rows.float()])[first]

    def effective_rank(self, scale: Tensor | None = None) -> float:
        """Of the rows, each as often as it came."""
        return effective_rank(self.rows, scale, counts=self.counts)


@dataclass
class ActivationSampler:
    """Rows of what each layer gives, and of what the layers that read it take in.

    ``readers`` says by layer which layers read its units (after activations, normalisation and
    pooling), as their activations show.
    """

    given: dict[str, _Sample] = field(default_factory=dict)
    taken: dict[str, _Sample] = field(default_factory=dict)
    readers: dict[str, list[str]] = field(default_factory=dict)
    _keys: Tensor | None = None

    def begin(self, batch: Batch) -> None:
        """A batch's samples get their keys: a hash of the inputs."""
        self._keys = torch.zeros(batch.samples, dtype=torch.int64, device=batch.first.device)
        for value in (*batch.args, *batch.kwargs.values()):
            if not isinstance(value, Tensor) or value.layout is not torch.strided:
                continue
            place = next((dim for dim in (0, 1) if value.shape[dim:dim + 1] == (batch.samples,)),
                         None)  # 1: time comes first
            if place is not None:
                self._keys = _mixed(self._keys) + _hashed(value.movedim(place, 0))

    def see(
        self, layer: TracedLayer, product: WeightCall, output: Tensor, positions: ValidPositions
    ) -> None:
        """Take rows of a product's output, and of its input if another layer's units came in."""
        rows = by_unit(output, layer.spatial, layer.unit_dim)
        self._take(self.given, layer.name, rows, positions)
        source = tag_of(product.inputs[0]).layer
        if source is None or layer.unit_dim != -1:
            return
        taken = _as_units(product.inputs[0], layer, source)
        if taken is None:
            return
        readers = self.readers.setdefault(source.name, [])
        if layer.name not in readers:
            readers.append(layer.name)
        if readers[0] == layer.name:
            self._take(self.taken, source.name, taken, positions)

    def samples(self) -> Mapping[str, object]:
        """Everything that was taken, to send to other processes."""
        def moved(some: Mapping[str, _Sample]) -> dict[str, tuple[Tensor, ...]]:
            return {name: (one.keys.cpu(), one.rows.cpu(), one.counts.cpu())
                    for name, one in some.items()}

        return {"given": moved(self.given), "taken": moved(self.taken), "readers": self.readers}

    def join(self, found: list[Mapping[str, object]]) -> None:
        """Take in what all processes took, this one included."""
        self.given, self.taken = {}, {}
        for one in found:
            for what, own in (("given", self.given), ("taken", self.taken)):
                for name, (keys, rows, counts) in one[what].items():  # type: ignore[attr-defined]
                    _sample(own, name, rows).add(keys, rows, counts)
            for name, readers in one["readers"].items():  # type: ignore[attr-defined]
                own_readers = self.readers.setdefault(name, [])
                own_readers.extend(r for r in readers if r not in own_readers)

    def _take(
        self, samples: dict[str, _Sample], name: str, rows: Tensor, positions: ValidPositions
    ) -> None:
        if self._keys is None:
            raise RuntimeError("begin must be called before rows are taken")
        if rows.dim() == 3:  # (samples, units, positions)
            rows = rows.transpose(1, 2).reshape(-1, rows.shape[1])
        each, left = divmod(len(rows), len(self._keys))
        if left or positions.packed:  # rows that are no samples' positions
            keys = _hashed(rows)
        else:
            keys = _mixed(self._keys[:, None] + torch.arange(each, device=rows.device))
            keys = (keys.T if positions.time_first else keys).flatten()
        mask = positions.mask
        found = mask.rows((len(rows),), time_first=positions.time_first) if mask else None
        if found is not None:
            keys, rows = keys[found[0]], rows[found[0]]
        _sample(samples, name, rows).add(keys, rows, torch.ones_like(keys))


def _sample(samples: dict[str, _Sample], name: str, rows: Tensor) -> _Sample:
    if name not in samples:
        keys = torch.empty(0, dtype=torch.int64, device=rows.device)
        samples[name] = _Sample(keys, rows[:0].float(), keys.clone())
    return samples[name]


def _as_units(x: Tensor, layer: TracedLayer, source: TracedLayer) -> Tensor | None:
    """A layer's input as rows of the source's units; None where they are not in place."""
    rows = by_unit(x.detach(), layer.spatial)
    if rows.dim() == 3:
        return rows if rows.shape[1] == source.units else None
    if rows.shape[1] == source.units:
        return rows
    if source.spatial and rows.shape[1] % source.units == 0:  # flattened images
        units: Tensor = rows.unflatten(1, (source.units, -1))
        return units
    return None


def _hashed(inputs: Tensor) -> Tensor:
    """A key for each sample, from the bits of its numbers; whole numbers, so exact."""
    flat = torch.view_as_real(inputs) if inputs.is_complex() else inputs
    flat = flat.detach().flatten(1) if flat.dim() > 1 else flat.detach().unsqueeze(1)
    flat = flat[:, ::max(1, -(-flat.shape[1] // _NUMBERS_A_KEY))].contiguous()
    if flat.is_floating_point():
        whole = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}
        flat = flat.view(whole[flat.element_size()])
    places = _mixed(torch.arange(flat.shape[1], device=flat.device)) | 1
    return _mixed((flat.long() * places).sum(1))


def _mixed(keys: Tensor) -> Tensor:
    """Keys spread over all 64-bit numbers (the finaliser of splitmix64, shifts kept signed)."""
    keys = (keys + 1) * _ODD
    keys = (keys ^ (keys >> 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    keys = (keys ^ (keys >> 27)) * (0x94D049BB133111EB - 2**64)
    return keys ^ (keys >> 31)
