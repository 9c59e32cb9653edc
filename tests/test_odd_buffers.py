"""Buffers that are sparse, or change their shape, are put back like any other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.networks import rows
from wua_mlflow.usage.analyze import analyze


class Graph(nn.Module):
    """A convolution over a graph whose adjacency is sparse; counters before and after it."""

    def __init__(self, layout: torch.layout) -> None:
        super().__init__()
        self.register_buffer("before", torch.zeros(()))
        self.register_buffer("adjacency", torch.eye(6).to_sparse(layout=layout))
        self.register_buffer("after", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(0))
        self.first, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.before += 1
        self.after += 1
        self.seen.resize_(len(x)).copy_(x[:, 0])
        return self.head(self.adjacency @ self.first(x).relu())


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_found(layout, fails):
    model = Graph(layout)
    x = rows(6, 3)
    if fails:
        with pytest.raises(RuntimeError, match="mat1 and mat2|size mismatch|shape"):
            analyze(model, [x, rows(6, 5)])
    else:
        assert list(analyze(model, [x, x]).layers) == ["first"]
    assert (float(model.before), float(model.after), len(model.seen)) == (0, 0, 0)
    assert torch.equal(model.adjacency.to_dense(), torch.eye(6))
    assert model.adjacency.layout is layout
