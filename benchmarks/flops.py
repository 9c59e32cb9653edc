"""Counts of four families of models by ``count_flops`` and by other counters, against hand counts.

Every counter is run, in turns, on one thread, without gradients. A count is exact if it equals the
hand count (``models.py``) to the last multiply-accumulate. Then a transformer of 6 billion weights,
in processes of their own: how long the first count takes, and how the memory grows. Prints markdown
tables. Needs the ``bench`` extra. Run: ``python benchmarks/flops.py [--rounds 15]``.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import io
import logging
import re
import statistics
import subprocess
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from models import MODELS, Example
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from wua_mlflow.flops import count_flops

OURS, BOTH = "`count_flops(backward=False)`", "`count_flops`, with the backward"
BILLIONS = {
    "6.4 billion weights, on meta": ("meta", 32),
    "0.8 billion weights (3.2 GB), real": ("cpu", 4),
}
"""Encoder layers of width 4,096 and where their weights are."""

Counter = Callable[[nn.Module, Tensor], int]


@dataclass(frozen=True)
class Peer:
    """A counter of multiply-accumulates, the package that it comes from, and where it runs."""

    count: Counter
    package: str
    device: str = "cpu"


def ours(model: nn.Module, x: Tensor) -> int:
    return count_flops(model, x, backward=False).forward_flops // 2


def ours_both(model: nn.Module, x: Tensor) -> int:
    return count_flops(model, x).forward_flops // 2


def torch_counter(model: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops() // 2


def ptflops(backend: str) -> Counter:
    def count(model: nn.Module, x: Tensor) -> int:
        from ptflops import get_model_complexity_info

        name = next(iter(inspect.signature(model.forward).parameters))
        macs, _ = get_model_complexity_info(
            model, tuple(x.shape[1:]), as_strings=False, print_per_layer_stat=False,
            backend=backend, input_constructor=lambda _: {name: x})
        if macs is None:
            raise ValueError("no count")
        return int(macs)

    return count


def fvcore(model: nn.Module, x: Tensor) -> int:
    from fvcore.nn import FlopCountAnalysis

    analysis = FlopCountAnalysis(model, x)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return int(analysis.total())


def torchinfo(model: nn.Module, x: Tensor) -> int:
    from torchinfo import summary

    return int(summary(model, input_data=x, verbose=0).total_mult_adds)


def calflops(model: nn.Module, x: Tensor) -> int:
    """Without its ``__init__``, which imports transformers and accelerate; no count needs them."""
    if "calflops" not in sys.modules:
        package = types.ModuleType("calflops")
        found = importlib.util.find_spec("calflops")
        package.__path__ = list(found.submodule_search_locations or []) if found else []
        sys.modules["calflops"] = package
    counter = importlib.import_module("calflops.flops_counter")
    return int(counter.calculate_flops(
        model, args=[x], print_results=False, output_as_string=False)[1])


def thop(model: nn.Module, x: Tensor) -> int:
    from thop import profile

    return int(profile(model, inputs=(x,), verbose=False)[0])


def torch_pruning(model: nn.Module, x: Tensor) -> int:
    from torch_pruning.utils import count_ops_and_params

    return int(count_ops_and_params(model, x)[0])


PEERS = {
    OURS: Peer(ours, "wua-mlflow"),
    BOTH: Peer(ours_both, "wua-mlflow"),
    "torch's FlopCounterMode": Peer(torch_counter, "torch"),
    "the same, model already on meta": Peer(torch_counter, "torch", "meta"),
    "ptflops, pytorch backend": Peer(ptflops("pytorch"), "ptflops"),
    "ptflops, aten backend": Peer(ptflops("aten"), "ptflops"),
    "fvcore": Peer(fvcore, "fvcore"),
    "torchinfo": Peer(torchinfo, "torchinfo"),
    "calflops": Peer(calflops, "calflops"),
    "thop": Peer(thop, "thop"),
    "Torch-Pruning": Peer(torch_pruning, "torch-pruning"),
}


@dataclass
class Result:
    """What a counter said of a model: its count or its error, and the seconds of each round."""

    macs: int | None
    error: str
    seconds: list[float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--large", nargs=2, metavar=("DEVICE", "LAYERS"), help=argparse.SUPPRESS)
    parser.add_argument("--toy", action="store_true", help="seconds, to see that it runs")
    arguments = parser.parse_args()
    if arguments.toy:
        arguments.rounds = 1
        BILLIONS.clear()
    torch.set_num_threads(1)
    if arguments.large:
        measure_large(arguments.large[0], int(arguments.large[1]))
        return
    logging.disable()
    for name, peer in list(PEERS.items()):
        if importlib.util.find_spec(peer.package.replace("-", "_")) is None:
            print(f"{name} is left out: {peer.package} is not installed; "
                  "`make bench` installs it.\n")
            del PEERS[name]
    results = {name: run(example, arguments.rounds) for name, example in MODELS.items()}
    print_counts(results)
    print_times(results)
    print_large()


def run(example: Example, rounds: int) -> dict[str, Result]:
    """All counters in turns, each on a model of its own; the first call of each is not timed."""
    torch.manual_seed(0)
    x = example.inputs()
    models = {name: example.make().to(peer.device).eval() for name, peer in PEERS.items()}
    results = {name: Result(None, "", []) for name in PEERS}
    with quiet(), torch.no_grad():
        for turn in range(rounds + 1):
            for name, peer in PEERS.items():
                if results[name].error:
                    continue
                began = time.perf_counter()
                try:
                    results[name].macs = peer.count(models[name], x.to(peer.device))
                except Exception as error:
                    results[name].error = f"{type(error).__name__}: {error}".splitlines()[0]
                if turn:
                    results[name].seconds.append(time.perf_counter() - began)
    return results


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with (
        warnings.catch_warnings(action="ignore"),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        yield


def print_counts(results: dict[str, dict[str, Result]]) -> None:
    print(f"| counter | version | {' | '.join(MODELS)} | exact |\n|---|---|{'---:|' * len(MODELS)}"
          "---:|")
    truths = [f"{example.macs:,}" for example in MODELS.values()]
    print(f"| **by hand** | | {' | '.join(truths)} | |")
    for name, peer in PEERS.items():
        cells = [count_cell(results[model][name], MODELS[model].macs) for model in MODELS]
        exact = sum(cell.startswith("exact") for cell in cells)
        version = importlib.metadata.version(peer.package)
        print(f"| {name} | {version} | {' | '.join(cells)} | {exact} of {len(cells)} |")
    print()


def count_cell(result: Result, truth: int) -> str:
    if result.macs is None:
        return result.error or "–"
    return "exact" if result.macs == truth else f"{result.macs:,} ({result.macs / truth - 1:+.1%})"


def print_times(results: dict[str, dict[str, Result]]) -> None:
    """Medians; ratios within a round. Bold: exact on this model, so to be compared with."""
    print(f"| time of a count, warm | {' | '.join(MODELS)} |\n|---|{'---:|' * len(MODELS)}")
    ms = [f"{1e3 * statistics.median(results[model][OURS].seconds):.1f} ms" for model in MODELS]
    print(f"| {OURS} | {' | '.join(ms)} |")
    for name in PEERS:
        if name != OURS:
            cells = [time_cell(results[model], name, MODELS[model].macs) for model in MODELS]
            print(f"| {name} | {' | '.join(cells)} |")
    print()


def time_cell(results: dict[str, Result], name: str, truth: int) -> str:
    if results[name].error:
        return "–"
    ratio = statistics.median(
        theirs / own
        for theirs, own in zip(results[name].seconds, results[OURS].seconds, strict=True))
    return f"**{ratio:.2f} ×**" if results[name].macs == truth else f"{ratio:.2f} ×"


def print_large() -> None:
    print("| encoder, 512 tokens | first count of a process, s | warm, s | peak memory grew by, MiB"
          " (first, warm) | as by hand |\n|---|---:|---:|---:|---|")
    for label, (device, layers) in BILLIONS.items():
        measured = subprocess.run(
            [sys.executable, __file__, "--large", device, str(layers)],
            check=True, capture_output=True, text=True)
        print(f"| {label} {measured.stdout.strip()}")


def measure_large(device: str, layers: int) -> None:
    """One row: the first count of a fresh process, and the median of five more."""
    width, tokens = 4096, 512
    with torch.device(device), warnings.catch_warnings(action="ignore"):
        layer = nn.TransformerEncoderLayer(width, 32, 4 * width, batch_first=True)
        model = nn.TransformerEncoder(layer, layers)
    x = torch.zeros(1, tokens, width)
    seconds, grown = [], []
    for _ in range(6):
        before, began = peak_mib(), time.perf_counter()
        count = count_flops(model, x)
        seconds.append(time.perf_counter() - began)
        grown.append(peak_mib() - before)
    truth = 2 * layers * (12 * tokens * width**2 + 2 * tokens**2 * width)
    backward = 2 * truth - 2 * 3 * tokens * width**2  # the model's input needs no gradient
    same = (count.forward_flops, count.backward_flops) == (truth, backward)
    print(f"| {seconds[0]:.2f} | {statistics.median(seconds[1:]):.2f} | {grown[0]:.0f}, "
          f"{max(grown[1:]):.0f} | {'yes' if same and count.on_meta else 'no'} |")


def peak_mib() -> float:
    """Peak resident memory of this process alone (``ru_maxrss`` starts from the parent's)."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024


if __name__ == "__main__":
    main()
