"""One pass: the model left as found wherever something raises, errors that say where, memory."""

from __future__ import annotations

import gc
import math
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tests.networks import Layers, labels, mlp, restless, rows, snapshot
from wua_mlflow.usage import analyze as analyze_module
from wua_mlflow.usage import statistics
from wua_mlflow.usage.analyze import analyze, layer_importance
from wua_mlflow.usage.criteria import CRITERIA
from wua_mlflow.usage.run import layer_filter


class OwnError(Exception):
    """An error of the user's own."""


class Explosive(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        raise OwnError("backward")


def squares(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs.sum(1) - targets) ** 2).mean()


def batches(last: float = 0.0):
    return [(rows(5, 3), labels(5)), (rows(6, 3) + last, labels(6))]


def streaming():
    yield from batches()
    torch.rand(3)
    raise OwnError("data")


def raised(what: str):
    def function(*_args, **_kwargs):
        raise OwnError(what)

    return function


EVERYTHING = {"criterion": list(CRITERIA), "loss": squares, "effective_rank": True}
RAISING = {
    "data": (lambda: (streaming(), EVERYTHING), OwnError, "data"),
    "batch_to_inputs": (lambda: (batches(), {**EVERYTHING, "batch_to_inputs": raised("convert")}),
                        OwnError, "convert"),
    "bad data": (lambda: ([*batches(), "words"], EVERYTHING), ValueError, "but got 'words'"),
    "forward": (lambda: (batches(200.0), EVERYTHING), RuntimeError, "more than 100 came in"),
    "first layer": (lambda: ([*batches(), (rows(2, 7), labels(2))], EVERYTHING), RuntimeError,
                    "shapes cannot be multiplied"),
    "loss": (lambda: (batches(), {**EVERYTHING, "loss": raised("loss")}), OwnError, "loss"),
    "backward": (lambda: (batches(), {**EVERYTHING, "loss": lambda outputs, targets: squares(
        Explosive.apply(outputs), targets)}), OwnError, "backward"),
    "loss is NaN": (lambda: (batches(), {**EVERYTHING, "loss": lambda outputs, targets:
                                         squares(outputs, targets) * math.nan}),
                    ValueError, "finite number, but got nan for batch 0"),
    "NaN": (lambda: ([*batches(), (rows(2, 3) * math.nan, labels(2))], EVERYTHING), ValueError,
            "layer first: .* by batch 2"),
    "criterion": (lambda: (batches(), {"criterion": ["output", lambda weight: raised("own")()]}),
                  OwnError, "own"),
    "no samples": (lambda: ([rows(0, 3)], EVERYTHING), ValueError, "at least one sample"),
    "a layer's name": (lambda: (batches(), {"layers": ["third"]}), ValueError, "but got 'third'"),
    "one pass only": (lambda: (iter(batches()), {"null": 2}), ValueError, "null asks for more")}
CALLERS = {"plainly": nullcontext, "no_grad": torch.no_grad, "inference_mode": torch.inference_mode}


@pytest.mark.parametrize("caller", CALLERS.values(), ids=CALLERS)
@pytest.mark.parametrize(("case", "error", "message"), RAISING.values(), ids=RAISING)
def test_the_model_is_left_as_found_wherever_something_raises(case, error, message, caller):
    model = restless()
    data, options = case()
    with caller():
        before = snapshot(model)
        with pytest.raises(error, match=message):
            analyze(model, data, **options)
        assert snapshot(model) == before


@pytest.mark.parametrize("caller", CALLERS.values(), ids=CALLERS)
def test_the_model_is_left_as_found_when_the_report_or_a_null_raises(caller, monkeypatch):
    model = restless()
    with caller():
        before = snapshot(model)
        calls = []

        def measured(evidence, *args, **kwargs):
            calls.append(1)
            if len(calls) > len(CRITERIA) * 2 * 2 + 3:  # two layers, weights and units; in a null
                raise OwnError("report")
            return summarize(evidence, *args, **kwargs)

        summarize = statistics.summarize
        monkeypatch.setattr(analyze_module, "summarize", measured)
        with pytest.raises(OwnError, match="report"):
            analyze(model, batches(), **EVERYTHING, layers=["first", "twice"], null=2)
        assert snapshot(model) == before
        calls[:] = [1] * 99
        with pytest.raises(OwnError, match="report"):
            analyze(model, batches(), **EVERYTHING)
        assert snapshot(model) == before


