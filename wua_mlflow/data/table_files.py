"""Tables from files: CSV of any usual separator and encoding, Parquet, Arrow and Feather.

pandas and pyarrow are imported where a file needs them, not before. Every error is one line.
Tests: ``tests/data/test_table_files.py``.
"""

from __future__ import annotations

import codecs
import csv
import warnings
from collections import Counter
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from wua_mlflow.data.leaks import INDEX
from wua_mlflow.errors import listed, one_line

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["INDEX", "TABLES", "check_names", "read_table"]


TABLES = (".csv", ".tsv", ".parquet", ".feather", ".arrow")
_TEXT = (".csv", ".tsv")
_SEPARATORS = ",;\t|"
_HEAD = 1 << 16
"""So many bytes hold the header."""
_MISSING = ("", "#N/A", "#NA", "-NaN", "-nan", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a",
            "nan", "null")
"""Words that stand for a gap, as pandas has them; not in a target, where they are labels."""


def read_table(
    path: Path, argument: str, *, literal: Collection[str] = (), index: bool = False
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The rows of a file, and what was guessed of its form, in words.

    Args:
        path: ends in one of ``TABLES``.
        argument: begins the message of an error.
        literal: names of columns where an empty cell alone is a gap: "NA" and "None" are labels.
        index: keep the table's own index as a column: under its name, or ``INDEX``.

    Raises:
        ValueError: one line; the file cannot be read, or two columns have one name.
    """
    notes: tuple[str, ...] = ()
    try:
        if path.suffix.lower() in _TEXT:
            frame, notes = _read_text(path, argument, literal)
        else:
            frame = _read_arrow(path)
    except _UnusableError as error:
        raise ValueError(str(error)) from None
    except Exception as error:  # each reader has kinds of its own: all are the file's
        raise ValueError(f"{argument}: could not read {path}: {one_line(error)}") from error
    frame = frame.rename(columns=str)
    check_names(list(frame.columns), path, argument)
    if index and path.suffix.lower() not in _TEXT:
        for level, name in enumerate(frame.index.names):
            if (label := INDEX if name is None else str(name)) not in frame.columns:
                frame.insert(0, label, frame.index.get_level_values(level))
    return frame, notes


class _UnusableError(ValueError):
    """Worded for the user already."""


def _read_arrow(path: Path) -> pd.DataFrame:
    import pandas as pd
    import pyarrow as pa
    from pyarrow import feather

    if path.suffix.lower() == ".parquet":
        return pd.read_parquet(path)
    try:
        return feather.read_table(path).to_pandas()
    except pa.ArrowInvalid:
        with pa.OSFile(str(path)) as source:  # Arrow has two forms: a file, and a stream
            try:
                return pa.ipc.open_stream(source).read_all().to_pandas()
            except pa.ArrowInvalid:
                raise pa.ArrowInvalid("neither an Arrow file nor an Arrow stream") from None


def _read_text(
    path: Path, argument: str, literal: Collection[str]
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    import pandas as pd

    _check_text(path, argument)
    encoding, notes = _encoding(path)
    with path.open(encoding=encoding, newline="") as file:
        head = file.read(_HEAD)
    separator = _separator(head)
    lines = csv.reader(head.splitlines(keepends=True), delimiter=separator)
    names = next((line for line in lines if line), [])
    first = next((line for line in lines if line), names)
    check_names([name.strip() for name in names if name.strip()], path, argument)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pd.errors.ParserWarning)
        columns = pd.read_csv(path, sep=separator, encoding=encoding, nrows=0,
                              skipinitialspace=True).columns
        read = partial(
            pd.read_csv, path, sep=separator, encoding=encoding, low_memory=False,
            skipinitialspace=True, keep_default_na=False,
            na_values={name: [""] if name in literal else list(_MISSING) for name in columns})
        ends_with_separator = len(first) == len(names) + 1 and not first[-1].strip()
        frame = read(index_col=False) if ends_with_separator else read()
    if len(first) > len(names) and not ends_with_separator:
        if isinstance(frame.index, pd.MultiIndex) or not frame.index.is_unique:
            raise _UnusableError(f"{argument}: expected as many names in the header of {path} as "
                                 f"cells in a row, but the header has {len(frame.columns)}")
        frame = frame.reset_index(names=INDEX)  # row names without a header, as R writes them
    if separator != ",":
        notes = (*notes, f"read with {_word(separator)} between the columns")
    return frame, notes


def _word(separator: str) -> str:
    return {"\t": "tabs", ";": "semicolons", "|": "bars"}[separator]


def _check_text(path: Path, argument: str) -> None:
    with path.open("rb") as file:
        head = file.read(4)
    if head.startswith((b"PK\x03\x04", b"\x1f\x8b")):
        raise _UnusableError(f"{argument}: expected text in {path}, but it is an archive (Excel's "
                             f"files are, too): export or unpack it first")


def _encoding(path: Path) -> tuple[str, tuple[str, ...]]:
    """UTF-8, or what a mark at the file's beginning says, or else Windows-1252."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16", ("read as UTF-16",)
    if b"\0" in head[:200]:
        little = head[1::2].count(0) >= head[::2].count(0)
        return ("utf-16-le" if little else "utf-16-be"), ("read as UTF-16",)
    for encoding in ("utf-8-sig", "cp1252"):
        if _decodes(path, encoding):
            return encoding, () if encoding == "utf-8-sig" else (
                "not in UTF-8: read as Windows-1252 (Latin-1)",)
    return "latin-1", ("not in UTF-8: read as Latin-1",)


def _decodes(path: Path, encoding: str) -> bool:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                decoder.decode(chunk)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _separator(head: str) -> str:
    """What parts the header most often; a comma, where nothing does.

    >>> _separator("a;b,c;d"), _separator("a"), _separator('"a;b;c",d')
    (';', ',', ',')
    """
    header = head.lstrip("\n\r").splitlines()[0] if head.strip() else ""
    bare = "".join(header.split('"')[::2])
    return max(_SEPARATORS, key=bare.count)


def check_names(names: list[str], path: Path | str, argument: str) -> None:
    """Raise, in one line, where two columns have one name."""
    often = [name for name, count in Counter(names).items() if count > 1]
    if often:
        raise _UnusableError(f"{argument}: expected each column's name once in {path}, but "
                             f"{listed(often)} {'stands' if len(often) == 1 else 'stand'} there "
                             f"more than once; rename the columns")
