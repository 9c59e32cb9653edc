"""Attention and transformers: each projection by hand, with and without padding."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.networks import Layers, rows
from tests.references import CRITERIA, assert_importance, flat, recorded, unnamed
from wua_mlflow.usage.analyze import analyze, layer_importance


class Attend(nn.Module):
    """Queries, keys and values from one input, or from two; ``wants`` the weights or not."""

    def __init__(self, *, memory: tuple[int, int, int] | None = None, wants: bool = False,
                 **options: Any) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, **options)
        for bias in (self.attn.in_proj_bias, self.attn.out_proj.bias):
            if bias is not None:
                nn.init.normal_(bias)
        self.memory, self.wants = memory, wants

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each of shape (samples, positions, features)."""
        if self.memory is None:
            return x, x, x
        length, keys, values = self.memory
        return x, rows(len(x), length, keys, seed=6), rows(len(x), length, values, seed=7)

    def forward(self, x: Tensor, padding: Tensor | None = None,
                attention_mask: Tensor | None = None) -> Tensor:
        qkv = self.qkv(x)
        if not self.attn.batch_first:
            qkv = tuple(part.transpose(0, 1) for part in qkv)
        if self.memory is None:
            qkv = (qkv[0],) * 3
        padding = padding if attention_mask is None else attention_mask == 0
        out, _ = self.attn(*qkv, key_padding_mask=padding, need_weights=self.wants)
        return out if self.attn.batch_first else out.transpose(0, 1)


@torch.no_grad()
def by_formula(model: Attend, x: Tensor, padding: Tensor | None = None):
    """By projection (weight, what it met, what it gave): softmax(q kᵀ / √d) v, head by head."""
    inputs, attn = model.qkv(x), model.attn
    weights = [attn.q_proj_weight, attn.k_proj_weight, attn.v_proj_weight]
    weights = weights if attn.in_proj_weight is None else attn.in_proj_weight.chunk(3)
    biases = [torch.zeros(8)] * 3 if attn.in_proj_bias is None else attn.in_proj_bias.chunk(3)
    outputs = [x @ w.T + b for x, w, b in zip(inputs, weights, biases, strict=True)]
    q, k, v = (output.unflatten(-1, (2, -1)).transpose(1, 2) for output in outputs)
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if padding is not None:
        scores = scores.masked_fill(padding[:, None, None], -torch.inf)
    mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    out = attn.out_proj
    by_name = {f"attn.{letter}_proj": parts for letter, *parts in
               zip("qkv", weights, inputs, outputs, strict=True)}
    return {**by_name, "attn.out_proj": [out.weight, mixed, mixed @ out.weight.T + out.bias]}


FORMS = {
    "without biases": {"bias": False},
    "cross, other widths": {"memory": (3, 5, 6), "kdim": 5, "vdim": 6},
    "with weights": {"wants": True}, "cross with weights": {"wants": True, "memory": (4, 8, 8)}}


@pytest.mark.parametrize("batch_first", [True, False], ids=["batch first", "time first"])
@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_the_four_projections_by_the_formula(options, batch_first):
    model, x = Attend(batch_first=batch_first, **options), rows(5, 4, 8)
    if not options.get("bias", True):
        model.attn.out_proj.bias = nn.Parameter(torch.zeros(8))
    expected = by_formula(model, x)
    for name, (weight, met, gave) in expected.items():
        assert_importance(model, x, name, weight, flat(met), flat(gave))
    torch.testing.assert_close(expected["attn.out_proj"][2], model(x), rtol=1e-5, atol=1e-6)
    usage = analyze(model, x, layers=list(expected))
    assert list(usage.layers) == list(expected)
    assert {layer.kind for name, layer in usage.layers.items() if "out" not in name} == {
        "MultiheadAttention"}
    assert unnamed(model, usage) == []


@pytest.mark.parametrize(("batch_first", "wants"), [(True, False), (False, True)])
def test_keys_that_are_padded_change_what_comes_out(batch_first, wants):
    model, x = Attend(batch_first=batch_first, wants=wants), rows(5, 4, 8)
    padding = torch.arange(4) >= torch.tensor([2, 4, 3, 4, 1])[:, None]
    weight, met, gave = by_formula(model, x, padding)["attn.out_proj"]
    assert_importance(model, [{"x": x, "padding": padding}], "attn.out_proj", weight, flat(met),
                      flat(gave))


def test_one_sequence_without_a_batch_dimension():
    class Single(Attend):
        def forward(self, x: Tensor) -> Tensor:
            return self.attn(x[0], x[0], x[0])[0].unsqueeze(0)

    model, x = Single(), rows(1, 4, 8)
    for name, (weight, met, gave) in by_formula(model, x).items():
        assert_importance(model, x, name, weight, flat(met), flat(gave))


@pytest.mark.parametrize("options", [{}, {"norm_first": True}, {"batch_first": False}], ids=str)
def test_an_encoder_layer_has_six_layers(options):
    options = {"batch_first": True, **options}
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 12, **options), nn.Linear(8, 2))
    block, x = model[0], rows(5, 4, 8)
    usage = analyze(model, x)
    assert list(usage.layers) == ["0.self_attn.q_proj", "0.self_attn.k_proj", "0.self_attn.v_proj",
                                  "0.self_attn.out_proj", "0.linear1", "0.linear2"]
    assert unnamed(model, usage) == []
    model.eval()
    for name in ("0.linear1", "0.linear2"):
        module = model.get_submodule(name)
        assert_importance(model, x, name, module.weight,
                          *met_and_gave_with_gradients(model, module, x))
    before = block.norm1(x) if options.get("norm_first") else x
    assert_importance(model, x, "0.self_attn.q_proj", block.self_attn.in_proj_weight[:8],
                      flat(before), flat(before @ block.self_attn.in_proj_weight[:8].T
                                         + block.self_attn.in_proj_bias[:8]))


