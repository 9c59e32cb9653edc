"""The rows of a table that are worth having: the Pareto front, against all pairs of rows."""

import numpy as np
import pandas as pd
import pytest

from wua_mlflow.tracking import pareto, runs


def _dominated(table, row):
    """By any other row, as it is defined."""
    others = (table["score/test"] >= row["score/test"]) & (
        table["flops/forward"] <= row["flops/forward"])
    better = (table["score/test"] > row["score/test"]) | (
        table["flops/forward"] < row["flops/forward"])
    return bool((others & better).any())


@pytest.mark.parametrize("seed", range(5))
def test_the_rows_that_no_other_dominates_ties_and_all(seed):
    draw = np.random.default_rng(seed)
    table = pd.DataFrame({"score/test": draw.integers(0, 20, 40) / 4.0,
                          "flops/forward": pd.array(draw.integers(0, 20, 40), dtype="Int64")},
                         index=draw.permutation(40))
    table.loc[table.index[:5], "score/test"] = np.nan
    table.loc[table.index[3:9], "flops/forward"] = pd.NA
    whole = table.dropna()
    expected = [index for index, row in whole.iterrows() if not _dominated(whole, row)]
    front = pareto(table)
    assert front.index.tolist() == expected, "in the table's order"
    assert expected and front.columns.equals(table.columns)
    again = pd.concat([table, table])
    assert len(pareto(again)) == 2 * len(front), "equal rows stay, all of them"


def test_other_columns_infinities_and_nothing():
    table = pd.DataFrame({"s": [-np.inf, 1.0, np.inf], "c": [1.0, 2.0, np.inf]})
    assert pareto(table, score="s", cost="c").index.tolist() == [0, 1, 2]
    assert pareto(table.iloc[:0], score="s", cost="c").empty
    table["s"] = np.nan
    assert pareto(table, score="s", cost="c").empty


def test_of_a_table_of_runs(populated):
    table = runs()
    front = pareto(table, score="accuracy/test")
    assert front["name"].tolist() == ["slim 6", "slim 5"]
    assert front.attrs["note"] == table.attrs["note"]


@pytest.mark.parametrize(("columns", "message"), [
    ({}, "score: expected a column of the table, but got 'score/test'; did you mean 'score'?"),
    ({"score": "score", "cost": "kind"}, "cost: expected a column of numbers, but 'kind' has str"),
])
def test_a_column_that_is_not_there_or_has_no_numbers_is_named(columns, message):
    table = pd.DataFrame({"score": [1.0], "kind": ["a"], "flops/forward": [1]})
    with pytest.raises(ValueError) as caught:
        pareto(table, **columns)
    assert str(caught.value) == message
