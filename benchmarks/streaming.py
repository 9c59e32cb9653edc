"""What an analysis costs beside the forward passes that it watches, and beside its peers.

Everything runs in turns within one process, one thread; a row's ratio is the median over the
rounds of (this ÷ that in the same round). The peers are run, not quoted: ``pip install -e
'.[bench]'``. Prints markdown. Run: ``python benchmarks/streaming.py [--rounds 7] [--seconds 6]``.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.util
import io
import statistics
import time
import tracemalloc
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import wua_mlflow as wua

Job = Callable[[], object]


def mlp(divisor: int = 1) -> nn.Module:
    """20 million weights, with every width divided by ``divisor``."""
    widths = [width // divisor for width in (1024, 2048, 4096, 2048, 1000)]
    layers: list[nn.Module] = []
    for left, right in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(left, right), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def cnn(widths: tuple[int, ...] = (64, 128, 256, 512, 512)) -> nn.Module:
    """Dense 3×3 convolutions with batch norm, pooled."""
    layers: list[nn.Module] = []
    for number, (left, right) in enumerate(zip((3, *widths), widths, strict=False)):
        layers += [nn.Conv2d(left, right, 3, padding=1, bias=False), nn.BatchNorm2d(right),
                   nn.ReLU(inplace=True)]
        if number < 3:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))


def depthwise() -> nn.Module:
    """Depthwise and pointwise convolutions in turns, as in mobile networks."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1)]
    for _ in range(6):
        layers += [nn.Conv2d(64, 64, 3, padding=1, groups=64, bias=False), nn.BatchNorm2d(64),
                   nn.ReLU6(), nn.Conv2d(64, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU6()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP, 20M weights": (mlp, (256, 1024)),
    "dense CNN": (cnn, (16, 3, 64, 64)),
    "depthwise CNN": (depthwise, (16, 3, 48, 48)),
}


STREAMED = (1_000, 100_000)
"""Batches streamed, for the memory."""
CHANNELS = (64, 128, 256, 512, 1024, 192)
"""Of the CNN that the peers score."""


def in_turns(jobs: Mapping[str, Job], rounds: int) -> dict[str, list[float]]:
    """Seconds of each job by round; one round before that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(rounds + 1):
        for name, job in jobs.items():
            gc.collect()
            start = time.perf_counter()
            job()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: Mapping[str, list[float]], this: str, that: str) -> float:
    return statistics.median(a / b for a, b in zip(seconds[this], seconds[that], strict=True))


def forward_jobs(model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> dict[str, Job]:
    def forward() -> None:
        with torch.no_grad():
            for x, _ in data:
                model(x)

    def backward() -> None:
        for x, y in data:
            loss = functional.cross_entropy(model(x), y)
            torch.autograd.grad(loss, list(model.parameters()))

    def analysis(criterion: str) -> Job:
        return lambda: wua.analyze(model, data, criterion=criterion, loss=functional.cross_entropy)

    return {"forward": forward, "forward + backward": backward,
            **{name: analysis(name) for name in ("output", "input", "wanda", "taylor")}}


def batches_for(model: nn.Module, shape: tuple[int, ...], seconds: float) -> list[Any]:
    """As many different batches as take the forward alone about so long."""
    x = torch.randn(shape)
    with torch.no_grad():
        model(x)
        start = time.perf_counter()
        model(x)
    number = max(2, round(seconds / (time.perf_counter() - start)))
    return [(torch.randn(shape), torch.randint(10, shape[:1])) for _ in range(number)]


def costs(rounds: int, seconds: float, chosen: str) -> None:
    goals = {("MLP, 20M weights", "output"): "≤ 1.10", ("dense CNN", "output"): "≤ 1.10",
             ("dense CNN", "wanda"): "≤ 1.3", ("dense CNN", "input"): "≤ 1.3",
             ("depthwise CNN", "wanda"): "≤ 1.3", ("depthwise CNN", "input"): "≤ 1.3",
             ("MLP, 20M weights", "taylor"): "≤ 1.15", ("dense CNN", "taylor"): "≤ 1.15"}
    print("| network | criterion | against | that alone, s | ratio | goal |")
    print("|---|---|---|---:|---:|---:|")
    for name, (make, shape) in NETWORKS.items():
        if chosen not in name:
            continue
        torch.manual_seed(0)
        model = make().eval()
        found = in_turns(forward_jobs(model, batches_for(model, shape, seconds)), rounds)
        for criterion in ("output", "input", "wanda", "taylor"):
            base = "forward + backward" if criterion == "taylor" else "forward"
            alone = statistics.median(found[base])
            print(f"| {name} | `{criterion}` | {base} | {alone:.1f} | "
                  f"{ratio(found, criterion, base):.2f} × | {goals.get((name, criterion), '')} |",
                  flush=True)


def memory() -> None:
    """Python's own memory and the number of live tensors after 1,000 and 100,000 batches."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(1, 4)
    seen = {}

    def batches(number: int) -> Any:
        for count in range(number):
            if count == number - 1:
                gc.collect()
                tensors = sum(isinstance(one, Tensor) for one in gc.get_objects())
                seen[number] = (tensors, tracemalloc.get_traced_memory()[0])
            yield x

    tracemalloc.start()
    for number in STREAMED:
        wua.analyze(model, batches(number))
    tracemalloc.stop()
    print("\n| batches streamed | live tensors | Python memory, kB |\n|---:|---:|---:|")
    for number, (tensors, size) in seen.items():
        print(f"| {number:,} | {tensors} | {size / 1e3:.0f} |")


def pruner(imp: Any, tp: Any, model: nn.Module, x: Tensor) -> Any:
    return tp.pruner.MagnitudePruner(model, x, importance=imp, pruning_ratio=0.5,
                                     ignored_layers=[model[-1]])


def peers(rounds: int) -> None:
    """Like work: each starts from the network and a batch, and ends with a score for each unit."""
    tp = importlib.import_module("torch_pruning")
    torch.manual_seed(0)
    model = cnn(CHANNELS).eval()
    x, y = torch.randn(4, 3, 32, 32), torch.randint(10, (4,))
    weights = sum(p.numel() for p in model.parameters())

    def torch_pruning(importance: Any, *, gradient: bool) -> list[Tensor]:
        if gradient:
            model.zero_grad()
            functional.cross_entropy(model(x), y).backward()
        found = pruner(importance, tp, model, x)
        scores = [importance(group) for group in found.DG.get_all_groups(
            ignored_layers=found.ignored_layers, root_module_types=found.root_module_types)]
        model.zero_grad()
        return scores

    def weightwatcher() -> object:
        module = importlib.import_module("weightwatcher")
        with redirect_stdout(io.StringIO()):
            return module.WeightWatcher(model=model).analyze()

    one = [(x, y)]
    magnitude, taylor = tp.importance.MagnitudeImportance(), tp.importance.TaylorImportance()
    jobs: dict[str, Job] = {
        "ours, magnitude": lambda: wua.analyze(model, one, criterion="magnitude"),
        "Torch-Pruning, magnitude": lambda: torch_pruning(magnitude, gradient=False),
        "ours, taylor": lambda: wua.analyze(model, one, criterion="taylor",
                                            loss=functional.cross_entropy),
        "Torch-Pruning, Taylor": lambda: torch_pruning(taylor, gradient=True),
    }
    found = in_turns(jobs, rounds)
    if importlib.util.find_spec("weightwatcher"):
        found |= in_turns({"WeightWatcher": weightwatcher}, 1)
    else:
        print("\nWeightWatcher is left out: it is not installed; `make bench` installs it.")
    against = statistics.median(found["ours, magnitude"])
    delivers = {
        "ours, magnitude": "score of each weight and unit, entropy, effective weights, top 90%, "
                           "low share, histogram, dead units, what was left out",
        "Torch-Pruning, magnitude": "score of each group of coupled units",
        "ours, taylor": "the same under taylor",
        "Torch-Pruning, Taylor": "score of each group of coupled units",
        "WeightWatcher": "spectral figures of each layer (power-law exponent, norms, ranks)",
    }
    print(f"\n| {weights / 1e6:.1f}M-parameter CNN, 4 images | seconds | against ours, same work | "
          "delivers |\n|---|---:|---:|---|")
    for name, seconds in found.items():
        own = "ours, taylor" if "aylor" in name else "ours, magnitude"
        compared = statistics.median(seconds) / statistics.median(found[own]) if len(seconds) == 1 \
            else ratio(found, name, own)
        print(f"| {name} | {statistics.median(seconds):.3f} | {compared:.2f} × | "
              f"{delivers[name]} |")
    assert against > 0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--network", default="", help="only those with this in their name")
    parser.add_argument("--toy", action="store_true", help="seconds, to see that it runs")
    options = parser.parse_args()
    if options.toy:
        options.rounds, options.seconds = 1, 0.01
        NETWORKS.update({"MLP, 20M weights": (lambda: mlp(64), (4, 16)),
                         "dense CNN": (lambda: cnn((8, 8, 8, 8, 8)), (2, 3, 16, 16)),
                         "depthwise CNN": (depthwise, (2, 3, 8, 8))})
        globals().update(STREAMED=(10, 100), CHANNELS=(4, 8))
    torch.set_num_threads(1)
    costs(options.rounds, options.seconds, options.network)
    if not options.network:
        memory()
        peers(options.rounds)


if __name__ == "__main__":
    main()
