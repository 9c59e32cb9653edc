"""Two models' predictions of the same examples, checked, and what they score.

Tables are aligned by their index, as ``inputs.py`` does it for scores; classes become the numbers
0, 1, ... Tests: ``tests/verdict/test_predictions.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wua_mlflow.errors import one_line
from wua_mlflow.verdict import inputs
from wua_mlflow.verdict.intervals import collapsed_seeds
from wua_mlflow.verdict.scores import (
    RANKINGS,
    SCORES,
    Score,
    find_score,
    pseudo_scores,
    value,
    value_of_comparable,
)

__all__ = ["Paired", "checked_predictions", "paired_scores"]

Floats = NDArray[np.float64]

_SAME = 1e-6
"""Predictions that differ by up to this share of their range do not: rounding of float32."""
_LEAST_SHARE = 1e-9
"""Of the baseline's value: a candidate's that is less counts as this."""


@dataclass(frozen=True, eq=False)
class Paired:
    """Predictions of the same examples by both sides, each with seeds of its own.

    Attributes:
        score: what they are judged by.
        targets: shape (n,): numbers of classes, a regression's targets, for a function of the
            user's, as they were given, or, beside scores by example, those of a constant answer
            (NaN where they are not known).
        baseline: shape (S, n), or (S, n, classes) of probabilities.
        candidate: the same.
        classes: by number, in the order of the columns; none of a regression. Those that only
            predictions name come last.
    """

    score: Score
    targets: NDArray[Any]
    baseline: NDArray[Any]
    candidate: NDArray[Any]
    classes: tuple[Any, ...] = ()

    def value(self, predictions: NDArray[Any]) -> float:
        """The score of predictions of shape (S, n, ...), scikit-learn's, the mean over seeds."""
        if self.score.takes == "scores":
            return float(np.mean([value_of_comparable(self.score.name, row)
                                  for row in predictions]))
        return float(np.mean([value(self.score.name, self.targets, row, labels=self._labels)
                              for row in predictions]))

    def examples(self, predictions: NDArray[Any]) -> Floats:
        """What each example adds to each seed's score, shape (S, n); higher is better."""
        if self.score.takes == "scores":
            return predictions
        return np.stack([pseudo_scores(self.score.name, self.targets, row, labels=self._labels)
                         for row in predictions])

    def scores(self, margin: float) -> tuple[Floats, Floats]:
        """Both sides' numbers by seed and example, the mean of whose difference is judged.

        Where less is better they are −log of the side's value L, linearised, so that the difference
        is log(L ÷ L′): the margin is a share of the baseline's value, which is an estimate too, and
        a ratio's logarithm is nearer to normal (``benchmarks/scores.py``).

        Args:
            margin: of the verdict; seeds that collapse are left out of the two values.

        Raises:
            ValueError: the baseline's value, which the margin is a share of, is 0.
        """
        old, new = self.examples(self.baseline), self.examples(self.candidate)
        if not self.score.less_is_better or self.score.takes == "scores":
            return old, new
        scale = -float(np.median(old.mean(axis=1)))
        level = _level(old, scale, margin)
        if not level > 0:
            raise ValueError(f"margin: expected a share of the original's {self.score.name}, but "
                             f"that is 0; take another score")
        return tuple(  # type: ignore[return-value]
            examples / value - math.log(value) + 1
            for examples, value in ((old, level), (new, max(_level(new, scale, margin),
                                                            _LEAST_SHARE * level))))

    def scaled(self, margin: float) -> float:
        """The margin on the scale of ``scores``."""
        return math.log1p(margin) if self.score.less_is_better else margin

    def unscaled(self, difference: float) -> float:
        """A difference of ``scores`` as a verdict shows it: 1 − L′ ÷ L where less is better."""
        return -math.expm1(-difference) if self.score.less_is_better else difference

    def share(self, predictions: NDArray[Any]) -> float:
        """What a margin of 1 is of the score's value for these predictions."""
        return self.value(predictions) if self.score.less_is_better else 1.0

    @property
    def moved(self) -> NDArray[np.bool_]:
        """Which examples' predictions differ between the sides, all seeds together, shape (n,).

        The influence of every example moves where one prediction does.
        """
        old, new = self.baseline, self.candidate
        if self.score.name in RANKINGS:
            old, new = _ranks(old), _ranks(new)
        if self.score.takes == "labels" or "U" in (old.dtype.kind, new.dtype.kind):
            labels = np.unique(np.concatenate([old.ravel(), new.ravel()]))
            changes = np.stack([(new == label).mean(0) - (old == label).mean(0)
                                for label in labels])
            moved = np.abs(changes).max(axis=0) > _SAME
        else:
            old, new = old.astype(np.float64), new.astype(np.float64)
            span = max(np.ptp(old), np.ptp(new), np.finfo(float).tiny)
            moved = np.abs(new.mean(axis=0) - old.mean(axis=0)) > _SAME * span
        return np.asarray(moved.reshape(self.targets.size, -1).any(axis=1))

    @property
    def guessed(self) -> tuple[NDArray[np.intp], NDArray[np.intp]] | None:
        """Both sides' predicted classes, shape (S, n): as given, or the likeliest.

        None where predictions name no class: a regression, a function of the user's, and scores of
        the order alone, which leave the threshold open.
        """
        if self.score.takes == "labels":
            return self.baseline, self.candidate
        if self.score.takes != "probabilities" or self.score.name in RANKINGS:
            return None
        sides = [side.argmax(axis=2) if side.ndim > 2 else (side > 0.5).astype(np.intp)
                 for side in (self.baseline, self.candidate)]
        return sides[0], sides[1]

    @property
    def guarded(self) -> bool:
        """Whether it is known what a constant answer scores."""
        return self.score.takes != "scores" or not np.isnan(self.targets).any()

    @property
    def constant(self) -> NDArray[Any]:
        """Predictions that take no notice of the inputs, shape (1, n) or (1, n, classes).

        The commonest class, for probabilities all classes' shares, for numbers the mean.
        """
        y = self.targets
        if self.score.takes == "scores":
            return y[None]
        if self.baseline.ndim > 2:
            shares = np.bincount(_codes(y), minlength=self.baseline.shape[2]) / y.size
            return np.broadcast_to(shares, (1, y.size, shares.size))
        labels, counts = np.unique(y, return_counts=True)
        named = self.baseline.dtype.kind != "f" or bool(np.isin(self.baseline, labels).all())
        if self.score.takes == "labels" or (self.score.takes == "anything" and named):
            return np.full((1, y.size), labels[counts.argmax()])
        numbers = y if y.dtype.kind in "iufb" else _codes(y)
        return np.full((1, y.size), float(numbers.mean()))

    @property
    def _labels(self) -> NDArray[np.intp] | None:
        """Numbers of the classes: of the columns, or all in targets and either side's predictions.
        """
        if self.score.takes == "probabilities":
            return np.arange(len(self.classes))
        if self.score.name != "f1_macro":
            return None
        return np.unique(np.concatenate([self.targets, self.baseline.ravel(),
                                         self.candidate.ravel()]))


