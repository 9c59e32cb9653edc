"""FLOP counts against counts by hand; each case runs on meta tensors and in the real fallback.

The hand counts follow the convention: 2 FLOPs per multiply-accumulate, nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own habit
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry

from wua_mlflow import flop_formulas
from wua_mlflow.flops import count_flops, ptflops_forward_flops

zeros = torch.zeros


def mlp(width: int = 10) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, 1), nn.Sigmoid())


class Apply(nn.Module):
    """``function(*inputs, *weights)``, the weights of the given shapes trainable."""

    def __init__(self, function: Callable[..., Any], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        self.weights = nn.ParameterList([nn.Parameter(torch.ones(shape)) for shape in shapes])

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs, *self.weights)


class Inner(nn.Module):
    """``module`` as an inner layer: its inputs need gradients too."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.module = module

    def forward(self, *inputs: Tensor) -> Any:
        return self.module(*(x * self.scale for x in inputs))


class Peek(nn.Module):
    """Reads a value of its input before it calls ``module``: impossible on meta tensors."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:
        float(next(iter([*args, *kwargs.values()])).sum())
        return self.module(*args, **kwargs)


class Conv1D(nn.Module):
    """Like the one of GPT-2: a Linear with the weight transposed."""

    def __init__(self, nx: int, nf: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(zeros(nx, nf))
        self.bias = nn.Parameter(zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return flat.view(*x.shape[:-1], -1)


def recurrent(gates: int, layers: int = 1, directions: int = 1, proj: int = 0) -> tuple[int, int]:
    """By hand: forward and backward of a net of 4 steps, batch 2, 6 inputs, 8 hidden units.

    A cell multiplies its input and its state by (gates·8) × (inputs + state), then projects. The
    backward does each product again for the weights, and again for what the product was given,
    except the network's own input and the zero state at the start.
    """
    steps, batch, hidden = 4, 2, 8
    state = proj or hidden
    forward = backward = 0
    for layer in range(layers):
        inputs = directions * state if layer else 6
        by_input, by_state = gates * hidden * inputs, gates * hidden * state
        project = proj * hidden
        cell = by_input + by_state + project
        forward += directions * 2 * batch * steps * cell
        given = steps * (by_input if layer else 0) + (steps - 1) * by_state + steps * project
        backward += directions * 2 * batch * (steps * cell + given)
    return forward, backward


def attention(q: Tensor, k: Tensor, v: Tensor, **options: bool) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, **options)


ATTENTION = 4 * (2 * 4) * 8 * 8 * 16
"""2 products of 8 × 8 positions × 16 features, in 2 samples × 4 heads."""
MHA = 2 * 10 * 16 * 48, 2 * 2 * 2 * 5 * 5 * 16, 2 * 10 * 16 * 16
"""Input projection, attention, output projection: 2 samples × 5 positions, 16 features."""
FFN = 2 * (2 * 10 * 16 * 32)
ENCODER = sum(MHA) + FFN
ENCODER_BACKWARD = MHA[0] + 2 * (MHA[1] + MHA[2] + FFN)
"""As the first layer: only the input projection's input needs no gradient."""

PADDED = {"src": zeros(2, 5, 16), "src_key_padding_mask": torch.tensor([[False] * 4 + [True]] * 2)}


def encoder_layer() -> nn.Module:
    return nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)


GROUPED = 2 * (2 * 8 * 8) * 9 * (3 * 3 * 2)  # positions × outputs × (kernel × inputs of a group)
DEPTHWISE = 2 * (2 * 4 * 4) * 12 * (3 * 3)
TRANSPOSED = 2 * (2 * 8 * 8) * 6 * (3 * 3 * 3)  # input positions × inputs × (kernel × outputs)
ONE_D = 2 * (2 * 8) * 5 * (3 * 3)
THREE_D = 2 * (3 * 3 * 3) * 3 * (2 * 2 * 2 * 2)
UNBATCHED = 2 * (3 * 3) * 4 * (3 * 3 * 3)

