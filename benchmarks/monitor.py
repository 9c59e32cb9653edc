"""What watching a training costs: two of the same, one with ``UsageMonitor``, by epochs in turns.

Everything runs in one process, one thread, and logs to a SQLite store of its own. An epoch is a few
batches of random data, ``every=1``, so that the budget (the default) is what spaces the
points; training ends with the last of ``--points``. Each training has a stopwatch of CPU time, as
other work on the machine falls on the two unevenly; the monitor reads it, too (waits for the store
are not in it). A row's last figure is the time with it ÷ that without − 1, the first point before
training included: median over the rounds, and range. Prints markdown.
Run: ``python benchmarks/monitor.py [--rounds 3] [--points 5]``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr

import torch
from models import GPT2, LSTMClassifier
from torch import Tensor, nn
from torch.nn import functional

BATCHES, SIZE = 8, 32
"""Of an epoch."""


def mlp() -> nn.Module:
    """Three layers, with dropout."""
    return nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(),
                         nn.Dropout(), nn.Linear(512, 10))


def cnn() -> nn.Module:
    """Three convolutions with batch norm, pooled; 32 pixels."""
    layers: list[nn.Module] = []
    for left, right in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(left, right, 3, padding=1), nn.BatchNorm2d(right), nn.ReLU(),
                   nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


class LastWord(nn.Module):
    """GPT-2's answer to the last word of each text."""

    def __init__(self) -> None:
        super().__init__()
        self.texts = GPT2(words=500, width=64, depth=2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.texts(ids)[:, -1]


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor], int]] = {
    "MLP, 0.3 million weights": (mlp, lambda n: torch.randn(n, 64), 10),
    "LSTM, 50 steps": (LSTMClassifier, lambda n: torch.randint(100, (n, 50)), 2),
    "CNN, 32 px": (cnn, lambda n: torch.randn(n, 3, 32, 32), 10),
    "GPT-2-like, 64 words": (LastWord, lambda n: torch.randint(500, (n, 64)), 500),
}
"""By name the model, its inputs, the number of its outputs."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--points", type=int, default=5, help="of a training, the first included")
    parser.add_argument("--toy", action="store_true", help="seconds, to see that it runs")
    options = parser.parse_args()
    rounds, points = (1, 2) if options.toy else (options.rounds, options.points)
    cases = dict(list(CASES.items())[:1]) if options.toy else CASES
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    torch.set_num_threads(1)
    import mlflow

    with tempfile.TemporaryDirectory() as folder:
        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        print("| model | epochs | an epoch, s | a point, s | by its own clock | "
              "against the training without it |\n|---|---:|---:|---:|---:|---:|")
        try:
            for name, case in cases.items():
                print(row(name, case, rounds, points), flush=True)
        finally:
            mlflow.set_tracking_uri(before)


class Stopwatch:
    """Seconds of CPU time of what is done within its block; called, how many so far."""

    def __init__(self) -> None:
        self.seconds, self.started = 0.0, 0.0

    def __enter__(self) -> None:
        self.started = time.process_time()

    def __exit__(self, *_: object) -> None:
        self.seconds, self.started = self(), 0.0

    def __call__(self) -> float:
        return self.seconds + (time.process_time() - self.started if self.started else 0.0)


class Training:
    """A model, its optimizer, its stopwatch."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.watch = model, Stopwatch()
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def epoch(self, inputs: Tensor, targets: Tensor) -> None:
        """Each example once."""
        for rows in torch.randperm(len(inputs)).split(SIZE):
            self.optimizer.zero_grad()
            functional.cross_entropy(self.model(inputs[rows]), targets[rows]).backward()
            self.optimizer.step()


def row(
    name: str, case: tuple[Callable[[], nn.Module], Callable[[int], Tensor], int], rounds: int,
    points: int,
) -> str:
    """One model: how often it is measured, and what that costs."""
    results = [one_round(case, points) for _ in range(rounds)]
    epochs, per_epoch, per_point, share, ratio = (
        statistics.median(figures) for figures in zip(*results, strict=True))
    ratios = [figures[-1] for figures in results]
    return (f"| {name} | {epochs:,.0f} | {per_epoch:.3g} | {per_point:.2g} | "
            f"{share:.2%} | {ratio:+.2%} ({min(ratios):+.2%} to {max(ratios):+.2%}) |")


def one_round(
    case: tuple[Callable[[], nn.Module], Callable[[int], Tensor], int], points: int
) -> tuple[float, ...]:
    """Epochs, seconds of one, seconds of a point, share by its own clock, excess."""
    import mlflow

    from wua_mlflow.tracking import UsageMonitor

    make, draw, outputs = case
    inputs = draw(BATCHES * SIZE)
    targets = torch.randint(outputs, (len(inputs),))
    watched, plain = Training(make()), Training(make())
    with mlflow.start_run(), open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
        with watched.watch:
            monitor = UsageMonitor(watched.model, inputs, every=1,
                                   clock=watched.watch)
        epoch = 0
        while epoch - monitor.skipped + 1 < points:
            epoch += 1
            for training in (watched, plain) if epoch % 2 else (plain, watched):
                with training.watch:
                    training.epoch(inputs, targets)
                    if training is watched:
                        monitor.step(epoch)
    return (epoch, plain.watch() / epoch, monitor.spent_s / points,
            monitor.spent_s / monitor.trained_s, watched.watch() / plain.watch() - 1)


if __name__ == "__main__":
    main()
