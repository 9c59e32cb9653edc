"""Columns that give a target away are said; strong honest ones are not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn import datasets

from wua_mlflow.data.datasets import load_data
from wua_mlflow.data.leaks import leak_lines

DRAW = np.random.default_rng(0)
CLASSES = DRAW.integers(0, 3, 300)
AMOUNTS = np.exp(2 * DRAW.normal(size=300))
NOISE = DRAW.normal(size=300)


def lines(column, targets, name="a", **options):
    inputs = np.stack([np.asarray(column, dtype=float), NOISE], axis=1)
    return leak_lines(inputs, np.asarray(targets), [name, "noise"], target="y",
                      **{"classes": targets.dtype.kind == "i", **options})


@pytest.mark.parametrize(("column", "targets"), [
    (CLASSES * 10 + 3, CLASSES), (2 - CLASSES, CLASSES), (AMOUNTS * 1.2 + 5, AMOUNTS),
    (-np.log(AMOUNTS), AMOUNTS), (np.sort(CLASSES) + 0.01 * NOISE, np.sort(CLASSES)),
    (np.where(DRAW.random(300) < 0.02, np.nan, CLASSES), CLASSES),
], ids=["recoded", "turned", "another unit", "its logarithm", "with noise", "with gaps"])
def test_a_column_that_holds_the_answer(column, targets):
    if column[0] == np.sort(column)[0]:
        order = DRAW.permutation(300)
        column, targets = column[order], targets[order]
    line, = lines(column, targets)
    assert line.startswith("'a': alone predicts y nearly perfectly (by ")
    assert line.endswith("are they known when the model is used? --drop-columns a")
    assert lines(column, targets, droppable=False)[0].endswith("when the model is used?")


def test_a_shuffled_index_of_sorted_classes():
    order = DRAW.permutation(2000)
    index, classes = order.astype(float), np.sort(DRAW.integers(0, 2, 2000))[order]
    noise = DRAW.normal(size=2000)
    said = leak_lines(np.stack([index, noise], axis=1), classes, ["patient_id", "noise"],
                      target="y", classes=True)
    assert [line.partition(":")[0] for line in said] == ["'patient_id'", "'patient_id'"]
    assert said[0].startswith("'patient_id': called an id, and different in most rows; ")


@pytest.mark.parametrize("name", ["iris", "wine", "breast_cancer", "diabetes", "digits"])
def test_honest_columns_are_not_suspected(name):
    """In the training parts of several splits."""
    bunch = getattr(datasets, f"load_{name}")()
    for seed in range(20 if name in ("iris", "wine") else 2):
        rows = np.random.default_rng(seed).permutation(len(bunch.target))
        rows = rows[:int(0.6 * len(rows))]
        assert leak_lines(bunch.data[rows], bunch.target[rows], [*map(str, bunch.feature_names)],
                          target="y", classes=name != "diabetes") == []


@pytest.mark.parametrize(("noise", "share"), [(0.2, 1), (0.1, 0)])
def test_the_threshold(noise, share):
    """A column that is right in 99% of the way is suspected, one in 90% is not."""
    draw = np.random.default_rng(1)
    y = draw.integers(0, 2, 4000)
    x = np.where(draw.random(4000) < noise / 100 if share else draw.random(4000) < noise, 1 - y, y)
    assert len(leak_lines(x[:, None] + 0.0, y, ["a"], target="y", classes=True)) == share


def test_targets_that_the_inputs_determine():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(400, 3))
    line, = leak_lines(x, x @ [1.0, 2.0, -3.0] + 1, [*"abc"], target="y", classes=False)
    assert line == ("y: the inputs determine it exactly, by a linear formula on rows held out: do "
                    "they hold the answer?")
    corner = (x[:, 0] > 0).astype(int) * 2 + (x[:, 1] > 0)
    big = draw.normal(size=(4000, 2))
    corner = (big[:, 0] > 0).astype(int) * 2 + (big[:, 1] > 0)
    line, = leak_lines(big, corner, [*"ab"], target="y", classes=True)
    assert "by a decision tree" in line
    assert leak_lines(x, x @ [1.0, 2.0, -3.0] + 0.1 * draw.normal(size=400), [*"abc"], target="y",
                      classes=False) == []


def test_what_gives_a_target_away_is_said_of_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    grade = np.array(["low", "mid", "high"])[CLASSES]
    frame = pd.DataFrame({"noise": NOISE, "grade": grade, "id": np.arange(300), "y": CLASSES})
    frame.sample(frac=1, random_state=0).to_csv("f.csv", index=False)
    load_data("f.csv", target="y", seed=0).say_notes()
    said = capsys.readouterr().err.splitlines()
    assert [line.removeprefix("wua: data: ")[:30] for line in said] == [
        "y: 3 whole numbers, taken as c", "grade: 3 levels of text, one-h",
        "180 rows to train on, 30 to va",
        "'id': called an id, and differ", "'grade': alone predicts y near"]
    load_data("iris", seed=0).say_notes()
    assert capsys.readouterr().err == ""


def test_numbers_that_count_the_rows_are_said_whatever_they_are_called(tmp_path, monkeypatch):
    """Not amounts, nor dates, nor numbers that repeat."""
    monkeypatch.chdir(tmp_path)
    days = pd.date_range("2024-01-01", periods=300).strftime("%Y-%m-%d")
    frame = pd.DataFrame({"noise": NOISE, "customer": 50_001 + DRAW.permutation(300), "day": days,
                          "salary": 17 * DRAW.permutation(300), "age": np.arange(300) % 90,
                          "y": CLASSES})
    frame.to_csv("f.csv", index=False)
    line, = [line for line in load_data("f.csv", target="y", seed=0).warnings if "as an id" in line]
    assert line.startswith("'customer': another whole number in each row") and \
        line.endswith("--drop-columns customer")
