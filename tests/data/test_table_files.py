"""Tables of any usual form, against what was written; the forms of Arrow."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from wua_mlflow.data.table_files import INDEX, read_table

FRAME = pd.DataFrame({"größe": [1.5, 2.5, -3.0], "n": [1, 2, 3], "wort": ["é", "b, c", "d"]})


def text(frame: pd.DataFrame = FRAME, sep: str = ",") -> str:
    return frame.to_csv(index=False, sep=sep)


@pytest.mark.parametrize(("content", "notes"), [
    (text().encode(), ()),
    (text().encode("utf-8-sig"), ()),
    (text().encode("utf-16"), ("read as UTF-16",)),
    (text().encode("utf-16-le"), ("read as UTF-16",)),
    (text().encode("cp1252"), ("not in UTF-8: read as Windows-1252 (Latin-1)",)),
    (text(FRAME.replace("d", "\x81")).encode("latin-1"), ("not in UTF-8: read as Latin-1",)),
    (text(sep=";").encode(), ("read with semicolons between the columns",)),
    (text(sep="\t").encode(), ("read with tabs between the columns",)),
    (text(sep="|").encode("utf-16"), ("read as UTF-16", "read with bars between the columns")),
    (text().replace(",", ", ", 2).encode(), ()),
    (text().replace("\n", "\r\n").encode(), ()),
], ids=str)
def test_text_of_any_usual_form(content, notes, tmp_path):
    path = tmp_path / "f.csv"
    path.write_bytes(content)
    frame, said = read_table(path, "data")
    expected = FRAME.replace("d", "\x81") if b"\x81" in content and notes else FRAME
    assert said == notes
    assert frame.columns.tolist() == FRAME.columns.tolist()
    assert frame.to_numpy().tolist() == expected.to_numpy().tolist()


def test_row_names_without_a_header_are_an_index(tmp_path):
    (tmp_path / "f.csv").write_text("a,y\nrow1,1,2\nrow2,3,4\n")
    frame, _ = read_table(tmp_path / "f.csv", "data")
    assert frame.to_dict("list") == {INDEX: ["row1", "row2"], "a": [1, 3], "y": [2, 4]}


def test_rows_that_end_with_a_separator(tmp_path):
    (tmp_path / "f.csv").write_text("a,y\n1,2,\n3,4,\n")
    assert read_table(tmp_path / "f.csv", "data")[0].to_dict("list") == {"a": [1, 3], "y": [2, 4]}
    (tmp_path / "f.csv").write_text("a,y,\n1,2,\n3,4,\n")
    frame = read_table(tmp_path / "f.csv", "data")[0]
    assert frame[["a", "y"]].to_dict("list") == {"a": [1, 3], "y": [2, 4]}
    assert frame.iloc[:, 2].isna().all()


def test_words_for_gaps_are_labels_in_a_target(tmp_path):
    (tmp_path / "f.csv").write_text("a,y\nNA,NA\n2,None\nnull,\n4,null\nnan,x\n")
    frame, _ = read_table(tmp_path / "f.csv", "data", literal=["y"])
    assert frame.y.tolist()[:2] + frame.y.tolist()[3:] == ["NA", "None", "null", "x"]
    assert frame.y.isna().tolist() == [False, False, True, False, False]
    assert frame.a.isna().tolist() == [True, False, True, False, True]


@pytest.mark.parametrize("ending", ["parquet", "feather", "arrow", "stream.arrow"])
def test_the_forms_of_arrow(ending, tmp_path):
    path, indexed = tmp_path / f"f.{ending}", FRAME.set_index("n")
    table = pa.Table.from_pandas(indexed)
    if ending == "parquet":
        indexed.to_parquet(path)
    elif ending == "feather":
        FRAME.to_feather(path)
        assert read_table(path, "data")[0].equals(FRAME)
        return
    else:
        make = pa.ipc.new_stream if ending.startswith("stream") else pa.ipc.new_file
        with pa.OSFile(str(path), "wb") as sink, make(sink, table.schema) as writer:
            writer.write_table(table)
    assert read_table(path, "data")[0].columns.tolist() == ["größe", "wort"]
    whole = read_table(path, "data", index=True)[0]
    assert whole.reset_index(drop=True).equals(FRAME[["n", "größe", "wort"]])
    assert np.array_equal(whole["n"], [1, 2, 3])
