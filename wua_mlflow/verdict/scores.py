"""Scores of predictions, and what each example adds to them.

``value`` is a score as scikit-learn gives it. ``pseudo_scores`` turns predictions into one number
an example, whose mean is that score and whose spread is that of the score's influence function, so
that intervals for means of examples hold for scores that are no such mean (delta method: Hampel
1974, JASA 69:383; the area under the ROC curve: DeLong et al. 1988, Biometrics 44:837).
Tests: ``tests/verdict/test_scores.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wua_mlflow.errors import did_you_mean, one_line
from wua_mlflow.imports import load_object

__all__ = [
    "BY_EXAMPLE", "EXAMPLE_MEANS", "RANKINGS", "SCORES", "Score", "by_group", "check_task",
    "comparable_scores", "default_score", "find_score", "pseudo_scores", "value",
    "value_of_comparable",
]


Floats = NDArray[np.float64]
Codes = NDArray[np.intp]


@dataclass(frozen=True)
class Score:
    """A score that models may be compared by.

    Attributes:
        name: of the registry, or ``package.module:function``.
        takes: ``labels`` (n,), ``probabilities`` (n,) of the positive class or (n, classes),
            ``values`` (n,) of a regression, or ``scores`` (n,) by example: log-likelihoods of
            tokens, intersection over union of images; ``anything`` for a function of the user's.
        less_is_better: its sign is changed in ``pseudo_scores``, and margins are shares of the
            original's value.
    """

    name: str
    takes: str
    less_is_better: bool = False


SCORES = {score.name: score for score in (
    Score("accuracy", "labels"), Score("balanced_accuracy", "labels"), Score("f1", "labels"),
    Score("f1_macro", "labels"), Score("mcc", "labels"), Score("roc_auc", "probabilities"),
    Score("average_precision", "probabilities"), Score("log_loss", "probabilities", True),
    Score("brier", "probabilities", True), Score("r2", "values"), Score("rmse", "values", True),
    Score("mae", "values", True), Score("perplexity", "scores", True), Score("iou", "scores"))}
"""The scores that have a name."""

BY_EXAMPLE = ("language_modeling", "segmentation", "custom")
"""Tasks that are judged by scores of single examples, not by predictions."""

RANKINGS = ("roc_auc", "average_precision")
"""Scores of the order of the predictions alone."""

_LEAST_LOSS = 1e-12
"""A value below counts as this much where its logarithm is taken."""

EXAMPLE_MEANS = ("accuracy", "r2")
"""Scores that are the mean of per-example scores that may be given as they are."""


def find_score(name: str) -> Score:
    """The score that ``name`` means.

    Raises:
        ValueError: neither a name of ``SCORES`` nor a ``package.module:function``.

    >>> find_score("rmse").less_is_better
    True
    """
    if name in SCORES:
        return SCORES[name]
    if ":" in name:
        load_object(name, argument="score")
        return Score(name, "anything")
    raise ValueError(f"score: expected one of {', '.join(SCORES)} or package.module:function, but "
                     f"got {name!r}{did_you_mean(name, list(SCORES))}")


def value(
    score: str, targets: ArrayLike, predictions: ArrayLike, *, labels: ArrayLike | None = None
) -> float:
    """The score as it is reported, by scikit-learn.

    Args:
        score: a name of ``SCORES`` or ``package.module:function``.
        targets: shape (n,); labels of any kind, or numbers for a regression. The positive one of
            two classes is the last in sorted order.
        predictions: as ``Score.takes`` says. Columns of (n, classes) are in the sorted order of
            the classes in ``targets``. Of several classes ``roc_auc`` and ``average_precision``
            are means over one class against the rest, ``brier`` is the sum over classes.
        labels: the classes in sorted order, where ``targets`` lack some: those of the columns, and
            those that ``f1_macro`` is the mean of (else those in targets and predictions).

    Raises:
        ValueError: shapes or values that the score cannot take, in one line.

    >>> value("f1", [0, 1, 1, 0], [0, 1, 0, 0]) == 2 / 3
    True
    """
    found, y, p = _checked(score, targets, predictions)
    if found.takes == "anything":
        return float(_function_result(score, y, p).mean())
    if found.takes == "labels":
        return _label_value(score, *_codes(score, y, p, labels))
    if found.takes == "values":
        return _regression_value(score, y, p)
    return _probability_value(score, *_columns(score, y, p, labels))


def pseudo_scores(
    score: str, targets: ArrayLike, predictions: ArrayLike, *, labels: ArrayLike | None = None
) -> Floats:
    """What each example adds: higher is better, the mean is the score (of either sign).

    Means of examples give each example's own score; ``r2`` is linearised, Var(y) being of these
    targets; every other score is its value plus its influence function. A function that gives one
    number has the jackknife's influence, at n calls.

    Args:
        score: as in ``value``.
        targets: as there.
        predictions: as there, or with a leading axis of seeds where ``targets`` have n entries
            and the second axis is n and the first is not.
        labels: as there.

    Returns:
        Shape (n,), or (seeds, n).

    Raises:
        ValueError: as ``value``.

    >>> pseudo_scores("balanced_accuracy", [0, 0, 0, 1], [0, 0, 1, 1]).round(2).tolist()
    [1.06, 1.06, 0.39, 0.83]
    """
    array, n = np.asarray(predictions), np.asarray(targets).size
    if array.ndim > 1 and array.shape[1] == n and (array.ndim == 3 or array.shape[0] != n):
        return np.stack([pseudo_scores(score, targets, row, labels=labels) for row in array])
    found, y, p = _checked(score, targets, predictions)
    if found.takes == "anything":
        return _by_function(score, y, p)
    if found.takes == "labels":
        true, guessed, classes = _codes(score, y, p, labels)
        if score == "accuracy":
            return np.asarray(true == guessed, dtype=np.float64)
        return _LABEL_EXAMPLES[score](true, guessed, classes)
    if found.takes == "values":
        return _regression_examples(score, y, p)
    return _probability_examples(score, *_columns(score, y, p, labels))


def comparable_scores(
    score: str, targets: ArrayLike, predictions: ArrayLike, *, labels: ArrayLike | None = None
) -> Floats:
    """Numbers by example, shape (n,), for which a margin of ``score`` is a difference of means.

    ``pseudo_scores``; where less is better −log of the value, linearised, so that a difference is a
    share of the value, whichever network it is of.

    Args:
        score: as in ``value``.
        targets: as there.
        predictions: as there, of one network.
        labels: as there.

    >>> comparable_scores("mae", [1.0, 2.0], [1.5, 2.5]).round(3).tolist()
    [0.693, 0.693]
    """
    examples = pseudo_scores(score, targets, predictions, labels=labels)
    if not find_score(score).less_is_better:
        return examples
    level = max(-float(examples.mean()), _LEAST_LOSS)
    return np.asarray(examples / level - math.log(level) + 1)


def value_of_comparable(score: str, comparable: ArrayLike) -> float:
    """The value that ``comparable_scores`` are of."""
    mean = float(np.asarray(comparable, dtype=np.float64).mean())
    return math.exp(-mean) if score in SCORES and SCORES[score].less_is_better else mean


def default_score(task: str) -> str:
    """What models are judged by where no score is set.

    >>> default_score("binary"), default_score("regression")
    ('accuracy', 'r2')
    """
    own = {"regression": "r2", "language_modeling": "perplexity", "segmentation": "iou",
           "custom": ""}
    return own.get(task, "accuracy")


def check_task(score: str, task: str) -> None:
    """Raise unless predictions of a task can have the score.

    Args:
        score: as in ``value``.
        task: of a single decision, or one of ``BY_EXAMPLE``.

    Raises:
        ValueError: one line.
    """
    takes = find_score(score).takes
    if task in BY_EXAMPLE:
        fits = [name for name in (default_score(task),) if name]
    else:
        fits = [name for name, one in SCORES.items() if one.takes != "scores"
                and (one.takes == "values") == (task == "regression")
                and (name != "f1" or task == "binary")]
    if takes != "anything" and score not in fits:
        raise ValueError(f"score: expected one of {', '.join(fits)} or package.module:function for "
                         f"a {task} task, but got {score!r}")


def by_group(pseudo: ArrayLike, groups: ArrayLike) -> Floats:
    """One number a group, so that groups are the single draws; the mean stays.

    Each is value + Σ(pseudo − value) · G/n over the group's examples: the influence of a group on
    a mean over examples whose group sizes are drawn too.

    Args:
        pseudo: shape (n,) or (seeds, n).
        groups: shape (n,), labels of any kind.

    Returns:
        Shape (G,) or (seeds, G), in the sorted order of the labels.

    Raises:
        ValueError: not one label an example, or fewer than two groups.

    >>> by_group([1.0, 0.0, 1.0, 1.0], ["a", "a", "b", "b"]).tolist()
    [0.5, 1.0]
    """
    values, labels = np.asarray(pseudo, dtype=np.float64), np.asarray(groups)
    if labels.shape != values.shape[-1:]:
        raise ValueError(f"groups: expected one label for each of {values.shape[-1]} examples, but "
                         f"got the shape {labels.shape}")
    names, member = np.unique(labels, return_inverse=True)
    if names.size < 2:
        raise ValueError("groups: expected at least two groups, but got one")
    mean = values.mean(axis=-1, keepdims=True)
    rows = [np.bincount(member, weights=row) for row in np.atleast_2d(values - mean)]
    sums = np.stack(rows).reshape(*values.shape[:-1], names.size)
    return np.asarray(mean + sums * names.size / values.shape[-1])


def _checked(score: str, targets: ArrayLike, predictions: ArrayLike) -> tuple[Score, Any, Any]:
    found, y, p = find_score(score), np.asarray(targets), np.asarray(predictions)
    if y.ndim != 1 or y.size < 2:
        raise ValueError(f"targets: expected the shape (n,), n at least 2, but got {y.shape}")
    flat = found.takes in ("labels", "values")
    if p.shape[:1] != y.shape or p.ndim > (1 if flat else 2):
        expected = "(n,)" if flat else "(n,) or (n, classes)"
        raise ValueError(f"predictions: expected {found.takes} of the shape {expected} with n = "
                         f"{y.size} for {score}, but got {p.shape}")
    if found.takes == "values":
        y = y.astype(np.float64)
    if found.takes in ("values", "probabilities"):
        p = p.astype(np.float64)
    for name, array in (("targets", y), ("predictions", p)):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name}: expected finite numbers, but got nan or an infinite one")
    return found, y, p


def _codes(score: str, y: Any, p: Any, labels: ArrayLike | None) -> tuple[Codes, Codes, Codes]:
    """Labels as 0, 1, ... in sorted order of those in either array, and all of these numbers."""
    both = [y, p] if labels is None else [y, p, np.asarray(labels)]
    names, codes = np.unique(np.concatenate(both), return_inverse=True)
    codes = codes.ravel()
    if score == "f1" and names.size > 2:
        raise ValueError(f"score: expected two classes for f1, but got {names.size}; f1_macro "
                         "takes more")
    if score == "f1" and names.size == 1:
        if names[0] not in (0, 1):
            raise ValueError(f"targets: expected both classes for f1, but all are "
                             f"{names.tolist()[0]!r}, which does not say which class is positive")
        codes = codes + int(names[0])
    return codes[:y.size], codes[y.size:2 * y.size], np.unique(codes)


def _columns(score: str, y: Any, p: Floats, labels: ArrayLike | None) -> tuple[Codes, Floats]:
    """Targets as codes, and predictions of shape (n,) for two classes or (n, classes)."""
    both = y if labels is None else np.concatenate([y, np.asarray(labels)])
    names, codes = np.unique(both, return_inverse=True)
    codes = codes.ravel()[:y.size]
    classes = 2 if p.ndim == 1 else p.shape[1]
    if names.size != classes:
        raise ValueError(f"predictions: expected probabilities of {names.size} classes, those of "
                         f"the targets, for {score}, but got {classes}")
    present = np.unique(codes).size
    if present < classes and score in RANKINGS:
        raise ValueError(f"targets: expected examples of each of {classes} classes for {score}, "
                         f"but {classes - present} have none")
    if score in ("log_loss", "brier") and (p.min() < 0 or p.max() > 1):
        raise ValueError(f"predictions: expected probabilities within [0, 1] for {score}, but got "
                         f"{p.min():.6g} to {p.max():.6g}")
    return codes, p[:, 1] if p.ndim == 2 and classes == 2 else p


def _by_function(score: str, y: Any, p: Any) -> Floats:
    """One number an example of a user's function, by the jackknife where it gives one number."""
    result = _function_result(score, y, p)
    if result.shape:
        return result
    every = np.arange(y.size)
    return _jackknife(float(result), np.array([
        float(_function_result(score, y[every != i], p[every != i])) for i in every]))


