"""What a table's columns are: numbers, dates or text, whatever form they were written in.

Numbers are float64 with NaN in gaps, booleans among them as 0 and 1; dates are days since
1970-01-01; text is text with None in gaps. pandas is imported where a column is looked at.
Tests: ``tests/data/test_columns.py``.
"""

from __future__ import annotations

import datetime
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Column", "UnusableColumn", "columns_of", "problems_line", "read_column"]


ColumnKind = Literal["number", "date", "text"]
_DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}")
_DATE_FORMATS = ("ISO8601", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%Y/%m/%d", "%d-%m-%Y", "%Y.%m.%d")
_TIMES = ("", " %H:%M", " %H:%M:%S")
_DECIMAL_COMMA = re.compile(r"[-+]?(\d+|\d{1,3}(\.\d{3})+)(,\d+)?")
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(,\d{3})*(\.\d+)?")
_DAY = np.timedelta64(1, "D")


@dataclass(frozen=True, eq=False)
class Column:
    """One column of n rows.

    Attributes:
        name: as the table has it.
        kind: number, date or text.
        values: (n,) float64 with NaN in gaps; of text objects, ``str`` or None.
        written: how the numbers or dates were written, where that is not plain: a format of
            ``strptime``, ``decimal commas``, ``thousands``.
        note: what was guessed, for the user.
    """

    name: str
    kind: ColumnKind
    values: np.ndarray
    written: str = ""
    note: str = ""

    @property
    def gaps(self) -> np.ndarray:
        """(n,) whether there is no value."""
        if self.kind == "text":
            return np.array([value is None for value in self.values], dtype=bool)
        return np.asarray(np.isnan(self.values))

    def take(self, rows: np.ndarray) -> Column:
        """Some of its rows, in that order."""
        return replace(self, values=self.values[rows])


class UnusableColumn(ValueError):  # noqa: N818 - says what it is of
    """A column that holds what no input can be made of; the message says what, in a few words."""


def columns_of(
    frame: pd.DataFrame, *, where: str, levels: int, written: Mapping[str, str] | None = None
) -> tuple[Column, ...]:
    """All columns of a frame.

    Args:
        frame: as it was read.
        where: what it is, for the message.
        levels: numbers and words mixed are categories, where there are no more of them.
        written: by column how its numbers or dates are written, where that is known.

    Raises:
        ValueError: one line that names every column that cannot be used, and the remedy.
    """
    columns, problems = [], {}
    for name in frame.columns:
        try:
            columns.append(read_column(frame[name], levels=levels,
                                       written=(written or {}).get(str(name), "")))
        except UnusableColumn as problem:
            problems[str(name)] = str(problem)
    if problems:
        raise ValueError(problems_line(problems, where))
    return tuple(columns)


def problems_line(
    problems: Mapping[str, str], where: str, *, expected: str = "numbers, dates or categories",
    remedy: str | None = None,
) -> str:
    """All columns that cannot be used, why, and what to do.

    >>> problems_line({"a": "infinity in 2 of 9 rows"}, "f.csv")
    "data: expected numbers, dates or categories, but column 'a' of f.csv has infinity in 2 of 9 \
rows; mend it or leave it out (--drop-columns a)"
    """
    names = list(problems)
    shown = ", ".join(f"{name!r} has {why}" for name, why in list(problems.items())[:5])
    more = f", and {len(names) - 5} more columns" if len(names) > 5 else ""
    if len(names) == 1:
        what, it = f"column {names[0]!r} of {where} has {problems[names[0]]}", "it"
    else:
        what, it = f"of the columns of {where} {shown}{more}", "them"
    if remedy is None:
        remedy = f"mend {it} or leave {it} out (--drop-columns {','.join(names[:20])})"
    return "; ".join(filter(None, (f"data: expected {expected}, but {what}", remedy)))


def read_column(column: pd.Series, *, levels: int = 20, written: str = "") -> Column:
    """One column, by its values.

    Args:
        column: any type.
        levels: numbers and words mixed are categories, where there are no more of them.
        written: how its numbers or dates are written, where that is known.

    Raises:
        UnusableColumn: what no input can be made of.
    """
    import pandas as pd

    name, dtype = str(column.name), column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        column = column.astype(dtype.categories.dtype if dtype.categories.dtype.kind == "O"
                               else object)
        dtype = column.dtype
    if isinstance(dtype, pd.DatetimeTZDtype) or dtype.kind == "M":
        return Column(name, "date", _days(column))
    if dtype.kind == "m":
        spans = column.to_numpy() / _DAY
        return Column(name, "number", np.asarray(spans, dtype=np.float64), note="spans, in days")
    if dtype.kind in "biuf":
        return Column(name, "number", _checked(column.to_numpy(dtype=np.float64, na_value=np.nan)))
    if dtype.kind != "O" or isinstance(dtype, pd.PeriodDtype | pd.IntervalDtype):
        raise UnusableColumn(f"values of the type {dtype}")
    return _from_objects(name, column, levels, written)


def _from_objects(name: str, column: pd.Series, levels: int, written: str) -> Column:
    """Text, Python's objects, or a mix."""
    import pandas as pd

    values = column.astype(object).to_numpy()
    gaps = np.asarray(pd.isna(values), dtype=bool)
    known = values[~gaps]
    if all(isinstance(value, int | float | Decimal | np.number | np.bool_) for value in known):
        return Column(name, "number", _numbers(values, gaps))
    if all(isinstance(value, datetime.date) for value in known):
        dates = pd.to_datetime(pd.Series(values), utc=True, errors="coerce")
        return Column(name, "date", _days(dates))
    odd = next((value for value in known
                if isinstance(value, list | tuple | dict | set | np.ndarray)), None)
    if odd is not None:
        raise UnusableColumn(f"a {type(odd).__name__} in a cell, such as {reprlib.repr(odd)}")
    texts = np.array([_text(value) for value in known], dtype=object)
    gaps = gaps.copy()
    gaps[~gaps] = texts == ""
    texts = texts[texts != ""]
    return _from_texts(name, texts, gaps, levels, written)


def _from_texts(
    name: str, texts: np.ndarray, gaps: np.ndarray, levels: int, written: str
) -> Column:
    """Numbers or dates that were written in some other way than pandas knows; or categories.

    Args:
        name: of the column.
        texts: (known,) what stands in the cells that are no gaps.
        gaps: (n,) which are gaps.
        levels: as of ``read_column``.
        written: as of ``read_column``.
    """
    import pandas as pd

    def whole(kind: ColumnKind, values: np.ndarray, how: str = "", note: str = "") -> Column:
        empty = np.full(len(gaps), None, dtype=object) if kind == "text" else \
            np.full(len(gaps), np.nan)
        empty[~gaps] = values
        return Column(name, kind, empty, how, note)

    if len(texts) and {text.lower() for text in texts.tolist()} <= {"true", "false"}:
        return whole("number", np.array([text.lower() == "true" for text in texts], dtype=float))
    plain = pd.to_numeric(pd.Series(texts, dtype=object), errors="coerce").to_numpy(dtype=float)
    if not np.isnan(plain).any():
        return whole("number", _checked(plain))
    how, numbers = _by_convention(texts, written)
    if numbers is not None:
        return whole("number", _checked(numbers), how, f"{how}, read as numbers")
    dates, how, note = _dates(texts, written)
    if dates is not None:
        return whole("date", dates, how, note)
    distinct = len(set(texts.tolist()))
    words = texts[np.isnan(plain)]
    if 2 * len(words) < len(texts) and distinct > levels:
        raise UnusableColumn(f"text in {len(words)} of {len(gaps)} rows beside numbers, such as "
                             f"{reprlib.repr(words[0])} (an empty cell is a gap)")
    return whole("text", texts)


def _by_convention(texts: np.ndarray, written: str) -> tuple[str, np.ndarray | None]:
    """Numbers with decimal commas, or with commas between thousands.

    Raises:
        UnusableColumn: they could be either.
    """
    cells = [text.replace("\u00a0", "").replace(" ", "") for text in texts.tolist()]
    if not all(cell[-1:].isdigit() for cell in cells[:100]):
        return "", None
    decimal = all(map(_DECIMAL_COMMA.fullmatch, cells))
    thousands = all(map(_THOUSANDS.fullmatch, cells))
    cell = next((cell for cell in cells if "," in cell), "")
    if decimal and thousands and cell and not written:
        raise UnusableColumn(f"numbers such as {cell!r}, which could be {cell.replace(',', '.')} "
                             f"or {cell.replace(',', '')}")
    if decimal and written != "thousands":
        return "decimal commas", np.array(
            [float(cell.replace(".", "").replace(",", ".")) for cell in cells])
    if thousands:
        return "thousands", np.array([float(cell.replace(",", "")) for cell in cells])
    return "", None


def _dates(texts: np.ndarray, written: str) -> tuple[np.ndarray | None, str, str]:
    """Days since 1970 where all are dates of one form, the form, and what was guessed of it."""
    import pandas as pd

    if not len(texts) or not _DATE.match(texts[0]):
        return None, "", ""
    cells, some, fitting = pd.Series(texts, dtype=object), pd.Series(texts[:100], dtype=object), []
    forms = [written] if written else [
        f"{form}{time}" for form in _DATE_FORMATS for time in (_TIMES if form[0] == "%" else ("",))]
    for form in forms:
        if pd.to_datetime(some, format=form, utc=True, errors="coerce").isna().any():
            continue
        parsed = pd.to_datetime(cells, format=form, utc=True, errors="coerce")
        if parsed.notna().all():
            fitting.append((form, _days(parsed)))
    if not fitting:
        return None, "", ""
    form, days = fitting[0]
    unsure = len(fitting) > 1 and not np.array_equal(days, fitting[1][1])
    return days, form, "dates, read as month/day/year" if unsure else ""


def _days(dates: Any) -> np.ndarray:
    """Days since 1970-01-01, in UTC where a zone is known; NaN in gaps."""
    import pandas as pd

    naive = dates.dt.tz_convert("UTC").dt.tz_localize(None) \
        if isinstance(dates.dtype, pd.DatetimeTZDtype) else dates
    stamps = naive.to_numpy(dtype="datetime64[us]")
    days = (stamps - np.datetime64("1970-01-01", "us")) / _DAY
    return np.asarray(days, dtype=np.float64)


def _numbers(values: np.ndarray, gaps: np.ndarray) -> np.ndarray:
    numbers = np.full(len(values), np.nan)
    numbers[~gaps] = [float(value) for value in values[~gaps]]
    return _checked(numbers)


def _checked(values: np.ndarray) -> np.ndarray:
    """The numbers; NaN are gaps.

    Raises:
        UnusableColumn: float32 holds one of them as infinity: the models compute in it.
    """
    with np.errstate(over="ignore"):
        bad = np.isinf(values.astype(np.float32))
    if bad.any():
        raise UnusableColumn(f"infinity, or more than float32 holds, in {bad.sum()} of "
                             f"{len(values)} rows")
    return values


def _text(value: Any) -> str:
    """As a category's name: whole numbers alike of any type.

    >>> _text(3.0), _text(" a "), _text(b"x")
    ('3', 'a', 'x')
    """
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").strip()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()
