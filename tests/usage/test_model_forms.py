"""Models in every form: the right figures, nothing left out silently, any cut of the batches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.model_forms import FORMS, Layers, matrix, net, through
from tests.networks import NETWORKS, mlp, rows
from tests.references import CRITERIA, assert_importance, unnamed
from wua_mlflow.hooks import unwrapped
from wua_mlflow.usage.analyze import analyze, layer_importance

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")]
ALL = pytest.mark.parametrize(("make", "inputs", "computed"), FORMS.values(), ids=FORMS)


@ALL
def test_every_weight_is_in_a_layer_or_named(make, inputs, computed):
    model = make()
    for usage in analyze(model, inputs(6), criterion=["output", "wanda"]).values():
        assert unnamed(unwrapped(model), usage, computed) == []
        assert not set(usage.layers) & set(usage.skipped)


TOLERANCES = {torch.float64: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_other_precisions_are_near(name, dtype):
    make, inputs = NETWORKS[name]
    usage, expected = (analyze(model, inputs(16), criterion="wanda")
                       for model in (make().to(dtype), make()))
    assert list(usage.layers) == list(expected.layers)
    for layer, other in zip(usage.layers.values(), expected.layers.values(), strict=True):
        assert layer.effective_weights == pytest.approx(other.effective_weights,
                                                        rel=TOLERANCES[dtype]), layer.name
        torch.testing.assert_close(
            torch.from_numpy(layer.unit_importance),
            torch.from_numpy(other.unit_importance), rtol=TOLERANCES[dtype], atol=1e-3)


SAME = {name: FORMS[name] for name in ("compiled", "data parallel", "exported")}


@pytest.mark.parametrize(("make", "inputs", "computed"), SAME.values(), ids=SAME)
def test_a_wrapped_or_exported_model_has_the_figures_of_the_plain_one(make, inputs, computed):
    model, plain, x = make(), mlp(3, 4, 2), inputs(6)
    for criterion in CRITERIA:
        importances = layer_importance(model, x, ["0", "2"], criterion)
        for name, expected in layer_importance(plain, x, ["0", "2"], criterion).items():
            torch.testing.assert_close(importances[name], expected)


@pytest.mark.parametrize("name", ["compiled part", "checkpointed"])
def test_a_part_that_runs_in_another_way(name):
    make, inputs, _ = FORMS[name]
    model, x = make(), inputs(6)
    h = torch.relu(model.first(x))
    inner = model.inner.get_parameter("_orig_mod.weight" if "compiled" in name else "weight")
    bias = model.inner.get_parameter("_orig_mod.bias" if "compiled" in name else "bias")
    assert_importance(model, x, "inner", inner, h, h @ inner.T + bias)
    assert list(analyze(model, x).layers) == ["first", "inner"]


def test_a_part_whose_weights_the_caller_swaps():
    make, inputs, _ = FORMS["functional call"]
    model, x = make(), inputs(6)
    h, weight = torch.relu(model.first(x)), model.inner.weight / 2
    assert_importance(model, x, "inner", weight, h, h @ weight.T + model.inner.bias / 2)


def test_distributed_data_parallel_of_one_process(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}",
                                         rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(mlp(3, 4, 2))
        usage = analyze(parallel, rows(6, 3), criterion="wanda")
    finally:
        torch.distributed.destroy_process_group()
    expected = analyze(mlp(3, 4, 2), rows(6, 3), criterion="wanda")
    assert list(usage.layers) == ["0"]
    assert usage.layers["0"].entropy == pytest.approx(expected.layers["0"].entropy)


NAMED = {
    "scripted part": {"inner": "it runs as TorchScript, which shows no product"},
    "bag": {"bag": "used through embedding_bag, which is not a product that is analysed"},
    "complex part": {"wave": "its weight is complex"},
    "integer part": {"codes": "its weight is integer-quantised (int64)"},
    "everything else": {
        "experts": "used through bmm, which is not a product that is analysed",
        "stack": "used through matmul, which is not a product that is analysed",
        "spare": "never used in the forward",
        "gain": "used through mul, which is not a product that is analysed",
        "ein": "used through einsum, which is not a product that is analysed",
        "dot": "used through tensordot, which is not a product that is analysed",
        "norm": "LayerNorm is not a kind of layer that is analysed",
        "prelu": "PReLU is not a kind of layer that is analysed",
        "never": "never called in the forward"}}


@pytest.mark.parametrize("name", NAMED)
def test_what_is_not_analysed_is_named_with_its_reason(name):
    make, inputs, _ = FORMS[name]
    usage = analyze(make(), inputs(6))
    assert "first" in usage.layers
    assert {key: usage.skipped.get(key) for key in NAMED[name]} == NAMED[name]


def steps(model: Layers, h: Tensor) -> Tensor:
    return model.inner(h[:, None])[0][:, 0]


def a_step(model: Layers, h: Tensor) -> Tensor:
    states = model.inner(h)
    return states[0] if isinstance(states, tuple) else states


def looked_up(model: Layers, h: Tensor) -> Tensor:
    return model.inner(h[:, 0].long().clamp(0, 3))


def in_bags(model: Layers, h: Tensor) -> Tensor:
    return model.inner(h[:, 0].long().clamp(0, 3), torch.arange(len(h)))


LINEAR, TABLE = "LinearPackedParamsBase", "EmbeddingPackedParamsBase"
QUANTISED = {
    "Linear": (lambda: nn.Linear(4, 4), lambda model, h: model.inner(h), torch.qint8, LINEAR),
    "half": (lambda: nn.Linear(4, 4), lambda model, h: model.inner(h), torch.float16, LINEAR),
    "LSTM": (lambda: nn.LSTM(4, 4, 2, batch_first=True), steps, torch.qint8, "CellParamsBase"),
    "GRU": (lambda: nn.GRU(4, 4, batch_first=True), steps, torch.qint8, "CellParamsBase"),
    "LSTMCell": (lambda: nn.LSTMCell(4, 4), a_step, torch.qint8, LINEAR),
    "GRUCell": (lambda: nn.GRUCell(4, 4), a_step, torch.qint8, LINEAR),
    "RNNCell": (lambda: nn.RNNCell(4, 4), a_step, torch.qint8, LINEAR),
    "Embedding": (lambda: nn.Embedding(4, 4), looked_up, torch.quint8, TABLE),
    "EmbeddingBag": (lambda: nn.EmbeddingBag(4, 4, mode="sum"), in_bags, torch.quint8, TABLE),
}


@pytest.mark.parametrize(("make", "run", "dtype", "kind"), QUANTISED.values(), ids=QUANTISED)
def test_what_is_quantised_dynamically_is_named(make, run, dtype, kind):
    quantised = torch.backends.quantized
    quantised.engine = next(engine for engine in ("x86", *quantised.supported_engines)
                            if engine in quantised.supported_engines and engine != "none")
    model = Layers(through(run), **net(inner=make(), spare=make()))
    config = torch.ao.quantization.float_qparams_weight_only_qconfig \
        if dtype == torch.quint8 else torch.ao.quantization.per_channel_dynamic_qconfig \
        if dtype == torch.qint8 else torch.ao.quantization.float16_dynamic_qconfig
    torch.ao.quantization.quantize_dynamic(
        model, {"inner": config, "spare": config}, inplace=True)
    usage = analyze(model, rows(6, 3))
    assert usage.skipped["inner"] == f"its weights are packed ({kind}), not parameters"
    assert usage.skipped["spare"] == "never called in the forward"
    assert list(usage.layers) == ["first"] and len(usage.skipped) == 3


class Packed(nn.Module):
    """Packs its weight by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.packed = torch.ops.quantized.linear_prepack(
            torch.quantize_per_tensor(torch.randn(4, 4), 0.1, 0, torch.qint8), None)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.quantized.linear_dynamic(x, self.packed)


