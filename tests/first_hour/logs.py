"""A trainer of one's own that logs to MLflow, with a schedule, clipping and early stopping."""

from __future__ import annotations

from pathlib import Path

import mlflow

from tests.first_hour.hour import answer, tried

MINE = '''
import copy
import mlflow
import torch
from torch import nn
from torch.utils.data import DataLoader

def data(seed):
    def part(n, number):
        x = torch.rand(n, 6, generator=torch.Generator().manual_seed(number))
        return x, (x.sum(1) > 3).long()

    return part(500, 1), part(150, 2), part(600, 3)

def model(widths):
    return nn.Sequential(nn.Linear(6, widths[0]), nn.ReLU(), nn.Linear(widths[0], 2))

def train(model, data, budget, seed, widths):
    train, (x, y) = data[0], data[1][:]
    with mlflow.start_run():
        mlflow.log_params({"epochs": budget, "lr": 0.03, "units": widths[0]})
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.03)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, budget)
        loss_of = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 1.2]))
        best, state = float("inf"), None
        for epoch in range(budget):
            for inputs, targets in DataLoader(train, batch_size=64, shuffle=True):
                optimizer.zero_grad()
                loss_of(model(inputs), targets).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
            schedule.step()
            with torch.no_grad():
                watched = float(loss_of(model(x), y))
            mlflow.log_metric("own/validation_loss", watched, step=epoch)
            if watched < best:
                best, state = watched, copy.deepcopy(model.state_dict())
        model.load_state_dict(state)
'''


def hour(folder: Path) -> None:
    """One command; each network's curve lies in its own run, and nowhere else."""
    (folder / "mine.py").write_text(MINE)
    answer(folder, "run", "--data", "mine:data", "--model", "mine:model", "--train", "mine:train",
           "--hidden", "48", "--slim-hidden", "12", "--epochs", "15")
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiments = client.search_experiments()
    runs = client.search_runs([each.experiment_id for each in experiments])
    names = {each.experiment_id: each.name for each in experiments}
    assert {names[run.info.experiment_id] for run in runs} == {"wua"}
    own = [run for run in runs if "own/validation_loss" in run.data.metrics]
    assert {run.data.tags["wua.kind"] for run in own} == {"variant", "trial"}
    variants = [run for run in own if run.data.tags["wua.kind"] == "variant"]
    assert sorted(run.data.params["units"] for run in variants) == ["12", "48"]
    assert {run.info.status for run in runs} == {"FINISHED"}


if __name__ == "__main__":
    tried(hour)
