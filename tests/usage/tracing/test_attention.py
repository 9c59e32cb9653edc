"""The heads of an attention's projections, by the names of its layers and numbers."""

from __future__ import annotations

import pytest
from torch import nn

from tests.example_modules import Conv1D
from wua_mlflow.usage.tracing.attention import heads_of
from wua_mlflow.usage.tracing.parameters import ParameterIndex


def heads(numbers: dict[str, int], **layers: nn.Module) -> list[tuple[int, int]]:
    """Of each of the layers, in a module that has these numbers."""
    module = nn.Module()
    for name, value in {**numbers, **layers}.items():
        setattr(module, name, value)
    index = ParameterIndex(nn.Sequential(module))
    return [heads_of(index, f"0.{name}", max(layer.weight.shape)) for name, layer in layers.items()]


@pytest.mark.parametrize(("numbers", "expected"), [
    ({"head_dim": 2}, (4, 2, 0)), ({"num_attention_heads": 4}, (4, 4, 0)),
    ({"n_heads": 8}, (8, 0, 0)), ({}, (0, 0, 0)), ({"head_dim": 3}, (0, 0, 0))])
def test_the_heads_of_a_projection(numbers, expected):
    counts = heads(numbers, query=nn.Linear(2, 8), k_proj=nn.Linear(2, 4), out=nn.Linear(2, 8))
    assert counts == [(count, 1) for count in expected]


@pytest.mark.parametrize(("numbers", "expected"), [
    ({"num_heads": 4, "head_dim": 2}, [(4, 3), (4, 1), (0, 1)]),
    ({"num_heads": 4}, [(4, 3), (4, 1), (0, 1)]),
    ({"num_heads": 4, "head_dim": 4}, [(0, 1)] * 3),  # keys are shared
    ({"num_heads": 5}, [(0, 1)] * 3), ({}, [(0, 1)] * 3)])
def test_the_heads_of_what_makes_all_three(numbers, expected):
    fused = nn.Linear(8, 24)
    assert heads(numbers, c_attn=Conv1D(8, 24), query_key_value=fused, c_proj=fused) == expected
    assert heads(numbers, c_attn=fused) == [(0, 1)]  # laid out in another way


def test_the_heads_of_torchs_own():
    index = ParameterIndex(nn.Sequential(nn.MultiheadAttention(8, 2), nn.Linear(8, 8)))
    assert [heads_of(index, name, 8) for name in ("0", "0.out_proj", "1", "")] == [
        (2, 1), (0, 1), (0, 1), (0, 1)]
