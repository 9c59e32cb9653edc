"""Customers in a CSV: gaps, text, dates, an id, the index of a shuffled and sorted frame.

The sorted index alone would say who left: it is left out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from tests.first_hour.hour import answer, tried


def customers(n: int = 1500) -> pd.DataFrame:
    """Who leaves depends on age, city and how long they have been there; a tenth by chance."""
    draw = np.random.default_rng(0)
    age, city = draw.normal(45, 15, n).round(), draw.choice(["Bonn", "Köln", "Ulm"], n)
    since = pd.Timestamp("2015-01-01") + pd.to_timedelta(draw.integers(0, 3000, n), "D")
    young, new = age < 45, since > pd.Timestamp("2019-01-01")
    leaves = np.where(draw.random(n) < 0.1, draw.random(n) < 0.5, young ^ (new & (city != "Ulm")))
    table = pd.DataFrame({
        "customer": [f"C{number:05d}" for number in draw.permutation(n)], "age": age,
        "city": city, "since": since.strftime("%d.%m.%Y"), "calls": draw.poisson(2, n),
        "premium": draw.random(n) > 0.5, "left": np.where(leaves, "yes", "no")})
    for name in ("age", "city", "since", "premium"):
        table[name] = table[name].astype(object).where(draw.random(n) > 0.08, None)
    table = table.sort_values("left").reset_index(drop=True)
    return table.sample(frac=1, random_state=1)


def hour(folder: Path) -> None:
    """One command, and its answers to new rows."""
    customers().to_csv(folder / "customers.csv")
    printed = answer(folder, "run", "--data", "customers.csv", "--target", "left")
    for line in ("Unnamed: 0: distinct whole numbers in the first column, an index; left out",
                 "customer: 1500 different texts in 1500 rows; left out",
                 "imputed by the median", "one-hot in 4 columns", "since: dates, as days"):
        assert line in printed, line
    runs = answer(folder, "runs", "--csv").splitlines()
    newest = runs[1].partition(",")[0]
    said = answer(folder, "predict", newest, "customers.csv", "--out", "answers.csv")
    assert "gaps are filled as in training: 'age'" in said
    right = pd.read_csv(folder / "answers.csv")
    assert right.columns.tolist() == ["Unnamed: 0", "customer", "prediction", "target",
                                      "probability_no", "probability_yes"]
    assert (right.prediction == right.target).mean() > 0.75


if __name__ == "__main__":
    tried(hour)