def test_a_weight_that_a_module_of_ones_own_packs_is_named():
    usage = analyze(Layers(through(lambda model, h: model.inner(h)), **net(inner=Packed())),
                    rows(6, 3))
    assert usage.skipped["inner"] == f"its weights are packed ({LINEAR}), not parameters"


@pytest.mark.filterwarnings("ignore:Please use quant_min and quant_max")
def test_what_is_quantised_statically_is_named():
    ao = torch.ao.quantization
    model = nn.Sequential(ao.QuantStub(), nn.Conv1d(3, 4, 1), nn.ReLU(), nn.Conv1d(4, 4, 1),
                          nn.Flatten(), nn.Linear(8, 4), ao.DeQuantStub(), nn.Linear(4, 4),
                          nn.Linear(4, 2)).eval()
    model.qconfig, model[7].qconfig, model[8].qconfig = ao.get_default_qconfig("x86"), None, None
    prepared = ao.prepare(ao.fuse_modules(model, [["1", "2"]]))
    prepared(rows(6, 3, 2))
    usage = analyze(ao.convert(prepared), rows(6, 3, 2))
    assert list(usage.layers) == ["7"]
    assert {name: usage.skipped[name] for name in "135"} == {
        "1": "its weights are packed (Conv2dPackedParamsBase), not parameters",
        "3": "its weights are packed (Conv2dPackedParamsBase), not parameters",
        "5": f"its weights are packed ({LINEAR}), not parameters"}
    assert len(usage.skipped) == 4


