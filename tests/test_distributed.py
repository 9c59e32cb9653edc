"""Two processes over one data set give the figures of one; sharded models too; errors reach all."""

from __future__ import annotations

import pickle
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional

from wua_mlflow import distributed
from wua_mlflow.distributed import rank, shard_batches
from wua_mlflow.usage.analyze import analyze

CRITERIA = ("output", "input", "wanda", "magnitude", "taylor")


class Net(nn.Module):
    """Attention, recurrence, an embedding, a unit that is dead in every share."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.emb = nn.Embedding(50, 16)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.lstm = nn.LSTM(16, 12, batch_first=True)
        self.hidden = nn.Linear(12, 8)
        self.hidden.weight.data[0], self.hidden.bias.data[0] = 0, -1
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.hidden(self.lstm(self.encoder(self.emb(x)))[0][:, -1])
        return self.out(torch.relu(hidden))


def batches() -> list[Any]:
    drawn = torch.Generator().manual_seed(1)
    x = torch.randint(50, (60, 7), generator=drawn)
    y = torch.randint(3, (60,), generator=drawn)
    return list(zip(x.split(7), y.split(7), strict=True))


def usages_of(data: Any) -> dict[str, Any]:
    return analyze(Net(), data, criterion=CRITERIA, loss=functional.cross_entropy, null=2,
                   effective_rank=True)


def of_share() -> object:
    return usages_of(shard_batches(batches()))


def of_nothing_in_the_second() -> object:
    torch.manual_seed(2)
    computed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)), nn.ReLU(),
                             nn.Linear(6, 2))
    if dist.get_rank() == 0:
        return usages_of(batches()), analyze(computed, torch.ones(3, 4).split(1))
    return usages_of([]), analyze(computed, [])


def failing_in_the_second() -> object:
    good = batches()
    bad = [(torch.full((2, 7), 99), torch.zeros(2).long())]
    return analyze(Net(), good if dist.get_rank() == 0 else good[:1] + bad)


def stack() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(8, 33), nn.ReLU(),
                         nn.TransformerEncoderLayer(33, 3, 16, batch_first=True), nn.Linear(33, 4))


def sharded() -> nn.Sequential:
    model = stack()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for part in (model[0], model[2], model[3], model):
        fully_shard(part, mesh=mesh)
    return model


def inputs() -> torch.Tensor:
    return torch.randn(40, 5, 8, generator=torch.Generator().manual_seed(4))


def of_shards() -> object:
    gathered, plain, model = [], DTensor.full_tensor, sharded()
    DTensor.full_tensor = lambda tensor: gathered.append(tensor.numel()) or plain(tensor)
    usage = analyze(model, shard_batches(inputs().split(5)), criterion=("output", "wanda"))
    return usage, all(isinstance(p, DTensor) for p in model.parameters()), gathered


def of_shards_unevenly() -> object:
    return analyze(sharded(), inputs().split(5)[:3 if dist.get_rank() == 0 else 2])


def of_shards_with_data_that_fail() -> object:
    def batches() -> Any:
        yield inputs()[:4]
        if dist.get_rank() == 1:
            raise OSError("the disk is gone")
        yield inputs()[4:8]

    return analyze(sharded(), batches())


def of_shards_with_a_null() -> object:
    return analyze(sharded(), inputs().split(5), null=2)


def of_shards_with_taylor() -> object:
    data = [(x, torch.zeros(len(x), 5).long()) for x in inputs().split(5)]
    return analyze(sharded(), data, criterion="taylor",
                   loss=lambda z, y: functional.cross_entropy(z.flatten(0, 1), y.flatten()))


def _process(number: int, job: Any, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=2)
    try:
        result = job()
    except Exception as error:
        result = type(error).__name__, str(error), traceback.format_exc()
    Path(folder, f"{number}.pickle").write_bytes(pickle.dumps(result))
    dist.destroy_process_group()


def run_twice(job: Any, folder: Path) -> list[Any]:
    """What ``job`` gives in each of two processes, or the type and the text of its error."""
    folder.mkdir(exist_ok=True)
    multiprocessing.start_processes(  # a fork spares the second import of torch
        _process, (job, str(folder)), nprocs=2, start_method="fork")
    return [pickle.loads((folder / f"{number}.pickle").read_bytes()) for number in range(2)]


def assert_alike(usages: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(usages) == list(expected)
    for criterion, usage in expected.items():
        other = usages[criterion]
        assert (other.samples, dict(other.skipped)) == (usage.samples, dict(usage.skipped))
        assert list(other.layers) == list(usage.layers)
        for name, layer in usage.layers.items():
            same = other.layers[name]
            assert same.entropy == pytest.approx(layer.entropy, rel=1e-6, abs=1e-9)
            assert same.unit_importance == pytest.approx(layer.unit_importance, rel=1e-6, abs=1e-12)
            assert (same.dead_units, same.top90_share, same.forward_flops) == \
                (layer.dead_units, layer.top90_share, layer.forward_flops)
            if layer.effective_rank is not None:
                assert same.effective_rank == pytest.approx(layer.effective_rank, rel=1e-6)
            if layer.null:
                assert same.null.share == pytest.approx(layer.null.share, rel=1e-6)


def test_two_processes_give_the_figures_of_one_also_where_one_has_no_data(tmp_path):
    """And where only one of them saw a weight that is computed."""
    expected = usages_of(batches())
    assert expected["output"].layers["hidden"].dead_units == 1
    for shared in run_twice(of_share, tmp_path):
        assert_alike(shared, expected)
    (first, computed), (second, other) = run_twice(of_nothing_in_the_second, tmp_path / "second")
    assert_alike(first, expected)
    assert_alike(second, expected)
    assert other.layers["0"].entropy == computed.layers["0"].entropy > 0


def test_a_sharded_model_has_the_figures_of_the_whole_one(tmp_path):
    expected = analyze(stack(), inputs().split(5), criterion=("output", "wanda"))
    largest = max(parameter.numel() for parameter in stack().parameters())
    for usage, still_sharded, gathered in run_twice(of_shards, tmp_path):
        assert_alike(usage, expected)
        assert still_sharded
        assert max(gathered) == largest  # one parameter at a time, never all of them


@pytest.mark.parametrize(("job", "error", "text"), [
    (failing_in_the_second, "IndexError", "index out of range in self (in layer 'emb', batch 1)"),
    (of_shards_with_data_that_fail, "OSError", "the disk is gone")])
def test_an_error_in_one_process_ends_them_all(job, error, text, tmp_path):
    first, second = run_twice(job, tmp_path)
    assert second[:2] == (error, text)
    assert first[:2] == ("RuntimeError", f"process 1: {error}: {text}")


@pytest.mark.parametrize(("job", "message"), [
    (of_shards_unevenly, "data: expected as many batches in every process"),
    (of_shards_with_a_null, "null: expected 0 for a sharded model"),
    (of_shards_with_taylor, "criterion: taylor needs gradients, which a sharded model"),
])
def test_what_a_sharded_model_cannot_do_is_one_line(job, message, tmp_path):
    for kind, text, trace in run_twice(job, tmp_path):
        assert kind == "ValueError", trace
        assert text.startswith(message)
        assert "\n" not in text


def test_alone_a_process_has_rank_0_and_all_the_data():
    data = [1, 2, 3]
    assert rank() == 0
    assert shard_batches(data) is data


def test_a_process_is_alone_unless_everything_is_said(monkeypatch):
    for number in ("0", "1"):
        values = (number, "2", "127.0.0.1", "29400")
        for name, value in zip(distributed.VARIABLES, values, strict=True):
            monkeypatch.setenv(name, value)
        assert (distributed.started(), distributed.is_first()) == (2, number == "0")
    for name in distributed.VARIABLES:
        with monkeypatch.context() as patch:
            patch.delenv(name)
            assert (distributed.started(), distributed.is_first()) == (1, True)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with distributed.process_group("cpu"):
        assert not dist.is_initialized()


def test_an_error_alone_is_raised_as_it_is():
    with pytest.raises(KeyError, match="mine"):
        distributed.on_all_ranks(lambda: {}["mine"])
