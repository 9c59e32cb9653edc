"""How a table's columns become a network's inputs, fitted on the training part.

A table goes through two steps. Its columns become numbers, one column each or one a category
(``TableEncoding``, which is kept as JSON); then gaps are filled, and a column beside says where
they were (``Gaps``, which goes into the saved model). Both are scikit-learn's: ``OneHotEncoder``,
``SimpleImputer``. Tests: ``tests/data/test_encoding.py``.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wua_mlflow.config import IMPUTE, TableSettings
from wua_mlflow.data.columns import Column, ColumnKind
from wua_mlflow.errors import did_you_mean, listed

__all__ = ["EncodedColumn", "Gaps", "TableEncoding", "fit_encoding", "fit_gaps", "gap_lines"]


_RAREST = 0.01
"""Levels of a smaller share of the training rows are one column together."""
_FAR = 100.0
"""A mean of so many standard deviations: float32 would lose digits of what varies."""


@dataclass(frozen=True)
class EncodedColumn:
    """How one column becomes one of numbers, or several of 0 and 1.

    Attributes:
        name: in the table.
        kind: number, date or text.
        written: how numbers or dates are written (``Column.written``).
        minus: is taken from each number.
        levels: of text: by level the number of its column, counted from this column's first; None
            for a level that gets none.
        missing: the same of a gap.
        unknown: the same of a level that the training part does not have.
        names: of the columns that it becomes.
    """

    name: str
    kind: ColumnKind
    written: str = ""
    minus: float = 0.0
    levels: Mapping[str, int | None] = field(default_factory=dict)
    missing: int | None = None
    unknown: int | None = None
    names: tuple[str, ...] = ()

    def encode(self, column: Column) -> np.ndarray:
        """Float64 (n, columns); NaN in the gaps of numbers."""
        if self.kind != "text":
            return (column.values - self.minus)[:, None]
        places = np.array([self._place(value) for value in column.values.tolist()])
        encoded = np.zeros((len(places), len(self.names)))
        found = places >= 0
        encoded[np.flatnonzero(found), places[found]] = 1.0
        return encoded

    def _place(self, value: str | None) -> int:
        place = self.missing if value is None else self.levels.get(value, self.unknown)
        return -1 if place is None else place


@dataclass(frozen=True)
class TableEncoding:
    """How a table's rows become the columns that a saved model takes.

    ``named`` says that these are not the table's own: the model takes them by name then.
    """

    columns: tuple[EncodedColumn, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def named(self) -> bool:
        """Whether a row is no row of numbers as it was read."""
        return any(column.kind != "number" or column.written for column in self.columns)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the columns that the saved model takes."""
        return tuple(name for column in self.columns for name in column.names)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the table's own columns."""
        return tuple(column.name for column in self.columns)

    def encode(self, columns: Sequence[Column], *, where: str) -> np.ndarray:
        """Float64 (n, columns), whatever other columns there are, and in whatever order.

        Raises:
            ValueError: one line; columns are missing, or hold something else than in training.
        """
        by_name = {column.name: column for column in columns}
        missing = [name for name in self.inputs if name not in by_name]
        if missing:
            raise ValueError(f"data: expected the columns that the model was trained on in "
                             f"{where}, but it has no {listed(missing)}"
                             f"{did_you_mean(missing[0], set(by_name) - set(self.inputs))}")
        parts = []
        for encoded in self.columns:
            column = by_name[encoded.name]
            if column.kind != encoded.kind:
                column = _as_kind(column, encoded, where)
            parts.append(encoded.encode(column))
        return np.concatenate(parts, axis=1)

    def unknown_lines(self, columns: Sequence[Column]) -> list[str]:
        """Lines on levels of text that the training part does not have."""
        by_name, lines = {column.name: column for column in columns}, []
        for encoded in self.columns:
            values = by_name[encoded.name].values.tolist() if encoded.kind == "text" else ()
            unknown = [value for value in values if value and str(value) not in encoded.levels]
            if unknown:
                taken = "none of the levels" if encoded.unknown is None else "rare ones"
                lines.append(f"{encoded.name}: {len(unknown)} {_plural('row', len(unknown))} with "
                             f"{listed(list(dict.fromkeys(map(str, unknown))), most=3)}, which the "
                             f"training part does not have, taken as {taken}")
        return lines

    def content(self) -> dict[str, Any]:
        """For JSON."""
        return {"columns": [_column_content(column) for column in self.columns],
                "model_columns": list(self.names), "left_out": dict(self.left_out)}

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> TableEncoding:
        """What ``content`` gave."""
        return cls(tuple(_column_from(column) for column in content["columns"]),
                   dict(content["left_out"]))


