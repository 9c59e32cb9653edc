"""Mixtures of experts by grouped products have the figures of the same experts one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.model_forms import Layers, matrix, net, through
from tests.networks import labels, rows
from tests.references import unnamed
from wua_mlflow.usage.analyze import analyze
from wua_mlflow.usage.criteria import CRITERIA
from wua_mlflow.usage.tracing.grouped import grouped_operands


def mixture(grouped: Any = None) -> Layers:
    """Three experts of two layers each; the third one gets no row."""
    torch.manual_seed(0)
    ends = torch.tensor([2, 6, 6], dtype=torch.int32)

    def one_by_one(h: Tensor, weights: Tensor) -> Tensor:
        return torch.cat([h[:2] @ weights[0], h[2:6] @ weights[1]])

    def run(model: Layers, h: Tensor) -> Tensor:
        product = one_by_one if grouped is None else lambda h, w: grouped(h, w, offs=ends)
        return product(product(h, model.up.transpose(1, 2)).relu(), model.down)

    return Layers(through(run), **net(up=nn.Parameter(torch.randn(3, 8, 4)),
                                      down=nn.Parameter(torch.randn(3, 8, 4))))


GROUPED = [torch._grouped_mm, functional.grouped_mm, torch.ops.aten._grouped_mm.default,
           lambda rows, matrices, offs: functional.grouped_mm(rows, matrices, offs=offs)]


@pytest.mark.parametrize("grouped", GROUPED)
def test_the_figures_are_those_of_the_experts_one_by_one(grouped):
    data, options = [(rows(6, 3), labels(6))], {"loss": functional.cross_entropy}
    expected = analyze(mixture(), data, criterion=list(CRITERIA), **options)
    usages = analyze(mixture(grouped), data, criterion=list(CRITERIA), **options)
    names = {"first", "up[0]", "up[1]", "down[0]", "down[1]"}
    for criterion, usage in usages.items():
        assert set(usage.layers) == set(expected[criterion].layers) == names
        for name, layer in usage.layers.items():
            other = expected[criterion].layers[name]
            assert layer.entropy == pytest.approx(other.entropy, rel=1e-5)
            assert layer.unit_importance == pytest.approx(other.unit_importance, rel=1e-4)
            assert (layer.weights, layer.dead_units) == (other.weights, other.dead_units)
        assert usage.skipped.keys() == expected[criterion].skipped.keys()
    assert unnamed(mixture(grouped), usages["output"]) == []


def test_other_grouped_products_are_named():
    model = Layers(through(lambda model, h: torch._grouped_mm(h[None], model.own)[0]),
                   **net(own=nn.Parameter(torch.randn(1, 4, 4))))
    usage = analyze(model, rows(6, 3))
    assert usage.skipped["own"] == \
        "used through _grouped_mm, which is not a product that is analysed"
    assert grouped_operands("mm", (matrix(2, 2), matrix(2, 2)), {}) is None
    assert grouped_operands("grouped_mm", (rows(2, 4), torch.ones(1, 4, 4)), {
        "offs": torch.tensor([2]), "out_dtype": torch.float32}) is None


@pytest.mark.parametrize("implementation", ["grouped_mm", "eager"])
def test_mixtral(implementation):
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, intermediate_size=24, max_position_embeddings=16,
        num_local_experts=2, num_experts_per_tok=2))
    model.set_experts_implementation(implementation)
    usage = analyze(model, [{"input_ids": torch.arange(14).reshape(2, 7)}], criterion="wanda")
    experts = {name: layer for name, layer in usage.layers.items() if ".experts." in name}
    assert {name.partition("experts.")[2]: layer.weights for name, layer in experts.items()} == {
        **{f"gate_up_proj[{expert}]": 2 * 24 * 16 for expert in range(2)},
        **{f"down_proj[{expert}]": 24 * 16 for expert in range(2)}}
