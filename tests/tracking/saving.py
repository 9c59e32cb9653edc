"""What the tests of saved models share: models, a run, and the call that saves one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from wua_mlflow.tracking.models import log_model
from wua_mlflow.tracking.store import connect, ended, new_run


class Convolutional(nn.Module):
    """A convolution with batch norm, as a class of its own."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.dropout, self.head = nn.Dropout(0.5), nn.Linear(4, 3)

    def forward(self, x):
        x = torch.relu(self.norm(self.convolution(x))).mean((2, 3))
        return self.head(self.dropout(x))


class Branching(nn.Module):
    """A path that hangs on the data."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else -self.layer(x)


class Recurrent(nn.Module):
    """Token ids through an embedding and a recurrent layer."""

    def __init__(self, kind=nn.LSTM, **options):
        super().__init__()
        self.embedding = nn.Embedding(20, 6)
        self.recurrent = kind(6, 8, batch_first=True, **options)
        self.head = nn.Linear(16 if options.get("bidirectional") else 8, 3)

    def forward(self, x):
        outputs, _ = self.recurrent(self.embedding(x))
        return self.head(outputs[:, -1])


class Attending(nn.Module):
    """Attention within each sample."""

    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 2)

    def forward(self, x):
        outputs, _ = self.attention(x, x, x, need_weights=False)
        return self.head(outputs.mean(1))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 10), nn.ReLU(), nn.Linear(10, 1), nn.Sigmoid())


MODELS = {
    "mlp": (mlp, (2,)),
    "cnn with batch norm and dropout": (Convolutional, (1, 8, 8)),
    "dropout": (lambda: nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.5), nn.Linear(16, 4)), (6,)),
    "encoder": (lambda: nn.TransformerEncoderLayer(8, 2, batch_first=True), (5, 8)),
    "attention": (Attending, (5, 8)),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 2)), (6,)),
    "double": (lambda: nn.Linear(6, 2).double(), (6,)),
    "half": (lambda: nn.Linear(6, 2).half(), (6,)),
    "compiled part": (lambda: nn.Sequential(torch.compile(nn.Linear(6, 4), backend="eager"),
                                            nn.Linear(4, 1)), (6,)),
}


@pytest.fixture
def run(store_uri):
    """A store, and the id of a run that is ended afterwards."""
    store = connect("models")
    run_id = new_run(store, "run", {})
    with ended(store, run_id):
        yield store, run_id


def log(run, model: nn.Module, inputs: torch.Tensor, **shown) -> tuple[str, int]:
    store, run_id = run
    return log_model(store.client, run_id, store.experiment_id, model, inputs, **shown)


def only_model(run):
    store, _ = run
    [found] = store.client.search_logged_models([store.experiment_id])
    return found


def trained(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A model in train mode, whose running statistics are not those it began with."""
    torch.manual_seed(7)
    build, shape = MODELS[name]
    model = build().train()
    inputs = torch.rand(30, *shape).to(next(model.parameters()).dtype)
    model(3 * inputs + 1)
    return model, inputs
