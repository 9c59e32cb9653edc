"""``verdict/scores.py``: values beside scikit-learn's, influence beside derivatives."""

import math

import numpy as np
import pytest
from sklearn import metrics

from wua_mlflow.verdict.scores import SCORES, by_group, find_score, pseudo_scores, value

OF_PREDICTIONS = [name for name, score in SCORES.items() if score.takes != "scores"]

LABELS = ("accuracy", "balanced_accuracy", "f1", "f1_macro", "mcc")
REFERENCES = {
    "accuracy": metrics.accuracy_score, "balanced_accuracy": metrics.balanced_accuracy_score,
    "f1": metrics.f1_score, "mcc": metrics.matthews_corrcoef, "roc_auc": metrics.roc_auc_score,
    "f1_macro": lambda y, p, **kw: metrics.f1_score(y, p, average="macro", **kw),
    "average_precision": metrics.average_precision_score, "log_loss": metrics.log_loss,
    "brier": metrics.brier_score_loss, "r2": metrics.r2_score, "mae": metrics.mean_absolute_error,
    "rmse": lambda y, p, **kw: math.sqrt(metrics.mean_squared_error(y, p, **kw)),
}


def example(name: str, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Targets and predictions that ``name`` takes; probabilities have ties."""
    rng = np.random.default_rng(3)
    if SCORES[name].takes == "values":
        y = rng.normal(size=n)
        return y, y + 0.5 * rng.normal(size=n)
    y = (rng.random(n) < 0.3).astype(int)
    p = np.round(1 / (1 + np.exp(-rng.normal(2.0 * y - 1, 1.0))), 1).clip(0.05, 0.95)
    return y, (p > 0.5).astype(int) if name in LABELS else p


@pytest.mark.parametrize("name", OF_PREDICTIONS)
def test_value_and_mean_are_scikit_learns(name: str) -> None:
    y, p = example(name)
    expected = REFERENCES[name](y, p)
    assert value(name, y, p) == pytest.approx(expected, abs=1e-12)
    sign = -1 if SCORES[name].less_is_better else 1
    assert pseudo_scores(name, y, p).mean() == pytest.approx(sign * expected, abs=1e-12)


@pytest.mark.parametrize("name", OF_PREDICTIONS)
def test_influence_is_the_derivative_with_respect_to_an_examples_weight(name: str) -> None:
    y, p = example(name, 1001 if name == "average_precision" else 60)
    sign = -1 if SCORES[name].less_is_better else 1
    pseudo, step = pseudo_scores(name, y, p), 1e-4
    for i in (0, 7, 31):
        up, down = np.ones(y.size), np.ones(y.size)
        up[i], down[i] = 1 + step, 1 - step
        slope = (REFERENCES[name](y, p, sample_weight=up)
                 - REFERENCES[name](y, p, sample_weight=down)) / (2 * step)
        assert pseudo[i] - pseudo.mean() == pytest.approx(sign * slope * y.size, abs=1e-5)


def test_average_precision_of_few_examples_has_the_jackknifes_influence() -> None:
    y, p = example("average_precision")
    every = np.arange(y.size)
    without = np.array([metrics.average_precision_score(y[every != i], p[every != i])
                        for i in every])
    expected = metrics.average_precision_score(y, p) + (y.size - 1) * (without.mean() - without)
    assert pseudo_scores("average_precision", y, p) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["balanced_accuracy", "f1_macro", "mcc"])
def test_three_classes_named_by_strings(name: str) -> None:
    rng = np.random.default_rng(5)
    y = rng.choice(["ant", "bee", "cat"], 90)
    p = np.where(rng.random(90) < 0.6, y, rng.choice(["ant", "bee", "cat"], 90))
    pseudo, weight = pseudo_scores(name, y, p), np.ones(90)
    assert pseudo.mean() == pytest.approx(REFERENCES[name](y, p))
    weight[4] += 1e-5
    slope = (REFERENCES[name](y, p, sample_weight=weight) - REFERENCES[name](y, p)) / 1e-5
    assert pseudo[4] - pseudo.mean() == pytest.approx(90 * slope, abs=1e-3)


def test_columns_of_probabilities() -> None:
    rng = np.random.default_rng(6)
    y, p = rng.integers(3, size=80), rng.dirichlet([1.0, 1.0, 1.0], 80)
    assert value("roc_auc", y, p) == pytest.approx(
        metrics.roc_auc_score(y, p, multi_class="ovr", average="macro"))
    assert value("average_precision", y, p) == pytest.approx(
        metrics.average_precision_score(np.eye(3)[y], p, average="macro"))
    assert value("log_loss", y, p) == pytest.approx(metrics.log_loss(y, p))
    assert value("brier", y, p) == pytest.approx(np.square(np.eye(3)[y] - p).sum(1).mean())
    two = np.stack([1 - p[:, 0], p[:, 0]], axis=1)
    assert value("roc_auc", y == 0, two) == value("roc_auc", y == 0, p[:, 0])


def test_difference_of_r2_is_linearised_as_defined() -> None:
    y, old = example("r2")
    new = old + 0.2
    v = y.var()
    d = (np.square(y - old) - np.square(y - new)) / v
    expected = d - d.mean() * (np.square(y - y.mean()) / v - 1)
    assert pseudo_scores("r2", y, new) - pseudo_scores("r2", y, old) == pytest.approx(expected)


def test_a_leading_axis_of_seeds() -> None:
    y, p = example("roc_auc")
    rows = pseudo_scores("roc_auc", y, np.stack([p, p[::-1]]))
    assert rows.shape == (2, y.size)
    assert rows[1] == pytest.approx(pseudo_scores("roc_auc", y, p[::-1]))


def test_groups_keep_the_mean_and_doubled_examples_are_no_more_than_one() -> None:
    pseudo = np.random.default_rng(1).normal(size=(4, 30))
    twice, groups = np.repeat(pseudo, 2, axis=1), np.repeat(np.arange(30), 2)
    assert by_group(twice, groups) == pytest.approx(pseudo)
    uneven = by_group(pseudo[0], np.minimum(np.arange(30), 20))
    assert uneven.shape == (21,)
    assert uneven.mean() == pytest.approx(pseudo[0].mean())
    with pytest.raises(ValueError, match="one label for each of 30"):
        by_group(pseudo, [1, 2])
    with pytest.raises(ValueError, match="two groups"):
        by_group(pseudo, np.zeros(30))


def test_a_function_gives_one_number_or_one_an_example() -> None:
    y, p = example("mae", 20)
    name = "sklearn.metrics:mean_squared_error"
    assert pseudo_scores(name, y, p) == pytest.approx(np.square(y - p))
    assert value("numpy:subtract", y, p) == pytest.approx((y - p).mean())


def test_constant_predictions_have_a_value_and_no_nan() -> None:
    y = np.repeat([0, 1], [18, 2])
    for name in LABELS:
        assert np.isfinite(pseudo_scores(name, y, np.zeros(20, int))).all()
    assert value("mcc", y, np.zeros(20, int)) == 0.0
    assert value("rmse", y, y) == 0.0
    assert not pseudo_scores("rmse", y, y).any()


@pytest.mark.parametrize(("name", "y", "p", "match"), [
    ("acuracy", [0, 1], [0, 1], "did you mean"),
    ("f1", [0, 1, 2], [0, 1, 2], "f1_macro"),
    ("roc_auc", [1, 1, 1], [0.1, 0.2, 0.3], "of 1 classes"),
    ("brier", [0, 1], [0.5, 1.5], r"within \[0, 1\]"),
    ("rmse", [0.0, 1.0], [0.0, math.nan], "finite"),
    ("rmse", [0.0, 1.0], [0.0], "shape"),
    ("r2", [1.0, 1.0], [0.0, 1.0], "different values"),
])
def test_refusals(name: str, y: list[float], p: list[float], match: str) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        pseudo_scores(name, y, p)
    assert "\n" not in str(caught.value)


def test_find_score() -> None:
    assert find_score("numpy:subtract").takes == "anything"


def test_f1_of_one_class_alone_knows_which_it_is() -> None:
    """All positive and all found is 1; all negative has no positive one: 0."""
    assert value("f1", [1, 1, 1], [1, 1, 1]) == 1.0
    assert value("f1", [0, 0, 0], [0, 0, 0]) == 0.0
    assert value("f1", [True, True], [True, True]) == 1.0
    assert pseudo_scores("f1", [1, 1, 1], [1, 1, 1]).tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="^targets: expected both classes for f1, but all are 'a'"):
        value("f1", ["a", "a"], ["a", "a"])