CASES: dict[str, tuple[nn.Module, Any, int, int]] = {
    # Backward: both weights, and the input of the second layer.
    "mlp": (mlp(), zeros(1, 2), 60, 40 + 20 + 20),
    "mlp batch": (mlp(), zeros(5, 2), 300, 400),
    "linear 3d": (nn.Linear(3, 4), zeros(2, 5, 3), 2 * 10 * 12, 2 * 10 * 12),
    "linear 1d": (nn.Linear(3, 4), zeros(3), 24, 24),
    "Conv1D": (Conv1D(3, 4), zeros(2, 5, 3), 240, 240),
    "inner Conv1D": (Inner(Conv1D(3, 4)), zeros(2, 5, 3), 240, 480),
    "grouped": (nn.Conv2d(6, 9, 3, padding=1, groups=3), zeros(2, 6, 8, 8), GROUPED, GROUPED),
    "inner grouped": (
        Inner(nn.Conv2d(6, 9, 3, padding=1, groups=3)),
        zeros(2, 6, 8, 8),
        GROUPED,
        2 * GROUPED,
    ),
    "depthwise": (
        Inner(nn.Conv2d(6, 12, 3, stride=2, groups=6)),
        zeros(2, 6, 9, 9),
        DEPTHWISE,
        2 * DEPTHWISE,
    ),
    "transposed": (
        Inner(nn.ConvTranspose2d(6, 9, 3, stride=2, groups=3)),
        zeros(2, 6, 8, 8),
        TRANSPOSED,
        2 * TRANSPOSED,
    ),
    "conv1d": (nn.Conv1d(3, 5, 3, dilation=2), zeros(2, 3, 12), ONE_D, ONE_D),
    "conv3d": (Inner(nn.Conv3d(2, 3, 2)), zeros(1, 2, 4, 4, 4), THREE_D, 2 * THREE_D),
    "conv unbatched": (nn.Conv2d(3, 4, 3), zeros(3, 5, 5), UNBATCHED, UNBATCHED),
    "attention": (Inner(Apply(attention)), (zeros(2, 4, 8, 16),) * 3, ATTENTION, 2 * ATTENTION),
    "causal": (
        Inner(Apply(lambda q, k, v: attention(q, k, v, is_causal=True))),
        (zeros(2, 4, 8, 16),) * 3,
        ATTENTION,
        2 * ATTENTION,
    ),
    "grouped-query": (
        Inner(Apply(lambda q, k, v: attention(q, k, v, enable_gqa=True))),
        (zeros(2, 4, 8, 16), zeros(2, 2, 8, 16), zeros(2, 2, 8, 16)),
        ATTENTION,
        2 * ATTENTION,
    ),
    "MultiheadAttention": (
        nn.MultiheadAttention(16, 4, batch_first=True),
        (zeros(2, 5, 16),) * 3,
        sum(MHA),
        MHA[0] + 2 * MHA[1] + 2 * MHA[2],
    ),
    "encoder layer": (encoder_layer(), zeros(2, 5, 16), ENCODER, ENCODER_BACKWARD),
    "encoder layer padded": (encoder_layer(), PADDED, ENCODER, ENCODER_BACKWARD),
    "encoder padded": (
        nn.TransformerEncoder(encoder_layer(), 2),
        PADDED,
        2 * ENCODER,
        ENCODER_BACKWARD + 2 * ENCODER,
    ),
    "encoder causal": (
        nn.TransformerEncoder(encoder_layer(), 2),
        {"src": zeros(2, 5, 16), "mask": nn.Transformer.generate_square_subsequent_mask(5)},
        2 * ENCODER,
        ENCODER_BACKWARD + 2 * ENCODER,
    ),
    "LSTM": (nn.LSTM(6, 8), zeros(4, 2, 6), *recurrent(4)),
    "LSTM projected": (nn.LSTM(6, 8, proj_size=3), zeros(4, 2, 6), *recurrent(4, proj=3)),
    "LSTM deep": (
        nn.LSTM(6, 8, num_layers=2, bidirectional=True, dropout=0.5),
        zeros(4, 2, 6),
        *recurrent(4, layers=2, directions=2),
    ),
    "GRU": (nn.GRU(6, 8, batch_first=True), zeros(2, 4, 6), *recurrent(3)),
    "GRU deep": (
        nn.GRU(6, 8, num_layers=2, bidirectional=True),
        zeros(4, 2, 6),
        *recurrent(3, layers=2, directions=2),
    ),
    "RNN": (nn.RNN(6, 8), zeros(4, 2, 6), *recurrent(1)),
    # x by weight, then by y; the weight's gradient: x by the gradient, then by y.
    "Bilinear": (
        nn.Bilinear(3, 4, 5),
        (zeros(7, 3), zeros(7, 4)),
        2 * 7 * (5 * 3 * 4 + 5 * 4),
        2 * 7 * (5 * 3 + 5 * 3 * 4),
    ),
    "inner Bilinear": (
        Inner(nn.Bilinear(3, 4, 5)),
        (zeros(7, 3), zeros(7, 4)),
        2 * 7 * (60 + 20),
        2 * 7 * (15 + 60) + 2 * 7 * (60 + 12) + 2 * 7 * (60 + 20),
    ),
    # The same by einsum, whose own backward takes the products in the opposite order.
    "einsum": (
        Apply(lambda x, y, w: torch.einsum("bi,oij,bj->bo", x, w, y), (5, 3, 4)),
        (zeros(7, 3), zeros(7, 4)),
        2 * 7 * (60 + 20),
        2 * 7 * (20 + 60),
    ),
    "baddbmm": (
        Apply(lambda x, w, b: torch.baddbmm(b, x, w), (2, 3, 4), (2, 5, 4)),
        zeros(2, 5, 3),
        2 * 2 * 5 * 3 * 4,
        2 * 2 * 5 * 3 * 4,
    ),
    "addbmm": (
        Apply(lambda x, w, b: torch.addbmm(b, x, w), (2, 3, 4), (5, 4)),
        zeros(2, 5, 3),
        2 * 2 * 5 * 3 * 4,
        2 * 2 * 5 * 3 * 4,
    ),
    "mv": (Apply(lambda x, w: x @ w, (3,)), zeros(5, 3), 30, 30),
    "addmv": (Apply(lambda x, w, b: torch.addmv(b, x, w), (3,), (5,)), zeros(5, 3), 30, 30),
    "dot": (Apply(lambda x, w: torch.dot(x, w), (3,)), zeros(3), 6, 0),
    "vdot": (Apply(lambda x, w: torch.vdot(x, w), (3,)), zeros(3), 6, 0),
    "addr": (Apply(lambda x, w, b: torch.addr(b, x, w), (4,), (3, 4)), zeros(3), 24, 24),
}
BY_NAME = pytest.mark.parametrize("name", CASES)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@BY_NAME
def test_count_equals_the_count_by_hand(name: str) -> None:
    model, inputs, forward, backward = CASES[name]
    count = count_flops(model, inputs)
    assert (count.forward_flops, count.backward_flops) == (forward, backward)
    assert sum(count.by_operator.values()) == count.by_module[""] == forward
    assert not count.uncounted