def _function_result(score: str, y: Any, p: Any) -> Floats:
    """A user's function of all examples: shape () or (n,)."""
    function: Callable[[Any, Any], Any] = load_object(score, argument="score")
    try:
        result = np.asarray(function(y, p), dtype=np.float64)
    except Exception as error:  # whatever the user's code raises
        raise ValueError(f"score: expected {score} to take {y.size} targets and their "
                         f"predictions, but it raised {one_line(error)}") from error
    if result.shape not in ((), y.shape):
        raise ValueError(f"score: expected {score} to give a number, or one for each of {y.size} "
                         f"examples, but got the shape {result.shape}")
    if not np.isfinite(result).all():
        raise ValueError(f"score: expected {score} to give finite numbers, but got nan or an "
                         f"infinite one of {y.size} examples")
    return result


def _label_value(score: str, true: Codes, guessed: Codes, classes: Codes) -> float:
    if score == "accuracy":
        return float(np.mean(true == guessed))  # scikit-learn's own takes fifty times as long

    from sklearn import metrics

    if score == "balanced_accuracy":
        present = np.unique(true)
        return float(metrics.recall_score(true, guessed, labels=present, average="macro"))
    if score == "mcc":
        if np.unique(np.concatenate([true, guessed])).size == 1:
            return 0.0  # as scikit-learn, which warns
        return float(metrics.matthews_corrcoef(true, guessed))
    if score == "f1":
        return float(metrics.f1_score(true, guessed, zero_division=0))
    return float(metrics.f1_score(true, guessed, labels=classes, average="macro",
                                  zero_division=0))


