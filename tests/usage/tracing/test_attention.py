"""Attention's own code watched, and the rows of its fused weight."""

from __future__ import annotations

from torch import nn

from tests.example_modules import Conv1D
from wua_mlflow.usage.tracing.attention import heads_of
from wua_mlflow.usage.tracing.parameters import ParameterIndex


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
