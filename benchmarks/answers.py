"""What four whole pipelines end with, as users start them: the verdict, or what would settle it.

Two bundled data sets with their shipped configurations, a CSV file of 2,000 rows and three classes,
and spirals with a trainer of one's own; all else is as it is where nothing is said.
Run: ``python benchmarks/answers.py``. Prints markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch
from blind import table
from torch import nn
from torch.utils.data import DataLoader

from wua_mlflow.config import load_settings
from wua_mlflow.pipeline.workflow import SlimmingResult, run_pipeline
from wua_mlflow.tracking.store import connect

__all__ = ["main", "train"]

CSV = "a CSV file, 3 classes"
PIPELINES: Mapping[str, tuple[str | None, Mapping[str, Any]]] = {
    "digits": ("digits", {}),
    "breast_cancer": ("breast_cancer", {}),
    CSV: (None, {"target": "grade", "hidden": "64", "epochs": 150}),
    "spirals, own trainer": (None, {"data": "blind:spirals", "train": "answers:train",
                                    "hidden": "64", "epochs": 400}),
}
TOY = {"digits": ("digits", {"hidden": "8,4", "epochs": 1, "seeds": 1, "limit": 2,
                             "null_draws": 0})}
"""What ``--toy`` makes of these."""


def train(model: nn.Module, data: Any, budget: int, seed: int) -> nn.Module:
    """A trainer as a user writes one: Adam on mini-batches, the rate falling to 0."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, budget)
    batches = DataLoader(data[0], batch_size=64, shuffle=True,
                         generator=torch.Generator().manual_seed(seed))
    for _ in range(budget):
        for inputs, targets in batches:
            optimizer.zero_grad()
            loss = nn.functional.binary_cross_entropy(model(inputs), targets.float())
            loss.backward()
            optimizer.step()
        schedule.step()
    return model


def csv_file(folder: Path) -> str:
    """The 2,000 rows of ``blind.table`` in a file, shuffled."""
    parts = table(16)
    inputs, labels = (np.concatenate(side) for side in zip(*parts, strict=True))
    rows = pd.DataFrame(inputs, columns=[f"x{number}" for number in range(inputs.shape[1])])
    rows["grade"] = np.array(["low", "middle", "high"])[labels]
    path = folder / "rows.csv"
    rows.sample(frac=1, random_state=0).to_csv(path, index=False)
    return str(path)


def row(name: str, result: SlimmingResult) -> str:
    """A row of the table."""
    slimmed = result.slimmed
    before = "-".join(map(str, slimmed.original.widths))
    if not slimmed.rounds:
        return f"| {name} | {before} | – | – | no narrower network | {slimmed.ended} |"
    verdict, found = result.verdict, slimmed.result
    widths = "-".join(map(str, found.variant.widths))
    saved = found.comparison.ratios["compare/flops_ratio"]
    return (f"| {name} | {before} | {widths} | {saved:.1f}× | {verdict.headline} "
            f"| {verdict.settle or '–'} |")


def main() -> None:
    """Run them one after the other; print what each ends with."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--toy", action="store_true", help="seconds, to see that it runs")
    options = parser.parse_args()
    print("| pipeline | original | slim | FLOPs | verdict | what would settle it |\n"
          "|---|---|---|---:|---|---|")
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        folder = Path(name)
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        store = connect("answers")
        for pipeline, (config, given) in (TOY if options.toy else PIPELINES).items():
            data = {"data": csv_file(folder)} if pipeline == CSV else {}
            settings = load_settings(config, {"threads": 1, **data, **given})
            print(row(pipeline, run_pipeline(store, settings)), flush=True)


if __name__ == "__main__":
    main()
