"""Make the pictures that the documentation shows: ``make pictures``.

Runs the tutorial's use case into a temporary store, starts `mlflow server` on it and opens the
addresses that `wua run` prints in Chromium. ``--server`` takes the pictures from a server that runs
already, of the last pipeline of ``--experiment``. Then the overview of the layers and the heat map
of their units are drawn for two models whose weights are random, one of 5 layers and one of 200,
the histogram of a layer of the first, and the diagram of an MLP too wide to show each unit;
``--drawn`` makes these alone, without a browser.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from mlflow.tracking import MlflowClient
from playwright.sync_api import Browser, sync_playwright
from torch import Tensor, nn

import wua_mlflow as wua
from wua_mlflow.plots.histogram import histogram_data, plot_histogram
from wua_mlflow.plots.network import network_data, plot_network
from wua_mlflow.plots.usage import layers_data, plot_layers, plot_units, units_data
from wua_mlflow.tracking.ui_view import KEY, LATEST_KEY, run_address, view_address
from wua_mlflow.usage.results import ModelUsage

PICTURES = Path(__file__).parent / "pictures"
CHROMIUM = os.environ.get("WUA_CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync"]
CHART = "[data-testid=experiment-view-compare-runs-card] .trace"
ASSISTANT_SEEN = 'localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true")'
"""MLflow opens a panel named "Assistant" on a new visitor's first page; later ones are without."""


@dataclass(frozen=True)
class Shot:
    """A picture: its name, the page, what must be there before it is taken, and what to click."""

    name: str
    address: str
    ready: str
    height: int = 1000
    click: str = ""


def main() -> None:
    """Make all pictures."""
    parser = argparse.ArgumentParser(description="Make the documentation's pictures.")
    parser.add_argument("--drawn", action="store_true", help="only the pictures of no browser")
    parser.add_argument("--server", help="a running server's address; else one is started")
    parser.add_argument("--experiment", default="wua", help="with --server: the experiment's name")
    options = parser.parse_args()
    PICTURES.mkdir(exist_ok=True)
    if not options.drawn:
        photograph(options)
    usage = draw("5", small_convolutional(), torch.rand(256, 1, 12, 12))
    draw("200", Reader(blocks=33), torch.randint(500, (128, 12)))
    layer = usage.layers["conv2"]
    save("histogram", plot_histogram(histogram_data(layer.histogram, layer.entropy, name="conv2")))
    save("network_wide", wide_diagram())


def draw(layers: str, model: nn.Module, inputs: Tensor) -> ModelUsage:
    """The overview and the heat map of the model, beside networks that learned nothing."""
    usage = wua.analyze(model, inputs, null=20)
    save(f"layers_{layers}", plot_layers(layers_data(usage)))
    save(f"units_{layers}", plot_units(units_data(usage)))
    return usage


def save(name: str, figure: Figure) -> None:
    """Write a figure into the documentation's folder."""
    figure.savefig(PICTURES / f"{name}.png")
    print(f"docs/pictures/{name}.png")


def wide_diagram() -> Figure:
    """An MLP of 64-200-120-10, its weights random: units are drawn in bundles."""
    torch.manual_seed(0)
    layers = {"fc1": nn.Linear(64, 200), "fc2": nn.Linear(200, 120), "out": nn.Linear(120, 10)}
    return plot_network(network_data({name: layer.weight.detach().numpy()
                                      for name, layer in layers.items()}))


def small_convolutional() -> nn.Module:
    """Five layers and the output layer, which is not analysed."""
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(
        conv1=nn.Conv2d(1, 16, 3), relu1=nn.ReLU(), conv2=nn.Conv2d(16, 32, 3), relu2=nn.ReLU(),
        conv3=nn.Conv2d(32, 64, 3, stride=2), relu3=nn.ReLU(), flat=nn.Flatten(),
        fc1=nn.Linear(576, 128), relu4=nn.ReLU(), fc2=nn.Linear(128, 64), relu5=nn.ReLU(),
        out=nn.Linear(64, 10)))


