"""Slimming a trained network: which units go together, which matter, and cutting the others out.

May import: torch, torch_pruning (``graph.py`` alone), analysis, chunks, dotted, evaluation, flops,
hooks, importance, randomness. Tests: ``tests/slimming/``.
"""

from __future__ import annotations

from wua_mlflow.slimming.cutting import Cut, cut, unit_groups
from wua_mlflow.slimming.folding import folded
from wua_mlflow.slimming.groups import Places, Structure, UnitGroup
from wua_mlflow.slimming.importance import most_important, unit_importance
from wua_mlflow.slimming.masked import masked
from wua_mlflow.slimming.specification import Specification, rebuild

__all__ = [
    "Cut",
    "Places",
    "Specification",
    "Structure",
    "UnitGroup",
    "cut",
    "folded",
    "masked",
    "most_important",
    "rebuild",
    "unit_groups",
    "unit_importance",
]
