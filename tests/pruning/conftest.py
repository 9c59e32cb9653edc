"""Seeded random streams, and networks that are cut once for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from torch import nn

from tests.networks import kept_streams
from tests.pruning.cutting_cases import CASES, Case
from wua_mlflow.pruning.cut import Cut, cut, unit_groups
from wua_mlflow.pruning.unit_groups import UnitGroups


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with kept_streams():
        yield


@dataclass(frozen=True)
class Pruned:
    """A case, its network, the groups of it, and the cut one; none of them is to be changed."""

    case: Case
    model: nn.Module
    structure: UnitGroups
    result: Cut


@pytest.fixture(scope="session", params=CASES, ids=list(CASES))
def pruned(request: pytest.FixtureRequest) -> Pruned:
    case = CASES[request.param]
    with kept_streams():
        model = case.whole()
        structure = unit_groups(model, case.example(4))
        return Pruned(case, model, structure, cut(model, case.example(4), case.keep, structure))