def checked_predictions(
    baseline: Any, candidate: Any, targets: Any, score: str, *,
    classes: Sequence[Any] | None = None, compared: int | None = None,
) -> Paired:
    """Both sides' predictions in the shape (seeds, examples[, classes]), aligned and checked.

    Args:
        baseline: predictions as ``Score.takes`` says: shape (n,), or (S, n) with seeds; of
            probabilities also (n, classes) and (S, n, classes). Arrays, tensors, lists, pandas
            Series or DataFrames (a row an example; columns are classes where the score takes
            probabilities and there are as many, else seeds).
        candidate: the same.
        targets: shape (n,).
        score: as in ``scores.value``.
        classes: all classes in the order of the columns; the sorted ones of ``targets`` if None.
        compared: of the candidate's seeds, as in ``check_seeds``.

    Raises:
        ValueError: one line that names the argument.
    """
    found = find_score(score)
    given = {"targets": targets, "baseline": baseline, "candidate": candidate}
    arrays = _aligned({name: _Array.of(name, side) for name, side in given.items()})
    y = arrays["targets"].values
    if y.ndim != 1 or y.size < 2:
        raise ValueError(f"targets: expected the shape (examples,), at least 2, but got {y.shape}")
    names: tuple[Any, ...] = ()
    if found.takes in ("labels", "probabilities"):
        names, y = _encoded(found, arrays, classes)
    elif found.takes == "values":
        y = _numbers("targets", y, score)
    sides = [_side(found, name, arrays[name], y.size, names) for name in ("baseline", "candidate")]
    inputs.check_seeds(len(sides[0]), len(sides[1]), compared)
    if sides[0].ndim != sides[1].ndim:
        raise ValueError(f"baseline and candidate: expected predictions of one form, but got the "
                         f"shapes {arrays['baseline'].values.shape} and "
                         f"{arrays['candidate'].values.shape}")
    return Paired(found, y, sides[0], sides[1], names)


