"""What a column is taken for, by its values; dates against pandas, numbers by hand."""

from __future__ import annotations

import datetime
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from wua_mlflow.data.columns import UnusableColumn, columns_of, read_column

nan = np.nan
DAYS = [18262.0, nan, 18293.0]  # 2020-01-01, none, 2020-02-01


@pytest.mark.parametrize(("values", "kind", "expected", "written"), [
    ([1, 2, 3], "number", [1, 2, 3], ""),
    ([True, False, None], "number", [1, 0, nan], ""),
    (["True", "false", None], "number", [1, 0, nan], ""),
    (["1", " 2.5", None], "number", [1, 2.5, nan], ""),
    ([Decimal("1.5"), None, 2], "number", [1.5, nan, 2], ""),
    (["1,5", "-2", "1.234,25"], "number", [1.5, -2, 1234.25], "decimal commas"),
    (["1,500", "2,000.5", "12"], "number", [1500, 2000.5, 12], "thousands"),
    (["1 500", "2 000"], "number", [1500, 2000], "decimal commas"),
    (["1,500,000", "2"], "number", [1500000, 2], "thousands"),
    (["2020-01-01", None, "2020-02-01"], "date", DAYS, "ISO8601"),
    (["2020-01-01T00:00:00Z", "", "2020-02-01T01:00:00+01:00"], "date", DAYS, "ISO8601"),
    (["01.01.2020", None, "01.02.2020"], "date", DAYS, "%d.%m.%Y"),
    (["01/01/2020", None, "02/01/2020"], "date", DAYS, "%m/%d/%Y"),
    (["13/01/2020 12:00"], "date", [18274.5], "%d/%m/%Y %H:%M"),
    ([datetime.date(2020, 1, 1), None, datetime.date(2020, 2, 1)], "date", DAYS, ""),
    (["a", None, " b "], "text", ["a", None, "b"], ""),
    (["1", "2", "3+"], "text", ["1", "2", "3+"], ""),
    ([b"x", 3.0, "y"], "text", ["x", "3", "y"], ""),
    (["1.2.3", "4.5.6"], "text", ["1.2.3", "4.5.6"], ""),
    ([None, None], "number", [nan, nan], ""),
], ids=str)
def test_what_a_column_is(values, kind, expected, written):
    column = read_column(pd.Series(values, name="c", dtype=object if kind == "text" else None))
    assert (column.kind, column.written) == (kind, written)
    if kind == "text":
        assert column.values.tolist() == expected
    else:
        np.testing.assert_array_equal(column.values, expected)
    assert column.gaps.tolist() == [value is None or value != value for value in expected]


@pytest.mark.parametrize(("series", "kind", "expected"), [
    (pd.Series(["a", "b"], dtype="category"), "text", ["a", "b"]),
    (pd.Series([3, 4], dtype="category"), "number", [3, 4]),
    (pd.Series([1, None], dtype="Int64"), "number", [1, nan]),
    (pd.Series([True, None], dtype="boolean"), "number", [1, nan]),
    (pd.to_datetime(pd.Series(["2020-01-01", None, "2020-02-01"])), "date", DAYS),
    (pd.to_datetime(pd.Series(["2020-01-01", None, "2020-02-01"])).dt.tz_localize("UTC"), "date",
     DAYS),
    (pd.to_timedelta(pd.Series(["36h", None])), "number", [1.5, nan]),
], ids=str)
def test_types_of_pandas(series, kind, expected):
    column = read_column(series)
    assert column.kind == kind
    if kind == "text":
        assert column.values.tolist() == expected
    else:
        np.testing.assert_array_equal(column.values, expected)


@pytest.mark.parametrize(("values", "problem"), [
    (["1,250", "3,500"], "numbers such as '1,250', which could be 1.250 or 1250"),
    ([1.0, np.inf], "infinity, or more than float32 holds, in 1 of 2 rows"),
    ([[1], [2]], "a list in a cell, such as [1]"),
    ([1 + 2j], "values of the type complex128"),
    ([*map(str, range(30)), "?"], "text in 1 of 31 rows beside numbers, such as '?' (an empty cell "
                                  "is a gap)"),
], ids=str)
def test_what_cannot_be_used(values, problem):
    with pytest.raises(UnusableColumn) as raised:
        read_column(pd.Series(values, name="c"))
    assert str(raised.value) == problem


def test_a_form_that_is_known_decides():
    either = pd.Series(["1,250", "3,500"], name="c")
    assert read_column(either, written="thousands").values.tolist() == [1250, 3500]
    assert read_column(either, written="decimal commas").values.tolist() == [1.25, 3.5]
    days = pd.Series(["03/04/2020"], name="c")
    assert read_column(days).note == "dates, read as month/day/year"
    april = read_column(days, written="%d/%m/%Y")
    assert (april.values[0], april.note) == (18355.0, "")
    frame = pd.DataFrame({"a": either, "b": days})
    read = columns_of(frame.iloc[:1], where="f", levels=20,
                      written={"a": "thousands", "b": "%d/%m/%Y"})
    assert [column.values[0] for column in read] == [1250, 18355.0]
