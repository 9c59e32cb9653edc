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

LAYERS: dict[str, tuple[nn.Module, Tensor, int]] = {
    "Linear": (nn.Linear(3, 4), zeros(2, 5, 3), 2 * 10 * 12),
    "one vector": (nn.Linear(3, 4), zeros(3), 2 * 12),
    "Conv1D": (Conv1D(3, 4), zeros(2, 5, 3), 2 * 10 * 12),
    # Positions × outputs × (kernel × inputs of a group).
    "grouped": (nn.Conv2d(6, 9, 3, padding=1, groups=3), zeros(2, 6, 8, 8),
                2 * (2 * 8 * 8) * 9 * (3 * 3 * 2)),
    "depthwise": (nn.Conv1d(6, 12, 3, stride=2, groups=6), zeros(2, 6, 9), 2 * (2 * 4) * 12 * 3),
    "dilated, unbatched": (nn.Conv2d(3, 4, 3, dilation=2), zeros(3, 5, 6),
                           2 * (1 * 2) * 4 * (3 * 3 * 3)),
    "3d": (nn.Conv3d(2, 3, 2), zeros(1, 2, 4, 4, 4), 2 * (3 * 3 * 3) * 3 * (2 * 2 * 2 * 2)),
    # Input positions × inputs × (kernel × outputs of a group).
    "transposed": (nn.ConvTranspose2d(6, 9, 3, stride=2, groups=3), zeros(2, 6, 8, 8),
                   2 * (2 * 8 * 8) * 6 * (3 * 3 * 3)),
    "transposed 3d": (nn.ConvTranspose3d(2, 3, 2), zeros(1, 2, 4, 4, 4),
                      2 * (4 * 4 * 4) * 2 * (2 * 2 * 2 * 3))}
"""Layers, inputs, and FLOPs of the forward; the backward has as many for the weights and, inside a
network, for the inputs."""


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


def attention(**options: Any) -> nn.Module:
    return Inner(Apply(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **options)))


def encoder(layers: int = 2) -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), layers)


QUERIES = zeros(2, 4, 8, 16)
ATTENTION = 4 * (2 * 4) * 8 * 8 * 16
"""2 products of 8 × 8 positions × 16 features, in 2 samples × 4 heads."""
MHA = 2 * 10 * 16 * 48, 2 * 2 * 2 * 5 * 5 * 16, 2 * 10 * 16 * 16
"""Input projection, attention, output projection: 2 samples × 5 positions, 16 features."""
ACROSS = 2 * (10 * 16 * 16 + 6 * 6 * 16 + 6 * 7 * 16) + 2 * (2 * 2 * 5 * 3 * 16) + MHA[2]
"""5 queries, 3 keys of 6 features, 3 values of 7."""
ENCODER = sum(MHA) + 2 * (2 * 10 * 16 * 32)
"""With the feed-forward part's two products."""
PADDED = {"src": zeros(2, 5, 16), "src_key_padding_mask": torch.tensor([[False] * 4 + [True]] * 2)}

