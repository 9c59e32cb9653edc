"""Houses in a spreadsheet's CSV: semicolons, decimal commas, Latin-1, prices as amounts.

A column that was computed from the price is warned about, and left out on a second try.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from tests.first_hour.hour import answer, tried


def houses(n: int = 500) -> pd.DataFrame:
    """Prices by area, age and place, with errors; the tax is a share of the price."""
    draw = np.random.default_rng(0)
    area, year = draw.lognormal(4.7, 0.4, n).round(1), draw.integers(1950, 2020, n)
    place = draw.choice(["Köln", "Gießen", "Lübeck"], n, p=[0.6, 0.3, 0.1])
    factor = pd.Series(place).map({"Köln": 1.3, "Gießen": 1.0, "Lübeck": 0.9}).to_numpy()
    price = area * 2000 * factor * (1 + (year - 1950) / 100) * draw.lognormal(0, 0.08, n)
    table = pd.DataFrame({"Fläche": area, "Baujahr": year, "Ort": place,
                          "Steuer": (price * 0.035).round(2), "Preis": price.round(2)})
    table.loc[draw.random(n) < 0.1, "Baujahr"] = np.nan
    return table


def hour(folder: Path) -> None:
    """The first try is warned, the second one counts."""
    houses().to_csv(folder / "houses.csv", sep=";", decimal=",", index=False, encoding="latin-1")
    words = ("--data", "houses.csv", "--target", "Preis", "--hidden", "32", "--seeds", "1")
    warned = answer(folder, "train", *words, "--epochs", "5")
    assert "'Steuer': alone predicts Preis nearly perfectly" in warned
    printed = answer(folder, "run", *words, "--drop-columns", "Steuer", "--slim-hidden", "16")
    for line in ("read with semicolons between the columns", "Windows-1252 (Latin-1)",
                 "Fläche: decimal commas, read as numbers", "3 levels of text"):
        assert line in printed, line
    assert "nearly perfectly" not in printed


if __name__ == "__main__":
    tried(hour)