def test_an_analysis_leaves_the_model_as_found_whatever_mode_the_caller_is_in():
    entropies = []
    for caller in CALLERS.values():
        model = restless()
        with caller():
            before = snapshot(model)
            usages = analyze(model, batches(), **EVERYTHING, null=2)
            layer_importance(model, batches(), ["twice"], "taylor", loss=squares)
            assert snapshot(model) == before
        entropies.append({name: [layer.entropy for layer in usage.layers.values()]
                          for name, usage in usages.items()})
    assert entropies[0] == entropies[1] == entropies[2]


def test_data_and_models_made_in_inference_mode():
    with torch.inference_mode():
        made = [(rows(5, 3), labels(5))]
        model = mlp(3, 4, 2)
    expected = analyze(mlp(3, 4, 2), [(rows(5, 3), labels(5))], criterion="taylor", loss=squares)
    usage = analyze(mlp(3, 4, 2), made, criterion="taylor", loss=squares)
    assert usage.layers["0"].entropy == expected.layers["0"].entropy
    assert analyze(model, made).layers["0"].entropy == analyze(
        mlp(3, 4, 2), made).layers["0"].entropy
    with pytest.raises(ValueError, match="^model: .* made in inference mode"):
        analyze(model, made, criterion="taylor", loss=squares)


class Fussy(nn.Module):
    """Raises where a number is above 50."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        if (x > 50).any():
            raise self.error
        return x


def deep(error: Exception) -> Layers:
    """Its inner layer raises where a batch's first number is above 10, its own above 1,000."""
    def run(model: Layers, x: Tensor) -> Tensor:
        if (x > 1000).any():
            raise error
        return model.head(model.block(model.stem(x) + (x[:, :1] > 10) * 100))

    return Layers(run, stem=nn.Linear(3, 4), block=nn.Sequential(Fussy(error)),
                  head=nn.Linear(4, 2))


@pytest.mark.parametrize("error", [OwnError("no luck"), KeyError("no luck"),
                                   ValueError("no luck", 5)], ids=lambda e: type(e).__name__)
def test_a_forward_that_raises_says_which_layer_it_had_reached(error):
    data = [rows(4, 3)] * 3 + [rows(4, 3) + 20]
    with pytest.raises(type(error)) as caught:
        analyze(deep(error), data)
    assert caught.value is error and error.args[0] == "no luck (in layer 'block.0', batch 3)"


def test_a_forward_that_raises_in_the_models_own_code():
    with pytest.raises(OwnError, match=r"^no luck \(in the model's own forward, batch 1\)$"):
        analyze(deep(OwnError("no luck")), [rows(4, 3), rows(4, 3) + 2000])


@pytest.mark.parametrize("error", [OSError(5, "no luck"), OwnError()], ids=["number", "nothing"])
def test_an_error_without_a_message_of_its_own_gets_a_note(error):
    args = error.args
    with pytest.raises(type(error)) as caught:
        analyze(deep(error), [rows(4, 3) + 20])
    assert caught.value.args == args and caught.value.__notes__ == ["in layer 'block.0', batch 0"]


def test_an_interruption_comes_through_and_leaves_the_model_as_found():
    model = nn.Sequential(nn.Linear(3, 4), Fussy(KeyboardInterrupt()), nn.Linear(4, 2))
    before = snapshot(model)
    with pytest.raises(KeyboardInterrupt):
        analyze(model, [rows(4, 3), rows(4, 3) + 1000])
    assert snapshot(model)["hooks"] == before["hooks"]
    assert snapshot(model)["modes of functions"] == before["modes of functions"] == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_part_in_torchscript_is_named_as_left_out():
    scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    usage = analyze(nn.Sequential(nn.Linear(3, 4), scripted, nn.Linear(4, 2)), rows(5, 3))
    assert list(usage.layers) == ["0"]
    assert usage.skipped["1.0"] == "it runs as TorchScript, which shows no product"