CASES: dict[str, tuple[nn.Module, Any, int, int]] = {
    # Backward: both weights, and the input of the second layer.
    "mlp": (mlp(), zeros(5, 2), 5 * 60, 5 * (40 + 20 + 20)),
    "attention": (attention(), (QUERIES,) * 3, ATTENTION, 2 * ATTENTION),
    "causal": (attention(is_causal=True), (QUERIES,) * 3, ATTENTION, 2 * ATTENTION),
    "grouped-query": (attention(enable_gqa=True), (QUERIES, QUERIES[:, :2], QUERIES[:, :2]),
                      ATTENTION, 2 * ATTENTION),
    "masked, 5 keys": (
        Inner(Apply(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, torch.ones(8, 5) > 0))),
        (QUERIES, QUERIES[:, :, :5], QUERIES[:, :, :5]),
        ATTENTION // 8 * 5, 2 * (ATTENTION // 8 * 5)),
    "MultiheadAttention across": (
        Inner(nn.MultiheadAttention(16, 4, kdim=6, vdim=7, batch_first=True)),
        (zeros(2, 5, 16), zeros(2, 3, 6), zeros(2, 3, 7)), ACROSS, 2 * ACROSS),
    # As the first layer: only the input projection's input needs no gradient.
    "MultiheadAttention padded": (
        nn.MultiheadAttention(16, 4, batch_first=True),
        {**dict.fromkeys(("query", "key", "value"), zeros(2, 5, 16)),
         "key_padding_mask": zeros(2, 5).bool()}, sum(MHA), 2 * sum(MHA) - MHA[0]),
    "encoder layer": (encoder(1), zeros(2, 5, 16), ENCODER, 2 * ENCODER - MHA[0]),
    "encoder padded": (encoder(), PADDED, 2 * ENCODER, 4 * ENCODER - MHA[0]),
    "encoder causal": (
        encoder(), {"src": zeros(2, 5, 16), "mask": torch.full((5, 5), -torch.inf).triu(1)},
        2 * ENCODER, 4 * ENCODER - MHA[0]),
    "LSTM": (nn.LSTM(6, 8), zeros(4, 2, 6), *recurrent(4)),
    "LSTM deep projected": (
        nn.LSTM(6, 8, num_layers=2, bidirectional=True, proj_size=3, batch_first=True, dropout=0.5),
        zeros(2, 4, 6), *recurrent(4, layers=2, directions=2, proj=3)),
    "GRU deep": (nn.GRU(6, 8, num_layers=2, bidirectional=True), zeros(4, 2, 6),
                 *recurrent(3, layers=2, directions=2)),
    "RNN": (nn.RNN(6, 8), zeros(4, 2, 6), *recurrent(1)),
    # x by weight, then by y; the weight's gradient: x by the gradient, then by y.
    "Bilinear": (nn.Bilinear(3, 4, 5), (zeros(7, 3), zeros(7, 4)),
                 2 * 7 * (60 + 20), 2 * 7 * (15 + 60)),
    "inner Bilinear": (Inner(nn.Bilinear(3, 4, 5)), (zeros(7, 3), zeros(7, 4)),
                       2 * 7 * (60 + 20), 2 * 7 * ((15 + 60) + (60 + 12) + (60 + 20))),
    # The same by einsum, whose own backward takes the products in the opposite order.
    "einsum": (Apply(lambda x, y, w: torch.einsum("bi,oij,bj->bo", x, w, y), (5, 3, 4)),
               (zeros(7, 3), zeros(7, 4)), 2 * 7 * (60 + 20), 2 * 7 * (20 + 60)),
    "baddbmm": (Apply(lambda x, w, b: torch.baddbmm(b, x, w), (2, 3, 4), (2, 5, 4)),
                zeros(2, 5, 3), 2 * 2 * 5 * 3 * 4, 2 * 2 * 5 * 3 * 4),
    "addbmm": (Apply(lambda x, w, b: torch.addbmm(b, x, w), (2, 3, 4), (5, 4)),
               zeros(2, 5, 3), 2 * 2 * 5 * 3 * 4, 2 * 2 * 5 * 3 * 4),
    "mv": (Apply(lambda x, w: x @ w, (3,)), zeros(5, 3), 30, 30),
    "addmv": (Apply(lambda x, w, b: torch.addmv(b, x, w), (3,), (5,)), zeros(5, 3), 30, 30),
    "dot": (Apply(torch.dot, (3,)), zeros(3), 6, 0),
    "vdot": (Apply(torch.vdot, (3,)), zeros(3), 6, 0),
    "addr": (Apply(lambda x, w, b: torch.addr(b, x, w), (4,), (3, 4)), zeros(3), 24, 24),
    **{name: (layer, x, flops, flops) for name, (layer, x, flops) in LAYERS.items()},
    **{f"inner {name}": (Inner(layer), x, flops, 2 * flops)
       for name, (layer, x, flops) in LAYERS.items()}}


@pytest.mark.parametrize("name", CASES)
def test_count_equals_the_count_by_hand(name):
    model, inputs, forward, backward = CASES[name]
    count, real = count_flops(model, inputs), count_flops(Peek(model), inputs)
    assert (count.on_meta, real.on_meta) == (True, False)
    assert sum(count.by_operator.values()) == count.by_module[""] == forward
    assert real.by_module["module"] == forward
    for either in (count, real):
        assert (either.forward_flops, either.backward_flops) == (forward, backward)
        assert not either.uncounted


def test_int8_product():
    a, b = zeros(32, 16, dtype=torch.int8), zeros(16, 8, dtype=torch.int8)
    assert count_flops(Apply(torch._int_mm), (a, b)).forward_flops == 2 * 32 * 16 * 8


def test_kernel_that_the_model_insists_on_is_counted():
    """The forward is the same; this kernel's backward computes the scores once more."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    count = count_flops(Peek(Inner(Apply(lambda *qkv: kernel(*qkv)[0]))), (QUERIES,) * 3)
    assert (count.forward_flops, count.backward_flops) == (ATTENTION, ATTENTION // 2 * 5)
    assert not count.uncounted


def test_written_list_holds_operators_that_exist_and_have_no_formula():
    operators = {
        name.split("::")[1].split(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    bases = {formulas._VARIANT.sub("", name) for name in operators} | operators
    assert bases >= formulas._NOT_COUNTED_NAMES
    counted = {str(op).removeprefix("aten.") for op in [*flop_registry, *formulas.FORMULAS]}
    assert not counted & formulas._NOT_COUNTED_NAMES


@pytest.mark.parametrize(("a", "b", "ends", "flops"), [
    ((24, 16), (3, 16, 8), [8, 16, 24], 2 * 24 * 16 * 8),
    ((3, 24, 16), (3, 16, 8), None, 2 * (3 * 24) * 16 * 8),
    ((24, 48), (48, 8), [16, 32, 48], 2 * 24 * 48 * 8),
    ((3, 24, 16), (16, 24), [8, 16, 24], 2 * 24 * 16 * 24)])
def test_the_experts_of_a_mixture(a, b, ends, flops):
    """Of groups of rows or of columns: each row meets the matrix of its own group alone."""
    offs = None if ends is None else torch.tensor(ends, dtype=torch.int32)
    count = count_flops(Apply(lambda x, y: torch._grouped_mm(x, y, offs=offs)),
                        (zeros(*a, dtype=torch.bfloat16), zeros(*b, dtype=torch.bfloat16)),
                        backward=False)
    assert (count.forward_flops, count.caveats) == (flops, ())