def met_and_gave_with_gradients(model: nn.Module, module: nn.Module, *inputs: Tensor):
    """Without gradients the fused kernel would call no submodule."""
    with recorded(module) as [calls], torch.enable_grad():
        model(*inputs)
    return flat(calls[0][0]), flat(calls[0][1])


@pytest.mark.parametrize(("samples", "batch_first"), [  # as many as positions, too
    (3, True), (5, True), (5, False)])
def test_a_padded_batch_is_its_sequences_one_by_one(samples, batch_first):
    def run(model: Layers, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = model.embed(input_ids)
        x = x if batch_first else x.transpose(0, 1)
        x = model.encoder(x, src_key_padding_mask=attention_mask == 0)
        return model.head(x if batch_first else x.transpose(0, 1))

    block = nn.TransformerEncoderLayer(8, 2, 12, batch_first=batch_first)
    model = Layers(run, embed=nn.Embedding(20, 8), head=nn.Linear(8, 3),
                   encoder=nn.TransformerEncoder(block, 1, enable_nested_tensor=False))
    lengths = [2, 5, 4, 1, 3][:samples]
    ids = torch.randint(20, (samples, 5), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(5) < torch.tensor(lengths)[:, None]).long()
    padded = [{"input_ids": ids, "attention_mask": mask}]
    alone = [{"input_ids": row[None, :n], "attention_mask": torch.ones(1, n, dtype=torch.long)}
             for row, n in zip(ids, lengths, strict=True)]
    names = [*analyze(model, padded).layers, "head"]
    assert len(names) == 1 + 6 + 1
    for criterion in CRITERIA:
        importances = layer_importance(model, padded, names, criterion)
        for name, expected in layer_importance(model, alone, names, criterion).items():
            torch.testing.assert_close(importances[name], expected, rtol=1e-4, atol=1e-6, msg=name)
    usage, reference = analyze(model, padded), analyze(model, alone)
    assert [layer.dead_units for layer in usage.layers.values()] == [
        layer.dead_units for layer in reference.layers.values()]
    real = ids[mask.bool()]
    counts = torch.bincount(real, minlength=20).double() / len(real)
    torch.testing.assert_close(
        layer_importance(model, padded, ["embed"], "input")["embed"],
        model.embed.weight.abs().T.double() * counts, rtol=1e-6, atol=0)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("batch_first", [True, False], ids=["batch first", "time first"])
def test_a_whole_transformer(batch_first):
    def run(model: Layers, x: Tensor) -> Tensor:
        source, target = x[:, :4], x[:, 4:]
        if not batch_first:
            source, target = source.transpose(0, 1), target.transpose(0, 1)
        return model.head(model.net(source, target))

    model = Layers(run, net=nn.Transformer(8, 2, 1, 1, 12, batch_first=batch_first),
                   head=nn.Linear(8, 2))
    x = rows(5, 7, 8)
    usage = analyze(model, x)
    assert len(usage.layers) == 6 + 10 and unnamed(model, usage) == []
    cross = model.eval().net.decoder.layers[0].multihead_attn
    with torch.enable_grad():
        memory = model.net.encoder(x[:, :4] if batch_first else x[:, :4].transpose(0, 1))
    weight = cross.in_proj_weight[8:16]
    assert_importance(model, x, "net.decoder.layers.0.multihead_attn.k_proj", weight,
                      flat(memory), flat(memory @ weight.T + cross.in_proj_bias[8:16]))
    assert_importance(model, x, "head", model.head.weight,
                      *met_and_gave_with_gradients(model, model.head, x))


@pytest.mark.parametrize("criterion", ["wanda", "taylor"])
def test_importance_of_heads(criterion):
    """taylor: |Σ a·g| of the outputs of a head's rows, by autograd on them themselves."""
    model, x = Attend(batch_first=True).double(), rows(5, 4, 8).double()
    heads = model.attn.num_heads
    layers = analyze(model, [(x, x)] if criterion == "taylor" else x, criterion=criterion,
                     loss=nn.functional.mse_loss, layers=["attn.v_proj", "attn.out_proj"]).layers
    assert layers["attn.out_proj"].head_importance is None
    values = layers["attn.v_proj"]
    if criterion == "wanda":
        expected = torch.from_numpy(values.unit_importance).reshape(heads, -1).sum(1)
    else:
        scale = torch.ones(heads, dtype=torch.float64, requires_grad=True)
        by_row = torch.cat([torch.ones(16).double(), scale.repeat_interleave(8 // heads)])
        changed = {"attn.in_proj_weight": model.attn.in_proj_weight * by_row[:, None],
                   "attn.in_proj_bias": model.attn.in_proj_bias * by_row}
        model.train()  # or the fused path would take no gradient
        loss = nn.functional.mse_loss(torch.func.functional_call(model, changed, x), x)
        expected = torch.autograd.grad(loss, scale)[0].abs()
    np.testing.assert_allclose(values.head_importance, expected.detach(), rtol=1e-6)
    assert values.head_importance.shape == (heads,)