def _balanced_accuracy(true: Codes, guessed: Codes, classes: Codes) -> Floats:
    counts = np.bincount(true)
    right = (true == guessed).astype(np.float64)
    recall = np.bincount(true, weights=right) / np.maximum(counts, 1)
    share = counts[true] / true.size
    present = np.count_nonzero(counts)
    return _centred(float(recall.sum()) / present, (right - recall[true]) / share / present)


def _f1_of(true: Codes, guessed: Codes, which: int) -> Floats:
    """Of F = 2·P(both) ÷ (P(true) + P(guessed))."""
    is_true, is_guessed = (true == which).astype(float), (guessed == which).astype(float)
    both, either = is_true * is_guessed, is_true + is_guessed
    total = float(either.mean())
    if total == 0:
        return np.zeros(true.size)
    score = 2 * float(both.mean()) / total
    return _centred(score, (2 * both - score * either) / total)


def _f1(true: Codes, guessed: Codes, classes: Codes) -> Floats:
    return _f1_of(true, guessed, 1)


def _f1_macro(true: Codes, guessed: Codes, classes: Codes) -> Floats:
    return np.asarray(np.mean([_f1_of(true, guessed, which) for which in classes], axis=0))


def _mcc(true: Codes, guessed: Codes, classes: Codes) -> Floats:
    """Of A/√(B·D): covariance and variances of the one-hot columns (Gorodkin 2004)."""
    most = int(classes.max()) + 1
    t = np.bincount(true, minlength=most) / true.size
    g = np.bincount(guessed, minlength=most) / true.size
    right = (true == guessed).astype(np.float64)
    a, b, d = right.mean() - t @ g, 1 - g @ g, 1 - t @ t
    if min(b, d) <= 0:
        return np.zeros(true.size)
    of_a = right - right.mean() - (t[guessed] + g[true] - 2 * (t @ g))
    of_b, of_d = -2 * (g[guessed] - g @ g), -2 * (t[true] - t @ t)
    root = np.sqrt(b * d)
    return _centred(float(a / root), of_a / root - a / root / 2 * (of_b / b + of_d / d))


