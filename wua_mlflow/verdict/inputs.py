"""What ``compare`` is given, as checked arrays of the same examples in the same order.

Tables are aligned by their index; tensors, lists and whatever numpy reads are taken as they are.
Neither pandas nor torch is imported. Tests: ``tests/verdict/test_inputs.py``.
"""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wua_mlflow.errors import one_line
from wua_mlflow.levels import CONFIDENCE_RANGE, MARGIN_RANGE, is_confidence, is_margin
from wua_mlflow.verdict.sample_size import check_share

__all__ = [
    "FEWEST_SEEDS", "LARGEST", "R2Scores", "check_count", "check_seed", "check_seeds",
    "checked_groups", "checked_level", "checked_plan", "checked_r2_targets", "checked_scores",
    "is_table", "lengths", "order", "plain", "shown",
]


Floats = NDArray[np.float64]

FEWEST_SEEDS = 5
"""Fewer seeds give no recipe verdict."""

LARGEST = 1e60
"""Above this the fourth powers and squared sums that intervals need may leave float64."""

_SHOWN = 3
"""So many labels of an index are named."""


@dataclass(frozen=True, eq=False)
class _Scores:
    """Scores of shape (n,) or (seeds, n); the labels of a table's rows and of its columns."""

    name: str
    values: Floats
    examples: Any = None
    seeds: Any = None


def checked_level(margin: float, confidence: float) -> tuple[float, float]:
    """Both as plain floats; raise unless they are what ``levels.py`` says."""
    check_share("margin", margin, zero=True)
    check_share("confidence", confidence, zero=False)
    for name, value, fits, expected in (
        ("margin", margin, is_margin(margin), MARGIN_RANGE),
        ("confidence", confidence, is_confidence(confidence), CONFIDENCE_RANGE),
    ):
        if not fits:
            raise ValueError(f"{name}: expected {expected}, but got {value!r}")
    return float(margin), float(confidence)


def check_seed(seed: int) -> None:
    """Raise unless ``seed`` is a whole number of at least 0."""
    if not isinstance(seed, Integral) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"seed: expected a whole number of at least 0, but got {shown(seed)}")


def check_count(name: str, count: int, *, least: int) -> None:
    """Raise unless ``count`` is a whole number of at least ``least``."""
    if not isinstance(count, Integral) or isinstance(count, bool) or count < least:
        raise ValueError(f"{name}: expected a whole number of at least {least}, but got "
                         f"{shown(count)}")


def checked_plan(planned: Any, candidate: int, baseline: int) -> tuple[tuple[int, int], ...]:
    """The seeds of the candidate and of the baseline at each planned look.

    Args:
        planned: whole numbers of at least 5, ascending: the candidate's seeds, the baseline having
            as many (or those that it has now, if they are more); or pairs of numbers, neither of
            which falls and one of which rises from look to look.
        candidate: its seeds that are compared, which must be those of a look.
        baseline: its seeds; in pairs they must be those of the look too.

    Raises:
        ValueError: one line; they are not.

    >>> checked_plan([5, 8, 12], 8, 8), checked_plan([(10, 5), (12, 12)], 10, 5)
    (((5, 8), (8, 8), (12, 12)), ((10, 5), (12, 12)))
    """
    listed = isinstance(planned, Iterable) and not isinstance(planned, str)
    looks: list[Any] = list(planned) if listed else [None]
    in_pairs = all(isinstance(look, tuple) and len(look) == 2 for look in looks)
    numbers = [number for look in looks for number in (look if in_pairs else (look,))]
    whole = all(isinstance(number, Integral) and not isinstance(number, bool)
                for number in numbers)
    if not whole or not numbers or min(numbers) < FEWEST_SEEDS or not all(
            _more_seeds(earlier, later) for earlier, later in pairwise(looks)):
        raise ValueError(f"planned_seeds: expected ascending whole numbers of at least "
                         f"{FEWEST_SEEDS}, or pairs of them, but got {shown(planned)}")
    pairs = tuple((int(one), int(other)) for one, other in (
        looks if in_pairs else ((look, max(look, baseline)) for look in looks)))
    if candidate not in (one for one, _ in pairs) or \
            in_pairs and (candidate, baseline) not in pairs:
        beside = f" beside the baseline's {baseline}" if in_pairs else ""
        raise ValueError(f"planned_seeds: expected the candidate's number of seeds among the looks "
                         f"planned ({', '.join(map(str, looks))}), but it has {candidate}{beside}")
    return pairs


