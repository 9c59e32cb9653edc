"""Usages made by hand for the pictures' tests, with the names that real models give."""

from __future__ import annotations

import math
import re

import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text

from wua_mlflow.usage.results import Concentration, Histogram, LayerUsage, ModelUsage, NullUsage

NO_HISTOGRAM = Histogram(np.array([0.0, 1.0]), np.array([1]), 0.0)


def layer(name, share=0.5, null=None, *, weights=100,  # noqa: PLR0913 - each by name
          units=None, unit_share=None, flops=None, dead_units=None) -> LayerUsage:
    importance = np.ones(10) if units is None else np.asarray(units, float)
    count = len(importance)
    return LayerUsage(
        name=name, kind="Linear", weights=weights, units=count,
        entropy=math.log(share * weights) if share else 0.0, effective_weights=share * weights,
        top90_share=0.5, low_share=0.0, unit_importance=importance, histogram=NO_HISTOGRAM,
        dead=share == 0, dead_units=dead_units, forward_flops=flops,
        null=NullUsage("reinitialised", 20, sum(null) / 2, *null, 0.1) if null else None,
        unit_usage=Concentration(count, 0.0, count * unit_share, 0.5, 0.0) if unit_share else None)


def model(layers: list[LayerUsage], skipped: int = 0) -> ModelUsage:
    reasons = {f"skipped{i}": "not a matrix" for i in range(skipped)}
    return ModelUsage("output", 1000, {layer.name: layer for layer in layers}, reasons)


PARTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj",
         "fc1", "fc2")


def names(count: int) -> list[str]:
    """A few layers of an MLP, or the linear layers of a transformer's blocks between two others."""
    if count <= 5:
        return [f"fc{i + 1}" for i in range(count)]
    blocks = [f"model.encoder.layers.{i // 6}.{PARTS[i % 6]}" for i in range(count - 2)]
    return ["model.embed_tokens", *blocks, "model.pooler.dense"]


def many(count: int) -> ModelUsage:
    """Layers of 1 to 50,000 units; some dead, without a null, or with dead units."""
    rng = np.random.default_rng(0)
    layers = []
    for i, name in enumerate(names(count)):
        low = 0.1 + 0.7 * rng.random()
        size = (64, 32, 1, 50_000, 300)[i % 5]
        units = np.resize(rng.lognormal(0, 1, 300), size)
        units[: size // 7] = 0
        dead = count > 5 and i % 40 == 11
        share = 0.0 if dead else 0.1 + 0.8 * rng.random()
        layers.append(layer(name, share, None if i % 7 == 5 else (low, low + 0.1), unit_share=0.6,
                            units=0 * units if dead else units,
                            dead_units=None if i % 3 == 2 else size // 7))
    return model(layers, skipped=2)


def words_of(figure: Figure) -> str:
    """All that a figure says, without drawing it; line breaks are spaces."""
    return re.sub(r"\s+", " ", " ".join(text.get_text() for text in figure.findobj(Text)))
