"""A sample of each layer's activations, and its effective rank.

Which rows are sampled depends on the inputs alone, not on the batches' sizes or order. Rows with
the same key are stored once, with a count.
Tests: ``tests/usage/test_activation_sample.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from wua_mlflow.data.batches import Batch
from wua_mlflow.usage.statistics import effective_count
from wua_mlflow.usage.tracing.calls import WeightCall
from wua_mlflow.usage.tracing.layer import TracedLayer
from wua_mlflow.usage.tracing.sums import ValidPositions, by_unit
from wua_mlflow.usage.tracing.tags import tag_of

__all__ = ["ActivationSampler", "MOST_ROWS", "effective_rank"]


MOST_ROWS = 2048
_NUMBERS_A_KEY = 4096
_EXACT_UP_TO = 512
_ODD = 0x9E3779B97F4A7C15 - 2**64
"""2⁶⁴ ÷ the golden ratio, as a signed number."""


def effective_rank(
    rows: Tensor, scale: Tensor | None = None, *, counts: Tensor | None = None
) -> float:
    """exp of the entropy of the normalized singular values (Roy & Vetterli 2007, equation 3).

    Args:
        rows: activations, shape (rows, units); centred here.
        scale: shape (units,): the norm of each unit's outgoing weights.
        counts: shape (rows,): the count of each row; 1, if None.

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
    values = _singular_values(centred)
    return effective_count(values) if len(values) else 0.0


def _singular_values(rows: Tensor) -> Tensor:
    """Those above rounding; of many rows and units by the eigenvalues of the products of all pairs.

    That is five to ten times as fast. It loses what is below a millionth of the largest value,
    where activations in float32 are rounding too.
    """
    rounding = max(rows.shape) * torch.finfo(torch.float64).eps
    if min(rows.shape) <= _EXACT_UP_TO:
        values: Tensor = torch.linalg.svdvals(rows)
        return values[values > values.max() * rounding]
    products = rows @ rows.T if rows.shape[0] < rows.shape[1] else rows.T @ rows
    squares: Tensor = torch.linalg.eigvalsh(products)
    return squares[squares > squares.max() * rounding].sqrt()


@dataclass
class _RowSample:
    """The rows with the smallest keys so far, each key once, with its count."""

    keys: Tensor
    rows: Tensor
    counts: Tensor

    def add(self, keys: Tensor, rows: Tensor, counts: Tensor) -> None:
        if len(self.keys) >= MOST_ROWS:
            small = keys <= self.keys[-1]
            keys, rows, counts = keys[small], rows[small], counts[small]
            if not len(keys):
                return
        keys, order = torch.cat([self.keys, keys]).sort(stable=True)
        keys, places, lengths = keys.unique_consecutive(return_inverse=True, return_counts=True)
        first = order[(lengths.cumsum(0) - lengths)[:MOST_ROWS]]
        counts = torch.zeros_like(keys).index_add_(
            0, places, torch.cat([self.counts, counts])[order])
        self.keys, self.counts = keys[:MOST_ROWS].clone(), counts[:MOST_ROWS].clone()
        self.rows = torch.cat([self.rows, rows.float()])[first]

    def effective_rank(self, scale: Tensor | None = None) -> float:
        """Effective rank of the rows, each weighted by its count."""
        return effective_rank(self.rows, scale, counts=self.counts)