def _more_seeds(earlier: Any, later: Any) -> bool:
    """Whether a look has more seeds than the one before, and no side fewer."""
    if not isinstance(earlier, tuple):
        return bool(later > earlier)
    return bool(later != earlier and later[0] >= earlier[0] and later[1] >= earlier[1])


def checked_scores(
    baseline: Any, candidate: Any, compared: int | None = None
) -> tuple[Floats, Floats]:
    """Both scores in the shape (seeds, examples), aligned and checked; neither is modified.

    Args:
        baseline: scores of shape (n,) or (seeds, n): an array, tensor, list, pandas Series (n,) or
            DataFrame (a row an example, a column a seed), a list of Series, one a seed, or an
            object with ``.scores`` and perhaps ``.digest``.
        candidate: the same; where both have an index, its rows are put into the baseline's order,
            and its columns too where they have the same names.

    Raises:
        ValueError: one line that names the argument; two different test sets, indexes that do not
            hold the same labels once each, or scores that are none or do not fit.
    """
    digests = [None if is_table(results) else getattr(results, "digest", None)
               for results in (baseline, candidate)]
    if None not in digests and digests[0] != digests[1]:
        raise ValueError(f"baseline and candidate: expected the same test set, but got the digests "
                         f"{digests[0]} and {digests[1]}")
    first, second = _scores("baseline", baseline), _scores("candidate", candidate)
    old, new = np.atleast_2d(first.values), np.atleast_2d(_aligned(first, second))
    if old.shape[1] != new.shape[1]:
        raise ValueError(f"baseline and candidate: expected scores of the same test examples, but "
                         f"got {old.shape[1]} and {new.shape[1]}")
    if new.shape[1] < 2:
        raise ValueError(f"examples: expected at least 2, but got {new.shape[1]}")
    check_seeds(len(old), len(new), compared)
    return old, new


def checked_groups(groups: Any, beside: Sequence[Any]) -> NDArray[Any]:
    """A group's label for each example, in the order of what is compared.

    Args:
        groups: shape (n,); a table is aligned to the first one in ``beside``.
        beside: what it is given with: targets, scores or predictions.

    Raises:
        ValueError: not of the shape (n,), an index that does not fit, or a label missing.
    """
    table = next((one for one in beside if is_table(one)), None)
    array = np.asarray(plain(groups))
    index = groups.index if is_table(groups) else None
    if table is not None and index is not None:
        array = array[order("baseline and candidate", table.index, "groups", index)]
    elif table is not None or index is not None:
        have, lack = ("baseline", "groups") if index is None else ("groups", "baseline")
        labels = table.index if table is not None else groups.index
        if labels.tolist() != list(range(len(labels))):
            raise ValueError(f"{lack}: expected a pandas Series or DataFrame too, as the index of "
                             f"{have} is not 0, 1, 2, …; if both are in the same order, pass "
                             f"{have}.reset_index(drop=True)")
    array = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if array.ndim != 1:
        raise ValueError(f"groups: expected a label for each example, but got the shape "
                         f"{array.shape}")
    missing = sum(label is None or label != label for label in array.tolist())
    if missing:
        raise ValueError(f"groups: expected a label for each example, but {missing} of "
                         f"{array.size} are missing")
    return np.unique(array.astype(str) if array.dtype.kind == "O" else array,
                     return_inverse=True)[1]


@dataclass(frozen=True, eq=False)
class R2Scores:
    """Scores of a regression, 1 − squared error ÷ variance of ``r2_targets``, for ``compare``.

    Attributes:
        scores: shape (n,) or (S, n).
        r2_targets: shape (n,), in any unit.
    """

    scores: Any
    r2_targets: Any


def checked_r2_targets(baseline: Any, candidate: Any, examples: int) -> Floats | None:
    """The baseline's ``r2_targets`` where both have some; shape (n,).

    Raises:
        ValueError: not as many as examples, not finite, or all alike.
    """
    given = [None if is_table(side) else getattr(side, "r2_targets", None)
             for side in (baseline, candidate)]
    if given[0] is None or given[1] is None:
        return None
    targets = _numbers("r2_targets", given[0])
    if targets.shape != (examples,):
        raise ValueError(f"r2_targets: expected one for each of the {examples} examples, but got "
                         f"the shape {targets.shape}")
    _check_values("r2_targets", targets)
    if targets.min() == targets.max():
        raise ValueError("r2_targets: expected at least two different values, but got one")
    return targets


