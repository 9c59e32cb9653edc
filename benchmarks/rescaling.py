"""Effective weights of one function in several parametrisations: what changes, what does not.

An MLP is trained on the digits; then half of its hidden units get their incoming weights times c
and what reads them divided by c, which a ReLU lets through. Prints two markdown tables.
Run: ``python benchmarks/rescaling.py [--epochs 60]``.
"""

from __future__ import annotations

import argparse
import copy

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from wua_mlflow.usage.analyze import analyze
from wua_mlflow.usage.criteria import CRITERIA
from wua_mlflow.usage.results import LayerUsage

FACTORS = (1, 4, 16)
SHOWN = ("output", "input", "wanda", "magnitude", "taylor")


def trained(inputs: Tensor, targets: Tensor, *, hidden: int, epochs: int) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(epochs):
        for x, y in zip(inputs.split(128), targets.split(128), strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.double().eval()


def rescaled(model: nn.Sequential, c: float) -> nn.Sequential:
    """The same function: every second hidden unit grows by c and is read with a c-th."""
    found = copy.deepcopy(model)
    with torch.no_grad():
        found[0].weight[::2] *= c
        found[0].bias[::2] *= c
        found[2].weight[:, ::2] /= c
    return found


def table(title: str, rows: dict[float, dict[str, float]], differences: dict[float, float]) -> str:
    lines = [f"| c | largest output difference | {' | '.join(f'`{name}`' for name in SHOWN)} |",
             "|---|---|" + "---|" * len(SHOWN)]
    for c, shares in rows.items():
        cells = " | ".join(f"{shares[name]:.3f}" for name in SHOWN)
        lines.append(f"| {c} | {differences[c]:.1g} | {cells} |")
    return "\n".join([f"{title}:", "", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--toy", action="store_true", help="seconds, to see that it runs")
    arguments = parser.parse_args()
    if arguments.toy:
        arguments.epochs, arguments.hidden = 1, 4
    torch.set_num_threads(1)
    digits, classes = load_digits(return_X_y=True)
    inputs, targets = torch.tensor(digits / 16, dtype=torch.float32), torch.tensor(classes)
    model = trained(inputs, targets, hidden=arguments.hidden, epochs=arguments.epochs)
    with torch.no_grad():
        plain = model(inputs.double())
    accuracy = (plain.argmax(1) == targets).double().mean()
    data = list(zip(inputs.split(512), targets.split(512), strict=True))
    differences: dict[float, float] = {}
    layers: dict[float, dict[str, LayerUsage]] = {}
    for c in FACTORS:
        other = rescaled(model, c)
        with torch.no_grad():
            differences[c] = float((other(inputs.double()) - plain).abs().max())
        usages = analyze(other, data, criterion=list(CRITERIA), loss=nn.functional.cross_entropy)
        layers[c] = {name: usage.layers["0"] for name, usage in usages.items()}
    print(f"64–{arguments.hidden}–10 units, accuracy on its training data {accuracy:.3f}; "
          f"outputs up to {plain.abs().max():.0f}.\n")
    print(table("Effective share of the first layer's weights",
                {c: {name: one.effective_share for name, one in some.items()}
                 for c, some in layers.items()}, differences))
    print()
    print(table("Effective share of its units",
                {c: {name: one.unit_usage.effective_share for name, one in some.items()
                     if one.unit_usage} for c, some in layers.items()}, differences))


if __name__ == "__main__":
    main()
