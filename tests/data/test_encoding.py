"""A table's columns as inputs, against scikit-learn's own pipelines."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder
from torch import nn

from wua_mlflow.config import TableSettings
from wua_mlflow.data.columns import columns_of
from wua_mlflow.data.datasets import load_data
from wua_mlflow.data.encoding import TableEncoding, fit_encoding, fit_gaps
from wua_mlflow.data.scaling import Scaler, Scaling, WithInputScaling, WithoutInputScaling, raw_rows


def frame(n: int = 400, seed: int = 0) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    made = pd.DataFrame({
        "age": draw.normal(40, 9, n).round(), "city": draw.choice(list("abcdez"), n, p=[
            .4, .3, .2, .09, .005, .005]), "size": draw.lognormal(size=n),
        "since": pd.Timestamp("2020-01-01") + pd.to_timedelta(draw.integers(0, 900, n), "D"),
        "member": draw.random(n) > 0.5})
    made.loc[draw.random(n) < 0.1, "age"] = np.nan
    made.loc[draw.random(n) < 0.05, "city"] = None
    made.loc[draw.random(n) < 0.05, "since"] = pd.NaT
    return made


def columns(made: pd.DataFrame):
    return columns_of(made, where="f", levels=20)


@pytest.mark.parametrize("most", [3, 20])
def test_categories_are_scikit_learns(most):
    train, test = columns(frame()), columns(frame(seed=1).replace("d", "new"))
    encoding = fit_encoding(train, TableSettings(categories=most), {})
    theirs = OneHotEncoder(max_categories=most, min_frequency=0.01, sparse_output=False,
                           handle_unknown="infrequent_if_exist")
    as_text = [np.where(part[1].gaps, "", part[1].values)[:, None].astype(object)
               for part in (train, test)]
    theirs.fit(as_text[0])
    place = encoding.names.index(encoding.columns[1].names[0])
    width = len(encoding.columns[1].names)
    for part, texts in zip((train, test), as_text, strict=True):
        ours = encoding.encode(part, where="f")[:, place:place + width]
        assert np.array_equal(ours, theirs.transform(texts))
    assert TableEncoding.from_content(json.loads(json.dumps(encoding.content()))) == encoding
    assert encoding.unknown_lines(test)[0].startswith(
        f"city: {int((frame(seed=1).city == 'd').sum())} rows with 'new', which the training part "
        f"does not have, taken as rare ones")


@pytest.mark.parametrize("how", ["median", "mean", "most_frequent", 7.0])
def test_gaps_are_filled_as_scikit_learn_does(how):
    train, test = (made[["age", "size"]].to_numpy() for made in (frame(), frame(seed=1)))
    read = columns(frame()[["age", "size"]])
    settings = TableSettings(impute=how)
    encoding = fit_encoding(read, settings, {})
    gaps = fit_gaps(encoding.encode(read, where="f"), encoding, settings)
    strategy = {"strategy": how} if isinstance(how, str) else {
        "strategy": "constant", "fill_value": how}
    theirs = SimpleImputer(add_indicator=True, **strategy).fit(train)
    assert gaps.indicators.tolist() == [0]
    for part in (train, test):
        filled = gaps.fill_in(part)
        assert np.allclose(filled, theirs.transform(part))
        assert np.array_equal(gaps.reopen(filled), part, equal_nan=True)


def test_a_way_for_each_column():
    read = columns(frame())
    settings = TableSettings(impute={"age": "mean", "city": "a", "since": 0.0})
    encoding = fit_encoding(read, settings, {})
    gaps = fit_gaps(encoding.encode(read, where="f"), encoding, settings)
    assert gaps.fill[0] == pytest.approx(frame().age.mean())
    assert encoding.columns[1].missing == encoding.columns[1].levels["a"]
    for wrong, message in (({"ages": "mean"}, "table: impute: expected columns of the table, but "
                            "got 'ages'; did you mean 'age'?"),
                           ({"age": "medium"}, "table: impute: expected median, mean, "
                            "most_frequent, drop or a number for 'age', but got 'medium'")):
        with pytest.raises(ValueError) as raised:
            fit_gaps(encoding.encode(read, where="f"), encoding, TableSettings(impute=wrong))
        assert str(raised.value) == message


def test_the_saved_model_takes_gaps_as_gaps():
    train = columns(frame()[["age", "size", "member"]])
    encoding = fit_encoding(train, TableSettings(), {})
    raw = encoding.encode(train, where="f")
    gaps = fit_gaps(raw, encoding, TableSettings())
    assert not encoding.named
    scaling = Scaling(Scaler.fit(gaps.fill_in(raw)), None, gaps)
    scaled = torch.from_numpy(scaling.inputs.scale(gaps.fill_in(raw)))
    network = nn.Linear(4, 2)
    served = WithInputScaling(network, scaling)
    torch.testing.assert_close(served(torch.from_numpy(raw)), network(scaled), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(raw_rows(scaled, scaling), torch.from_numpy(raw), equal_nan=True,
                               rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(WithoutInputScaling(served, scaling)(scaled), network(scaled),
                               rtol=1e-4, atol=1e-5)
    assert json.loads(scaling.to_json())["gaps"] == {
        "fill": gaps.fill.tolist(), "indicators": [0]}


def test_fitted_on_the_training_part_alone(tmp_path, monkeypatch):
    """And said, a line a column."""
    monkeypatch.chdir(tmp_path)
    made = frame().assign(y=np.arange(400) % 2)
    made.insert(0, "index", np.random.default_rng(3).permutation(400))
    made["empty"], made["name"] = np.nan, [f"n{i}" for i in range(400)]
    made.to_csv("f.csv", index=False)
    first = load_data("f.csv", target="y", seed=0)
    assert first.columns[:2] == ("age", "city=(gap)")
    assert first.columns[-2:] == ("age missing", "since missing")
    shift = first.scaling.gaps.fill[0]
    test_rows = np.isin(np.arange(400), _test_rows(made, first))
    made.loc[test_rows & made.age.notna(), "age"] += 1000
    made.to_csv("f.csv", index=False)
    again = load_data("f.csv", target="y", seed=0)
    assert again.scaling.gaps.fill[0] == shift
    assert torch.equal(again.train.inputs, first.train.inputs)
    assert not torch.equal(again.test.inputs, first.test.inputs)
    gaps = frame().isna().sum()
    assert first.notes[:3] == (
        "index: distinct whole numbers in the first column, an index; left out",
        "empty: no value in any row; left out", "name: 400 different texts in 400 rows; left out")
    assert first.notes[3] == (f"age: {gaps.age} gaps, imputed by the median ({shift:.4g}), with an "
                              f"indicator")
    assert first.notes[4].startswith("city: ")
    assert first.notes[4].endswith(f"; {gaps.city} gaps, a level of their own")
    assert first.notes[5].startswith(f"since: dates, as days; {gaps.since} gaps, imputed by the ")


def _test_rows(made: pd.DataFrame, split) -> np.ndarray:
    """Rows of the test part, by their standardised size."""
    place = split.columns.index("size")
    scaler = split.scaling.inputs
    size = split.test.inputs[:, place].numpy() * scaler.deviation[0, place] + scaler.mean[0, place]
    return np.array([np.abs(made["size"] - value).argmin() for value in size])


def test_rows_with_gaps_or_without_a_target_are_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = frame().assign(y=np.where(np.arange(400) % 2, "NA", "None"))
    made.loc[:9, "y"] = None
    made.to_csv("f.csv", index=False)
    whole = made[~made[["age", "city", "since"]].isna().any(axis=1) & made.y.notna()]
    split = load_data("f.csv", target="y", seed=0, table=TableSettings(impute="drop"))
    parts = [len(part) for part in (split.train, split.validation, split.test)]
    assert (sum(parts), split.classes) == (len(whole), ("NA", "None"))
    assert split.notes[:2] == (
        "y: 10 of 400 rows have no target, and are left out",
        f"{390 - len(whole)} of 390 rows have a gap, and are left out")
    assert split.scaling.gaps is None
