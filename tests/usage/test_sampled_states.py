"""The effective rank of recurrent layers' hidden states, against NumPy's of all of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.networks import rows
from tests.usage.test_activation_sample import numpys_rank, ranks
from wua_mlflow.usage.analyze import analyze

UNITS, STEPS = 5, 6


class Reader(nn.Module):
    """What reads a recurrent layer's last step."""

    def __init__(self, rnn: nn.RNNBase, lengths: Tensor | None = None) -> None:
        super().__init__()
        self.rnn, self.lengths = rnn, lengths
        width = rnn.hidden_size * (2 if rnn.bidirectional else 1)
        self.head = nn.Linear(rnn.proj_size or width, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.lengths is None:
            return self.head(self.rnn(x)[0].mean(1 if self.rnn.batch_first else 0))
        packed = pack_padded_sequence(x, self.lengths[:len(x)], batch_first=True,
                                      enforce_sorted=False)
        return self.head(pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0].sum(1))


def states(rnn: nn.RNNBase, x: Tensor) -> np.ndarray:
    with torch.no_grad():
        return rnn(x)[0].reshape(-1, rnn.hidden_size * (2 if rnn.bidirectional else 1)).numpy()


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("batch_first", [True, False])
def test_all_steps_of_all_samples(kind: type[nn.RNNBase], batch_first: bool) -> None:
    torch.manual_seed(0)
    rnn = kind(3, UNITS, batch_first=batch_first)
    x = rows(40, STEPS, 3)
    x = x if batch_first else x.transpose(0, 1).contiguous()
    expected = numpys_rank(states(rnn, x))
    data = [x] if batch_first else [(x, torch.zeros(40))]
    found = ranks(Reader(rnn), data)
    for name in ("rnn.weight_ih_l0", "rnn.weight_hh_l0"):
        assert found[name] == pytest.approx(expected, rel=1e-5)


def test_each_layer_and_direction_has_its_own() -> None:
    torch.manual_seed(1)
    rnn = nn.LSTM(3, UNITS, 2, batch_first=True, bidirectional=True)
    x = rows(40, STEPS, 3)
    found = ranks(Reader(rnn), x)
    last = states(rnn, x)
    for way, suffix in enumerate(("", "_reverse")):
        expected = numpys_rank(last[:, way * UNITS:(way + 1) * UNITS])
        assert found[f"rnn.weight_ih_l1{suffix}"] == pytest.approx(expected, rel=1e-5)
        assert found[f"rnn.weight_ih_l0{suffix}"] != pytest.approx(expected, rel=1e-3)


def test_packed_sequences_have_their_own_steps_alone_however_they_are_cut() -> None:
    torch.manual_seed(2)
    lengths = torch.tensor([6, 2, 4, 3] * 8)
    model, x = Reader(nn.GRU(3, UNITS, batch_first=True), lengths), rows(32, STEPS, 3)
    whole = states(model.rnn, x).reshape(32, STEPS, UNITS)
    expected = numpys_rank(np.concatenate([one[:n] for one, n in zip(whole, lengths, strict=True)]))
    for size in (32, 8, 4):  # the lengths come again every four
        assert ranks(model, list(x.split(size)))["rnn.weight_hh_l0"] == \
            pytest.approx(expected, rel=1e-5)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_a_projection_that_hides_the_states() -> None:
    torch.manual_seed(3)
    rnn = nn.LSTM(3, UNITS, batch_first=True, proj_size=2)
    usage = analyze(Reader(rnn), rows(40, STEPS, 3), criterion="magnitude", effective_rank=True)
    assert usage.layers["rnn.weight_ih_l0"].effective_rank is None
    with torch.no_grad():
        gave = rnn(rows(40, STEPS, 3))[0].reshape(-1, 2).numpy()
    assert usage.layers["rnn.weight_hr_l0"].effective_rank == \
        pytest.approx(numpys_rank(gave), rel=1e-5)
