"""Visits in a DataFrame from a function: several of each patient, copied rows, seven grades.

Rows of a patient stay in one part, and so do copies; grades are taken as classes, which is said.
"""

from __future__ import annotations

from pathlib import Path

from tests.first_hour.hour import answer, tried

MINE = '''
import numpy as np
import pandas as pd

def visits(seed):
    draw = np.random.default_rng(0)
    n = 1200
    patient = draw.integers(0, 150, n)
    base = draw.normal(size=150)
    pressure = 120 + 15 * base[patient] + 5 * draw.normal(size=n)
    pulse = 70 + 8 * draw.normal(size=n)
    grade = np.clip(np.round((pressure - 120) / 10 + 2), 0, 4).astype(int)
    table = pd.DataFrame({"patient": patient, "pressure": pressure.round(1),
                          "pulse": pulse.round(), "smokes": draw.choice(["yes", "no"], n),
                          "day": pd.Timestamp("2024-01-01") + pd.to_timedelta(
                              draw.integers(0, 300, n), "D"), "grade": grade})
    table["pulse"] = table["pulse"].where(draw.random(n) > 0.1)
    return pd.concat([table, table.iloc[:200]], ignore_index=True)
'''


def hour(folder: Path) -> None:
    """One command."""
    (folder / "mine.py").write_text(MINE)
    printed = answer(folder, "run", "--data", "mine:visits", "--target", "grade",
                     "--groups", "patient", "--hidden", "32")
    for line in ("grade: 5 whole numbers, taken as classes; `--task regression` otherwise",
                 "200 of 1400 rows have the inputs of another; such rows stay in one part",
                 "day: dates, as days", "with an indicator"):
        assert line in printed, line


if __name__ == "__main__":
    tried(hour)