@BY_NAME
def test_real_fallback_counts_the_same(name: str) -> None:
    model, inputs, forward, backward = CASES[name]
    count = count_flops(Peek(model), inputs)
    assert (count.forward_flops, count.backward_flops) == (forward, backward)
    assert count.by_module["module"] == forward
    assert not count.uncounted


def test_packed_sequence_counts_its_steps_only() -> None:
    packed = nn.utils.rnn.pack_padded_sequence(zeros(4, 2, 6), torch.tensor([4, 2]))
    count = count_flops(nn.LSTM(6, 8), (packed,), backward=False)
    assert count.forward_flops == 2 * (4 + 2) * 32 * (6 + 8)


def test_int8_product() -> None:
    a, b = zeros(32, 16, dtype=torch.int8), zeros(16, 8, dtype=torch.int8)
    assert count_flops(Apply(torch._int_mm), (a, b)).forward_flops == 2 * 32 * 16 * 8


def test_kernel_that_the_model_insists_on_is_counted() -> None:
    """The forward is the same; this kernel's backward computes the scores once more."""

    def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0]

    count = count_flops(Peek(Inner(Apply(kernel))), (zeros(2, 4, 8, 16),) * 3)
    assert (count.forward_flops, count.backward_flops) == (ATTENTION, ATTENTION // 2 * 5)
    assert not count.uncounted


def test_by_module_and_by_operator() -> None:
    model = nn.Sequential(mlp(), nn.Linear(1, 3, bias=False))
    count = count_flops(model, zeros(1, 2))
    assert count.by_module == {"": 66, "0": 60, "0.0": 40, "0.2": 20, "1": 6}
    assert count.by_operator == {"aten.addmm": 60, "aten.mm": 6}


def test_shared_module_counts_each_call_under_its_first_name() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Linear(3, 3))
            self.again = self.first

        def forward(self, x: Tensor) -> Tensor:
            return self.again(self.first(x))

    count = count_flops(Twice(), zeros(1, 3))
    assert count.by_module == {"": 36, "first": 36, "first.0": 36}
    # Both calls give a weight gradient, the second call an input gradient as well.
    assert count.backward_flops == 3 * 18


