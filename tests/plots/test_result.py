"""Every result has its picture, legible; what holds nothing to draw says so."""

from __future__ import annotations

import pytest

from tests.plots.usages import model
from tests.test_display import SMALL
from wua_mlflow.flops import FlopCount
from wua_mlflow.plots.result import plot_result


@pytest.mark.parametrize("result", [pytest.param(result, id=name) for name, result in SMALL.items()
                                    if name != "no widths"])
def test_each_has_its_picture(result, legible):
    assert legible(result.plot())


def test_what_has_no_picture_says_so():
    with pytest.raises(TypeError, match="result: expected"):
        plot_result(3)
    for empty in (FlopCount(0, 0, {}, {}, {}, 1), SMALL["no widths"], model([])):
        assert str(empty)
        with pytest.raises(ValueError, match="expected"):
            empty.plot()
