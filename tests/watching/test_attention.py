"""Attention's own code watched, and the rows of its fused weight."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from tests.example_modules import Conv1D
from tests.networks import rows
from wua_mlflow.usage.tracing.attention import ATTENTION, attention, heads_of, split_qkv
from wua_mlflow.usage.tracing.calls import WeightCall
from wua_mlflow.usage.tracing.parameters import ParameterIndex


class Calls(TorchFunctionMode):
    """Notes each call; runs attention's code inside, if told to."""

    def __init__(self, *, inside: bool) -> None:
        super().__init__()
        self.inside, self.names = inside, []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.append(getattr(func, "__name__", ""))
        if func is ATTENTION and self.inside:
            with self:
                return attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def test_the_same_code_with_its_projections_in_sight():
    module, x = nn.MultiheadAttention(8, 2).eval(), rows(5, 3, 8)
    plain = module(x, x, x)[0]
    for inside in (False, True):
        with Calls(inside=inside) as calls:
            assert torch.equal(module(x, x, x)[0], plain)
        assert calls.names.count("linear") == (2 if inside else 0)  # the fused one, out_proj


def test_the_fused_weight_in_three():
    model = nn.Sequential(nn.MultiheadAttention(4, 2), nn.Linear(4, 4))
    owners, x = ParameterIndex(model), rows(5, 4)
    fused, bias = model[0].in_proj_weight, model[0].in_proj_bias
    output = functional.linear(x, fused, bias)
    found = split_qkv(
        WeightCall("linear", fused, (x,), bias), output, owners.find(fused, []), owners, []
    )
    assert [view.offset for *_, view in found] == [0, 16, 32]
    for part, piece, view in found:
        assert torch.equal(functional.linear(x, part.weight, part.bias), piece)
        assert torch.equal(view.of(fused.detach()), part.weight)


def test_any_other_weight_alone():
    model, x = nn.Sequential(nn.Linear(4, 4)), rows(5, 4)
    owners, product = ParameterIndex(model), WeightCall("linear", model[0].weight, (x,))
    view = owners.find(model[0].weight, [])
    assert split_qkv(product, x, view, owners, []) == [(product, x, view)]
    assert split_qkv(product, x, None, owners, []) == [(product, x, None)]


class Written(nn.Module):
    """Attention written by hand: its projections, and what tells of its heads."""

    def __init__(self, **told: int) -> None:
        super().__init__()
        self.query, self.k_proj, self.out = (nn.Linear(8, units) for units in (8, 4, 8))
        for name, value in told.items():
            setattr(self, name, value)


def test_the_heads_of_a_projection() -> None:
    for told, expected in (({"head_dim": 2}, (4, 2, 0)), ({"num_attention_heads": 4}, (4, 4, 0)),
                           ({"n_heads": 8}, (8, 0, 0)), ({}, (0, 0, 0)),
                           ({"head_dim": 3}, (0, 0, 0))):
        owners = ParameterIndex(nn.Sequential(Written(**told)))
        found = tuple(heads_of(owners, f"0.{name}", units)[0]
                      for name, units in (("query", 8), ("k_proj", 4), ("out", 8)))
        assert found == expected, told
    owners = ParameterIndex(nn.Sequential(nn.MultiheadAttention(8, 2), nn.Linear(8, 8)))
    assert [heads_of(owners, name, 8) for name in ("0", "0.out_proj", "1", "")] == [
        (2, 1), (0, 1), (0, 1), (0, 1)]


def test_the_heads_of_what_makes_all_three() -> None:
    for told, expected in (({"num_heads": 4, "head_dim": 2}, [(4, 3), (4, 1), (0, 1)]),
                           ({"num_heads": 4}, [(4, 3), (4, 1), (0, 1)]),
                           ({"num_heads": 4, "head_dim": 4}, [(0, 1)] * 3),  # keys are shared
                           ({"num_heads": 5}, [(0, 1)] * 3), ({}, [(0, 1)] * 3)):
        module = Written(**told)
        module.query_key_value, module.c_proj = nn.Linear(8, 24), nn.Linear(8, 24)
        module.c_attn = Conv1D(8, 24)
        owners = ParameterIndex(nn.Sequential(module))
        found = [heads_of(owners, f"0.{name}", 24)
                 for name in ("c_attn", "query_key_value", "c_proj")]
        assert found == expected, told
        module.c_attn = nn.Linear(8, 24)  # laid out in another way
        assert heads_of(ParameterIndex(nn.Sequential(module)), "0.c_attn", 24) == (0, 1)