def test_tied_weights_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(7, 4)
            self.head = nn.Linear(4, 7, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            assert self.head.weight is self.embed.weight
            return self.head(self.embed(x))

    count = count_flops(Tied(), zeros(1, 3, dtype=torch.long))
    assert (count.forward_flops, count.backward_flops) == (2 * 3 * 28, 2 * 2 * 3 * 28)


@pytest.mark.parametrize(("sign", "flops"), [(1.0, 2 * 12 + 2 * 16), (-1.0, 2 * 12)])
def test_path_that_depends_on_the_data(sign: float, flops: int) -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.more = nn.Linear(3, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.more(self.first(x)) if x.sum() > 0 else self.first(x)

    assert count_flops(Branch(), sign * torch.ones(1, 3)).forward_flops == flops


def test_modules_held_in_a_plain_list_are_counted() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(2, 3)
            self.rest = [nn.Linear(3, 3), nn.Dropout()]

        def forward(self, x: Tensor) -> Tensor:
            return self.rest[1](self.rest[0](self.first(x)))

    model = Hidden()
    assert count_flops(Peek(model), zeros(1, 2)).forward_flops == 12 + 18
    assert model.rest[0].weight.grad is None
    assert model.rest[1].training


@pytest.mark.parametrize(
    ("frozen", "backward"),
    [((), 80), (("0.weight", "0.bias"), 20), (("2.weight", "2.bias"), 60), ((), 80)],
)
def test_backward_is_for_the_trainable_parameters(frozen: tuple[str, ...], backward: int) -> None:
    model = mlp()
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    assert count_flops(model, torch.ones(1, 2, requires_grad=True)).backward_flops == backward


def test_no_backward() -> None:
    assert count_flops(mlp(), zeros(1, 2), backward=False).backward_flops == 0
    assert count_flops(mlp().requires_grad_(False), zeros(1, 2)).backward_flops == 0
    detached = Apply(lambda x, w: (x @ w).argmax(), (3, 4))
    assert count_flops(detached, zeros(2, 3)).backward_flops == 0


@dataclass
class Output:
    logits: Tensor
    hidden: tuple[Tensor, ...]
    loss: Tensor | None = None


@pytest.mark.parametrize("kind", [dict, Output, tuple])
def test_backward_starts_from_every_output(kind: type) -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(3, 5)

        def forward(self, x: Tensor) -> Any:
            a, b = self.a(x), self.b(x)
            if kind is tuple:
                return a, [b], x.long()
            return kind(logits=a, hidden=(b,))

    assert count_flops(Heads(), {"x": zeros(2, 3)}).backward_flops == 2 * 2 * 3 * (4 + 5)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_callers_gradient_mode_does_not_matter(mode: Callable[[], Any]) -> None:
    with mode():
        count = count_flops(mlp(), zeros(1, 2))
        fallback = count_flops(Peek(mlp()), zeros(1, 2))
    assert count.backward_flops == fallback.backward_flops == 80


def test_compiled_and_data_parallel_models_are_unwrapped() -> None:
    first = torch.compile(nn.Linear(2, 10), backend="eager")
    parts = nn.Sequential(first, nn.ReLU(), nn.Linear(10, 1))
    parts[2].compile(backend="eager")
    modules = {"": 60, "0": 40, "2": 20}
    assert count_flops(parts, zeros(1, 2)).by_module == modules
    assert count_flops(torch.compile(mlp(), backend="eager"), zeros(1, 2)).by_module == modules
    assert count_flops(nn.DataParallel(mlp()), zeros(1, 2)).by_module == modules


def test_exported_model() -> None:
    batch = {0: torch.export.Dim.AUTO}
    program = torch.export.export(mlp().eval(), (zeros(4, 2),), dynamic_shapes=(batch,))
    count = count_flops(program.module(), zeros(5, 2))
    assert (count.forward_flops, count.backward_flops) == (300, 400)


def test_model_on_the_meta_device() -> None:
    with torch.device("meta"):
        model, x = mlp(), zeros(3, 2)
    assert count_flops(model, x).forward_flops == 180
    with pytest.raises(RuntimeError, match="meta"):
        count_flops(Peek(model), x)


def test_no_weights_are_allocated() -> None:
    """A copy of this weight would take 4 TiB."""
    layer = nn.Linear(1, 1, bias=False)
    layer.weight = nn.Parameter(zeros(1, 1).expand(2**20, 2**20))
    assert count_flops(layer, zeros(1, 2**20)).forward_flops == 2 * 2**40


def test_inputs_and_samples() -> None:
    model = nn.Bilinear(3, 4, 5)
    for inputs in ((zeros(7, 3), zeros(7, 4)), {"input1": zeros(7, 3), "input2": zeros(7, 4)}):
        count = count_flops(model, inputs)
        assert (count.samples, count.forward_flops) == (7, 1120)


# What is not counted.


@torch.library.custom_op("wua_test::double", mutates_args=())
def _double(x: Tensor) -> Tensor:
    return 2 * x


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: torch.fft.rfft(x).abs() + torch.fft.rfft(x).abs(), {"aten._fft_r2c": 2}),
        (torch.linalg.svd, {"aten._linalg_svd": 1}),
        (lambda x: torch.cdist(x, x, p=1), {"aten._cdist_forward": 1}),
        (lambda x: torch.linalg.det(x @ x.T), {"aten._linalg_det": 1}),
        (lambda x: F.interpolate(x[None], size=3, mode="linear"), {"aten.upsample_linear1d": 1}),
        (_double, {"wua_test.double": 1}),
    ],
)
def test_operators_without_a_formula_are_reported(
    function: Callable[..., Any], expected: dict[str, int]
) -> None:
    count = count_flops(Apply(function), torch.rand(4, 6))
    assert count.uncounted == expected


