"""What ``compare`` is given: what is accepted and aligned, what is refused in one line."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from wua_mlflow.verdict.compare import Verdict, compare

DRAW = np.random.default_rng(0)
OLD, NEW = DRAW.normal(size=(2, 60))
OLD_SEEDS, NEW_SEEDS = DRAW.normal(size=(2, 6, 40))
LABELS = [f"patient {number}" for number in range(60)]


@dataclass(frozen=True)
class Results:
    """Stands for an evaluation."""

    scores: Any
    digest: str | None = None


def refusal(baseline, candidate, **options) -> str:
    with pytest.raises(ValueError) as raised:
        compare(baseline, candidate, **options)
    message = str(raised.value)
    assert message == " ".join(message.split())
    return message


def test_margin_has_a_default():
    right = np.ones(400)
    assert compare(right, right) == compare(right, right, margin=0.02)


ORDER = DRAW.permutation(60)


@pytest.mark.parametrize("index", [
    pd.Index(LABELS), pd.RangeIndex(60), pd.Index(range(100, 160)),
    pd.date_range("2020", periods=60),
    pd.MultiIndex.from_product([range(6), list("abcdefghij")]), pd.CategoricalIndex(LABELS),
], ids=lambda index: type(index).__name__)
def test_a_table_in_another_order_gives_the_verdict_of_the_aligned_one(index):
    expected = compare(OLD, NEW)
    old, new = pd.Series(OLD, index), pd.Series(NEW, index)
    shuffled = new.iloc[ORDER]
    assert compare(OLD, NEW[ORDER]) != expected
    assert compare(old, new) == compare(old, shuffled) == expected
    assert compare(Results(old, "a"), Results(shuffled, "a")) == expected
    assert compare(old.to_frame(), shuffled.to_frame("scores")) == expected
    assert shuffled.index.equals(index[ORDER])


def test_a_data_frame_has_a_row_for_each_example_and_a_column_for_each_seed():
    expected = compare(OLD_SEEDS, NEW_SEEDS)
    names = [f"seed{number}" for number in range(6)]
    old, new = (pd.DataFrame(scores.T, LABELS[:40], names) for scores in (OLD_SEEDS, NEW_SEEDS))
    order = DRAW.permutation(40)
    assert compare(old, new) == compare(old, new.iloc[order, ::-1]) == expected
    assert compare(old, new.rename(columns=lambda name: f"slim {name}")) == expected
    assert compare([old[name] for name in names], [new.iloc[order][name] for name in names]
                   ) == expected
    assert compare(old.reset_index(drop=True), NEW_SEEDS) == expected
    assert "expected a DataFrame with a row for each example" in refusal(old.T, new.T)


def test_an_index_that_does_not_fit():
    old, new = pd.Series(OLD, LABELS), pd.Series(NEW, LABELS)
    assert refusal(old, new.rename({"patient 3": "patient 77"})) == (
        "baseline and candidate: expected an index of the same labels, but 'patient 3' only in "
        "baseline and 'patient 77' only in candidate")
    assert refusal(old, new[:50]) == (
        "baseline and candidate: expected an index of the same labels, but 'patient 50', "
        "'patient 51', 'patient 52' and 7 more only in baseline")
    assert "0, 1, 2 and 57 more only in candidate" in refusal(old, new.reset_index(drop=True))
    twice = new.rename({"patient 3": "patient 4"})
    for pair, name in (((old, twice), "candidate"), ((twice, twice), "baseline")):
        assert refusal(*pair) == (
            f"{name}: expected each label of the index once, but 'patient 4' occur more often; if "
            f"both are in the same order, pass .reset_index(drop=True) of both")
    for pair, name, table in (((old, NEW), "candidate", "baseline"),
                              ((OLD.tolist(), new), "baseline", "candidate")):
        assert refusal(*pair) == (
            f"{name}: expected a pandas Series or DataFrame too, as the index of {table} is not 0, "
            f"1, 2, … but 'patient 0', 'patient 1', 'patient 2' and 57 more; if both are in the "
            f"same order, pass {table}.reset_index(drop=True)")
    assert compare(old.reset_index(drop=True), NEW) == compare(OLD, NEW)


@pytest.mark.parametrize("convert", [
    list, np.ndarray.tolist, lambda a: tuple(map(Decimal, a)), lambda a: a.astype(object),
    lambda a: a[None], torch.from_numpy, lambda a: torch.tensor(a, requires_grad=True),
    lambda a: [torch.tensor(value, requires_grad=True) for value in a], np.ma.masked_array,
    lambda a: Results(torch.tensor(a)), lambda a: pd.Series(a, dtype="Float64"),
    lambda a: a.astype(np.longdouble), lambda a: a.astype(">f8"),
])
def test_arrays_of_any_make_are_accepted(convert):
    assert compare(convert(OLD), convert(NEW)) == compare(OLD, NEW)


@pytest.mark.parametrize("convert", [
    lambda a: a.astype(np.int8), lambda a: a > 0, lambda a: a.astype(np.float16),
    lambda a: torch.tensor(a, dtype=torch.bfloat16, requires_grad=True),
    lambda a: torch.tensor(a > 0), lambda a: pd.Series(a > 0, dtype="boolean"),
    lambda a: pd.DataFrame({"right": a > 0}), lambda a: [bool(value) for value in a],
])
def test_scores_of_zero_and_one_in_any_type(convert):
    old, new = (values > 0.5 for values in (OLD, NEW))
    assert compare(convert(old * 1.0), convert(new * 1.0)) == compare(old, new)


def test_what_is_given_stays_as_it_is():
    old, new = OLD.copy(), NEW.copy()
    old.flags.writeable = new.flags.writeable = False
    compare(old, new)
    table = pd.Series(NEW.copy(), LABELS)[::-1]
    compare(pd.Series(OLD, LABELS), table)
    assert table.tolist() == NEW[::-1].tolist()
    assert compare(old, old).delta == 0


SHAPE = "expected scores of shape (examples,) or (seeds, examples), but got"
MANY = "more seeds than examples; pass"
NUMBERS = "candidate: expected an array of numbers, but got"
FIRST = "(counted from 0)"


@pytest.mark.parametrize(("scores", "message"), [
    (np.ones((540, 5)), f"candidate: {SHAPE} (540, 5), {MANY} candidate.T if rows are examples"),
    (np.ones((540, 1)), f"candidate: {SHAPE} (540, 1), {MANY} candidate[:, 0] if rows are "
                        f"examples"),
    (torch.ones(540, 5), f"candidate: {SHAPE} (540, 5), {MANY} candidate.T if rows are examples"),
    (1.0, f"candidate: {SHAPE} ()"),
    (np.ones((5, 0)), f"candidate: {SHAPE} (5, 0)"),
    ([np.ones(7), np.ones(9)], f"{NUMBERS} seeds of 7 to 9 examples"),
    (None, f"{NUMBERS} None"),
    ({"a": 1}, f"{NUMBERS} dict"),
    ((value for value in [1, 0]), f"{NUMBERS} generator"),
    ("right", f"{NUMBERS} an array of <U5"),
    (["1", "0"], f"{NUMBERS} an array of <U1"),
    ([1, "0", None], f"{NUMBERS} '0'"),
    ([1j, 0], f"{NUMBERS} an array of complex128"),
    (torch.ones(3, dtype=torch.complex64), f"{NUMBERS} an array of complex64"),
    (np.array(["2020"], "M8[Y]"), f"{NUMBERS} an array of datetime64[Y]"),
    (np.zeros(3, "f4,f4"), f"{NUMBERS} an array of [('f0', '<f4'), ('f1', '<f4')]"),
    ([object(), object()], f"{NUMBERS} TypeError: float() argument must be a string or a real "
                           f"number, not 'object'"),
    (np.ma.masked_array([1, 0, 1], [0, 0, 1]), f"{NUMBERS} ValueError: a masked array that hides "
                                               f"1 of 3"),
    ([1, None], f"candidate: expected finite scores, but got NaN or infinity in 1 of 2, first nan "
                f"at example 1 {FIRST}"),
    (pd.Series([True, None], dtype="boolean"), f"candidate: expected finite scores, but got NaN or "
     f"infinity in 1 of 2, first nan at example 1 {FIRST}"),
    ([[1, 0], [1, -math.inf]], f"candidate: expected finite scores, but got NaN or infinity in 1 "
                               f"of 4, first -inf at seed 1, example 1 {FIRST}"),
    ([1, 1e200, -1e300], f"candidate: expected scores within ±1e+60, but got larger ones in 2 of "
                         f"3, first 1e+200 at example 1 {FIRST}"),
    (np.array([1, 2], np.longdouble) * np.longdouble("1e400"),
     f"candidate: expected finite scores, but got NaN or infinity in 2 of 2, first inf at example "
     f"0 {FIRST}"),
])
def test_scores_that_are_none(scores, message):
    assert refusal([1, 0], scores) == message


@pytest.mark.parametrize(("option", "value"), [
    ("margin", np.zeros((3, 30))), ("margin", Decimal("0.02")), ("margin", np.bool_(False)),
    ("margin", 1j), ("margin", "two\npercent"), ("confidence", 0.9999999999999999),
    ("confidence", 1 - 1e-16), ("confidence", Decimal("0.9")), ("seed", -1), ("seed", None),
    ("seed", 1.5), ("seed", True), ("seed", "a\nb"),
])
def test_options_that_are_none(option, value):
    assert refusal(OLD, NEW, **{option: value}).startswith(f"{option}: expected ")


def test_margin_and_confidence_as_any_real_number():
    expected = compare(OLD, NEW, margin=0.25, confidence=0.875)
    for kind in (Fraction, np.float32, np.float64):
        assert compare(OLD, NEW, margin=kind(0.25), confidence=kind(0.875)) == expected


def fuzzed(rng: np.random.Generator) -> tuple[Any, Any, dict[str, Any]]:
    """Two scores and options, odd in one or two ways, or in none."""
    shape = [(2,), (3,), (40,), (1, 7), (5, 5), (6, 30), (4, 9), (9, 4), (40, 5), ()][
        rng.integers(10)]
    kinds = [lambda: rng.normal(size=shape), lambda: (rng.random(shape) < 0.8) * 1.0,
             lambda: np.full(shape, 0.3), lambda: rng.standard_cauchy(size=shape) ** 3]
    base, cand = kinds[rng.integers(4)](), kinds[rng.integers(4)]()
    cand = base if rng.random() < 0.1 else cand
    factor = [1, 1, 1, 5e-324, 1e-320, 1e-160, 1e-80, 1e30, 1e59, 1e200][rng.integers(10)]
    base, cand = np.asarray(base * factor), np.asarray(cand * factor)
    if cand.size and rng.random() < 0.3:
        cand.flat[rng.integers(cand.size)] = [math.nan, math.inf, 1e59, -1e60, 1e308, 5e-324, 0][
            rng.integers(7)]
    wraps = [lambda a: a, np.ndarray.tolist, torch.tensor, lambda a: a.astype(object),
             lambda a: a.astype(str), lambda a: a.astype(complex), lambda a: pd.Series(a.ravel()),
             lambda a: pd.DataFrame(np.atleast_2d(a).T), lambda a: list(a) if a.ndim else a,
             lambda a: a.astype(np.float16)]
    if rng.random() < 0.5:
        with np.errstate(over="ignore", invalid="ignore"):
            base, cand = wraps[rng.integers(10)](base), wraps[rng.integers(10)](cand)
    values = [5e-324, 1e-300, 1e-12, 0.02, 0.5, 0.999, 1 - 2**-53, 0, 1, math.nan, "0.1", None]
    options = {"margin": values[rng.integers(12)], "confidence": values[rng.integers(12)]}
    return base, cand, {name: value for name, value in options.items() if rng.random() < 0.4}


def test_any_outcome_is_a_finite_verdict_or_one_line():
    rng, verdicts = np.random.default_rng(5), 0
    for _ in range(1500):
        base, cand, options = fuzzed(rng)
        try:
            verdict = compare(base, cand, **options)
        except ValueError as error:
            message = str(error)
            assert message == " ".join(message.split())
            assert message.split(":")[0] in ("baseline", "candidate", "baseline and candidate",
                                             "examples", "seeds", "margin", "confidence"), message
            continue
        verdicts += 1
        numbers = [getattr(verdict, field.name) for field in fields(Verdict)]
        assert all(math.isfinite(number) for number in numbers if isinstance(number, float))
        assert verdict.low <= verdict.delta <= verdict.high
        assert "\n" not in verdict.sentence + (verdict.settle or "")
    assert 200 < verdicts < 1000