def paired_scores(
    score: str, baseline: Floats, candidate: Floats, constant: Any = None
) -> Paired:
    """Both sides' scores by example, shape (S, n), beside those of a constant answer.

    Raises:
        ValueError: not one of the latter an example.
    """
    found = SCORES[score] if score in SCORES else Score(score, "scores")
    examples = baseline.shape[1]
    known = np.full(examples, np.nan) if constant is None else \
        np.asarray(constant, dtype=np.float64)
    if known.shape != (examples,) or (constant is not None and not np.isfinite(known).all()):
        got = f"the shape {known.shape}" if known.shape != (examples,) else "NaN or infinity"
        raise ValueError(f"constant: expected a finite score for each of {examples} examples, but "
                         f"got {got}")
    return Paired(replace(found, takes="scores"), known, baseline, candidate)


@dataclass(frozen=True, eq=False)
class _Array:
    """Values with an example an entry of the first or the second axis; a table's labels."""

    name: str
    values: NDArray[Any]
    index: Any = None
    columns: Any = None
    axis: int = 0

    @classmethod
    def of(cls, name: str, given: Any) -> _Array:
        table = inputs.is_table(given)
        try:
            if isinstance(given, list | tuple) and given and all(
                    inputs.is_table(one, ["Series"]) for one in given):
                index = given[0].index
                rows = [np.asarray(one)[inputs.order(f"{name}[0]", index, f"{name}[{place}]",
                                                     one.index)]
                        for place, one in enumerate(given)]
                return cls(name, _plain(name, np.stack(rows), given), index, axis=1)
            if table:
                array = np.asarray(given)
            elif isinstance(given, list | tuple):
                array = np.asarray([inputs.plain(one) for one in given])
            else:
                array = np.asarray(inputs.plain(given))
        except Exception as error:  # ragged lists, other devices, the user's own array type
            raise ValueError(f"{name}: expected an array, but got "
                             f"{inputs.lengths(given) or one_line(error)}") from None
        return cls(name, _plain(name, array, given), given.index if table else None,
                   given.columns if inputs.is_table(given, ["DataFrame"]) else None)

    def ordered(self, places: Any) -> _Array:
        """With its examples in another order."""
        return replace(self, values=self.values[(slice(None),) * self.axis + (places,)])


def _plain(name: str, array: NDArray[Any], given: Any) -> NDArray[Any]:
    """Numbers or text, none missing."""
    if array.dtype.kind == "O" and array.ndim:
        array = np.asarray(array.tolist())
    if array.dtype.kind not in "biufUS" or not array.ndim:
        raise ValueError(f"{name}: expected an array of numbers or of labels, but got "
                         f"{type(given).__name__ if not array.ndim else inputs.shown(given)}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite numbers, but got NaN or infinity in "
                         f"{(~np.isfinite(array)).sum()} of {array.size}")
    if array.dtype.kind == "f" and np.abs(array).max(initial=0) > inputs.LARGEST:
        raise ValueError(f"{name}: expected numbers within ±{inputs.LARGEST:g}, but got larger "
                         f"ones")
    return array


def _aligned(arrays: dict[str, _Array]) -> dict[str, _Array]:
    """All in the order of the targets' index; an array beside tables needs their order to be plain.
    """
    tables = {name: one for name, one in arrays.items() if one.index is not None}
    first = next(iter(tables.values()), None)
    if first is None:
        return arrays
    if len(tables) < len(arrays) and first.index.tolist() != list(range(len(first.index))):
        other = next(name for name in arrays if name not in tables)
        raise ValueError(f"{other}: expected a pandas Series or DataFrame too, as the index of "
                         f"{first.name} is not 0, 1, 2, …; if both are in the same order, pass "
                         f"{first.name}.reset_index(drop=True)")
    result = dict(arrays)
    for name, one in tables.items():
        places = inputs.order(first.name, first.index, name, one.index)
        result[name] = one.ordered(places)
    return result


def _encoded(
    score: Score, arrays: dict[str, _Array], classes: Sequence[Any] | None
) -> tuple[tuple[Any, ...], NDArray[np.intp]]:
    """The classes, and the targets as their numbers."""
    y = _labels("targets", arrays["targets"].values, score.name)
    seen, known = np.unique(y).tolist(), classes is not None
    names = list(classes or ()) if known else seen
    absent = [label for label in seen if label not in names]
    if absent or len(set(names)) < len(names):
        raise ValueError(f"classes: expected all that the targets have, each once, but got "
                         f"{inputs.shown(names)}")
    if score.takes == "labels":
        guessed = [_labels(name, arrays[name].values, score.name)
                   for name in ("baseline", "candidate")]
        for name, labels in zip(("baseline", "candidate"), guessed, strict=True):
            _check_labels(name, labels, y, names)
        further = set(np.concatenate([labels.ravel() for labels in guessed]).tolist()) - set(names)
        names = names + sorted(further) if known else sorted([*names, *further])
    names = [0, 1] if names in ([0], [1]) else names
    if score.name == "f1" and len(names) != 2:
        raise ValueError(f"score: expected two classes for f1, but got {len(names)}; f1_macro "
                         f"takes more")
    return tuple(names), _numbered(y, names)