def test_backward_operators_without_a_formula_are_reported() -> None:
    model = Inner(Apply(lambda x: torch.cdist(x, torch.ones_like(x), p=1)))
    assert count_flops(model, zeros(4, 6)).uncounted == {
        "aten._cdist_forward": 1,
        "aten._cdist_backward": 1,
    }
    assert count_flops(model, zeros(4, 6), backward=False).uncounted == {"aten._cdist_forward": 1}


ELEMENTWISE = "ReLU GELU SiLU Mish ELU SELU CELU LeakyReLU PReLU RReLU Softplus Softsign Softshrink"
BOUNDED = "Hardshrink Tanhshrink Hardswish Hardsigmoid Hardtanh Tanh Sigmoid LogSigmoid ReLU6 GLU"
SHAPED = [
    nn.Conv2d(4, 4, 1),
    nn.BatchNorm2d(4),
    nn.GroupNorm(2, 4),
    nn.InstanceNorm2d(4),
    nn.LayerNorm(8),
    nn.RMSNorm(8),
    nn.LocalResponseNorm(2),
    nn.Dropout2d(),
    nn.Softmax2d(),
    nn.MaxPool2d(2),
    nn.AvgPool2d(2),
    nn.AdaptiveMaxPool2d(4),
    nn.AdaptiveAvgPool2d(4),
    nn.LPPool2d(2, 2),
    nn.PixelShuffle(2),
    nn.Upsample(scale_factor=2),
    nn.ZeroPad2d(1),
    nn.ReflectionPad2d(1),
    nn.ReplicationPad2d(1),
    nn.CircularPad2d(1),
    nn.Unfold(2),
    nn.Flatten(),
    nn.LogSoftmax(1),
]


