"""The report of 7 billion weights, the streaming of a GPT-2-sized model, and pipelines, on a GPU.

Prints markdown with the hardware; where there is no GPU, one line that says so.
Run: ``python benchmarks/gpu.py [--rounds 7]``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from models import GPT2

from wua_mlflow.usage.analyze import analyze
from wua_mlflow.usage.statistics import summarize


def seconds(job: Callable[[], object], rounds: int) -> float:
    found = []
    for number in range(rounds + 2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        job()
        torch.cuda.synchronize()
        if number > 1:
            found.append(time.perf_counter() - start)
    return statistics.median(found)


def report(rounds: int) -> None:
    weight = torch.empty(70_000, 100_000, dtype=torch.bfloat16, device="cuda").normal_(0, 0.02)
    scale = torch.rand(70_000, 1, device="cuda")

    def job() -> object:
        return summarize(lambda rows, columns: weight[rows, columns].float().abs() * scale[rows],
                         tuple(weight.shape), low=0.01)

    print("| report of 7 billion bf16 weights | ms | goal |\n|---|---:|---|")
    print(f"| the report | {1e3 * seconds(job, rounds):.0f} | ≤ 50 |")


def streaming(rounds: int) -> None:
    model = GPT2(words=50257, width=768, depth=12).cuda().eval()
    batches = [torch.randint(50257, (64, 128), device="cuda") for _ in range(20)]

    def forward() -> None:
        with torch.no_grad():
            for batch in batches:
                model(batch)

    alone = seconds(forward, rounds)
    watched = seconds(lambda: analyze(model, batches), rounds)
    print("\n| GPT-2-sized, 20 batches of 64 × 128 tokens | s | ratio | goal |")
    print("|---|---:|---:|---|")
    print(f"| forward alone | {alone:.2f} | 1 | |")
    print(f"| `analyze`, with its report | {watched:.2f} | {watched / alone:.2f} | ≤ 1.10 |")


MODULE = '''
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

def tokens(seed):
    def part(n, number):
        ids = torch.randint(1, 50, (n, 16), generator=torch.Generator().manual_seed(number))
        return DataLoader(TensorDataset(ids, (ids % 3).roll(1, 1)), batch_size=64)

    return part(4000, 1), part(500, 2), part(2000, 3)

class Tagger(nn.Module):
    def __init__(self, widths):
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.mixed = nn.Conv1d(32, widths[0], 3, padding=1)
        self.out = nn.Linear(widths[0], 3)

    def forward(self, ids):
        hidden = torch.relu(self.mixed(self.embed(ids).transpose(1, 2))).transpose(1, 2)
        return self.out(hidden)

def train(model, data, budget, seed):
    """In bfloat16 under autocast, as on a GPU."""
    device = next(model.parameters()).device
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for _ in range(budget):
        for ids, targets in data[0]:
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16):
                outputs = model(ids.to(device))
                loss = nn.functional.cross_entropy(outputs.flatten(0, 1),
                                                   targets.to(device).flatten())
            loss.backward()
            optimizer.step()
'''
PIPELINES = {
    "the CNN on digits": ("--data", "digits", "--model", "cnn", "--hidden", "64,64", "--epochs",
                          "10", "--slim-hidden", "24,24"),
    "a token model, its trainer under autocast": (
        "--data", "gpu_parts:tokens", "--model", "gpu_parts:Tagger", "--train", "gpu_parts:train",
        "--hidden", "128", "--epochs", "5", "--slim-hidden", "32")}


def pipelines(device: str, chosen: Sequence[str] = tuple(PIPELINES), *more: str) -> None:
    """Whole pipelines in processes of their own: the verdict that each prints."""
    print(f"\n| `wua run --device {device}` | minutes | it ends with |\n|---|---:|---|")
    for name in chosen:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "gpu_parts.py").write_text(MODULE)
            environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true",
                           "PYTHONPATH": os.pathsep.join([folder, *sys.path[1:]])}
            began = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-m", "wua_mlflow", "run", *PIPELINES[name], "--seeds", "1",
                 "--null-draws", "2", "--device", device, *more], cwd=folder, env=environment,
                text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        assert done.returncode == 0, done.stdout
        verdict = next(line for line in done.stdout.splitlines() if line.startswith("Verdict: "))
        print(f"| {name} | {(time.perf_counter() - began) / 60:.1f} | "
              f"{verdict.removeprefix('Verdict: ')} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--toy", action="store_true", help="seconds, to see that it runs")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("No GPU here: the report and the streaming on a GPU were not measured. The token "
              "model on the CPU, to see that it runs:")
        pipelines("cpu", list(PIPELINES)[1:], *(("--epochs", "1") if options.toy else ()))
        return
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n")
    report(options.rounds)
    streaming(options.rounds)
    pipelines("cuda")


if __name__ == "__main__":
    main()
