"""The report of 7 billion weights and the streaming of a GPT-2-sized model, on a GPU.

Prints markdown with the hardware; where there is no GPU, one line that says so.
Run: ``python benchmarks/gpu.py [--rounds 7]``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--toy", action="store_true", help="seconds, to see that it runs")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("No GPU here: the report and the streaming on a GPU were not measured.")
        return
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n")
    report(options.rounds)
    streaming(options.rounds)


if __name__ == "__main__":
    main()