@pytest.mark.parametrize("peek", [False, True])
def test_elementwise_and_the_like_are_neither_counted_nor_reported(peek: bool) -> None:
    names = [*ELEMENTWISE.split(), *BOUNDED.split()]
    activations = nn.Sequential(nn.Linear(8, 8), *(getattr(nn, name)() for name in names))
    for model, inputs, flops in (
        (activations, zeros(2, 8), 2 * 2 * 64),
        (nn.Sequential(*SHAPED), zeros(2, 4, 8, 8), 2 * 2 * 64 * 16),
        (nn.EmbeddingBag(7, 4, max_norm=1.0), zeros(2, 3, dtype=torch.long), 0),
    ):
        count = count_flops(Peek(model) if peek else model, inputs)
        assert (count.forward_flops, dict(count.uncounted)) == (flops, {})


def test_written_list_holds_operators_that_exist_and_have_no_formula() -> None:
    operators = {
        name.split("::")[1].split(".")[0] for name in torch._C._dispatch_get_all_op_names()
    }
    bases = {flop_formulas._VARIANT.sub("", name) for name in operators} | operators
    assert bases >= flop_formulas._LEFT_OUT
    counted = {str(op).removeprefix("aten.") for op in [*flop_registry, *flop_formulas.FORMULAS]}
    assert not counted & flop_formulas._LEFT_OUT


# The model is left as found.


class Restless(nn.Module):
    """Changes whatever a forward can change, and draws random numbers."""

    def __init__(self, fail: bool) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.drop = nn.Dropout().eval()
        self.calls, self.seen, self.last, self.fail = 0, [], zeros(1), fail
        self.register_buffer("steps", zeros(1))
        self.handle = self.fc.register_forward_hook(self._once)

    def _once(self, *_: Any) -> None:
        self.handle.remove()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x.add_(1)
        y = F.dropout(self.norm(self.fc(x)) + torch.rand(3), training=True)
        self.seen.append(y)
        self.last, self.new = y, y
        self.steps.add_(1)
        with torch.no_grad():
            self.fc.weight.mul_(2)
        self.norm.train()
        if self.fail:
            raise RuntimeError("on purpose")
        return self.drop(y)


def contents(value: Any) -> Any:
    if isinstance(value, dict):
        return [(key, id(item)) for key, item in value.items()]
    return [id(item) for item in value] if isinstance(value, list | set) else value


def state(model: nn.Module) -> list[Any]:
    """Every attribute of every module: which object it is, and what that holds."""
    attributes = [(m, dict(vars(m))) for m in model.modules()]
    tensors = [*model.parameters(), *model.buffers()]
    return [
        [(m, name, id(value)) for m, values in attributes for name, value in values.items()],
        [contents(value) for _, values in attributes for value in values.values()],
        [(id(t), t._version, t.requires_grad, t.tolist(), id(t.grad)) for t in tensors],
        [t.grad.tolist() for t in tensors if t.grad is not None],
    ]


