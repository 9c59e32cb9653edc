"""First hours with one's own work, from the data to a verdict; ``make first-hour`` runs all."""

from __future__ import annotations

import importlib
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.first_hour import hour

HOURS = sorted(path.stem for path in Path(__file__).parent.glob("*.py")
               if re.search("^def hour\\(", path.read_text(encoding="utf-8"), re.MULTILINE))
QUICKEST = ("houses", "logs")
"""Those that every test run goes through."""


@pytest.mark.slow
@pytest.mark.first_hour
@pytest.mark.parametrize("name", HOURS)
def test_an_hour_ends_with_an_answer(name, tmp_path, migrated_database):
    shutil.copy(migrated_database, tmp_path / "mlflow.db")  # a new one takes seconds
    importlib.import_module(f"tests.first_hour.{name}").hour(tmp_path)


@pytest.mark.parametrize("name", QUICKEST)
def test_the_quickest_do_in_this_process(name, tmp_path, store_uri, monkeypatch):
    """Their commands in a row, as a notebook or another program would call them."""
    monkeypatch.setattr(hour, "run", hour.in_this_process)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module(f"tests.first_hour.{name}").hour(tmp_path)
    sys.modules.pop("mine", None)


def test_the_quickest_are_there():
    assert set(QUICKEST) <= set(HOURS)
    assert len(HOURS) == 12 and all(hasattr(importlib.import_module(f"tests.first_hour.{name}"),
                                            "hour") for name in HOURS)
