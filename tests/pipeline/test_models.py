"""The built-in models and the user's own: shapes by hand, and pipelines of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.tracking import MlflowClient
from torch import nn

from tests.pipeline.slimming_cases import without_pictures
from wua_mlflow.cli.main import main
from wua_mlflow.data.datasets import DataSplit, load_data
from wua_mlflow.pipeline.models import check_fit, check_widths, cnn, factory, mlp, naming


@pytest.fixture(scope="module")
def points() -> DataSplit:
    """The tutorial's: two features, a binary task."""
    return load_data("usecase", seed=0)


@pytest.mark.parametrize(("widths", "parameters"), [
    ((), 4 * 3 + 3), ((5,), 4 * 5 + 5 + 5 * 3 + 3), ((5, 2), 4 * 5 + 5 + 5 * 2 + 2 + 2 * 3 + 3),
    ((7, 5, 2), 4 * 7 + 7 + 7 * 5 + 5 + 5 * 2 + 2 + 2 * 3 + 3)])
def test_mlp_of_any_depth(widths: tuple[int, ...], parameters: int) -> None:
    model = mlp(widths, (4,), 3, "multiclass")
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert model(torch.zeros(6, 4)).shape == (6, 3)
    assert [name for name, part in model.named_modules() if isinstance(part, nn.Linear)] == [
        f"fc{number}" for number in range(1, len(widths) + 2)]


def test_mlp_computes_what_is_drawn() -> None:
    """ReLU between the layers; a sigmoid at the end of a binary one alone."""
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    for task in ("binary", "regression"):
        torch.manual_seed(0)
        model = mlp((4,), (3,), 1, task)
        state = {name: value.numpy() for name, value in model.state_dict().items()}
        hidden = np.maximum(x.numpy() @ state["fc1.weight"].T + state["fc1.bias"], 0)
        expected = hidden @ state["fc2.weight"].T + state["fc2.bias"]
        if task == "binary":
            expected = 1 / (1 + np.exp(-expected))
        assert np.allclose(model(x).detach().numpy(), expected, atol=1e-6)


def test_mlp_takes_images_too() -> None:
    assert mlp((4,), (1, 8, 8), 10, "multiclass")(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_mlp_draws_from_the_stream_as_the_tutorials_network_does() -> None:
    torch.manual_seed(42)
    model = mlp((10,), (2,), 1, "binary")
    torch.manual_seed(42)
    tutorial = nn.Sequential(nn.Linear(2, 10), nn.ReLU(), nn.Linear(10, 1), nn.Sigmoid())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), tutorial.parameters(),
                                                 strict=True))


@pytest.mark.parametrize(("widths", "size", "pools"), [
    ((4,), 8, 0), ((4, 6), 8, 1), ((4, 6, 5), 8, 2), ((4, 6, 5, 3), 8, 2), ((4, 6), 3, 0)])
def test_cnn(widths: tuple[int, ...], size: int, pools: int) -> None:
    """A 3×3 convolution without bias, a batch norm's two parameters a unit, one Linear layer."""
    model = cnn(widths, (2, size, size), 3, "multiclass")
    channels = (2, *widths)
    by_hand = sum(9 * before * after + 2 * after
                  for before, after in zip(channels, channels[1:], strict=False))
    assert sum(p.numel() for p in model.parameters()) == by_hand + 3 * widths[-1] + 3
    assert model(torch.zeros(6, 2, size, size)).shape == (6, 3)
    assert sum(isinstance(part, nn.MaxPool2d) for part in model) == pools


def test_cnn_wants_images() -> None:
    with pytest.raises(ValueError, match=r"^model: cnn expected images of shape \(channels, "
                       r"height, width\), but the data's inputs have the shape \(64,\)$"):
        cnn((4,), (64,), 10, "multiclass")


def test_a_binary_cnn_ends_in_a_sigmoid() -> None:
    outputs = cnn((4,), (1, 8, 8), 1, "binary")(torch.randn(9, 1, 8, 8))
    assert bool(((outputs > 0) & (outputs < 1)).all())


def test_factory_of_a_built_in_model(points: DataSplit) -> None:
    model = factory("mlp", points)((6, 4))
    assert [p.shape[0] for p in model.parameters()] == [6, 6, 4, 4, 1, 1]
    with pytest.raises(ValueError, match="^model: expected mlp, cnn or package.module:factory, but "
                       "got 'mpl'; did you mean 'mlp'"):
        factory("mpl", points)


