"""Rows of two files that are the same examples: by their ids, or refused."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from wua_mlflow.cli.main import main
from wua_mlflow.pipeline.example_ids import example_ids, matching_rows

TRUTH = np.random.default_rng(0).integers(0, 3, 300)
GUESSES = [np.where(np.random.default_rng(seed).random(300) < share, (TRUTH + 1) % 3, TRUTH)
           for seed, share in ((1, 0.04), (2, 0.05))]
ORDER = np.random.default_rng(3).permutation(300)
IDS = np.array([f"x{number:03d}" for number in range(300)])


def ids(**columns):
    return example_ids("a file", {name: np.asarray(values) for name, values in columns.items()})


@pytest.mark.parametrize(("first", "second", "expected"), [
    ({"id": [3, 1, 2]}, {"id": [1, 2, 3]}, [2, 0, 1]),
    ({"id": ["3", "1", "2"]}, {"id": [1.0, 2.0, 3.0]}, [2, 0, 1]),
    ({"id": [b"c", b"a"]}, {"id": ["a", "c"]}, [1, 0]),
    ({"customer": ["p", "q"]}, {"customer": ["q", "p"]}, [1, 0]),
    ({"row": [0, 1, 2], "id": [7, 8, 9]}, {"row": [0, 1, 2], "id": [9, 8, 7]}, [2, 1, 0]),
    ({"rank": [1, 3, 2], "id": [7, 8, 9]}, {"rank": [2, 1, 3], "id": [7, 8, 9]}, None),
    ({"id": [7, 8], "took_us": [31, 52]}, {"id": [7, 8], "took_us": [33, 50]}, None),
    ({"patient_id": [4, 4, 5]}, {"patient_id": [4, 4, 5]}, None),
    ({"id": [1, 2]}, {"number": [2, 1]}, None),
    ({"size": [0.5, 0.25, 3.0]}, {"size": [0.25, 3.0, 0.5]}, [2, 0, 1]),
    ({"logit": [0.5, 0.25]}, {"logit": [0.3, 0.5]}, None),
    ({"size": [0.5, 0.25], "id": [7, 8]}, {"size": [0.25, 0.5], "id": [7, 8]}, None),
    ({"size": [0.5, 0.5]}, {"size": [0.5, 0.5]}, None),
    ({"sure": [True, False]}, {"sure": [False, True]}, None),
    ({"pair": [[1, 2], [3, 4]]}, {"pair": [[3, 4], [1, 2]]}, None),
    ({"epoch": [9, 9, 8]}, {"epoch": [8, 9, 9]}, None),
    ({"Unnamed: 0": [0, 1, 2]}, {"Unnamed: 0": [2, 0, 1]}, [1, 2, 0]),
    ({"Unnamed: 0": [0, 1, 2]}, {"Unnamed: 0": [71, 18, 40]}, None),
], ids=str)
def test_ids_give_the_order(first, second, expected):
    match = matching_rows(ids(**first), ids(**second))
    assert (match and match[1].tolist()) == expected


def write(path, index: str | None, order, **columns):
    frame = pd.DataFrame(columns, index=pd.Index(IDS if index == "id" else range(300), name=index))
    frame = frame.iloc[order]
    if path.suffix == ".npz":
        np.savez(path, id=IDS[order], **{name: frame[name].to_numpy() for name in frame})
    elif path.suffix == ".csv":
        frame.to_csv(path)
    else:
        frame.to_parquet(path)


@pytest.mark.parametrize(("a", "b", "index"), [
    ("a.csv", "b.csv", "id"), ("a.csv", "b.csv", None), ("a.parquet", "b.parquet", "id"),
    ("a.parquet", "b.parquet", None), ("a.npz", "b.npz", "id"), ("a.csv", "b.parquet", "id"),
    ("a.npz", "b.csv", "id"), ("a.csv", "b.parquet", None)])
def test_files_in_another_order_are_matched(a, b, index, store_uri, tmp_path, capsys):
    """With targets in one of them, in both, and in the test data."""
    everything = np.arange(300)
    write(tmp_path / a, index, everything, prediction=GUESSES[0], target=TRUTH)
    write(tmp_path / b, index, ORDER, prediction=GUESSES[1])
    write(tmp_path / f"both_{b}", index, ORDER, prediction=GUESSES[1], target=TRUTH)
    write(tmp_path / "truth.csv", index, ORDER[::-1], y=TRUTH)
    expected = (GUESSES[1] == TRUTH).mean() - (GUESSES[0] == TRUTH).mean()
    for words in ([a, b], [a, f"both_{b}"], [a, b, "--data", "truth.csv", "--target", "y"]):
        main(["compare", *words, "--json"])
        output = capsys.readouterr()
        assert json.loads(output.out)["artifact"]["delta"] == pytest.approx(expected)
        name = "the index" if index is None else "the column 'id'"
        assert f"in another order; they are matched by {name}" in output.err


@pytest.mark.parametrize("name", ["number", "size", None])
def test_order_within_a_class_decides_nothing(name, store_uri, tmp_path, capsys):
    """Where a column that both have says so; else that it was not known is said."""
    truth = np.arange(2000) % 2
    wrong = np.arange(2000) < 60
    names = {"number": np.arange(2000) * 3, "size": np.arange(2000) / 7}
    frame = pd.DataFrame({"prediction": np.where(wrong, 1 - truth, truth), "target": truth})
    if name:
        frame.insert(0, name, names[name])
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_csv(tmp_path / "b.csv", index=False)
    half = [np.flatnonzero(truth == kind) for kind in (0, 1)]
    order = np.arange(2000)
    for rows in half:
        order[rows] = rows[np.random.default_rng(0).permutation(1000)]
    frame.iloc[order].to_csv(tmp_path / "moved.csv", index=False)
    codes, texts = [], []
    for second in ("b.csv", "moved.csv"):
        codes.append(main(["compare", "a.csv", second, "--margin", "0.006"]))
        texts.append(capsys.readouterr().out)
    assert codes == ([0, 0] if name else [0, 4])
    unsure = ["The files' rows were matched by their position" in text for text in texts]
    assert unsure == [name is None] * 2


ERRORS = [
    ("a.csv fewer.csv", "compare: expected the same examples in a.csv and fewer.csv, by the column "
                        "'id', but got 'x297', 'x298', 'x299' only in a.csv"),
    ("a.csv other.csv", "compare: expected the same examples in a.csv and other.csv, by the column "
                        "'id', but got 'x000' only in a.csv and 'new' only in other.csv"),
    ("a.csv twice.csv", "compare: expected each value of the column 'id' once in twice.csv, since "
                        "its order is not the same in a.csv and twice.csv, but 'x000' occur more "
                        "often"),
    ("b.csv other.csv --data truth.csv --target y",
     "compare: expected the same examples in truth.csv and other.csv, by the column 'id', but "),
    ("b.csv a.csv --data plain.csv --target y",
     "compare: expected test data with the column 'id', as b.csv and a.csv have the examples in "
     "different orders, but got none"),
]


def test_files_of_other_examples_are_refused(store_uri, tmp_path, refused):
    everything, names = np.arange(300), np.where(IDS == "x000", "new", IDS)
    write(tmp_path / "a.csv", "id", everything, prediction=GUESSES[0], target=TRUTH)
    write(tmp_path / "b.csv", "id", ORDER, prediction=GUESSES[1])
    write(tmp_path / "fewer.csv", "id", everything[:297], prediction=GUESSES[1])
    write(tmp_path / "truth.csv", "id", everything, y=TRUTH)
    pd.DataFrame({"y": TRUTH}).to_csv(tmp_path / "plain.csv", index=False)
    pd.DataFrame({"id": names, "prediction": GUESSES[1]}).to_csv(
        tmp_path / "other.csv", index=False)
    pd.DataFrame({"id": np.where(IDS == "x001", "x000", IDS), "prediction": GUESSES[1]}).to_csv(
        tmp_path / "twice.csv", index=False)
    for words, message in ERRORS:
        assert refused(*words.split()).startswith(message), words
