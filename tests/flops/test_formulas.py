"""Counts of single layers and operators, forward and backward, against counts by hand.

Each runs on meta tensors and, where it peeks at its data, for real. The convention: 2 FLOPs per
multiply-accumulate, nothing else.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own habit
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry

from tests.example_modules import Apply, Conv1D, Inner, Peek, mlp
from wua_mlflow.flops import count_flops, formulas

zeros = torch.zeros


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


def attention(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, **options)


ATTENTION = 4 * (2 * 4) * 8 * 8 * 16
"""2 products of 8 × 8 positions × 16 features, in 2 samples × 4 heads."""
MHA = 2 * 10 * 16 * 48, 2 * 2 * 2 * 5 * 5 * 16, 2 * 10 * 16 * 16
"""Input projection, attention, output projection: 2 samples × 5 positions, 16 features."""
ACROSS = 2 * (10 * 16 * 16 + 6 * 6 * 16 + 6 * 7 * 16) + 2 * (2 * 2 * 5 * 3 * 16) + MHA[2]
"""5 queries, 3 keys of 6 features, 3 values of 7."""
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
TRANSPOSED_1D = 2 * (2 * 7) * 4 * (3 * 3)
DEPTHWISE_1D = 2 * (2 * 7) * 4 * 5
GROUPED_3D = 2 * (3 * 3 * 3) * 6 * (2 * 2 * 2 * 2)
TRANSPOSED_3D = 2 * (4 * 4 * 4) * 2 * (2 * 2 * 2 * 3)
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
    "transposed 1d": (
        Inner(nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2)),
        zeros(2, 4, 7),
        TRANSPOSED_1D,
        2 * TRANSPOSED_1D,
    ),
    "depthwise 1d": (
        Inner(nn.Conv1d(4, 4, 5, padding=2, groups=4)),
        zeros(2, 4, 7),
        DEPTHWISE_1D,
        2 * DEPTHWISE_1D,
    ),
    "grouped 3d": (
        Inner(nn.Conv3d(4, 6, 2, groups=2)),
        zeros(1, 4, 4, 4, 4),
        GROUPED_3D,
        2 * GROUPED_3D,
    ),
    "transposed 3d": (
        nn.ConvTranspose3d(2, 3, 2),
        zeros(1, 2, 4, 4, 4),
        TRANSPOSED_3D,
        TRANSPOSED_3D,
    ),
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
    "masked, 5 keys": (
        Inner(Apply(lambda q, k, v: attention(q, k, v, attn_mask=torch.ones(8, 5).bool()))),
        (zeros(2, 4, 8, 16), zeros(2, 4, 5, 16), zeros(2, 4, 5, 16)),
        ATTENTION // 8 * 5,
        2 * (ATTENTION // 8 * 5),
    ),
    "MultiheadAttention across": (
        Inner(nn.MultiheadAttention(16, 4, kdim=6, vdim=7, batch_first=True)),
        (zeros(2, 5, 16), zeros(2, 3, 6), zeros(2, 3, 7)),
        ACROSS,
        2 * ACROSS,
    ),
    "MultiheadAttention padded": (
        nn.MultiheadAttention(16, 4, batch_first=True),
        {
            **dict.fromkeys(("query", "key", "value"), zeros(2, 5, 16)),
            "key_padding_mask": torch.zeros(2, 5).bool(),
        },
        sum(MHA),
        MHA[0] + 2 * MHA[1] + 2 * MHA[2],
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
    "LSTM deep projected": (
        nn.LSTM(6, 8, num_layers=3, bidirectional=True, proj_size=3, batch_first=True),
        zeros(2, 4, 6),
        *recurrent(4, layers=3, directions=2, proj=3),
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
    "einsum of scores": (
        Inner(Apply(lambda q, k: torch.einsum("bhid,bhjd->bhij", q, k))),
        (zeros(2, 4, 8, 16), zeros(2, 4, 5, 16)),
        2 * 8 * 8 * 5 * 16,
        2 * 2 * 8 * 8 * 5 * 16,
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


@BY_NAME
def test_count_equals_the_count_by_hand(name: str) -> None:
    model, inputs, forward, backward = CASES[name]
    count = count_flops(model, inputs)
    assert (count.forward_flops, count.backward_flops) == (forward, backward)
    assert sum(count.by_operator.values()) == count.by_module[""] == forward
    assert not count.uncounted
    assert count.on_meta


@BY_NAME
def test_real_fallback_counts_the_same(name: str) -> None:
    model, inputs, forward, backward = CASES[name]
    count = count_flops(Peek(model), inputs)
    assert (count.forward_flops, count.backward_flops) == (forward, backward)
    assert count.by_module["module"] == forward
    assert not count.uncounted
    assert not count.on_meta


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


def test_written_list_holds_operators_that_exist_and_have_no_formula() -> None:
    operators = {
        name.split("::")[1].split(".")[0] for name in torch._C._dispatch_get_all_op_names()
    }
    bases = {formulas._VARIANT.sub("", name) for name in operators} | operators
    assert bases >= formulas._NOT_COUNTED_NAMES
    counted = {str(op).removeprefix("aten.") for op in [*flop_registry, *formulas.FORMULAS]}
    assert not counted & formulas._NOT_COUNTED_NAMES


@pytest.mark.parametrize(("a", "b", "rows"), [
    ((24, 16), (3, 16, 8), (24, 16, 8)), ((3, 24, 16), (3, 16, 8), (3 * 24, 16, 8)),
    ((24, 48), (48, 8), (24, 48, 8)), ((3, 24, 16), (16, 24), (24, 16, 24))])
def test_the_experts_of_a_mixture(a: tuple, b: tuple, rows: tuple[int, int, int]) -> None:
    """Of groups of rows or of columns: each row meets the matrix of its own group alone."""
    offs = torch.tensor([8, 16, 24], dtype=torch.int32)
    if a == (24, 48):
        offs = torch.tensor([16, 32, 48], dtype=torch.int32)
    options = {} if len(a) == len(b) == 3 else {"offs": offs}
    count = count_flops(Apply(lambda x, y: torch._grouped_mm(x, y, **options)),
                        (zeros(*a, dtype=torch.bfloat16), zeros(*b, dtype=torch.bfloat16)),
                        backward=False)
    assert (count.forward_flops, count.caveats) == (2 * rows[0] * rows[1] * rows[2], ())