class Reader(nn.Module):
    """A transformer that reads tokens, with six layers a block, one before and one after them."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(500, 64)
        self.blocks = nn.Sequential(*(nn.TransformerEncoderLayer(64, 4, 256, batch_first=True)
                                      for _ in range(blocks)))
        self.pool = nn.Linear(64, 64)
        self.head = nn.Linear(64, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        """Shape (samples, tokens) to (samples, 2)."""
        return self.head(self.pool(self.blocks(self.embed(tokens)).mean(1)).relu())


def photograph(options: argparse.Namespace) -> None:
    """MLflow's pages, in a browser."""
    with contextlib.ExitStack() as stack:
        server = options.server or stack.enter_context(served_use_case())
        chromium = stack.enter_context(sync_playwright()).chromium
        browser = chromium.launch(executable_path=CHROMIUM, args=QUIET)
        stack.callback(browser.close)
        for shot in shots(server, options.experiment):
            take(browser, shot)
            print(f"docs/pictures/{shot.name}.png  {shot.address}")


def shots(server: str, experiment: str) -> list[Shot]:
    """The pages, of the experiment's last finished pipeline and its slim variant."""
    client = MlflowClient(server)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        raise SystemExit(f"experiment: {experiment!r} is not on {server}")
    where = found.experiment_id
    pipelines = client.search_runs([where], "tags.`wua.kind` = 'pipeline'", max_results=1)
    if not pipelines:
        raise SystemExit(f"experiment: {experiment!r} holds no pipeline; run `wua run` first")
    pipeline = pipelines[0].info.run_id
    slim = client.search_runs([where], f"tags.`wua.pipeline` = '{pipeline}' and "
                              "tags.`wua.variant` = 'slim'", max_results=1)[0].info.run_id
    table = view_address(server, where, KEY).replace("=CHART", "=TABLE")
    plots = run_address(server, where, slim).replace("?", "/artifacts/plots/{}.png?")
    return [
        Shot("compare", view_address(server, where, LATEST_KEY), CHART),
        Shot("compare_more", view_address(server, where, LATEST_KEY), CHART, height=1360),
        Shot("pipeline", run_address(server, where, pipeline), "text=Description",
             click="text=Show more"),
        Shot("variant", plots.format("importance_fc1"), "img[src^=blob], img[src*=artifact]"),
        Shot("network", plots.format("network"), "img[src^=blob], img[src*=artifact]"),
        Shot("runs", table, ".ag-row", height=520),
    ]


def take(browser: Browser, shot: Shot) -> None:
    """Open the page as a visitor who has closed MLflow's assistant, and save what is seen."""
    context = browser.new_context(viewport={"width": 1600, "height": shot.height})
    context.add_init_script(ASSISTANT_SEEN)
    page = context.new_page()
    page.goto(shot.address)
    page.locator(shot.ready).first.wait_for()
    if shot.click:
        page.locator(shot.click).first.click()
    page.wait_for_timeout(2500)  # animations, and images still on their way
    page.screenshot(path=PICTURES / f"{shot.name}.png")
    context.close()


@contextlib.contextmanager
def served_use_case() -> Iterator[str]:
    """A server of its own on a temporary store, with the use case's pipeline in it."""
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        address = f"http://127.0.0.1:{port}"
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
             "--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db",
             "--artifacts-destination", f"{folder}/artifacts"],
            cwd=folder, env={**os.environ, **quiet}, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait(f"{address}/health", process)
            subprocess.run([sys.executable, "-m", "wua_mlflow", "run", "--experiment", "wua"],
                           cwd=folder, check=True,
                           env={**os.environ, **quiet, "MLFLOW_TRACKING_URI": address})
            yield address
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=60)


def wait(address: str, process: subprocess.Popen[bytes], seconds: float = 90) -> None:
    """Wait until the server answers.

    Raises:
        SystemExit: it ended, or does not answer in time.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=2):
            return
        time.sleep(0.3)
    raise SystemExit(f"the MLflow server did not answer at {address}")


if __name__ == "__main__":
    main()