def _as_kind(column: Column, encoded: EncodedColumn, where: str) -> Column:
    """A column without any value has no kind of its own, and numbers may be names of categories."""
    if column.gaps.all():
        empty = np.full(len(column.values), None, dtype=object) if encoded.kind == "text" else \
            np.full(len(column.values), np.nan)
        return Column(column.name, encoded.kind, empty)
    if encoded.kind == "text" and column.kind == "number":
        texts = [None if np.isnan(value) else str(int(value)) if value == int(value)
                 else str(value) for value in column.values.tolist()]
        return Column(column.name, "text", np.array(texts, dtype=object))
    words = {"number": "numbers", "date": "dates", "text": "text"}
    raise ValueError(f"data: expected {words[encoded.kind]} in column {column.name!r} of {where}, "
                     f"as in the data that the model was trained on, but got "
                     f"{words[column.kind]}")


def _column_content(column: EncodedColumn) -> dict[str, Any]:
    content: dict[str, Any] = {"name": column.name, "kind": column.kind}
    if column.kind == "text":
        def name(place: int | None) -> str | None:
            return None if place is None else column.names[place]

        levels = {level: name(place) for level, place in column.levels.items()}
        return {**content, "levels": levels, "missing": name(column.missing),
                "unknown": name(column.unknown), "model_columns": list(column.names)}
    if column.kind == "date":
        content["unit"] = "days since 1970-01-01"
    return {**content, "written": column.written, "minus": column.minus}


def _column_from(content: Mapping[str, Any]) -> EncodedColumn:
    if content["kind"] != "text":
        return EncodedColumn(content["name"], content["kind"], content["written"],
                             content["minus"], names=(content["name"],))
    names = tuple(content["model_columns"])

    def place(name: str | None) -> int | None:
        return None if name is None else names.index(name)

    return EncodedColumn(
        content["name"], "text", names=names, missing=place(content["missing"]),
        levels={level: place(name) for level, name in content["levels"].items()},
        unknown=place(content["unknown"]))


def fit_encoding(
    columns: Sequence[Column], settings: TableSettings, left_out: Mapping[str, str]
) -> TableEncoding:
    """The encoding of a training part's columns.

    Args:
        columns: the training part's rows.
        settings: how many levels, and what stands in gaps of text.
        left_out: columns of the table that are no inputs, and why.
    """
    named = any(column.kind != "number" or column.written for column in columns)
    encoded, taken = [], {column.name for column in columns}
    for column in columns:
        if column.kind == "text":
            encoded.append(_fit_text(column, settings, taken))
        else:
            minus = _offset(column) if named else 0.0
            encoded.append(EncodedColumn(column.name, column.kind, column.written, minus,
                                         names=(column.name,)))
    return TableEncoding(tuple(encoded), left_out)


def _offset(column: Column) -> float:
    """What is taken from numbers that lie far from 0 beside their spread, as dates do."""
    known = column.values[~column.gaps]
    if not len(known) or (column.kind == "number" and abs(known.mean()) <= _FAR * known.std()):
        return 0.0
    return float(np.round(known.mean()))


def _fit_text(column: Column, settings: TableSettings, taken: set[str]) -> EncodedColumn:
    """One column a level; levels that are rare, or beyond the most, share one; a gap is a level."""
    from sklearn.preprocessing import OneHotEncoder

    texts, in_gaps = column.values.tolist(), _text_in_gaps(column, settings)
    values = np.array([[in_gaps if text is None else text] for text in texts], dtype=object)
    encoder = OneHotEncoder(max_categories=settings.categories, min_frequency=_RAREST,
                            sparse_output=False, handle_unknown="infrequent_if_exist").fit(values)
    levels, infrequent = encoder.categories_[0].tolist(), encoder.infrequent_categories_[0]
    rare = set() if infrequent is None else set(infrequent.tolist())
    frequent = [level for level in levels if level not in rare]
    names = [f"{column.name}={level or '(gap)'}" for level in frequent]
    if rare:
        names.append(f"{column.name}=(rare)")
    unknown = len(frequent) if rare else None
    places = {level: unknown if level in rare else frequent.index(level) for level in levels}
    missing = places.get(in_gaps, unknown)
    places.pop("", None)
    return EncodedColumn(column.name, "text", levels=places, missing=missing, unknown=unknown,
                         names=tuple(_unused(name, taken) for name in names))


def _text_in_gaps(column: Column, settings: TableSettings) -> str:
    """The level that stands in a column's gaps; none of the others, unless the settings say so."""
    how = _how(settings, column.name)
    known = column.values[~column.gaps]
    if how == "most_frequent" and len(known):
        levels, counts = np.unique(known.astype(str), return_counts=True)
        return str(levels[counts.argmax()])
    constant = isinstance(settings.impute, dict) and how not in IMPUTE
    return str(how) if constant else ""