def test_lazy_layers_get_their_shapes(
    points: DataSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("lazy_parts")
    module.model = lambda widths: nn.Sequential(  # type: ignore[attr-defined]
        nn.LazyLinear(widths[0]), nn.ReLU(), nn.Linear(widths[0], 1))
    monkeypatch.setitem(sys.modules, "lazy_parts", module)
    monkeypatch.setattr(sys, "path", list(sys.path))
    build = factory("lazy_parts:model", points)
    assert [tuple(p.shape) for p in build((5,)).parameters()] == [(5, 2), (5,), (1, 5), (1,)]
    assert check_widths(build, (5,), (3,)) == (("0",),)


def test_naming() -> None:
    with pytest.raises(ValueError, match="^what: KeyError: 'a'$"), naming("what"):
        raise KeyError("a")
    with pytest.raises(ValueError, match="^worded$"), naming("what"):
        raise ValueError("worded")
    with pytest.raises(ValueError, match="^what: ValueError: of the user's$"), \
            naming("what", ours=False):
        raise ValueError("of the\nuser's")
    with pytest.raises(KeyboardInterrupt), naming("what"):
        raise KeyboardInterrupt


@pytest.mark.parametrize("outputs", [1, 2])
def test_check_fit_leaves_the_model_and_the_stream_alone(points: DataSplit, outputs: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(), nn.Linear(3, outputs))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stream = torch.get_rng_state()
    try:
        check_fit(model, points)
    except ValueError as error:
        assert "expected outputs of shape (batch, 1)" in str(error)
        assert outputs == 2
    assert model.training
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_check_fit_needs_parameters(points: DataSplit) -> None:
    with pytest.raises(ValueError, match="^model: expected a module with parameters"):
        check_fit(nn.Identity(), points)


def test_check_widths_gives_the_layers_of_each(points: DataSplit) -> None:
    build = factory("mlp", points)
    stream = torch.get_rng_state()
    assert check_widths(build, (6, 4), "auto") == (("fc1",), ("fc2",))
    assert check_widths(build, (6, 4), (6, 3)) == (("fc1",), ("fc2",))
    assert torch.equal(torch.get_rng_state(), stream)


PARTS = """
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

calls = []

class Convolving(nn.Module):
    def __init__(self, widths):
        super().__init__()
        self.first = nn.Conv1d(1, widths[0], 3, padding=1)
        self.second = nn.Linear(widths[0], widths[1])
        self.last = nn.Linear(widths[1], 3)
    def forward(self, x):
        return self.last(torch.relu(self.second(torch.relu(self.first(x)).mean(2))))

def model(widths):
    return Convolving(widths)

class Waves(Dataset):
    def __init__(self, count, seed):
        draw = np.random.default_rng(seed)
        self.y = draw.integers(0, 3, count)
        self.x = np.sin(np.arange(12) * (1 + self.y[:, None])) + draw.normal(size=(count, 12)) / 5
    def __len__(self):
        return len(self.y)
    def __getitem__(self, i):
        return torch.tensor(self.x[i:i + 1], dtype=torch.float32), int(self.y[i])

def data(seed):
    return Waves(150, seed), Waves(60, seed + 1), Waves(90, seed + 2)

def trainer(model, data, budget, seed):
    train, validation = data
    calls.append((budget, seed, len(train), len(validation)))
    loader = DataLoader(train, 25, shuffle=True)
    steps = torch.optim.AdamW(model.parameters(), 0.02)
    for _ in range(budget):
        for x, y in loader:
            steps.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            steps.step()
    return model
"""


@pytest.fixture
def here(store_uri: str, tmp_path: Path) -> Iterator[Path]:
    """A folder with the user's module, images and tables in it."""
    (tmp_path / "model_parts.py").write_text(PARTS)
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, 120)
    images = draw.normal(size=(120, 6, 6)) + labels[:, None, None] * np.eye(6) * 3
    np.savez(tmp_path / "images.npz", X=images, y=np.array(["flat", "lined"])[labels])
    values = draw.normal(size=(120, 4))
    pd.DataFrame(values, columns=list("abcd")).assign(price=values @ [1, 2, 0, 1] * 100).to_parquet(
        tmp_path / "prices.parquet")
    path = list(sys.path)
    yield tmp_path
    sys.path[:] = path
    sys.modules.pop("model_parts", None)


PIPELINES = {
    "three classes": ("--data wine --hidden 8,6,4 --optimizer sgd", "multiclass", 54),
    "images in a file": ("--data images.npz --model cnn --hidden 4,4", "binary", 36),
    "a table of amounts": ("--data prices.parquet --target price --hidden 8", "regression", 36),
    "all of the user's own": ("--data model_parts:data --model model_parts:model --hidden 6,5 "
                              "--train model_parts:trainer", "multiclass", 90),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_of_each_kind_of_data_and_model(
    name: str, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words, task, examples = PIPELINES[name]
    if name != "images in a file":
        without_pictures(monkeypatch)
    assert main(["run", *words.split(), "--epochs", "3", "--seeds", "1", "--null-draws", "0",
                 "--batch-size", "32", "--width-method", "effective", "--margin", "0.2"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert f"{examples:,} test examples" in printed.out
    client = MlflowClient()
    runs = {run.data.tags.get("wua.variant", "pipeline"): run
            for run in client.search_runs([client.get_experiment_by_name("wua").experiment_id])}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    original, slim = runs["oversized"].data, runs["slim"].data
    assert original.tags["wua.task"] == slim.tags["wua.task"] == task
    wide, narrow = (tuple(map(int, run.tags["wua.widths"].split(","))) for run in (original, slim))
    assert len(wide) == len(narrow) == words.split("--hidden ")[1].split()[0].count(",") + 1
    assert all(new <= old for new, old in zip(narrow, wide, strict=True)) and narrow != wide
    assert slim.metrics["params/total"] < original.metrics["params/total"]
    assert ("accuracy/test" in slim.metrics) == (task != "regression")
    assert runs["pipeline"].data.tags["wua.verdict"] in ("non_inferior", "inferior", "inconclusive")
    if name == "all of the user's own":
        calls = sys.modules["model_parts"].calls  # type: ignore[attr-defined]
        assert calls == [(3, 42, 150, 60)] * 2
        assert "loss/train" not in original.metrics
