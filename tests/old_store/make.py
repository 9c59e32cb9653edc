"""Make ``store.zip``: an MLflow store with two pipelines, which later code must read.

Run once, with ``python tests/old_store/make.py``; the figures in ``tests/test_old_store.py`` are of
the store that it made. Pictures and HTML pages are left out, the root is ``/old-store``, and paths
of the machine in the saved models are replaced by others of the same length.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import struct
import sys
import tempfile
import zipfile
import zlib
from contextlib import closing
from pathlib import Path

HERE = Path(__file__).resolve().parent
ARCHIVE = HERE / "store.zip"
DATABASE = "mlflow.db"
ROOT = "/old-store"
COMMANDS = (
    ("run", "--seeds", "2", "--null-draws", "2", "--experiment", "rebuilt"),
    ("run", "--config", "breast_cancer", "--how", "prune", "--hidden", "12,8", "--epochs", "20",
     "--slim-epochs", "5", "--seeds", "2", "--null-draws", "2", "--slim-hidden", "search",
     "--limit", "4", "--margin", "0.1", "--experiment", "pruned"),
)
LEFT_OUT = (".png", ".html", ".lock")


def move_root(database: Path, old: str, new: str) -> None:
    """Replace the beginning of paths in all text columns of a SQLite database."""
    with closing(sqlite3.connect(database)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        for (table,) in tables.fetchall():
            for column in connection.execute(f"PRAGMA table_info(`{table}`)").fetchall():
                name = f"`{column[1]}`"
                connection.execute(
                    f"UPDATE `{table}` SET {name} = replace({name}, ?, ?) "
                    f"WHERE typeof({name}) = 'text' AND instr({name}, ?)", (old, new, old))
        connection.commit()
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("VACUUM")


def _without_machine(model: bytes) -> bytes:
    """An exported program (an uncompressed zip) with neutral paths in its stack traces."""
    with tempfile.TemporaryFile() as file:
        file.write(model)
        with zipfile.ZipFile(file) as archive:
            parts = [archive.read(name) for name in archive.namelist()]
    machine = {path: "/neutral".ljust(len(path), "_")[:len(path)]
               for path in (sys.prefix, str(HERE.parents[1]))}
    for part in parts:
        neutral = part
        for path, stand_in in machine.items():
            neutral = neutral.replace(path.encode(), stand_in.encode())
        if neutral != part:
            model = model.replace(part, neutral)
            checksums = [struct.pack("<I", zlib.crc32(data)) for data in (part, neutral)]
            model = model.replace(*checksums)
    return model


def _check(name: str, content: bytes, folder: str) -> None:
    for path in (folder, sys.prefix, str(HERE.parents[1]), str(Path.home())):
        assert f"{path}/".encode() not in content, f"{name} holds the path {path}"


def _pack(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*")
                   if path.is_file() and path.suffix not in LEFT_OUT)
    with zipfile.ZipFile(ARCHIVE, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path in files:
            content = path.read_bytes()
            if path.suffix == ".pt2":
                content = _without_machine(content)
            name = path.relative_to(folder).as_posix()
            _check(name, content, str(folder))
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)


def _make() -> None:
    sys.path.insert(0, str(HERE.parent))
    import conftest  # noqa: F401  (the settings of the tests)

    folder = Path(tempfile.mkdtemp()).resolve()
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / DATABASE}"
    os.chdir(folder)
    from wua_mlflow.cli.main import main

    for command in COMMANDS:
        assert main(command) == 0, command
    move_root(folder / DATABASE, str(folder), ROOT)
    _pack(folder)
    os.chdir(HERE)
    shutil.rmtree(folder)


if __name__ == "__main__":
    _make()
