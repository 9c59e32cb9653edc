"""Settings and ``compare`` take the same margins and confidences."""

import math

import numpy as np
import pytest

from wua_mlflow.config import ConfigError, load_settings
from wua_mlflow.levels import LEAST_CONFIDENCE, LEAST_MARGIN, MOST_CONFIDENCE
from wua_mlflow.pipeline.compare import judge
from wua_mlflow.training.evaluation import Evaluation
from wua_mlflow.verdict.compare import compare

SCORES = np.arange(40) % 4 > 0


@pytest.mark.parametrize("name", ["margin", "confidence"])
@pytest.mark.parametrize("value", [
    0.0, 1e-13, LEAST_MARGIN, 1e-10, LEAST_CONFIDENCE, 0.5, MOST_CONFIDENCE, 1 - 1e-10, 1 - 1e-16,
    1.0, -1e-13, math.nan, math.inf])
def test_a_setting_is_refused_where_compare_refuses_it(name, value):
    def taken(call) -> bool:
        try:
            call()
        except ValueError as error:
            assert str(error).startswith(f"{name}: expected ")
            return False
        return True

    by_compare = taken(lambda: compare(SCORES, SCORES, **{name: value}))
    assert taken(lambda: load_settings(None, {name: value})) == by_compare


def test_a_setting_says_its_range():
    for name, value, words in (
        ("margin", "1e-13", "0 or a number from 1e-12 to below 1"),
        ("confidence", "0.9999999999", "a number from 1e-9 to 1 - 1e-9"),
    ):
        with pytest.raises(ConfigError) as raised:
            load_settings(None, {name: value})
        assert str(raised.value) == f"{name}: expected {words}, but got '{value}'"


def test_a_confidence_for_many_looks_stays_one():
    evaluation = Evaluation("binary", 1.0 * SCORES, 1.0 * SCORES, 0.0 * SCORES)
    settings = load_settings(None, {"confidence": MOST_CONFIDENCE})
    result = judge(evaluation, evaluation, settings, classes=("a", "b"), looks=50)
    assert result.bonferroni.confidence == MOST_CONFIDENCE