def _centred(score: float, influence: Floats) -> Floats:
    """With the score as the mean, to rounding."""
    return np.asarray(score + influence - influence.mean())


_LABEL_EXAMPLES = {"balanced_accuracy": _balanced_accuracy, "f1": _f1, "f1_macro": _f1_macro,
                   "mcc": _mcc}


def _regression_value(score: str, y: Floats, p: Floats) -> float:
    from sklearn import metrics

    if score == "r2":
        return float(metrics.r2_score(y, p))
    if score == "mae":
        return float(metrics.mean_absolute_error(y, p))
    return math.sqrt(metrics.mean_squared_error(y, p))


def _regression_examples(score: str, y: Floats, p: Floats) -> Floats:
    if score == "mae":
        return -np.abs(y - p)
    squares = np.square(y - p)
    mean = float(squares.mean())
    if score == "rmse":
        root = mean**0.5
        return -root - (squares - mean) / (2 * root) if root > 0 else np.zeros(y.size)
    spread = np.square(y - y.mean())
    variance = float(spread.mean())
    if variance == 0:
        raise ValueError("targets: expected at least two different values for r2, but got one")
    return np.asarray(1 - squares / variance + mean / variance * (spread / variance - 1))


def _probability_value(score: str, codes: Codes, p: Floats) -> float:
    from sklearn import metrics

    if score in ("log_loss", "brier"):
        return float(-_probability_examples(score, codes, p).mean())
    function = (metrics.roc_auc_score if score == "roc_auc" else metrics.average_precision_score)
    return float(np.mean([function(is_class, column) for is_class, column in _one_rest(codes, p)]))