def test_names_of_layers():
    model = nn.ModuleDict({"fc1": nn.Linear(3, 2), "attention": nn.MultiheadAttention(4, 1)})
    wanted = layer_filter(model, ["fc1", "attention.q_proj"])
    assert [name for name in ("fc1", "attention.q_proj", "attention.k_proj") if wanted(name)] == [
        "fc1", "attention.q_proj"]
    assert layer_filter(model, None)("anything")
    with pytest.raises(ValueError, match=r"but got 'fc_1'; did you mean 'fc1'\?$"):
        layer_filter(model, ["fc_1"])
    with pytest.raises(ValueError, match="^layers: expected a list of names, but got 'fc1'"):
        layer_filter(model, "fc1")
    many = nn.Sequential(*(nn.Linear(1, 1) for _ in range(30)))
    with pytest.raises(ValueError, match="among 0, 1, .* 19, …, but got 'x'$"):
        layer_filter(many, ["x"])


@pytest.fixture
def _own_objects_alone():
    """What was there before is hidden from the garbage collector: to go over it takes seconds."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def tensors_alive() -> tuple[int, int]:
    """How many tensors there are, and how many bytes they hold."""
    gc.collect()
    tensors = [value for value in gc.get_objects()
               if issubclass(type(value), Tensor) and not is_lazy(value)]
    return len(tensors), sum(tensor.untyped_storage().nbytes() for tensor in tensors
                             if tensor.layout is torch.strided and not tensor.is_meta)


@pytest.mark.usefixtures("_own_objects_alone")
@pytest.mark.parametrize(("number", "size", "criteria"), [
    (80, 64, list(CRITERIA)),
    pytest.param(100_000, 2, ["output", "wanda"], marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_number_of_batches(number, size, criteria):
    model = mlp(3, 8, 2)
    whole, alive = (rows(4096, 3), labels(4096)), {}

    def stream():
        for batch in range(number):
            if batch in (number // 2, number - 1):
                alive[batch] = tensors_alive()
            start = batch * size % 4096
            yield whole[0][start:start + size], whole[1][start:start + size]

    usages = analyze(model, stream(), criterion=criteria, effective_rank=number < 10_000,
                     loss=lambda outputs, targets: outputs.square().mean())
    assert usages["wanda"].samples == size * number
    half, end = alive.values()
    assert end == half
    norm = usages["wanda"].layers["0"].unit_importance
    repeated = torch.cat([whole[0]] * math.ceil(size * number / 4096))[:size * number].double()
    expected = model[0].weight.detach().double().abs() @ repeated.square().sum(0).sqrt()
    assert norm == pytest.approx(expected.numpy(), rel=1e-6)


def test_lazy_parameters_are_not_made_by_an_analysis():
    model = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="model: expected initialised parameters, but got lazy"):
        analyze(model, rows(5, 3))
    assert type(model[0]) is nn.LazyLinear


@pytest.mark.parametrize("part", ["all", "buffer"])
def test_a_model_on_the_meta_device(part):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    (model if part == "all" else model[1]).to("meta")
    with pytest.raises(ValueError, match=(
            "^model: expected parameters and buffers with values, but got some on the meta device; "
            r"call model.to_empty\(device=...\) and load a state dict first$")):
        analyze(model, rows(5, 3))


class Graph(nn.Module):
    """A convolution over a graph whose adjacency is sparse, and a buffer that changes its size."""

    def __init__(self, layout: torch.layout) -> None:
        super().__init__()
        self.register_buffer("before", torch.zeros(()))
        self.register_buffer("adjacency", torch.eye(6).to_sparse(layout=layout))
        self.register_buffer("after", torch.zeros(()))
        self.register_buffer("last", torch.zeros(0))
        self.first, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.before += 1
        self.after += 1
        self.last.resize_(len(x)).copy_(x[:, 0])
        return self.head(self.adjacency @ self.first(x).relu())


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_buffers_that_are_sparse_or_change_their_size_are_put_back(layout):
    model, x = Graph(layout), rows(6, 3)
    assert list(analyze(model, [x, x]).layers) == ["first"]
    with pytest.raises(RuntimeError, match="mat1 and mat2|size mismatch|shape"):
        analyze(model, [x, rows(6, 5)])
    assert (float(model.before), float(model.after), len(model.last)) == (0, 0, 0)
    assert torch.equal(model.adjacency.to_dense(), torch.eye(6))
    assert model.adjacency.layout is layout