def _unused(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "'"
    taken.add(name)
    return name


# Gaps


@dataclass(frozen=True, eq=False)
class Gaps:
    """What stands in the gaps of each column, and which columns get an indicator of theirs.

    ``fill`` is (columns,), ``indicators`` (marked,) the numbers of the columns that had gaps in
    the training part; the indicators stand behind the columns.
    """

    fill: np.ndarray
    indicators: np.ndarray

    def fill_in(self, values: np.ndarray) -> np.ndarray:
        """(n, columns) with NaN in gaps -> (n, columns + marked) without."""
        missing = np.isnan(values)
        return np.concatenate([np.where(missing, self.fill, values),
                               missing[:, self.indicators].astype(np.float64)], axis=1)

    def reopen(self, values: np.ndarray) -> np.ndarray:
        """Of what ``fill_in`` gave, rows that it gives the same of, NaN where indicators say so."""
        columns = len(self.fill)
        opened = values[:, :columns].astype(np.float64)
        marked = opened[:, self.indicators]
        marked[values[:, columns:] > 0.5] = np.nan
        opened[:, self.indicators] = marked
        return opened


def fit_gaps(train: np.ndarray, encoding: TableEncoding, settings: TableSettings) -> Gaps:
    """What stands in gaps, from the training part's rows (n, columns), as the settings say.

    Raises:
        ValueError: one line; the settings name a column that is not there, or words for numbers.
    """
    from sklearn.impute import MissingIndicator, SimpleImputer

    _check_impute(settings, encoding)
    fill = np.zeros(train.shape[1])
    place = 0
    for column in encoding.columns:
        how = _how(settings, column.name)
        if column.kind != "text" and not isinstance(how, str):
            fill[place] = how - column.minus
        elif column.kind != "text":
            imputer = SimpleImputer(strategy="median" if how == "drop" else how,
                                    keep_empty_features=True)
            fill[place] = imputer.fit(train[:, [place]]).statistics_[0]
        place += len(column.names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        indicator = MissingIndicator(features="missing-only").fit(train)
    return Gaps(np.nan_to_num(fill), np.asarray(indicator.features_, dtype=np.int64))


def _how(settings: TableSettings, name: str) -> float | str:
    if isinstance(settings.impute, dict):
        return settings.impute.get(name, "median")
    return settings.impute


def _check_impute(settings: TableSettings, encoding: TableEncoding) -> None:
    if not isinstance(settings.impute, dict):
        return
    kinds = {column.name: column.kind for column in encoding.columns}
    for name, how in settings.impute.items():
        if name not in kinds:
            raise ValueError(f"table: impute: expected columns of the table, but got {name!r}"
                             f"{did_you_mean(name, kinds)}")
        word = isinstance(how, str) and how not in IMPUTE
        if word and kinds[name] != "text":
            raise ValueError(f"table: impute: expected median, mean, most_frequent, drop or a "
                             f"number for {name!r}, but got {how!r}")


def gap_lines(
    columns: Sequence[Column], encoding: TableEncoding, gaps: Gaps | None, settings: TableSettings
) -> list[str]:
    """What became of each column that did not go through as it was, a line each."""
    lines, place = [], 0
    for column, encoded in zip(columns, encoding.columns, strict=True):
        missing, how = int(column.gaps.sum()), _how(settings, column.name)
        words = []
        if column.kind == "text":
            words.append(_levels_words(encoded))
        elif column.kind == "date":
            words.append("dates, as days")
        if missing and column.kind == "text":
            words.append(f"{missing} {_plural('gap', missing)}, {_gap_words(encoded, how)}")
        elif missing and gaps is not None:
            value = gaps.fill[place] + encoded.minus
            shown = str(np.datetime64("1970-01-01") + np.timedelta64(round(value), "D")) \
                if column.kind == "date" else f"{value:.4g}"
            by = f"by the {str(how).replace('_', ' ')} ({shown})" if isinstance(how, str) \
                else f"by {shown}"
            beside = ", with an indicator" if place in gaps.indicators else \
                " (none of them in the training part)"
            words.append(f"{missing} {_plural('gap', missing)}, imputed {by}{beside}")
        if words:
            lines.append(f"{column.name}: {'; '.join(words)}")
        place += len(encoded.names)
    return lines


def _levels_words(encoded: EncodedColumn) -> str:
    rare = sum(place == encoded.unknown and place is not None
               for place in encoded.levels.values())
    count = len(encoded.levels)
    columns = len(encoded.names)
    together = f", {rare} rare {_plural('one', rare)} together" if rare > 1 else ""
    return (f"{count} {_plural('level', count)} of text, one-hot in {columns} "
            f"{_plural('column', columns)}{together}")


def _gap_words(encoded: EncodedColumn, how: float | str) -> str:
    name = None if encoded.missing is None else encoded.names[encoded.missing]
    if name is None or name.endswith(("=(gap)", "=(rare)")):
        return "a level of their own" if name and name.endswith("=(gap)") else "none of the levels"
    return f"taken as {name.removeprefix(f'{encoded.name}=')!r}"


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"