def _probability_examples(score: str, codes: Codes, p: Floats) -> Floats:
    columns = np.stack([1 - p, p], axis=1) if p.ndim == 1 else p
    rows = np.arange(codes.size)
    if score == "log_loss":
        tiny = float(np.finfo(np.float64).eps)
        return np.asarray(np.log(np.clip(columns[rows, codes], tiny, 1 - tiny)))
    if score == "brier":
        squares = np.square(columns - np.eye(columns.shape[1])[codes]).sum(axis=1)
        return np.asarray(-squares / (2 if p.ndim == 1 else 1))
    examples = _placements if score == "roc_auc" else _average_precision
    return np.asarray(np.mean([examples(is_class, column)
                               for is_class, column in _one_rest(codes, p)], axis=0))


def _one_rest(codes: Codes, p: Floats) -> list[tuple[NDArray[np.bool_], Floats]]:
    if p.ndim == 1:
        return [(codes == 1, p)]
    return [(codes == which, p[:, which]) for which in range(p.shape[1])]


def _placements(positive: NDArray[np.bool_], p: Floats) -> Floats:
    """DeLong's: the share of the other class that an example is on the right side of."""
    result = np.empty(p.size)
    for this, sign in ((positive, 1.0), (~positive, -1.0)):
        others = np.sort(sign * p[~this])
        mine = sign * p[this]
        below = np.searchsorted(others, mine, "left") + np.searchsorted(others, mine, "right")
        placed = below / (2 * others.size)
        area = float(placed.mean())
        result[this] = (placed - area) / this.mean()
    return _centred(area, result)


_MOST_FOR_JACKKNIFE = 300
"""Up to so many examples average precision has the jackknife's influence: on few positive ones its
own is too small (``benchmarks/scores.py``)."""


def _jackknife(score: float, without: Floats) -> Floats:
    """Pseudo-values around a score, from the scores without each example (Tukey 1958)."""
    return np.asarray(score + (without.size - 1) * (without.mean() - without))


def _average_precision_without(
    positive: NDArray[np.bool_], level: Codes, count: Codes, hits: NDArray[Any]
) -> Floats:
    """Average precision without each example, shape (n,); at least two are positive.

    Args:
        positive: shape (n,).
        level: of each example's score, from 0, shape (n,).
        count: examples at each level.
        hits: positive ones at each level.
    """
    levels = np.arange(count.size)[:, None]
    counted = np.cumsum(count[::-1])[::-1, None] - (level >= levels)
    found = np.cumsum(hits[::-1])[::-1, None] - (level >= levels) * positive
    at_level = hits[:, None] - (level == levels) * positive
    precision = found / np.maximum(counted, 1)
    return np.asarray((at_level * precision).sum(axis=0) / (positive.sum() - positive))


def _average_precision(positive: NDArray[np.bool_], p: Floats) -> Floats:
    """Of E[y·a(S)]/E[y], a(s) = P(y = 1 | S ≥ s): an example moves a at its score and below it."""
    thresholds, level = np.unique(p, return_inverse=True)
    count = np.bincount(level, minlength=thresholds.size)
    hits = np.bincount(level, weights=positive, minlength=thresholds.size)
    reached = np.cumsum(count[::-1])[::-1] / p.size
    precision = np.cumsum(hits[::-1])[::-1] / p.size / reached
    rate = float(positive.mean())
    average = float(hits @ precision) / p.size / rate
    weight = hits / p.size / reached
    plain, weighted = np.cumsum(weight), np.cumsum(weight * precision)
    if positive.sum() > 1 and p.size <= _MOST_FOR_JACKKNIFE:
        return _jackknife(average, _average_precision_without(positive, level, count, hits))
    own = positive * (precision[level] - average)
    return _centred(average, (own + positive * plain[level] - weighted[level]) / rate)
