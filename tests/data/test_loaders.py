"""What a user's function of data may return, each process's share of it, and progress bars."""

from __future__ import annotations

import io
import math
import re
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import distributed, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, TensorDataset

from wua_mlflow import progress
from wua_mlflow.config import load_settings
from wua_mlflow.data.datasets import DataSplit
from wua_mlflow.data.loaders import BatchesWithBar, load_analysis_data, local_share
from wua_mlflow.pipeline.analyze import example_of, two_samples
from wua_mlflow.pipeline.networks import from_scratch
from wua_mlflow.pipeline.recipe import load_recipe
from wua_mlflow.pipeline.replicates import train_one, train_replicates
from wua_mlflow.usage.analyze import analyze


def points(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(n, 4), torch.randint(3, (n,))


def loader() -> DataLoader:
    return DataLoader(TensorDataset(*points(24)), batch_size=8)


FEEDS = {
    "listed": lambda seed: [points(8) for _ in range(3)],
    "of_nothing": lambda: [points(8)], "loader": lambda seed: loader(),
    "dataset": lambda seed: TensorDataset(*points(24)), "tensor": lambda seed: points(24)[0],
    "dicts": lambda seed: [{"input": points(8)[0], "labels": points(8)[1]} for _ in range(3)],
    "generated": lambda seed: (points(8) for _ in range(3)),
    "parts": lambda seed: (loader(), None, None),
    "parts_of_lists": lambda seed: ([points(8)], [], []),
    "pairs": lambda seed: (points(60), points(20), points(20)),
    "none": lambda seed: None, "text": lambda seed: "seven",
    "scalar": lambda seed: torch.tensor(3.0), "one_batch": lambda seed: {"input": points(8)[0]},
    "pair": lambda seed: points(8), "split": lambda seed: points(24)[0].split(8),
    "empty": lambda seed: [], "empty_tuple": lambda seed: (),
    "raising": lambda seed: {}["of the data"]}


@pytest.fixture
def feeds(monkeypatch):
    monkeypatch.setitem(sys.modules, "feeds", SimpleNamespace(**FEEDS))  # type: ignore[arg-type]


def feed(name: str, **options: object):
    settings = load_settings(None, {"model": "mine:net", "data": f"feeds:{name}", **options})
    return load_analysis_data(settings)


@pytest.mark.parametrize(("name", "kind"), [
    ("listed", list), ("of_nothing", list), ("loader", DataLoader), ("dataset", TensorDataset),
    ("tensor", torch.Tensor), ("dicts", list), ("generated", Iterator), ("parts", DataLoader),
    ("parts_of_lists", list), ("pairs", DataSplit)])
def test_what_is_returned_is_handed_on(name, kind, feeds):
    data = feed(name)
    assert isinstance(data, kind)
    example, data = example_of(data)
    samples = two_samples(example, nn.Linear(4, 3))
    assert (samples["input"] if isinstance(samples, dict) else samples[0]).shape == (2, 4)
    if kind is Iterator:
        assert len(list(data)) == 3, "the first batch is not lost"


def test_the_seed_makes_the_data_and_the_global_stream_stays(feeds):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert torch.equal(feed("tensor", seed=1), feed("tensor", seed=1))
    assert not torch.equal(feed("tensor", seed=1), feed("tensor", seed=2))
    example_of(feed("loader"))
    assert torch.equal(torch.get_rng_state(), before)


WHAT = "batches (a DataLoader or a list of them) or a tuple (train, validation, test), but got "


@pytest.mark.parametrize(("name", "message"), [
    ("none", "NoneType"), ("text", "str"), ("scalar", "Tensor"), ("one_batch", "dict"),
    ("pair", "a tuple of 2 Tensor; give batches as a list"),
    ("split", "a tuple of 3 Tensor; give batches as a list"),
    ("empty_tuple", "a tuple of 0 things; give batches as a list"),
    ("empty", "data: expected at least one batch, but got none"),
    ("raising", "data: expected data from feeds:raising, but got KeyError: 'of the data'"),
])
def test_what_is_no_data(name, message, feeds):
    if not message.startswith("data"):
        message = f"data: expected feeds:{name} to return {WHAT}{message}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        example_of(feed(name))


def be_one_of_two(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    """A world of two processes, without any."""
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "get_rank", lambda: rank)


def rows(batches: object) -> list[float]:
    return [float(row[0]) for batch in batches  # type: ignore[attr-defined]
            for row in (batch[0] if isinstance(batch, list | tuple) else batch)]


@pytest.mark.parametrize("make", [
    lambda x: x, lambda x: x.numpy(), TensorDataset, lambda x: list(x.split(7)),
    lambda x: DataLoader(TensorDataset(x), batch_size=50)],
    ids=["tensor", "array", "dataset", "list", "loader"])
def test_shares_are_the_whole(make, monkeypatch):
    whole = torch.arange(5000.0)[:, None]
    shares = []
    for rank in (0, 1):
        be_one_of_two(monkeypatch, rank)
        shares.append(rows(local_share(make(whole))))
    assert min(map(len, shares)) > 0
    assert sorted(shares[0] + shares[1]) == whole[:, 0].tolist()


def test_data_that_are_shares_already(monkeypatch):
    """Of a distributed sampler; and the whole, where the process is alone."""
    data: Dataset = TensorDataset(torch.arange(10.0)[:, None])
    sampler: DistributedSampler = DistributedSampler(data, num_replicas=2, rank=0, shuffle=False)
    loader = DataLoader(data, batch_size=2, sampler=sampler)
    assert local_share(data) is data
    be_one_of_two(monkeypatch, 0)
    assert rows(local_share(loader)) == [0, 2, 4, 6, 8]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stderr", [Terminal(), io.StringIO()])
def test_bars_at_a_terminal_and_seldom_lines_in_a_log_and_every_pass_is_whole(stderr, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.delenv("TQDM_DISABLE")
    monkeypatch.setattr(progress, "DELAY_S", 0)
    monkeypatch.setattr(progress, "LINE_S", math.inf)
    recipe = load_recipe(load_settings(None, {"seeds": 2}))
    network = train_one(recipe, (10,), 2, seed=42, label="training a")
    test = recipe.evaluate(network.model, recipe.split.test, network.kind)
    train_replicates(recipe, from_scratch(recipe, (10,), 1), (network, test), count=2,
                     label="replicates of a")
    inputs = recipe.split.train.inputs
    analyze(network.model, BatchesWithBar([inputs], 1, passes=2, label="analysing a"), null=1)
    for label in ("training a", "replicates of a", "analysing a"):
        assert (label in stderr.getvalue()) is stderr.isatty()
    assert bool(stderr.getvalue()) is stderr.isatty()
    chunks = torch.arange(10_000.0)[:, None].split(900)
    batches = BatchesWithBar(chunks, None, passes=2, label="demo")
    for _ in range(2):
        assert torch.cat(list(batches))[:, 0].tolist() == list(range(10_000))
