"""Rows with the same inputs, and what was guessed of a target."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from wua_mlflow.data.datasets import load_data
from wua_mlflow.data.splitting import copies_of, part_lines, split_rows
from wua_mlflow.data.tables import Rows


def noise(distinct: int, copies: int, seed: int = 0) -> Rows:
    """Rows whose classes are noise, each so many times, in any order."""
    draw = np.random.default_rng(seed)
    order = draw.permutation(np.repeat(np.arange(distinct), copies))
    return Rows(draw.normal(size=(distinct, 3))[order], draw.integers(0, 2, distinct)[order])


def shared(parts) -> int:
    """Rows of the second and third part that are in the first too."""
    first = {row.tobytes() for row in parts[0].inputs}
    return sum(row.tobytes() in first for part in parts[1:] for row in part.inputs)


@pytest.mark.parametrize("task", [None, "regression"])
def test_equal_rows_stay_in_one_part(task):
    split = split_rows(noise(150, 4), 0, task)
    assert shared(split.parts) == 0
    assert [len(part.inputs) for part in split.parts] == [360, 60, 180]
    assert split.notes == ("450 of 600 rows have the inputs of another; such rows stay in one "
                           "part",)


def test_equal_rows_stay_in_one_part_with_groups():
    """Groups that share such rows are one; unless too few are left of them."""
    rows = noise(150, 4)
    copies = copies_of(rows.inputs)
    halves = 2 * (copies // 2) + np.arange(600) % 2  # two groups share the same pair of rows
    for groups, kept in ((halves, True), (np.arange(600) % 60, False)):
        split = split_rows(Rows(rows.inputs, rows.targets, groups=groups), 0, None)
        assert (shared(split.parts) == 0) == kept
        said = split.notes[0] if kept else split.find_warnings()[0]
        assert ("such rows stay in one part" if kept else "test rows are training rows too") in said
        train, validation, test = (set(part.groups.tolist()) for part in split.parts)
        assert not train & validation | train & test | validation & test


def test_a_table_of_few_different_rows_is_split_by_row_and_that_is_said():
    draw = np.random.default_rng(0)
    rows = Rows(draw.integers(0, 2, (400, 3)).astype(float), draw.integers(0, 2, 400))
    split = split_rows(rows, 0, None)
    assert [len(part.inputs) for part in split.parts] == [240, 40, 120]
    assert split.notes == ()
    assert split.find_warnings() == ["120 of 120 test rows are training rows too (the same "
                                     "inputs): what a network remembers counts as what it can do"]


def test_rows_without_copies_are_split_as_ever():
    rows = noise(150, 1)
    assert split_rows(rows, 3, None).notes == ()
    plain = split_rows(rows, 3, None, copies_together=False)
    for ours, theirs in zip(split_rows(rows, 3, None).parts, plain.parts, strict=True):
        assert np.array_equal(ours.inputs, theirs.inputs)


@pytest.mark.parametrize(("values", "expected"), [
    ([[1.0, np.nan], [1.0, -np.nan], [0.0, 1.0], [-0.0, 1.0]], [0, 0, 1, 1]),
    ([[1, 2], [2, 1], [1, 2]], [0, 1, 0]), ([[[1], [2]], [[1], [2]]], [0, 0]),
])
def test_copies(values, expected):
    assert copies_of(np.array(values)).tolist() == expected


def test_overlap_of_parts_that_were_given():
    def lines(train, test):
        return part_lines([Rows(x, np.zeros(len(x))) for x in (train, test[:1], test)])

    train, test = np.arange(12.0).reshape(6, 2), np.arange(8.0, 16.0).reshape(4, 2)
    assert lines(train, test)[0].startswith("2 of 4 test rows are training rows too")
    assert lines(train, test[2:]) == lines(train, test[:, :1]) == []


@pytest.mark.parametrize(("target", "task", "line"), [
    (np.arange(330) % 11, None, "rating: 11 whole numbers, taken as classes; `--task regression` "
                                "otherwise"),
    (np.arange(330) % 30, None, "rating: 30 different whole numbers, taken as amounts; `--task "
                                "multiclass` otherwise"),
    (np.arange(330) % 11, "regression", None), (np.arange(330) % 2, None, None),
    (np.arange(330) / 7, None, None), (np.array([*"abc"] * 110), None, None),
    (np.arange(330), None, None),
])
def test_what_was_guessed_of_the_target_is_said(target, task, line, tmp_path):
    draw = np.random.default_rng(0)
    pd.DataFrame({"a": draw.normal(size=330), "rating": target}).to_csv(
        tmp_path / "f.csv", index=False)
    split = load_data(str(tmp_path / "f.csv"), target="rating", seed=0, task=task)
    assert split.notes == (() if line is None else (line,))