def _numbered(labels: NDArray[Any], names: Sequence[Any]) -> NDArray[np.intp]:
    place = {name: number for number, name in enumerate(names)}
    distinct, inverse = np.unique(labels, return_inverse=True)
    codes = np.array([place[label] for label in distinct.tolist()], dtype=np.intp)
    return codes[inverse].reshape(labels.shape)


def _labels(name: str, values: NDArray[Any], score: str) -> NDArray[Any]:
    """Labels: text, bools or whole numbers."""
    if values.dtype.kind == "S":
        return np.char.decode(values, "utf-8", "replace")
    if values.dtype.kind == "f":
        odd = values[values % 1 != 0]
        if odd.size:
            remedy = "an amount takes score=\"r2\"" if name == "targets" else \
                "turn probabilities into classes first, or take a score of probabilities"
            raise ValueError(f"{name}: expected classes for {score}, but got {odd[0]:g}; {remedy}")
        return values.astype(np.int64)
    return values.astype(np.int64) if values.dtype.kind == "b" else values


def _check_labels(
    name: str, guessed: NDArray[Any], targets: NDArray[Any], classes: Sequence[Any]
) -> None:
    text = [one.dtype.kind == "U" for one in (guessed, targets)]
    if text[0] != text[1] or not np.isin(guessed, list(classes)).any():
        raise ValueError(f"{name}: expected classes such as {targets.tolist()[0]!r}, as the "
                         f"targets are, but got {guessed.ravel().tolist()[0]!r}")


def _numbers(name: str, values: NDArray[Any], score: str) -> Floats:
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{name}: expected numbers for {score}, but got "
                         f"{inputs.shown(values.ravel().tolist()[0])}")
    return values.astype(np.float64)


def _side(
    score: Score, name: str, array: _Array, examples: int, classes: Sequence[Any]
) -> NDArray[Any]:
    """One side in the shape (S, n) or (S, n, classes)."""
    values = _by_seed(score, name, array, examples, classes)
    if score.takes == "labels":
        return _numbered(_labels(name, values, score.name), classes)
    if score.takes == "anything":
        return values
    return _numbers(name, values, score.name)


def _by_seed(
    score: Score, name: str, array: _Array, examples: int, classes: Sequence[Any]
) -> NDArray[Any]:
    values, shape, n = array.values, array.values.shape, examples
    columned = score.takes in ("probabilities", "anything")
    if shape == (n,):
        return values[None]
    if columned and len(shape) == 3 and shape[1] == n:
        return values
    if array.columns is not None and len(shape) == 2 and shape[0] == n:
        names = list(array.columns)
        if columned and (len(names) == len(classes) or score.takes == "anything"):
            order = [names.index(label) for label in classes] if set(names) == set(classes) \
                else slice(None)
            return values[None][:, :, order]
        return values.T
    if columned and shape == (n, n):
        raise ValueError(f"{name}: expected a shape that tells seeds from classes, but got {shape} "
                         f"of {n} examples; pass {name}[None] if columns are classes, "
                         f"np.stack([1 - {name}, {name}], axis=-1) if rows are seeds")
    if len(shape) == 2 and shape[1] == n:
        return values
    if columned and len(shape) == 2 and shape[0] == n:
        return values[None]
    expected = "(examples,) or (seeds, examples)"
    if columned:
        expected = "(examples,), (examples, classes), (seeds, examples) or (seeds, examples, " \
                   "classes)"
    remedy = f"; pass {name}.T if columns are seeds" if len(shape) == 2 and shape[0] == n else ""
    raise ValueError(f"{name}: expected {score.takes} of the shape {expected} with {n} examples, "
                     f"as the targets have, but got {shape}{remedy}")


def _codes(labels: NDArray[Any]) -> NDArray[np.intp]:
    return np.asarray(np.unique(labels, return_inverse=True)[1]) if labels.dtype.kind != "i" \
        else labels


def _level(scores: Floats, scale: float, margin: float) -> float:
    """The mean of a loss over the seeds that did not collapse; ``scores`` are its negative."""
    if len(scores) == 1 or not scale > 0:
        return -float(scores.mean())
    return -float(scores[~collapsed_seeds(scores / scale, margin)].mean())


def _ranks(predictions: Floats) -> Floats:
    """Of the examples within each seed and column."""
    from scipy.stats import rankdata

    return np.asarray(rankdata(predictions, axis=1))
