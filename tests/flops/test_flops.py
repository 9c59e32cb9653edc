"""What is counted, for which module, and what is reported as uncounted; ptflops; errors.

The counts by hand follow the convention: 2 FLOPs per multiply-accumulate, nothing else.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own habit
from torch import Tensor, nn

from tests.example_modules import Apply, Peek, mlp
from wua_mlflow.flops import count_flops, ptflops_forward_flops

zeros = torch.zeros


def test_by_module_and_by_operator():
    count = count_flops(nn.Sequential(mlp(), nn.Linear(1, 3, bias=False)), zeros(1, 2))
    assert count.by_module == {"": 66, "0": 60, "0.0": 40, "0.2": 20, "1": 6}
    assert count.by_operator == {"aten.addmm": 60, "aten.mm": 6}


def test_by_module_of_attention_and_recurrent_layers():
    model = nn.ModuleDict(
        {"layer": nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), "lstm": nn.LSTM(16, 8)})
    model.forward = lambda x: model["lstm"](model["layer"](x))  # type: ignore[method-assign]
    attention = 2 * 10 * 16 * (48 + 16) + 2 * 2 * 2 * 5 * 5 * 16
    ffn, lstm = 2 * 10 * 16 * 32, 2 * 10 * 32 * (16 + 8)
    assert count_flops(model, zeros(2, 5, 16)).by_module == {
        "": attention + 2 * ffn + lstm, "layer": attention + 2 * ffn, "lstm": lstm,
        "layer.self_attn": attention, "layer.linear1": ffn, "layer.linear2": ffn}


def test_shared_module_counts_each_call_under_its_first_name():
    shared = nn.Sequential(nn.Linear(3, 3))
    count = count_flops(nn.Sequential(shared, shared), zeros(1, 3))
    assert count.by_module == {"": 36, "0": 36, "0.0": 36}
    # Both calls give a weight gradient, the second call an input gradient as well.
    assert count.backward_flops == 3 * 18


@pytest.mark.parametrize(("sign", "flops"), [(1.0, 2 * 12), (-1.0, 0)])
def test_path_that_depends_on_the_data(sign, flops):
    model = Apply(lambda x, w: x @ w if x.sum() > 0 else x, (3, 4))
    count = count_flops(model, sign * torch.ones(1, 3))
    assert (count.forward_flops, count.on_meta) == (flops, False)


@pytest.mark.parametrize(("frozen", "backward"), [([], 80), ([0], 20), ([2], 60), ([0, 2], 0)])
def test_backward_is_for_the_trainable_parameters(frozen, backward):
    model = mlp()
    for layer in frozen:
        model[layer].requires_grad_(False)
    assert count_flops(model, torch.ones(1, 2, requires_grad=True)).backward_flops == backward


def test_no_backward():
    assert count_flops(mlp(), zeros(1, 2), backward=False).backward_flops == 0
    detached = Apply(lambda x, w: (x @ w).argmax(), (3, 4))
    assert count_flops(detached, zeros(2, 3)).backward_flops == 0


@dataclass
class Output:
    logits: Tensor
    hidden: tuple[Tensor, ...]
    loss: Tensor | None = None


@dataclass
class Entries(dict[str, Tensor]):
    """A dict whose fields are not all of its entries."""

    logits: Tensor


def entries(logits, hidden):
    outputs = Entries(logits)
    outputs.update(logits=logits, hidden=hidden)
    return outputs


@pytest.mark.parametrize("outputs", [
    lambda x, a, b: {"logits": x @ a, "hidden": (x @ b,)},
    lambda x, a, b: Output(x @ a, (x @ b,)), lambda x, a, b: (x @ a, [x @ b], x.long()),
    lambda x, a, b: entries(x @ a, x @ b)])
def test_backward_starts_from_every_output(outputs):
    count = count_flops(Apply(outputs, (3, 4), (3, 5)), zeros(2, 3))
    assert count.backward_flops == 2 * 2 * 3 * (4 + 5)


def test_compiled_and_data_parallel_models_are_unwrapped():
    def backend(*_: Any) -> Any:
        raise AssertionError("nothing is to be compiled")

    parts = nn.Sequential(
        torch.compile(nn.Linear(2, 10), backend=backend), nn.ReLU(), nn.Linear(10, 1))
    parts[2].compile(backend=backend)
    for model in (parts, torch.compile(mlp(), backend=backend), nn.DataParallel(mlp())):
        assert count_flops(model, zeros(1, 2)).by_module == {"": 60, "0": 40, "2": 20}
    function = torch.compile(F.relu, backend=backend)
    assert count_flops(Apply(lambda x, w: function(x @ w), (2, 3)), zeros(1, 2)).by_module[""] == 12


def test_exported_model():
    batch = {0: torch.export.Dim.AUTO}
    program = torch.export.export(mlp().eval(), (zeros(4, 2),), dynamic_shapes=(batch,))
    count = count_flops(program.module(), zeros(5, 2))
    assert (count.forward_flops, count.backward_flops) == (300, 400)


def test_model_on_the_meta_device():
    with torch.device("meta"):
        model, x = mlp(), zeros(3, 2)
    assert count_flops(model, x).forward_flops == 180
    with pytest.raises(RuntimeError, match="meta"):
        count_flops(Peek(model), x)


def test_inputs_and_samples():
    model = nn.Bilinear(3, 4, 5)
    for inputs in ((zeros(7, 3), zeros(7, 4)), {"input1": zeros(7, 3), "input2": zeros(7, 4)}):
        count = count_flops(model, inputs)
        assert (count.samples, count.forward_flops) == (7, 1120)


@torch.library.custom_op("wua_test::double", mutates_args=())
def _double(x: Tensor) -> Tensor:
    return 2 * x


@pytest.mark.parametrize(("function", "expected"), [
    (lambda x: torch.fft.rfft(x).abs() + torch.fft.rfft(x).abs(), {"aten._fft_r2c": 2}),
    (torch.linalg.svd, {"aten._linalg_svd": 1}),
    (lambda x: F.interpolate(x[None], size=3, mode="linear"), {"aten.upsample_linear1d": 1}),
    (_double, {"wua_test.double": 1})])
def test_operators_without_a_formula_are_reported(function, expected):
    assert count_flops(Apply(function), torch.ones(4, 6)).uncounted == expected


def test_backward_operators_without_a_formula_are_reported():
    model = Apply(lambda x, w: torch.cdist(x, w, p=1), (4, 6))
    count = count_flops(model, zeros(4, 6))
    assert count.uncounted == {"aten._cdist_forward": 1, "aten._cdist_backward": 1}
    assert count.caveats == ("FLOPs are a lower bound: no formula for aten._cdist_forward (1 "
                             "calls), aten._cdist_backward (1 calls)",)
    assert count_flops(model, zeros(4, 6), backward=False).uncounted == {"aten._cdist_forward": 1}


ELEMENTWISE = "ReLU GELU SiLU Mish ELU SELU CELU LeakyReLU PReLU RReLU Softplus Softsign Softshrink"
BOUNDED = "Hardshrink Tanhshrink Hardswish Hardsigmoid Hardtanh Tanh Sigmoid LogSigmoid ReLU6 GLU"
SHAPED = [
    nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4),
    nn.LayerNorm(8), nn.RMSNorm(8), nn.LocalResponseNorm(2), nn.Dropout2d(), nn.Softmax2d(),
    nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveMaxPool2d(4), nn.AdaptiveAvgPool2d(4),
    nn.LPPool2d(2, 2), nn.PixelShuffle(2), nn.Upsample(scale_factor=2), nn.ZeroPad2d(1),
    nn.ReflectionPad2d(1), nn.Unfold(2), nn.Flatten(), nn.LogSoftmax(1)]


@pytest.mark.parametrize("peek", [False, True])
def test_elementwise_and_the_like_are_neither_counted_nor_reported(peek):
    names = [*ELEMENTWISE.split(), *BOUNDED.split()]
    activations = nn.Sequential(nn.Linear(8, 8), *(getattr(nn, name)() for name in names))
    for model, inputs, flops in (
        (activations, zeros(2, 8), 2 * 2 * 64),
        (nn.Sequential(*SHAPED), zeros(2, 4, 8, 8), 2 * 2 * 64 * 16),
        (nn.EmbeddingBag(7, 4, max_norm=1.0), zeros(2, 3, dtype=torch.long), 0),
    ):
        count = count_flops(Peek(model) if peek else model, inputs)
        assert (count.forward_flops, dict(count.uncounted)) == (flops, {})


@pytest.mark.parametrize(("width", "flops"), [(10, 122), (7, 86)])
def test_ptflops_counts_as_the_tutorial(width, flops, capfd):
    def chatter(x: Tensor) -> Tensor:
        print("chatter")
        warnings.warn("chatter", stacklevel=1)
        return x

    assert ptflops_forward_flops(nn.Sequential(*mlp(width), Apply(chatter)), (2,)) == flops
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("model", "shape", "reason"), [
    (nn.Embedding(5, 2), (3,), "RuntimeError"), (mlp(), (3,), "mat1 and mat2"),
    (mlp().to("meta"), (2,), "meta device")])
def test_ptflops_that_cannot_count_warns(model, shape, reason, capfd):
    keys = [set(vars(module)) for module in model.modules()]
    with pytest.warns(UserWarning, match=f"ptflops cannot count .*{reason}"):
        assert ptflops_forward_flops(model, shape) is None
    assert [set(vars(module)) for module in model.modules()] == keys
    assert capfd.readouterr() == ("", "")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_wrong_arguments_are_named():
    scripted = nn.Sequential(torch.jit.script(nn.Linear(2, 2)))
    cases: list[tuple[Any, Any, str]] = [
        (mlp(), [[1.0, 2.0]], "inputs: expected at least one tensor"),
        (mlp(), 3, "inputs: expected a tensor, a tuple of tensors or a dict.*got int"),
        (mlp(), zeros(0, 2), "inputs: expected at least one sample"),
        (nn.LazyLinear(3), zeros(1, 2), "model: expected initialised parameters"),
        (abs, zeros(1, 2), "model: expected a torch.nn.Module, but got builtin"),
        (scripted, zeros(1, 2), "model: expected a module in Python, but got a scripted one")]
    for model, inputs, message in cases:
        with pytest.raises(ValueError, match=message):
            count_flops(model, inputs)
    for shape in ((), (0, 2), (2.0,)):
        with pytest.raises(ValueError, match="input_shape: expected positive integers"):
            ptflops_forward_flops(mlp(), shape)  # type: ignore[arg-type]


def test_models_own_error_comes_through():
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        count_flops(mlp(), zeros(1, 3))
