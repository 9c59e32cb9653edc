"""The memory of ``wua run`` over images that are generated as they are asked for, never stacked.

Each size runs in a process of its own: 80% of the images to train on, 5% to validate, 15% to test;
one seed, one epoch, the built-in CNN. Peak memory is the process's resident set. Prints markdown.
Run: ``python benchmarks/large_data.py [--images 500 5000 50000]``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODULE = '''
import torch
from torch.utils.data import DataLoader, Dataset

NOISE = torch.rand(3, 224, 224, generator=torch.Generator().manual_seed(0))

class Images(Dataset):
    """Which third of the image is brighter? The noise is rolled by the image's number."""

    def __init__(self, first, count):
        self.first, self.count = first, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        number = self.first + index
        image = NOISE.roll((number * 37 % 224, number * 101 % 224), (1, 2))
        kind = number % 3
        image[:, 75 * kind:75 * kind + 74] += 0.5
        return image, kind

def data(seed):
    count = {images}
    sizes = [count * 16 // 20, count // 20, count * 3 // 20]
    firsts = [0, sizes[0], sizes[0] + sizes[1]]
    return [DataLoader(Images(first, size), batch_size=32, shuffle=not number)
            for number, (first, size) in enumerate(zip(firsts, sizes))]
'''
COMMAND = ("run", "--data", "large:data", "--model", "cnn", "--hidden", "6,6", "--slim-hidden",
           "3,3", "--epochs", "1", "--seeds", "1", "--null-draws", "2", "--threads", "1")


MODEL_ALONE = '''
import mlflow, torch
import wua_mlflow.pipeline.workflow
from wua_mlflow.pipeline.models import cnn

torch.set_num_threads(1)
network = cnn((6, 6), (3, 224, 224), 3, "multiclass")
optimizer = torch.optim.Adam(network.parameters())
for _ in range({steps}):
    optimizer.zero_grad()
    network(torch.rand(32, 3, 224, 224)).square().mean().backward()
    optimizer.step()
'''
"""The same imports, and the same network trained on batches of the same size, in a plain loop."""


def peak_memory(images: int, steps: int = 50) -> tuple[float, float]:
    """Peak resident memory in GiB, and minutes, of one pipeline; of 0 images: ``MODEL_ALONE``."""
    alone = MODEL_ALONE.replace("{steps}", str(steps))
    words = ["-m", "wua_mlflow", *COMMAND] if images else ["-c", alone]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "large.py").write_text(MODULE.replace("{images}", str(images)))
        environment = {name: value for name, value in os.environ.items()
                       if not name.startswith("MLFLOW_")}
        environment |= {"MLFLOW_DISABLE_TELEMETRY": "true",
                        "PYTHONPATH": os.pathsep.join([folder, *sys.path[1:]])}
        began = time.perf_counter()
        watcher = ("import resource, subprocess, sys; "
                   "code = subprocess.call([sys.executable, *sys.argv[1:]], "
                   "stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL); "
                   "print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)")
        done = subprocess.run([sys.executable, "-c", watcher, *words], cwd=folder, text=True,
                              env=environment, stdout=subprocess.PIPE, check=True)
        code, kilobytes = map(int, done.stdout.split())
    assert code == 0, f"wua run ended with {code}"
    return kilobytes / 2**20, (time.perf_counter() - began) / 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[500, 5000, 50_000])
    parser.add_argument("--toy", action="store_true", help="seconds, to see that it runs")
    options = parser.parse_args()
    print("| images of 3×224×224 | as float32, GiB | peak memory, GiB | minutes |")
    print("|---:|---:|---:|---:|")
    for images in (0, *((60,) if options.toy else options.images)):
        memory, minutes = peak_memory(images, 2 if options.toy else 50)
        what = f"{images:,}" if images else "none: the network alone, in a plain loop"
        print(f"| {what} | {images * 3 * 224 * 224 * 4 / 2**30:.1f} | {memory:.2f} | "
              f"{minutes:.1f} |", flush=True)


if __name__ == "__main__":
    main()
