"""What a trained network's scores say of itself: it overfits, is of no use, or too good to be true.

Tests: ``tests/pipeline/test_cautions.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from wua_mlflow.config import Settings
from wua_mlflow.data.tasks import score_name
from wua_mlflow.training.evaluation import Evaluation
from wua_mlflow.verdict.scores import BY_EXAMPLE, SCORES, find_score, value_of_comparable

__all__ = ["cautions", "cautions_elsewhere", "constant_answer", "constant_score", "shown_score"]


_FAR = 0.1
"""So much more on training data than on test data is overfitting, where it is no accident."""
_STANDARD_ERRORS = 3.0
_PERFECT, _FEWEST_PERFECT = 0.9995, 100


def shown_score(test: Evaluation) -> str:
    """What a network is judged by, and its value.

    >>> truth = np.array([0.0, 1.0])
    >>> shown_score(Evaluation("binary", truth, truth, truth))
    'accuracy 1.0000'
    """
    name = test.score_name if test.score_name not in ("", "accuracy", "r2") \
        else score_name(test.task)
    return f"{name} {test.score:.4f}"


def constant_score(test: Evaluation) -> float:
    """The accuracy of the commonest class of the test part; of R² it is 0.

    Of scores by example what a constant answer has, NaN where that is not known.
    """
    if test.task in BY_EXAMPLE:
        return value_of_comparable(test.score_name, test.targets)
    if test.task == "regression":
        return 0.0
    counts = np.unique(test.targets, return_counts=True)[1]
    return float(counts.max() / counts.sum())


def constant_answer(test: Evaluation, classes: Sequence[str] = ()) -> str:
    """A sentence where a slim classifier answers one class to every test example, of several.

    >>> truth, same = np.array([0.0, 1.0]), np.array([1.0, 1.0])
    >>> constant_answer(Evaluation("binary", same, truth, truth), ("stayed", "left"))
    "The saved slim model answers 'left' to each of 2 test examples."
    """
    if test.task not in ("binary", "multiclass") or len(np.unique(test.targets)) < 2 \
            or (test.predictions != test.predictions[0]).any():
        return ""
    code = int(test.predictions[0])
    name = classes[code] if 0 <= code < len(classes) else str(code)
    return f"The saved slim model answers {name!r} to each of {len(test.targets):,} test examples."


def cautions(test: Evaluation, train_score: float, settings: Settings) -> list[str]:
    """Lines on the scores of a network that was trained here.

    Args:
        test: how it does on the test part.
        train_score: of the training part, by what it is judged by.
        settings: that it was trained with.
    """
    remedy = "`--patience 10` stops in time, by the validation part" \
        if settings.patience is None and settings.train is None else \
        "fewer epochs, a smaller network or more data"
    found = (_overfitting(test, train_score, remedy), _of_no_use(test), _too_good(test))
    return [line for line in found if line]


def cautions_elsewhere(test: Evaluation, train_score: float, validation: np.ndarray) -> list[str]:
    """Lines on the scores of a network that was trained elsewhere.

    Args:
        test: how it does on the test part.
        train_score: of the training part, by what it is judged by.
        validation: its score of each validation example, shape (n,); empty if not known.
    """
    found = (_overfitting(test, train_score, "it did where it was trained, and fine-tuning may "
                          "change it by more than its size does"), _seen(test, validation))
    return [line for line in found if line]


def _seen(test: Evaluation, validation: np.ndarray) -> str:
    """Where the validation part is too good to be unseen: it chooses the widths."""
    if not len(validation) or not _is_ranked(test):
        return ""
    value = value_of_comparable(test.score_name, validation)
    if not value - test.score >= max(_FAR, _STANDARD_ERRORS * _error(test.scores, validation)):
        return ""
    return (f"{_score_name(test)} {value:.3f} on the validation part against {test.score:.3f} on "
            f"the test part: it was probably trained on the validation part, which then chooses "
            f"widths that are too wide or too narrow; give it rows that it has not seen")


def _error(*parts: np.ndarray) -> float:
    """The standard error of a mean, or of the difference of two."""
    return math.sqrt(sum(float(part.var()) / len(part) for part in parts))


def _is_ranked(test: Evaluation) -> bool:
    """Whether more of its score is better, as far as is known."""
    score = test.score_name or "accuracy"
    return ":" not in score and not find_score(score).less_is_better


def _score_name(test: Evaluation) -> str:
    return shown_score(test).rpartition(" ")[0]


def _plain(test: Evaluation) -> float:
    """Accuracy or R², whatever the network is judged by; of scores by example their own value."""
    if test.task in BY_EXAMPLE:
        return test.score
    if test.task != "regression":
        return test.accuracy
    return float(1 - np.mean((test.predictions - test.targets) ** 2) / test.targets.var())


def _of_no_use(test: Evaluation) -> str:
    plain, constant = _plain(test), constant_score(test)
    name = test.score_name if test.task in BY_EXAMPLE else score_name(test.task)
    less = ":" not in name and name in SCORES and SCORES[name].less_is_better
    if math.isnan(constant) or (plain < constant if less else plain > constant):
        return ""
    answer = "the mean alone" if test.task == "regression" else "the commonest answer alone"
    return (f"{name} {plain:.3f} on the test part, where {answer} gets "
            f"{constant:.3f}: what was learned is of no use there; more epochs, another lr, or "
            f"inputs that say more")


def _too_good(test: Evaluation) -> str:
    plain = _plain(test)
    if test.task in BY_EXAMPLE or plain < _PERFECT or len(test.targets) < _FEWEST_PERFECT:
        return ""
    return (f"{score_name(test.task)} {plain:.4f} on the test part, next to no error: is the "
            f"answer among the inputs, or are the test examples among the training ones?")


def _overfitting(test: Evaluation, train_score: float, remedy: str) -> str:
    if not _is_ranked(test):
        return ""
    if not train_score - test.score >= max(_FAR, _STANDARD_ERRORS * _error(test.scores)):
        return ""
    return (f"{_score_name(test)} {train_score:.3f} on the training data against "
            f"{test.score:.3f} on the test part: it overfits; {remedy}")