@dataclass
class ActivationSampler:
    """Sampled rows of each layer's outputs, and of its units as the next layer receives them.

    ``readers`` maps a layer to the layers that take its units as input (after activations,
    normalisation and pooling).
    """

    outputs: dict[str, _RowSample] = field(default_factory=dict)
    received: dict[str, _RowSample] = field(default_factory=dict)
    readers: dict[str, list[str]] = field(default_factory=dict)
    _keys: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def begin(self, batch: Batch) -> None:
        """Give each of the batch's samples a key: a hash of its inputs."""
        self._keys = _with_float64(
            torch.zeros(batch.samples, dtype=torch.int64, device=batch.first.device))
        for value in (*batch.args, *batch.kwargs.values()):
            if not isinstance(value, Tensor) or value.layout is not torch.strided:
                continue
            dim = batch.sample_dim(value)
            if dim is not None:
                self._keys = _mix(self._keys) + _hash_rows(_with_float64(value.movedim(dim, 0)))

    def see(
        self, layer: TracedLayer, product: WeightCall, output: Tensor, positions: ValidPositions
    ) -> None:
        """Sample rows of a product's output, and of its input if that is another layer's units."""
        rows = by_unit(output, layer.spatial, layer.unit_dim)
        self._add_rows(self.outputs, layer.name, rows, positions)
        source = tag_of(product.inputs[0]).layer
        if source is None or layer.unit_dim != -1:
            return
        received = _as_units(product.inputs[0], layer, source)
        if received is None:
            return
        readers = self.readers.setdefault(source.name, [])
        if layer.name not in readers:
            readers.append(layer.name)
        if readers[0] == layer.name:
            self._add_rows(self.received, source.name, received, positions)

    def samples(self) -> Mapping[str, object]:
        """All samples, on the CPU, to send to other processes."""
        def on_cpu(samples: Mapping[str, _RowSample]) -> dict[str, tuple[Tensor, ...]]:
            return {name: (sample.keys.cpu(), sample.rows.cpu(), sample.counts.cpu())
                    for name, sample in samples.items()}

        return {"outputs": on_cpu(self.outputs), "received": on_cpu(self.received),
                "readers": self.readers}

    def join(self, by_process: list[Mapping[str, Any]]) -> None:
        """Replace the samples by those of all processes, this one included."""
        self.outputs, self.received = {}, {}
        for gathered in by_process:
            for kind, samples in (("outputs", self.outputs), ("received", self.received)):
                for name, (keys, rows, counts) in gathered[kind].items():
                    _sample_of(samples, name, rows).add(keys, rows, counts)
            for name, readers in gathered["readers"].items():
                known = self.readers.setdefault(name, [])
                known.extend(reader for reader in readers if reader not in known)

    def _add_rows(
        self, samples: dict[str, _RowSample], name: str, rows: Tensor, positions: ValidPositions
    ) -> None:
        rows = _with_float64(rows)
        if rows.dim() == 3:  # (samples, units, positions)
            rows = rows.transpose(1, 2).reshape(-1, rows.shape[1])
        rows_per_sample, remainder = divmod(len(rows), len(self._keys))
        if remainder or positions.packed:  # rows that are no samples' positions
            keys = _hash_rows(rows)
        else:
            keys = _mix(self._keys[:, None] + torch.arange(rows_per_sample, device=rows.device))
            keys = (keys.T if positions.time_first else keys).flatten()
        mask = positions.mask
        valid = mask.rows((len(rows),), time_first=positions.time_first) if mask else None
        if valid is not None:
            places = _with_float64(valid[0])
            keys, rows = keys[places], rows[places]
        _sample_of(samples, name, rows).add(keys, rows, torch.ones_like(keys))


def _with_float64(values: Tensor) -> Tensor:
    """The values on a device that has float64: MPS has none."""
    return values.cpu() if values.device.type == "mps" else values


def _sample_of(samples: dict[str, _RowSample], name: str, rows: Tensor) -> _RowSample:
    if name not in samples:
        keys = torch.empty(0, dtype=torch.int64, device=rows.device)
        samples[name] = _RowSample(keys, rows[:0].float(), keys.clone())
    return samples[name]


def _as_units(x: Tensor, layer: TracedLayer, source: TracedLayer) -> Tensor | None:
    """A layer's input as rows of the source's units; None where its shape does not match them."""
    rows = by_unit(x.detach(), layer.spatial)
    if rows.dim() == 3:
        return rows if rows.shape[1] == source.units else None
    if rows.shape[1] == source.units:
        return rows
    if source.spatial and rows.shape[1] % source.units == 0:  # flattened images
        units: Tensor = rows.unflatten(1, (source.units, -1))
        return units
    return None


def _hash_rows(inputs: Tensor) -> Tensor:
    """A hash of each row's bits; integer arithmetic, so exact."""
    flat = torch.view_as_real(inputs) if inputs.is_complex() else inputs
    flat = flat.detach().flatten(1) if flat.dim() > 1 else flat.detach().unsqueeze(1)
    flat = flat[:, ::max(1, -(-flat.shape[1] // _NUMBERS_A_KEY))].contiguous()
    if flat.is_floating_point():
        integers = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}
        flat = flat.view(integers[flat.element_size()])
    places = _mix(torch.arange(flat.shape[1], device=flat.device)) | 1
    return _mix((flat.long() * places).sum(1))


def _mix(keys: Tensor) -> Tensor:
    """Spread keys over all 64-bit integers (the finaliser of splitmix64, with signed shifts)."""
    keys = (keys + 1) * _ODD
    keys = (keys ^ (keys >> 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    keys = (keys ^ (keys >> 27)) * (0x94D049BB133111EB - 2**64)
    return keys ^ (keys >> 31)
