"""The built-in models and the user's own: shapes by hand, and pipelines of them."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from types import ModuleType
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_model
from torch import nn
from torch.utils.data import TensorDataset

from tests.mistakes import all_runs
from tests.pipeline.slimming_cases import with_exports
from tests.pruning.cutting_cases import Tokens
from wua_mlflow.cli.main import main
from wua_mlflow.config import load_settings
from wua_mlflow.data.datasets import load_data, split_of
from wua_mlflow.pipeline.models import check_fit, check_widths, cnn, factory, mlp, naming
from wua_mlflow.pipeline.workflow import run_pipeline, slim_run
from wua_mlflow.report.answer import details_text

HERE = "tests.pipeline.test_models"


@pytest.fixture(scope="module")
def points():
    """The tutorial's: two features, a binary task."""
    return load_data("usecase", seed=0)


@pytest.mark.parametrize(("widths", "parameters"), [
    ((), 4 * 3 + 3), ((5, 2), 4 * 5 + 5 + 5 * 2 + 2 + 2 * 3 + 3)])
def test_mlp_of_any_depth(widths, parameters):
    model = mlp(widths, (4,), 3, "multiclass")
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert model(torch.zeros(6, 4)).shape == (6, 3)
    assert [name for name, part in model.named_modules() if isinstance(part, nn.Linear)] == [
        f"fc{number}" for number in range(1, len(widths) + 2)]
    images = mlp(widths, (1, 2, 2), 3, "multiclass")
    assert sum(parameter.numel() for parameter in images.parameters()) == parameters
    assert images(torch.zeros(6, 1, 2, 2)).shape == (6, 3)


def test_mlp_computes_what_is_drawn():
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


@pytest.mark.parametrize(("widths", "size", "pools"), [
    ((4, 6), 8, 1), ((4, 6, 5, 3), 8, 2), ((4, 6), 3, 0)])
def test_cnn(widths, size, pools):
    """A 3×3 convolution without bias, a batch norm's two parameters a unit, one Linear layer."""
    model = cnn(widths, (2, size, size), 3, "multiclass")
    channels = (2, *widths)
    by_hand = sum(9 * before * after + 2 * after
                  for before, after in zip(channels, channels[1:], strict=False))
    assert sum(p.numel() for p in model.parameters()) == by_hand + 3 * widths[-1] + 3
    assert model(torch.zeros(6, 2, size, size)).shape == (6, 3)
    assert sum(isinstance(part, nn.MaxPool2d) for part in model) == pools
    outputs = cnn(widths, (2, size, size), 1, "binary")(torch.randn(9, 2, size, size))
    assert bool(((outputs > 0) & (outputs < 1)).all())
    with pytest.raises(ValueError, match=r"^model: cnn expected images of shape \(channels, "
                       r"height, width\), but the data's inputs have the shape \(64,\)$"):
        cnn(widths, (64,), 10, "multiclass")


def test_lazy_layers_get_their_shapes_and_widths_their_layers(points, monkeypatch):
    module = ModuleType("lazy_parts")
    module.model = lambda widths: nn.Sequential(  # type: ignore[attr-defined]
        nn.LazyLinear(widths[0]), nn.ReLU(), nn.Linear(widths[0], 1))
    monkeypatch.setitem(sys.modules, "lazy_parts", module)
    monkeypatch.setattr(sys, "path", list(sys.path))
    build = factory("lazy_parts:model", points)
    assert [tuple(p.shape) for p in build((5,)).parameters()] == [(5, 2), (5,), (1, 5), (1,)]
    assert check_widths(build, (5,), (3,)) == (("0",),)
    mlps, stream = factory("mlp", points), torch.get_rng_state()
    for slim in (None, (6, 3)):
        assert check_widths(mlps, (6, 4), slim) == (("fc1",), ("fc2",))
    assert torch.equal(torch.get_rng_state(), stream)


def test_errors_of_the_users_code_become_one_line():
    for error, ours, message in (
        (KeyError("a"), True, "what: KeyError: 'a'"), (ValueError("worded"), True, "worded"),
        (ValueError("of the\nuser's"), False, "what: ValueError: of the user's"),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"), naming("what", ours=ours):
            raise error
    with pytest.raises(KeyboardInterrupt), naming("what"):
        raise KeyboardInterrupt


def test_check_fit_leaves_the_model_and_the_stream_alone(points):
    torch.manual_seed(0)
    for outputs in (1, 2):
        model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(),
                              nn.Linear(3, outputs))
        before = {name: value.clone() for name, value in model.state_dict().items()}
        stream = torch.get_rng_state()
        refused = pytest.raises(ValueError, match=r"expected outputs of shape \(batch, 1\)")
        with refused if outputs == 2 else nullcontext():
            check_fit(model, points)
        assert model.training
        assert torch.equal(torch.get_rng_state(), stream)
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="^model: expected a module with parameters"):
        check_fit(nn.Identity(), points)


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
def here(store, tmp_path):
    """A folder with the user's module, images and tables in it."""
    (tmp_path / "model_parts.py").write_text(PARTS)
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, 120)
    images = draw.normal(size=(120, 6, 6)) + labels[:, None, None] * np.eye(6) * 3
    np.savez(tmp_path / "images.npz", X=images, y=np.array(["flat", "lined"])[labels])
    values = draw.normal(size=(120, 4))
    pd.DataFrame(values, columns=list("abcd")).assign(price=values @ [1, 2, 0, 1] * 100).to_parquet(
        tmp_path / "prices.parquet")
    yield
    sys.modules.pop("model_parts", None)


