"""Data that are none: one line that names what came."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.usage.test_batches import Plain, X, Y
from wua_mlflow.usage.batches import Batches


@pytest.mark.parametrize(("data", "message"), [
    (5, "an iterable of batches, but got int"),
    (None, "an iterable of batches, but got NoneType"),
    ("data.csv", "an iterable of batches, but got str"),
    ({"x": X}, "an iterable of batches, but got dict"),
    (torch.tensor(1.0), "an iterable of batches, but got Tensor"),
    (np.float64(2.0), "an iterable of batches, but got float64"),
    ([[1.0, 2.0, 3.0]], r"expected batches of tensors or arrays .* but got 1\.0"),
    ([torch.tensor(1.0)], r"expected batches of tensors or arrays .* but got tensor\(1\.\)"),
    (["words"], "expected batches of tensors or arrays .* but got 'words'"),
    ([("words", Y)], "expected batches of tensors or arrays .* but got 'words'"),
    ([None], "expected batches of tensors or arrays .* but got None"),
    ([[]], r"expected batches of tensors or arrays .* but got \[\]"),
    ([{"x": "words"}], "expected batches of tensors or arrays .* but got {'x': 'words'}"),
    ([{"x": torch.tensor(1.0)}], "expected batches of tensors or arrays .* but got "),
    ([{}], r"expected keys that the model's forward takes \(other, scale, x\), but got none"),
    ([{"X": X, "Y": Y}], r"that the model's forward takes \(other, scale, x\), but got X, Y"),
    (X.to_sparse(), r"expected dense tensors, but got torch\.sparse_coo; call to_dense\(\)"),
    (np.array(["a", "b"]), "expected arrays of numbers, but got one of dtype <U1"),
    ([np.array([{}, {}])], "expected arrays of numbers, but got one of dtype object"),
    ([(X, np.array(["cat"] * 10))], "expected arrays of numbers, but got one of dtype <U3"),
])
def test_data_of_another_kind(data, message):
    with pytest.raises(ValueError, match=f"^data: .*{message}") as caught:
        list(Batches(data, Plain()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", ["words", None, (), [X], (None, X), {"x": None}])
def test_batch_to_inputs_that_gives_something_else(given):
    with pytest.raises(ValueError, match="^data: expected batches of tensors or arrays"):
        list(Batches([0], Plain(), lambda _: given))
