"""Columns that give a target away: found by small trees on the training part, and said.

scikit-learn is imported where they are looked for. Tests: ``tests/data/test_leaks.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from shlex import quote

import numpy as np

from wua_mlflow.errors import listed

__all__ = ["INDEX", "counting_lines", "is_id_name", "leak_lines"]


INDEX = "Unnamed: 0"
"""What pandas calls the first column of a .csv file that has no name: mostly an index."""
_ID_NAMES = ("id", "ids", "uid", "uuid", "guid", "key", "index", "example", "example_id", INDEX)
"""Columns that name examples, whatever they hold; so do those that end in ``_id``."""
_DENSE = 4
"""Ids come from so many numbers a row of the training part, which is some of the rows."""
_MOST_ROWS, _MOST_COLUMNS = 4000, 500
_FEWEST_ROWS = 40
_EXACT = 0.9999
"""R² of a linear formula."""
NEARLY_ALL = 0.99
"""Of the way from the commonest answer (the mean) to no error at all, which one column goes alone.
Classes: with one error more than there are, so that it takes 150 rows of three to say so. The best
columns of scikit-learn's bundled sets go 0.93 (iris, which has 0.98 in a few splits) and 0.8."""


def is_id_name(name: str) -> bool:
    """Whether a column is called as one that names examples.

    >>> is_id_name("id"), is_id_name("patient_id"), is_id_name("paid")
    (True, True, False)
    """
    return name.lower() in _ID_NAMES or name.lower().endswith(("_id", " id"))


def counting_lines(inputs: np.ndarray, numbers: Mapping[int, str]) -> list[str]:
    """A line on columns of numbers that merely count the rows, whatever they are called.

    Args:
        inputs: the training part's (n, columns).
        numbers: by their places names of the columns to look at.
    """
    found = [name for place, name in numbers.items()
             if not is_id_name(name) and _counts(inputs[:, place])]
    if len(inputs) < _FEWEST_ROWS or not found:
        return []
    return [f"{listed(found)}: another whole number in each row, as an id has; if it only names "
            f"the rows: --drop-columns {quote(','.join(found))}"]


def _counts(column: np.ndarray) -> bool:
    """Whether all are different whole numbers, out of few more than there are."""
    if np.isnan(column).any() or (column % 1).any():
        return False
    return len(np.unique(column)) == len(column) and \
        float(np.ptp(column)) < _DENSE * len(column)


def leak_lines(
    inputs: np.ndarray, targets: np.ndarray, names: Sequence[str], *, target: str, classes: bool,
    droppable: bool = True,
) -> list[str]:
    """Lines on columns that are called an id, or alone predict the target nearly perfectly.

    Args:
        inputs: the training part's (n, columns); NaN in gaps.
        targets: (n,) numbers of classes, or amounts.
        names: of the columns.
        target: name of the target's column.
        classes: whether the targets are classes.
        droppable: whether ``--drop-columns`` takes the names.
    """
    def remedy(columns: Sequence[str]) -> str:
        return f" --drop-columns {quote(','.join(columns))}" if droppable else ""

    if len(targets) < _FEWEST_ROWS:
        return []
    ids = [name for place, name in enumerate(names)
           if is_id_name(name) and 2 * len(np.unique(inputs[:, place])) > len(inputs)]
    lines = [f"{listed(ids)}: called an id, and different in most rows; what a network learns of "
             f"such numbers holds for no new row:{remedy(ids)}"] if ids else []
    if not 0 < inputs.shape[1] <= _MOST_COLUMNS:
        return lines
    rows = np.random.default_rng(0).permutation(len(targets))[:_MOST_ROWS]
    inputs, targets = inputs[rows].astype(np.float64), targets[rows]
    amounts, targets = targets, targets if classes else _ranks(targets)
    alone = {name: share for place, name in enumerate(names)
             if (share := _share_explained(inputs[:, [place]], targets, classes)) >= NEARLY_ALL}
    if alone:
        best = max(alone.values())
        verb = "predicts" if len(alone) == 1 else "each predict"
        return [*lines, f"{listed(list(alone))}: alone {verb} {target} nearly perfectly (by "
                f"{best:.1%} of the way from a constant answer to no error, on rows held out): are "
                f"they known when the model is used?{remedy(list(alone))}"]
    if _determined(inputs, targets, amounts, classes):
        lines.append(f"{target}: the inputs determine it exactly, by a "
                     f"{'decision tree' if classes else 'linear formula'} on rows held out: do "
                     f"they hold the answer?")
    return lines


def _determined(
    inputs: np.ndarray, targets: np.ndarray, amounts: np.ndarray, classes: bool
) -> bool:
    """Whether a tree makes no error on rows held out, or a linear fit next to none."""
    from sklearn.linear_model import LinearRegression

    filled = np.nan_to_num(inputs)
    if classes:
        return _share_explained(filled, targets, classes) >= NEARLY_ALL
    if len(amounts) < 4 * inputs.shape[1]:
        return False
    half = len(amounts) // 2
    scaled = (filled - filled.mean(axis=0)) / np.maximum(filled.std(axis=0), 1e-30)
    fit = LinearRegression().fit(scaled[:half], amounts[:half])
    return bool(fit.score(scaled[half:], amounts[half:]) > _EXACT)


def _ranks(values: np.ndarray) -> np.ndarray:
    """From 0 to 1, equal values alike: heavy tails weigh no more than the rest."""
    return np.asarray(np.unique(values, return_inverse=True)[1] / max(len(values) - 1, 1))


def _share_explained(inputs: np.ndarray, targets: np.ndarray, classes: bool) -> float:
    """1 − error ÷ that of a constant answer, each half predicted by a tree on the other half.

    Of one column in place of that also 1 where it is the classes by other names, or the squared
    rank correlation with amounts: few rows leave a tree coarse.
    """
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    if inputs.shape[1] == 1 and classes and _renames(inputs[:, 0], targets):
        return 1.0
    tree = DecisionTreeClassifier if classes else DecisionTreeRegressor
    half = len(targets) // 2
    halves = np.arange(half), np.arange(half, len(targets))
    predicted = np.empty(len(targets), dtype=targets.dtype)
    for fitted, other in (halves, halves[::-1]):
        model = tree(min_samples_leaf=2, random_state=0).fit(inputs[fitted], targets[fitted])
        predicted[other] = model.predict(inputs[other])
    if classes:
        errors = (int((predicted != targets).sum()) + 1) / (len(targets) + 1)
        constant = 1 - np.unique(targets, return_counts=True)[1].max() / len(targets)
        return float(1 - errors / constant) if constant else 0.0
    constant = float(targets.var())
    share = 1 - float(((predicted - targets) ** 2).mean()) / constant if constant else 0.0
    return max(share, _rank_correlation(inputs[:, 0], targets) ** 2) if inputs.shape[1] == 1 \
        else share


def _renames(column: np.ndarray, classes: np.ndarray) -> bool:
    """Whether a column's values are the classes, by other names, but for a few gaps."""
    known = ~np.isnan(column)
    values, places = np.unique(column[known], return_inverse=True)
    names, codes = np.unique(classes[known], return_inverse=True)
    pairs = np.unique(places * len(names) + codes)
    return len(values) == len(names) == len(pairs) > 1 and bool(known.mean() > 0.9)


def _rank_correlation(column: np.ndarray, ranks: np.ndarray) -> float:
    if np.isnan(column).any() or column.min() == column.max() or ranks.min() == ranks.max():
        return 0.0
    return float(np.corrcoef(_ranks(column), ranks)[0, 1])