@pytest.mark.parametrize(("words", "task", "examples"), [
    ("--data wine --hidden 8,6,4 --optimizer sgd", "multiclass", 54),
    ("--data images.npz --model cnn --hidden 4,4", "binary", 36),
    ("--data prices.parquet --target price --hidden 8", "regression", 36),
    ("--data model_parts:data --model model_parts:model --hidden 6,5 --train model_parts:trainer",
     "multiclass", 90),
], ids=["three classes", "images in a file", "a table of amounts", "all of the user's own"])
def test_a_pipeline_of_each_kind_of_data_and_model(words, task, examples, here, capsys):
    assert main(["run", *words.split(), "--epochs", "3", "--seeds", "1", "--null-draws", "0",
                 "--batch-size", "32", "--slim-hidden", "effective", "--margin", "0.2"]) == 0
    printed = capsys.readouterr()
    assert [line for line in printed.err.splitlines()
            if not line.startswith(("wua: note: accuracy ", "wua: data: price: "))
            and not line.endswith(" to test")] == []
    assert f"{examples:,} test examples" in printed.out
    runs = {run.data.tags.get("wua.variant", "pipeline"): run for run in all_runs()}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    original, slim = runs["oversized"].data, runs["slim"].data
    assert original.tags["wua.task"] == slim.tags["wua.task"] == task
    wide, narrow = (tuple(map(int, run.tags["wua.widths"].split(","))) for run in (original, slim))
    assert len(wide) == len(narrow) == words.split("--hidden ")[1].split()[0].count(",") + 1
    assert all(new <= old for new, old in zip(narrow, wide, strict=True)) and narrow != wide
    assert slim.metrics["params/total"] < original.metrics["params/total"]
    assert ("accuracy/test" in slim.metrics) == (task != "regression")
    assert runs["pipeline"].data.tags["wua.verdict"] in ("non_inferior", "inferior", "inconclusive")
    if "trainer" in words:
        calls = sys.modules["model_parts"].calls  # type: ignore[attr-defined]
        assert calls == [(3, 42, 150, 60)] * 2
        assert "loss/train" not in original.metrics


@pytest.mark.parametrize(("name", "changes"), [
    ("digits", {"seeds": 1, "epochs": 10, "limit": 3, "margin": 0.05}),
    ("breast_cancer", {"seeds": 5, "epochs": 10, "slim_epochs": 5, "how": "prune",
                       "slim_hidden": "rank", "fold": "false"}),
])
def test_a_shipped_configuration(store, name, changes):
    """As it is but for fewer replicates, epochs and widths: a sensible accuracy and a verdict."""
    outcome = run_pipeline(store, load_settings(name, {"null_draws": 0, **changes}))
    runs = {variant.variant: store.client.get_run(variant.run_id).data
            for variant in outcome.variants}
    original, slim = runs["oversized"], runs["slim"]
    assert original.metrics["accuracy/test"] >= 0.95
    for metric in ("flops/forward", "params/total"):
        assert slim.metrics[metric] < original.metrics[metric]
    kind = "artifact" if name == "digits" else "recipe"
    assert slim.tags["wua.verdict"] == slim.tags[f"wua.verdict.{kind}"]
    assert slim.tags["wua.verdict"] in ("non_inferior", "inferior", "inconclusive")
    if name == "digits":
        assert 1 <= outcome.slimmed.result.goal.searched.looks <= 2
    else:
        assert slim.metrics["params/total"] == runs["from-scratch"].metrics["params/total"]


def texts(seed: int) -> list[tuple[Any, Any]]:
    """One token, four times; what follows is the same again."""
    draw = torch.Generator().manual_seed(seed)
    inputs = [torch.randint(9, (rows, 1), generator=draw).repeat(1, 4) for rows in (160, 80, 200)]
    return [(tokens, tokens[:, 0]) for tokens in inputs]


@pytest.mark.parametrize(("given", "used"), [
    (torch.int64, torch.int64), (torch.int32, torch.int64), (torch.uint8, torch.float32),
    (torch.float64, torch.float32)])
def test_whole_numbers_of_tensors_are_places(given, used):
    three = [(x.to(given), y) for x, y in texts(1)]
    for parts in (three, [TensorDataset(*part) for part in three]):
        split = split_of(parts, "mine:data")
        for part, (x, _) in zip((split.train, split.validation, split.test), three, strict=True):
            assert part.inputs.dtype == used
            assert torch.equal(part.inputs, x.to(used))
    arrays = [(np.arange(60).reshape(30, 2), np.arange(30) % 3) for _ in range(3)]
    assert split_of(arrays, "mine:data").train.inputs.dtype == torch.float32


def test_a_model_of_tokens_goes_all_the_way_to_the_registry(store, monkeypatch):
    """Inputs that are places in an embedding's table."""
    with_exports(monkeypatch)
    torch.manual_seed(0)
    save_model(Tokens(), "w.safetensors")
    outcome = slim_run(store, load_settings(None, {
        "model": f"{HERE}:Tokens", "state": "w.safetensors", "data": f"{HERE}:texts", "margin": 0.2,
        "slim_hidden": "6,4", "slim_epochs": 2, "null_draws": 0, "register": "texts"}))
    slim = outcome.variants[-1].model
    assert (slim.up.out_features, slim.down.in_features) == (4, 4)
    assert slim.head.weight is slim.emb.weight
    details = details_text(outcome.report, outcome.slimmed).splitlines()
    assert "  up: 4 left" in details
    assert "  not cut: head: its units are the network's outputs." in details
    assert outcome.registered == "Registered as 'texts' version 1, alias slim."
    inputs = texts(7)[2][0]
    served = mlflow.pyfunc.load_model("models:/texts@slim").predict(inputs[:3].numpy())
    with torch.no_grad():
        np.testing.assert_allclose(served, slim(inputs[:3]).numpy(), rtol=1e-5, atol=1e-6)