def test_two_weights_that_make_one_are_named():
    def run(model: Layers, h: Tensor) -> Tensor:
        return torch.einsum("bi,ij->bj", h, model.left @ model.right)

    model = Layers(through(run), **net(left=matrix(4, 2), right=matrix(2, 4)))
    usage = analyze(model, rows(6, 3))
    assert list(usage.layers) == ["first"] and unnamed(model, usage) == []
    for name in ("left", "right"):
        assert usage.skipped[name] == \
            "used through matmul of two parameters, which is not a product that is analysed"


@pytest.mark.parametrize("learned", [
    lambda model: model.queries, lambda model: model.queries[1:3],
    lambda model: model.queries.view(2, 2, 4)[0], lambda model: model.table.weight])
def test_a_layer_that_is_fed_a_parameter_is_a_layer(learned):
    """Learned queries, relative positions, class tokens: they are activations there."""
    def run(model: Layers, h: Tensor) -> Tensor:
        return h @ functional.softmax(model.inner(learned(model)).relu().sum(0, keepdim=True).T @
                                      torch.ones(1, 4), -1)

    model = Layers(through(run), **net(inner=nn.Linear(4, 4), queries=matrix(4, 4),
                                       table=nn.Embedding(5, 4)))
    usage = analyze(model, rows(6, 3), criterion="wanda")
    assert list(usage.layers) == ["first", "inner"] and "inner" not in usage.skipped
    assert_importance(model, rows(6, 3), "inner", model.inner.weight.detach(),
                      learned(model).detach(), model.inner(learned(model)).detach(),
                      only=("wanda",))


def test_inside_vmap_a_layer_is_named():
    parts = net(inner=nn.Linear(4, 4))
    model = Layers(through(lambda model, h: torch.vmap(model.inner)(h)), **parts)
    usage = analyze(model, rows(6, 3))
    assert list(usage.layers) == ["first"]
    assert usage.skipped["inner"] == \
        "used through linear inside torch.func, which is not a product that is analysed"


def test_sparse_weights_and_buffers_are_named():
    def run(model: Layers, h: Tensor) -> Tensor:
        return (model.sparse @ h.T).T + h @ model.fixed + model.table[h[:, 0].long()]

    sparse = nn.Parameter(matrix(4, 4).detach().to_sparse())
    model = Layers(through(run), **net(sparse=sparse, table=matrix(4, 4)))
    model.register_buffer("fixed", torch.ones(4, 4))
    usage = analyze(model, rows(6, 3))
    assert list(usage.layers) == ["first"]
    assert usage.skipped["fixed"] == "its weight is a buffer, not a parameter"
    assert usage.skipped["table"].startswith("used through __getitem__")
    assert unnamed(model, usage) == []


@pytest.mark.parametrize(("run", "use"), [
    (lambda model, h: (h @ h.T) @ h + functional.linear(h, h.T @ h), None),  # activations alone
    (lambda model, h: h @ torch.cat([model.own[:2], model.own[2:]]), "cat"),
    (lambda model, h: h.matmul(model.own[0])[:, None].expand(-1, 4), "matmul")])
def test_other_uses_of_a_parameter(run, use):
    parts = {"own": matrix(4, 4)} if use else {}
    usage = analyze(Layers(through(run), **net(**parts)), rows(6, 3))
    assert list(usage.layers) == ["first"]
    assert usage.skipped.get("own") == (
        use and f"used through {use}, which is not a product that is analysed")


def test_after_a_product_that_is_not_analysed_no_layer_makes_the_outputs():
    model = Layers(lambda model, x: torch.einsum(
        "bi,ij->bj", model.head(model.first(x)), model.own), **net(own=matrix(2, 2)))
    assert list(analyze(model, rows(6, 3)).layers) == ["first", "head"]


def test_a_layer_that_does_not_use_its_weight_and_a_parameter_that_is_no_matrix():
    class Idle(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return x

    model = Layers(through(lambda model, h: model.inner(h) * model.scale), **net(
        inner=Idle(4, 4), scale=nn.Parameter(torch.ones(4))))
    skipped = analyze(model, rows(6, 3)).skipped
    assert skipped["inner"] == "Idle was called 1 times, but no product of its weight was seen"
    assert skipped["scale"] == "a parameter of its own that is no matrix" and "" not in skipped