def check_seeds(baseline: int, candidate: int, compared: int | None = None) -> None:
    """Raise unless both are one network, or at least 5 seeds are at most twice as many as others.

    One network of the baseline may stand beside several seeds of the candidate. Of the candidate's
    seeds ``compared`` count, if that is given.
    """
    if compared is not None:
        check_count("compared_seeds", compared, least=FEWEST_SEEDS)
        if compared > candidate:
            raise ValueError(f"compared_seeds: expected at most the candidate's {candidate}, but "
                             f"got {compared}")
        candidate = compared
    for seeds in (baseline, candidate):
        if 1 < seeds < FEWEST_SEEDS:
            raise ValueError(f"seeds: expected at least {FEWEST_SEEDS} for a recipe verdict, or a "
                             f"single one for an artifact verdict, but got {seeds}")
    if candidate == 1 < baseline:
        raise ValueError(f"candidate: expected at least {FEWEST_SEEDS} seeds beside the baseline's "
                         f"{baseline}, but got 1")
    if baseline > 1 and not 0.5 <= candidate / baseline <= 2:
        raise ValueError(f"seeds: expected numbers at most a factor of two apart, but got "
                         f"{baseline} of the baseline and {candidate} of the candidate")


# Tables


def is_table(value: Any, kinds: Sequence[str] = ("Series", "DataFrame")) -> bool:
    """Whether it is pandas'; nothing is where pandas was never imported."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, tuple(getattr(pandas, kind) for kind in kinds))


def _aligned(first: _Scores, second: _Scores) -> Floats:
    """The second's values in the order of the first's examples, and of its seeds if named alike."""
    values, indexed = second.values, [side.examples is not None for side in (first, second)]
    if all(indexed):
        values = values[..., order(first.name, first.examples, second.name, second.examples)]
    elif any(indexed):
        table, other = (first, second) if indexed[0] else (second, first)
        if table.examples.tolist() != list(range(len(table.examples))):
            raise ValueError(
                f"{other.name}: expected a pandas Series or DataFrame too, as the index of "
                f"{table.name} is not 0, 1, 2, … but {_listed(table.examples)}; if both are in the "
                f"same order, pass {table.name}.reset_index(drop=True)")
    named = first.seeds is not None and second.seeds is not None
    if named and first.seeds.is_unique and set(first.seeds) == set(second.seeds):
        values = values[order(first.name, first.seeds, second.name, second.seeds)]
    return values


def order(name: str, wanted: Any, other_name: str, labels: Any) -> Any:
    """Where in ``labels`` each one of ``wanted`` is; pandas indexes.

    Raises:
        ValueError: a label occurs twice, or on one side only.
    """
    for side, index in ((name, wanted), (other_name, labels)):
        if not index.is_unique:
            raise ValueError(f"{side}: expected each label of the index once, but "
                             f"{_listed(index[index.duplicated()].unique())} occur more often; if "
                             f"both are in the same order, pass .reset_index(drop=True) of both")
    if wanted.equals(labels):
        return slice(None)
    places = labels.get_indexer(wanted)
    missing, extra = wanted[places < 0], labels[wanted.get_indexer(labels) < 0]
    if len(missing) or len(extra):
        lists = [f"{_listed(index)} only in {side}"
                 for side, index in ((name, missing), (other_name, extra)) if len(index)]
        raise ValueError(f"baseline and candidate: expected an index of the same labels, but "
                         f"{' and '.join(lists)}")
    return places


def _listed(labels: Any) -> str:
    more = f" and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else ""
    return ", ".join(shown(label) for label in labels[:_SHOWN].tolist()) + more


def shown(value: object) -> str:
    """A short representation in one line."""
    return " ".join(reprlib.repr(value).split())


# Arrays


def _scores(name: str, results: Any) -> _Scores:
    """Checked scores of shape (n,) or (seeds, n)."""
    given = results if is_table(results) else getattr(results, "scores", results)
    if isinstance(given, list | tuple) and given and all(is_table(one, ["Series"])
                                                         for one in given):
        index = given[0].index
        rows = [_numbers(name, one)[order(f"{name}[0]", index, f"{name}[{place}]", one.index)]
                for place, one in enumerate(given)]
        scores = _Scores(name, np.stack(rows), index)
    elif is_table(given, ["DataFrame"]):
        scores = _Scores(name, _numbers(name, given).T, given.index, given.columns)
    else:
        scores = _Scores(name, _numbers(name, given), given.index if is_table(given) else None)
    _check_shape(scores)
    _check_values(name, scores.values)
    return scores


def _numbers(name: str, given: Any) -> Floats:
    """Anything array-like as float64; a new array wherever that is not what it is already."""
    try:
        if is_table(given):
            array = given.to_numpy(na_value=np.nan)
        elif isinstance(given, list | tuple):
            array = np.asarray([plain(one) for one in given])
        else:
            array = np.asarray(plain(given))
    except Exception as error:  # ragged lists, other devices, the user's own array type
        raise ValueError(f"{name}: expected an array of numbers, but got "
                         f"{lengths(given) or one_line(error)}") from None
    _check_kind(name, array, given)
    try:
        with np.errstate(over="ignore"):
            numbers: Floats = array.astype(np.float64, copy=False)
    except Exception as error:  # objects of any kind
        raise ValueError(f"{name}: expected an array of numbers, but got {one_line(error)}"
                         ) from None
    return numbers


def plain(given: Any) -> Any:
    """A tensor as an array, a masked array as a plain one, anything else as it is."""
    if all(hasattr(given, method) for method in ("detach", "cpu", "is_complex")):
        tensor = given.detach().cpu()
        return (tensor if tensor.is_complex() else tensor.double()).numpy()
    if isinstance(given, np.ma.MaskedArray):
        hidden = int(np.ma.getmaskarray(given).sum())
        if hidden:
            raise ValueError(f"a masked array that hides {hidden} of {given.size}")
        return given.data
    return given


def lengths(given: Any) -> str:
    """What is wrong with a list of seeds of unequal length, if that is what it is."""
    if not isinstance(given, list | tuple) or not all(hasattr(one, "__len__") for one in given):
        return ""
    lengths = sorted({len(one) for one in given})
    return f"seeds of {lengths[0]} to {lengths[-1]} examples" if len(lengths) > 1 else ""


def _check_kind(name: str, array: NDArray[Any], given: Any) -> None:
    """Raise unless the elements are numbers or bools."""
    odd = None
    if array.dtype.kind in "cSUmM" or array.dtype.names:
        odd = f"an array of {array.dtype}"
    elif array.dtype.kind == "O" and array.ndim == 0:
        odd = f"{type(given).__name__}" if given is not None else "None"
    elif array.dtype.kind == "O":
        odd = next((shown(value) for value in array.flat
                    if isinstance(value, str | bytes | complex | np.complexfloating)), None)
    if odd is not None:
        raise ValueError(f"{name}: expected an array of numbers, but got {odd}")


def _check_shape(scores: _Scores) -> None:
    """Raise unless (n,) or (seeds, n), of no more seeds than examples."""
    name, shape = scores.name, scores.values.shape
    if len(shape) not in (1, 2) or 0 in shape:
        raise ValueError(f"{name}: expected scores of shape (examples,) or (seeds, examples), but "
                         f"got {shape}")
    if len(shape) == 1 or shape[0] <= shape[1]:
        return
    if scores.seeds is not None:
        raise ValueError(f"{name}: expected a DataFrame with a row for each example and a column "
                         f"for each seed, but got {shape[1]} rows and {shape[0]} columns; pass the "
                         f"transposed one, {name}.T, if rows are seeds")
    remedy = f"{name}.T" if shape[1] > 1 else f"{name}[:, 0]"
    raise ValueError(f"{name}: expected scores of shape (examples,) or (seeds, examples), but got "
                     f"{shape}, more seeds than examples; pass {remedy} if rows are examples")


def _check_values(name: str, values: Floats) -> None:
    """Raise unless all are finite, and small enough to be squared twice."""
    for bad, expected, got in (
        (~np.isfinite(values), "finite scores", "NaN or infinity"),
        (np.abs(values) > LARGEST, f"scores within ±{LARGEST:g}", "larger ones"),
    ):
        if bad.any():
            place = tuple(int(axis) for axis in np.argwhere(bad)[0])
            seed = f"seed {place[0]}, " if len(place) > 1 and len(values) > 1 else ""
            raise ValueError(f"{name}: expected {expected}, but got {got} in {bad.sum()} of "
                             f"{values.size}, first {values[place]:g} at {seed}example {place[-1]} "
                             f"(counted from 0)")
