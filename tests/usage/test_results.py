"""A model's figures are those of its layers, joined as docs/conventions.md says."""

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from wua_mlflow.usage.results import Concentration, Histogram, LayerUsage, ModelUsage, NullUsage


def layer(name, weights, entropy, top90_share, low, null=None):
    return LayerUsage(
        name=name, kind="Linear", weights=weights, units=2, entropy=entropy,
        effective_weights=math.exp(entropy), top90_share=top90_share, low_share=low,
        unit_importance=np.ones(2), histogram=Histogram(np.array([0.0, 1.0]), np.array([weights]),
                                                        entropy), null=null)


def test_the_models_figures_are_sums_over_its_layers():
    null = NullUsage("re-initialised", 20, 0.6, 0.5, 0.7, 0.1)
    first = layer("a", 8, math.log(6), 0.5, 0.25, null)
    second = layer("b", 32, math.log(10), 0.75, 0.0)
    usage = ModelUsage("output", 100, {"a": first, "b": second}, {})
    assert usage.weights == 40 and usage.effective_weights == pytest.approx(16)
    assert usage.entropy == pytest.approx(math.log(16))
    assert usage.effective_share == pytest.approx(16 / 40)
    assert usage.top90_share == pytest.approx((4 + 24) / 40)
    assert usage.low_share == pytest.approx(2 / 40)
    assert (first.effective_share, first.null_share) == (pytest.approx(6 / 8), 0.6)
    assert second.null_share is None


def test_the_models_entropy_is_the_largest_that_any_weighting_of_the_layers_gives():
    parts = [np.random.default_rng(9).random(12), np.random.default_rng(10).pareto(1.0, 30)]
    layers = {str(i): layer(str(i), part.size, scipy.stats.entropy(part), 1.0, 0.0)
              for i, part in enumerate(parts)}
    first, second = (part / part.sum() for part in parts)
    entropies = [scipy.stats.entropy(np.concatenate([share * first, (1 - share) * second]))
                 for share in np.linspace(0.01, 0.99, 99)]
    assert ModelUsage("output", 1, layers, {}).entropy == pytest.approx(max(entropies), abs=1e-4)


def test_a_model_no_weight_of_which_matters():
    dead = replace(layer("a", 4, 0.0, 0.0, 1.0), effective_weights=0.0, dead=True)
    usage = ModelUsage("output", 1, {"a": dead}, {})
    assert (usage.entropy, usage.effective_weights, usage.effective_share) == (0.0, 0.0, 0.0)


PLAIN = layer("a", 8, 1.0, 0.5, 0.25)


def of_units(units, effective, dead):
    usage = Concentration(units, math.log(effective), effective, 0.5, 0.0)
    return replace(PLAIN, units=units, unit_usage=usage, dead_units=dead)


def test_the_models_units_are_sums_over_its_layers():
    layers = {"a": of_units(4, 3.0, 1), "b": of_units(12, 5.5, 2), "c": of_units(4, 1.5, None)}
    usage = ModelUsage("output", 100, layers, {})
    assert (usage.units, usage.effective_units, usage.effective_unit_share, usage.dead_units) == (
        20, 10.0, 0.5, 3)


def test_a_models_units_of_which_not_all_is_known():
    usage = ModelUsage("output", 100, {"a": of_units(4, 3.0, None), "b": PLAIN}, {})
    assert (usage.units, usage.effective_units, usage.effective_unit_share, usage.dead_units) == (
        6, None, None, None)
    assert ModelUsage("output", 100, {"a": of_units(4, 3.0, 0)}, {}).dead_units == 0