@pytest.fixture
def surroundings() -> Iterator[None]:
    """Fails unless the test leaves torch's global state as it was."""

    def now() -> list[Any]:
        return [
            torch.backends.mha.get_fastpath_enabled(),
            torch.backends.mkldnn.enabled,
            torch.backends.cudnn.enabled,
            torch.backends.cuda.flash_sdp_enabled(),
            torch.is_grad_enabled(),
            torch.get_default_device(),
            torch.nn.modules.module._global_forward_hooks.copy(),
        ]

    before = now()
    yield
    assert now() == before


@pytest.mark.usefixtures("surroundings")
@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("peek", [False, True])
def test_model_inputs_and_random_stream_are_left_as_found(peek: bool, fail: bool) -> None:
    model = Peek(Restless(fail)) if peek else Restless(fail)
    x = zeros(4, 3)
    inner = next(m for m in model.modules() if isinstance(m, Restless))
    inner.fc.weight.grad = torch.ones(3, 3)
    inner.norm.bias.requires_grad_(False)
    stream, before = torch.get_rng_state(), state(model)
    if fail:
        with pytest.raises(RuntimeError, match="on purpose"):
            count_flops(model, x)
    else:
        count = count_flops(model, x)
        assert (count.forward_flops, count.backward_flops) == (2 * 4 * 9, 2 * 4 * 9)
    assert state(model) == before
    assert torch.equal(torch.get_rng_state(), stream)
    assert (x.tolist(), x._version) == (zeros(4, 3).tolist(), 0)


def test_parametrized_weights() -> None:
    """Orthogonal: the exponential of a matrix is reported, the products around it are counted."""
    model = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
    assert count_flops(model, zeros(2, 3)).forward_flops == 2 * 2 * 12
    orthogonal = nn.utils.parametrizations.orthogonal(nn.Linear(4, 4))
    assert set(count_flops(orthogonal, zeros(2, 4)).uncounted) == {"aten.linalg_matrix_exp"}


# The tutorial's count.


@pytest.mark.usefixtures("surroundings")
@pytest.mark.parametrize(("width", "flops"), [(10, 122), (7, 86)])
def test_ptflops_counts_as_the_tutorial(width: int, flops: int, capfd: Any) -> None:
    model = mlp(width)
    before, stream = state(model), torch.get_rng_state()
    assert ptflops_forward_flops(model, (2,)) == flops
    assert state(model) == before
    assert torch.equal(torch.get_rng_state(), stream)
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("surroundings")
@pytest.mark.parametrize(
    ("model", "shape", "reason"),
    [
        (nn.Embedding(5, 2), (3,), "RuntimeError"),
        (nn.Bilinear(2, 2, 1), (2,), "TypeError"),
        (mlp(), (3,), "mat1 and mat2"),
        (mlp().to("meta"), (2,), "meta device"),
    ],
)
def test_ptflops_that_cannot_count_warns(
    model: nn.Module, shape: tuple[int, ...], reason: str, capfd: Any
) -> None:
    keys = [set(vars(module)) for module in model.modules()]
    with pytest.warns(UserWarning, match=f"ptflops cannot count .*{reason}"):
        assert ptflops_forward_flops(model, shape) is None
    assert [set(vars(module)) for module in model.modules()] == keys
    assert capfd.readouterr() == ("", "")


# Errors.


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (mlp(), [[1.0, 2.0]], "inputs: expected at least one tensor"),
        (mlp(), 3, "inputs: expected a tensor, a tuple of tensors or a dict.*got int"),
        (mlp(), zeros(0, 2), "inputs: expected at least one sample"),
        (nn.LazyLinear(3), zeros(1, 2), "model: expected initialised parameters"),
        (abs, zeros(1, 2), "model: expected a torch.nn.Module, but got builtin"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_wrong_arguments_are_named(model: Any, inputs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        count_flops(model, inputs)


@pytest.mark.parametrize("shape", [(), (0, 2), (2.0,)])
def test_wrong_input_shape_is_named(shape: Any) -> None:
    with pytest.raises(ValueError, match="input_shape: expected positive integers"):
        ptflops_forward_flops(mlp(), shape)


def test_models_own_error_comes_through() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        count_flops(mlp(), zeros(1, 3))
