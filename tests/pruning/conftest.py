"""Seeded random streams, and networks that are cut once for all tests of this folder."""

from types import SimpleNamespace

import pytest

from tests.networks import kept_streams
from tests.pruning.cutting_cases import CASES
from wua_mlflow.pruning.cut import cut, unit_groups


@pytest.fixture(autouse=True)
def _seeded():
    with kept_streams():
        yield


@pytest.fixture(scope="session", params=CASES, ids=list(CASES))
def pruned(request):
    """A case, its network, the groups of it, and the cut one; none of them is to be changed."""
    case = CASES[request.param]
    with kept_streams():
        model = case.whole()
        structure = unit_groups(model, case.example(4))
        return SimpleNamespace(case=case, model=model, structure=structure,
                               result=cut(model, case.example(4), case.keep, structure))
