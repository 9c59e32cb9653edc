"""Files split and standardised, against pandas, scikit-learn and sums by hand; what they pose."""

from __future__ import annotations

import json
import shutil
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.preprocessing import StandardScaler
from torch import nn

from tests.data.test_datasets import digests, fails, three
from wua_mlflow.config import TableSettings, load_settings
from wua_mlflow.data.datasets import DataSplit, load_data
from wua_mlflow.data.scaling import Scaler, Scaling, WithInputScaling, WithoutInputScaling, raw_rows
from wua_mlflow.pipeline.recipe import load_recipe


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _frame(n: int = 100, seed: int = 0) -> pd.DataFrame:
    """``row`` counts the rows, so that a split can be traced back to them."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame({"row": np.arange(n), "a": rng.normal(5, 3, n), "same": 7.0,
                         "count": rng.integers(0, 30, n),
                         "label": np.repeat(["x", "y", "z"], [n // 2, n // 5, n - n // 2 - n // 5]),
                         "amount": rng.normal(100, 9, n)})


def _rows(split: DataSplit) -> list[np.ndarray]:
    """Which rows of ``_frame`` each part holds: the ranks of the first, standardised, column."""
    first = np.concatenate([part.inputs.flatten(1)[:, 0] for part in three(split)])
    places = np.argsort(np.argsort(first))
    return np.split(places, np.cumsum([len(part) for part in three(split)])[:-1])


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_table_is_split_and_standardised(ending, folder):
    frame = _frame()
    getattr(frame, f"to_{ending}")(f"rows.{ending}", index=False)
    split = load_data(f"rows.{ending}", target="label", seed=3)
    rows = _rows(split)
    assert sorted(np.concatenate(rows)) == list(range(100))
    assert [len(part) for part in rows] == [60, 10, 30]
    x = frame.drop(columns="label").to_numpy(dtype=np.float64)
    mean, deviation = x[rows[0]].sum(0) / 60, np.sqrt(((x[rows[0]] - x[rows[0]].mean(0)) ** 2)
                                                      .sum(0) / 60)
    scaler = StandardScaler().fit(x[rows[0]])
    for part, index in zip(three(split), rows, strict=True):
        by_hand = np.divide(x[index] - mean, deviation, where=deviation > 0,
                            out=np.zeros_like(x[index]))
        assert np.allclose(part.inputs.numpy(), by_hand, atol=1e-6)
        assert np.allclose(part.inputs.numpy(), scaler.transform(x[index]), atol=1e-6)
        assert [split.classes[k] for k in part.targets] == frame.label[index].tolist()
        assert np.bincount(part.targets) == pytest.approx(np.array([.5, .2, .3]) * len(index))
    assert (split.name, split.source) == ("rows", str(folder / f"rows.{ending}"))


def test_targets_and_columns_are_standardised_on_the_training_part():
    """A column that is constant there is zero everywhere."""
    frame = _frame()
    frame.drop(columns="label").to_csv("rows.csv", index=False)
    split = load_data("rows.csv", target="amount", seed=3)
    rows = _rows(split)
    train = frame.amount[rows[0]]
    for part, index in zip(three(split), rows, strict=True):
        expected = (frame.amount[index] - train.mean()) / train.std(ddof=0)
        assert np.allclose(part.targets.numpy()[:, 0], expected, atol=1e-5)
        assert part.targets.shape == (len(index), 1)
    frame.loc[rows[2], "same"] = 1000.0  # constant in the training part alone
    frame.drop(columns="label").to_csv("rows.csv", index=False)
    split = load_data("rows.csv", target="amount", seed=3)
    assert [part.tolist() for part in _rows(split)] == [part.tolist() for part in rows]
    assert not any(part.inputs[:, 2].any() for part in three(split))


def test_the_row_numbers_that_pandas_writes_are_no_feature():
    _frame().to_csv("with.csv")
    _frame().to_csv("without.csv", index=False)
    _frame().rename(columns={"row": ""}).assign(**{"": 5}).to_csv("named.csv", index=False)
    read = [digests(load_data(f, target="label", seed=1)) for f in ("with.csv", "without.csv")]
    assert read[0] == read[1]
    assert load_data("named.csv", target="label", seed=1).features == (5,)
    pd.read_csv("with.csv").to_csv("twice.csv")  # Unnamed: 0.1, and then Unnamed: 0
    _frame().sample(frac=1, random_state=0).reset_index().to_csv("reset.csv", index=False)
    for name in ("twice.csv", "reset.csv"):
        assert load_data(name, target="label", seed=1).columns == (
            "row", "a", "same", "count", "amount")


@pytest.mark.parametrize(("shape", "image", "features", "axes"), [
    ((60, 3, 4, 5), True, (3, 4, 5), (0, 2, 3)), ((60, 4, 5), True, (1, 4, 5), (0, 1, 2)),
    ((60, 4, 5), False, (4, 5), (0, 1, 2)), ((60, 4), False, (4,), (0,)),
])
def test_arrays_of_images_are_standardised_by_channel(shape, image, features, axes):
    x = np.random.default_rng(0).integers(0, 9, shape).astype(np.uint8)
    x.reshape(60, -1)[:, 0] = np.arange(60) + 100
    np.savez("arrays.npz", X=x, kind=np.arange(60) % 2 == 0)
    split = load_data("arrays.npz", target="kind", seed=1, image=image)
    assert (split.features, split.classes) == (features, ("False", "True"))
    for part, rows in zip(three(split), _rows(split), strict=True):
        train = x[_rows(split)[0]].astype(np.float64)
        by_hand = (x[rows] - train.mean(axes, keepdims=True)) / train.std(axes, keepdims=True)
        assert np.allclose(part.inputs.numpy().reshape(by_hand.shape), by_hand, atol=1e-5)


def test_ten_rows_of_a_class_reach_all_three_parts():
    rng = np.random.default_rng(0)
    for _ in range(25):
        counts = np.concatenate([[10], rng.integers(10, 90, rng.integers(1, 8))])
        np.savez("rare.npz", X=rng.random((counts.sum(), 1)), y=np.repeat(np.arange(len(counts)),
                                                                         counts))
        split = load_data("rare.npz", seed=int(rng.integers(1000)))
        assert {len(part.targets.unique()) for part in three(split)} == {len(counts)}


@pytest.mark.parametrize(("values", "task", "classes"), [
    (["b", "a"], "binary", ("a", "b")), ([True, False], "binary", ("False", "True")),
    ([0.0, 1.0], "binary", ("0", "1")), ([3, 10, 2], "multiclass", ("2", "3", "10")),
    (range(20), "multiclass", tuple(map(str, range(20)))), (range(21), "regression", ()),
    ([0.5, 1.0], "regression", ()), (["é", "z", "A"], "multiclass", ("A", "z", "é")),
])
@pytest.mark.parametrize("ending", ["csv", "parquet", "npz"])
def test_the_task_that_a_target_poses(values, task, classes, ending):
    target = np.array([*values] * 20)
    x = np.arange(len(target), dtype=float)
    if ending == "npz":
        np.savez("f.npz", X=x[:, None], y=target)
    else:
        getattr(pd.DataFrame({"x": x, "y": target}), f"to_{ending}")(f"f.{ending}", index=False)
    split = load_data(f"f.{ending}", target="y", seed=0)
    assert (split.task, split.classes) == (task, classes)
    if classes:
        for part, rows in zip(three(split), _rows(split), strict=True):
            expected = [sorted(values).index(target[row]) for row in rows]
            assert part.targets.flatten().tolist() == expected
    if len(classes) == 2:  # any task may be forced
        forced = [load_data(f"f.{ending}", target="y", seed=0, task=task)
                  for task in ("binary", "multiclass")]
        assert [(split.outputs, split.train.targets.dtype) for split in forced] == [
            (1, torch.float32), (2, torch.int64)]


def test_columns_of_other_types_that_hold_numbers():
    plain = pd.DataFrame({"a": np.arange(40.0), "b": np.arange(40) % 2, "y": np.arange(40) % 2})
    plain.to_parquet("plain.parquet")
    plain.assign(a=[Decimal(i) for i in range(40)], b=plain.b.astype("boolean"),
                 y=plain.y.astype("Int64")).to_parquet("other.parquet")
    for y in ("y", "a"):
        splits = [load_data(f"{f}.parquet", target=y, seed=0) for f in ("plain", "other")]
        assert digests(splits[0]) == digests(splits[1])


# What the user can get wrong
@pytest.mark.parametrize(("name", "content", "message"), [
    ("f.csv", None, "data: expected a file, but 'f.csv' does not exist"),
    ("folder.csv", None, "data: expected a file, but 'folder.csv' is a folder"),
    ("f.csv", b"", "data: expected rows in f.csv, but the file is empty"),
    ("f.csv", b"a,y\n", "data: expected rows in f.csv, but it has only a header"),
    ("f.txt", b"a,y\n", "data: expected a file ending in .csv, .tsv, .parquet, .feather, .arrow, "
                        ".npz, but got 'f.txt'"),
    ("f.csv", b"a,y\n1,2\n1,2,3\n", "data: could not read f.csv: ParserError: "),
    ("f.csv", b"PK\x03\x04xl/workbook.xml", "data: expected text in f.csv, but it is an "
     "archive (Excel's files are, too): export or unpack it first"),
    ("f.csv", b"\x1f\x8b\x08\x00rest", "data: expected text in f.csv, but it is an archive "),
    ("f.feather", b"a,y\n", "data: could not read f.feather: ArrowInvalid: neither an Arrow file "
                            "nor an Arrow stream"),
    ("f.csv", b"a,b,a,y\n1,2,3,4\n", "data: expected each column's name once in f.csv, but 'a' "
                                     "stands there more than once; rename the columns"),
    ("f.csv", b"a,y,y\n1,2,3\n", "data: expected each column's name once in f.csv, but 'y' stands "
                                 "there more than once"),
    ("f.csv", b"a,y\n1,2,3,4\n5,6,7,8\n", "data: expected as many names in the header of "
     "f.csv as cells in a row, but the header has 2"),
    ("f.csv", b"a,y\n1,2,3\n1,4,5\n", "data: expected as many names in the header of f.csv "
     "as cells in a row, but the header has 2"),
    ("f.csv", b"a,y\n1,\n2,\n", "target: expected a value in every row, but column 'y' of f.csv "
                              "has none in 2 of 2 rows"),
    ("f.csv", b"index,y\n3,1\n2,0\n", "data: expected columns beside the target in f.csv, but got "
                                    "none"),
    ("f.csv", b"a,y\n,1\n,2\n", "data: expected a column of numbers, dates or categories beside "
                              "the target in f.csv, but got none: 'a' has no value in any row"),
    ("f.csv", b"a;y\n1,250;2\n3,500;1\n", "data: expected numbers, dates or categories, but column "
     "'a' of f.csv has numbers such as '1,250', which could be 1.250 or 1250; mend it or leave it "
     "out (--drop-columns a)"),
    ("f.csv", b"5.1,3.5,0\n4.9,3.0,1\n", "target: expected a column of f.csv, which has '5.1', "
     "'3.5', '0', but got 'y'; its first line seems to be a row: put a line of names before it"),
    ("f.csv", b"a;x\n1;2\n", "target: expected a column of f.csv, which has 'a', 'x', but got 'y'"),
    ("f.parquet", b"a,y\n", "data: could not read f.parquet: ArrowInvalid: "),
    ("f.npz", b"a,y\n", "data: expected an archive as numpy.savez writes it, but f.npz is none"),
    ("f.csv", b"y\n1\n", "data: expected columns beside the target in f.csv, but got none"),
])
def test_a_file_that_cannot_be_used(name, content, message):
    Path("folder.csv").mkdir()
    if content is not None:
        Path(name).write_bytes(content)
    assert fails(name, target="y").startswith(message)


def test_a_target_that_is_not_there():
    _frame().to_csv("f.csv", index=False)
    for target, got in ((None, "none"), ("", "none"), ("labl", "'labl'; did you mean 'label'?")):
        assert fails("f.csv", target=target) == (
            "target: expected a column of f.csv, which has 'row', 'a', 'same', 'count', 'label', "
            f"'amount', but got {got}")
    pd.DataFrame(np.ones((3, 30))).to_csv("f.csv", index=False)
    assert "'7' and 22 more, but" in fails("f.csv", target="y")


KINDS = "data: expected numbers, dates or categories, but "
MEND = "; mend it or leave it out (--drop-columns {})"


@pytest.mark.parametrize(("column", "values", "message"), [
    ("a", [1e300], KINDS + "column 'a' of {} has infinity, "
     "or more than float32 holds, in 1 of 100 rows" + MEND.format("a")),
    ("a", [np.inf, -np.inf], KINDS + "column 'a' of {} has "
     "infinity, or more than float32 holds, in 2 of 100 rows" + MEND.format("a")),
    ("note", ["1", "?"], KINDS + "column 'note' of {} has "
     "text in 1 of 100 rows beside numbers, such as '?' (an empty cell is a gap)"
     + MEND.format("note")),
    ("label", ["rare"] * 4, "target: expected at least 10 rows of each class to have it in all "
     "three parts, but class 'rare' has 4"),
    ("label", ["None"] * 4, "target: expected at least 10 rows of each class to have it in all "
     "three parts, but class 'None' has 4"),
    ("amount", ["NA", "?"], "target: expected numbers or labels, but column 'amount' of {} has "
     "text in 2 of 100 rows beside numbers, such as 'NA' (an empty cell is a gap)"),
    ("amount", [np.inf], "target: expected finite numbers, but column 'amount' of {} has "
     "infinity, or more than float32 holds, in 1 of 100 rows"),
])
def test_values_that_cannot_be_used(column, values, message):
    frame = _frame().assign(note=np.arange(100).astype(str)) if column == "note" else _frame()
    if isinstance(values[0], str):
        frame[column] = frame[column].astype(str)
    frame.loc[5:4 + len(values), column] = values
    frame.to_csv("f.csv", index=False)
    frame.to_parquet("f.parquet")
    target = column if message.startswith("target") else "label"
    for name in ("f.csv", "f.parquet")[:1 if target == "amount" else 2]:
        assert fails(name, target=target) == message.format(name)


def test_all_columns_that_cannot_be_used_are_said_at_once():
    frame = _frame().assign(b=np.inf, c="1,250", note=np.arange(100).astype(str))
    frame.loc[3, "note"] = "?"
    frame.to_csv("f.csv", index=False)
    line = fails("f.csv", target="label")
    assert line.startswith("data: expected numbers, dates or categories, but of the columns of "
                           "f.csv 'b' has infinity")
    assert line.endswith("; mend them or leave them out (--drop-columns b,c,note)")
    left = load_data("f.csv", target="label", seed=0,
                     table=TableSettings(drop_columns=("b", "c", "note")))
    assert left.columns == ("row", "a", "same", "count", "amount")
    for dropped, message in (("label", "drop_columns: expected columns of inputs, but 'label' is "
                              "the target"), ("notes", "drop_columns: expected columns of f.csv, "
                              "which has 'row', 'a', 'same', 'count', 'label', 'amount', 'b', 'c' "
                              "and 1 more, but got 'notes'; did you mean 'note'?")):
        settings = TableSettings(drop_columns=(dropped,))
        assert fails("f.csv", target="label", table=settings) == message


DATES = pd.date_range("2020", periods=40)


@pytest.mark.parametrize(("options", "message"), [
    ({"y": [3] * 40}, "target: expected at least two different values, but all are '3'"),
    ({"y": [0, 1] * 9}, "data: expected at least 20 rows to make three parts of, but got 18"),
    ({"y": [0] * 30 + [1] * 9}, "target: expected at least 10 rows of each class to have it in all "
     "three parts, but class '1' has 9; amounts want task=regression"),
    ({"y": ["a", "b"] * 20, "task": "regression"}, "target: expected numbers in a regression, but "
     "the target has text, such as 'a'"),
    ({"y": DATES}, "target: expected numbers or text, but column 'y' of f.parquet is datetime64"),
    ({"x": [[1, 2]] * 40, "y": [0, 1] * 20}, "data: expected numbers, dates or categories, but "
     "column 'x' of f.parquet has a ndarray in a cell, such as array([1, 2])"),
])
def test_targets_that_cannot_be_used(options, message):
    y = options["y"]
    pd.DataFrame({"x": options.get("x", np.arange(float(len(y)))), "y": y}).to_parquet("f.parquet")
    assert fails("f.parquet", target="y", task=options.get("task")).startswith(message)


@pytest.mark.parametrize(("arrays", "target", "message"), [
    ({"x": np.ones((40, 2)), "y": np.ones(40)}, None,
     "data: expected an array 'X' in f.npz, but it has 'x', 'y'"),
    ({"X": np.ones((40, 2)), "ys": np.ones(40)}, "yss",
     "target: expected an array 'yss' in f.npz, but it has 'X', 'ys'; did you mean 'ys'?"),
    ({"X": np.ones((40, 2)), "y": np.ones(39)}, None,
     "data: expected inputs and as many targets in f.npz, but got 40 inputs and 39 targets"),
    ({"X": np.ones((40, 6)), "y": np.arange(40) % 2}, None, "data: expected images, (height, "
     "width) or (channels, height, width), for this model, but each input has the shape (6,)"),
    ({"X": np.array([[1, "a"]] * 40, dtype=object), "y": np.ones(40)}, None,
     "data: could not read f.npz: ValueError: Object arrays cannot be loaded"),
])
def test_arrays_that_cannot_be_used(arrays, target, message):
    np.savez("f.npz", **arrays)
    assert fails("f.npz", target=target, image=True).startswith(message)


def test_paths_are_taken_from_the_current_folder_and_from_home(folder, monkeypatch):
    _frame().to_csv("f.csv", index=False)
    (folder / "home").mkdir()
    shutil.copy("f.csv", "home/g.CSV")
    monkeypatch.setenv("HOME", str(folder / "home"))
    splits = [load_data(path, target="label", seed=0) for path in
              ("f.csv", str(folder / "f.csv"), "./home/../f.csv", "~/g.CSV")]
    assert len({tuple(digests(split)) for split in splits}) == 1
    assert splits[3].source == str(folder / "home" / "g.CSV")


@pytest.mark.parametrize("state", [None, "weights.safetensors"])
def test_files_are_standardised_but_for_a_model_with_weights_of_its_own(state, folder):
    _frame().assign(half=np.arange(100) % 2).drop(columns="label").to_csv("f.csv", index=False)
    recipe = load_recipe(load_settings(None, {
        "data": "f.csv", "target": "half", "model": "mlp", "hidden": "4", "state": state}))
    assert recipe.settings.data == str(folder / "f.csv"), "which holds in any folder"
    means = recipe.split.train.inputs.mean(0).tolist()
    assert means[2] == (7 if state else 0)  # a constant column
    assert means[4] == (pytest.approx(100, abs=5) if state else pytest.approx(0, abs=1e-5))
    targets = load_data("f.csv", target="amount", seed=1, standardise=state is None).train.targets
    assert float(targets.mean()) == pytest.approx(100 if state else 0, abs=5)


def test_constant_columns_and_large_offsets_survive_the_way_back():
    rng = np.random.default_rng(0)
    rows = np.c_[rng.normal(1.7e9, 300, 50), np.full(50, 0.1)]
    scaling = Scaling(Scaler.fit(rows), Scaler.fit(rows[:, 1:] + rng.normal(size=(50, 1))))
    scaled = torch.from_numpy(scaling.inputs.scale(rows))
    torch.testing.assert_close(raw_rows(scaled, scaling), torch.from_numpy(rows), rtol=1e-9, atol=0)
    content = json.loads(scaling.to_json(["a"]))
    assert content["inputs"]["scale"] == [pytest.approx(np.std(rows[:, 0])), None]
    assert content["inputs"]["mean"] == pytest.approx([rows[:, 0].mean(), 0.1])
    assert content["classes"] == ["a"]
    network = nn.Linear(2, 1)
    served = WithInputScaling(network, scaling)
    by = scaling.targets
    expected = network(scaled).detach().numpy() * by.deviation + by.mean
    np.testing.assert_allclose(served(torch.from_numpy(rows)).detach(), expected, rtol=1e-5)
    torch.testing.assert_close(
        WithoutInputScaling(served, scaling)(scaled), network(scaled), rtol=1e-4, atol=1e-5)
    without = Scaling(None, None)
    assert not without
    for none in (without, None):
        plain = WithoutInputScaling(WithInputScaling(network, without), none)
        assert torch.equal(plain(scaled), network(scaled))
