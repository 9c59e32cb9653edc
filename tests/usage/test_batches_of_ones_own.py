"""Batches that are objects of one's own: what the model and the loss get of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.networks import labels, mlp, rows
from wua_mlflow.usage.analyze import analyze
from wua_mlflow.usage.batches import Batches


@dataclass
class Graphs:
    x: Tensor
    y: Tensor


def test_the_loss_gets_the_batch_itself():
    model, x, y = mlp(3, 5, 2), rows(8, 3), labels(8)
    found = analyze(model, [Graphs(x[:3], y[:3]), Graphs(x[3:], y[3:])], criterion="taylor",
                    batch_to_inputs=lambda batch: batch.x,
                    loss=lambda outputs, batch: functional.cross_entropy(outputs, batch.y))
    expected = analyze(model, [(x, y)], criterion="taylor", loss=functional.cross_entropy)
    torch.testing.assert_close(torch.from_numpy(found.layers["0"].unit_importance),
                               torch.from_numpy(expected.layers["0"].unit_importance))


def test_tensors_of_ones_own_function_keep_their_precision():
    model = nn.Linear(3, 2).bfloat16()
    batches = Batches([(rows(4, 3), torch.arange(4.0))], model, lambda batch: (
        batch[0].bfloat16(), batch[1] + 601.25, batch[0].double()))
    first, step, wide = next(iter(batches)).args
    assert (first.dtype, step.dtype, wide.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)
    assert float(step[1]) == 602.25


class Sequences(nn.Module):
    """Time first, as ``nn.LSTM`` has it unless told otherwise."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.head = nn.LSTM(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][-1])


def test_time_first_sequences_are_counted_by_their_targets():
    model, x, y = Sequences().double(), rows(4, 9, 3), labels(9)
    for criterion in ("taylor", "output"):
        whole, parts = (analyze(model, data, criterion=criterion, loss=functional.cross_entropy)
                        for data in ([(x, y)], [(x[:, :2], y[:2]), (x[:, 2:], y[2:])]))
        assert whole.samples == parts.samples == 9
        for name, layer in whole.layers.items():
            torch.testing.assert_close(torch.from_numpy(parts.layers[name].unit_importance),
                                       torch.from_numpy(layer.unit_importance))
    square = rows(9, 9, 3)  # cannot be told: as ever
    assert next(iter(Batches([(square, y)], model))).samples == 9
    assert next(iter(Batches([(rows(4, 9, 3), labels(4))], model))).samples == 4
    assert next(iter(Batches([rows(4, 9, 3)], model))).samples == 4
