"""From measurements of one trained network to recommended widths.

May import: torch, analysis, chunks, concentration, dotted, evaluation, hooks, randomness, slimming,
usage. Tests: ``tests/widths/``.
"""

from __future__ import annotations

from wua_mlflow.widths.effective import effective_widths
from wua_mlflow.widths.factory import Factory, layers_by_width
from wua_mlflow.widths.recommendation import Curve, LayerWidth, WidthRecommendation
from wua_mlflow.widths.recommending import recommend_widths
from wua_mlflow.widths.retrained import Search

__all__ = [
    "Curve",
    "Factory",
    "LayerWidth",
    "Search",
    "WidthRecommendation",
    "effective_widths",
    "layers_by_width",
    "recommend_widths",
]
