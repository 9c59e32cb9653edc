"""How long MLflow's pages take to come to rest: of a 200-layer model, the tutorial's, a plain run.

One store on an MLflow server on 127.0.0.1, with two pipelines of ``wua run`` and two runs of
MLflow's own with a dozen metrics and a figure each. Chromium opens each page anew, the three in
turns. At rest is a page whose main thread had no task of 50 ms or longer, and that asked the server
for nothing, for two seconds on end; the time is that from the address to the last of these before.
The ratio is the median over the rounds of (200 layers' ÷ plain runs' in the same round). Prints
markdown.
Run: ``python benchmarks/pages.py [--rounds 5] [--layers 200]``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"

import matplotlib.pyplot as plt
import mlflow
from mlflow.tracking import MlflowClient
from queries import serving

from wua_mlflow.cli.main import main as wua
from wua_mlflow.tracking.ui_view import KEY, LATEST_KEY, run_address, view_address

CHROMIUM = os.environ.get("WUA_CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync")
WATCH = """
window.busy = 0;
new PerformanceObserver(list => {
    for (const task of list.getEntries())
        window.busy = Math.max(window.busy, task.startTime + task.duration);
}).observe({type: "longtask", buffered: true});
"""
AT_REST = """() => {
    const answers = performance.getEntriesByType("resource").map(each => each.responseEnd);
    const last = Math.max(window.busy, ...answers);
    return performance.now() - last > 2000 && answers.length > 20 ? last : 0;
}"""
"""JavaScript: the milliseconds once it is, else 0."""
EPOCHS = 2


def pipeline(client: MlflowClient, name: str, widths: tuple[int, ...], slim: tuple[int, ...],
             ) -> SimpleNamespace:
    """A pipeline of the tutorial's data in an experiment of its own."""
    words = ["run", "--hidden", ",".join(map(str, widths)), "--slim-hidden",
             ",".join(map(str, slim)), "--how", "rebuild", "--epochs", str(EPOCHS), "--slim-epochs",
             str(EPOCHS), "--seeds", "1", "--null-draws", "1", "--experiment", name]
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        if wua(words) not in (0, 3, 4):
            raise RuntimeError(f"wua {' '.join(words)}")
    experiment = client.get_experiment_by_name(name).experiment_id
    runs = {run.data.tags.get("wua.variant", "pipeline"): run.info.run_id
            for run in client.search_runs([experiment])}
    return SimpleNamespace(experiment=experiment, one=runs["slim"], other=runs["oversized"],
                           whole=runs["pipeline"], model=model_of(client, runs["slim"]))


def plain(client: MlflowClient) -> SimpleNamespace:
    """Two runs as people log them, each with a model."""
    known = client.get_experiment_by_name("plain")  # set_experiment would outlast this script
    experiment = known.experiment_id if known else client.create_experiment("plain")
    runs = []
    for number in range(2):
        with mlflow.start_run(
                experiment_id=experiment, run_name=f"plain {number}") as run:
            mlflow.log_params({f"param {i}": i for i in range(10)})
            for i in range(12):
                mlflow.log_metric(f"metric {i}", number + i)
            figure = plt.figure()
            figure.gca().plot(range(10))
            mlflow.log_figure(figure, "plots/comparison.png")
            plt.close(figure)
            mlflow.log_text("<p>report</p>", "report.html")
        runs.append(run.info.run_id)
    model = client.create_logged_model(experiment, "plain", source_run_id=runs[0]).model_id
    return SimpleNamespace(experiment=experiment, one=runs[0], other=runs[1], whole=runs[0],
                           model=model)


def model_of(client: MlflowClient, run_id: str) -> str:
    return str(client.get_run(run_id).outputs.model_outputs[-1].model_id)


Page = Callable[[str, SimpleNamespace], str]
"""An address, by that of the server and what it is of."""


def saved_view(key: str) -> Page:
    """Of plain runs the charts that MLflow makes by itself."""
    return lambda server, of: view_address(server, of.experiment, key).replace(
        "" if of.view else f"&viewStateShareKey={key}", "")


PAGES: dict[str, Page] = {
    "the printed comparison": saved_view(LATEST_KEY),
    "Right-sizing": saved_view(KEY),
    "a variant's run": lambda server, of: run_address(server, of.experiment, of.one),
    "its metrics": lambda server, of: run_address(server, of.experiment, of.one).replace(
        "?", "/model-metrics?"),
    "its artifacts": lambda server, of: run_address(server, of.experiment, of.one).replace(
        "?", "/artifacts?"),
    "the pipeline's run": lambda server, of: run_address(server, of.experiment, of.whole),
    "its report": lambda server, of: run_address(server, of.experiment, of.whole).replace(
        "?", "/artifacts/report.html?"),
    "two runs compared": lambda server, of: f'{server}/#/compare-runs?runs=["{of.one}",'
                                            f'"{of.other}"]&experiments=["{of.experiment}"]',
    "Models": lambda server, of: f"{server}/#/experiments/{of.experiment}/models"
                                 f"?workflowType=machine_learning",
    "a model": lambda server, of: f"{server}/#/experiments/{of.experiment}/models/{of.model}",
}


@contextmanager
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield browser
        browser.close()


def seconds(browser: Any, address: str) -> float:
    """From the address to the page at rest, for a visitor who comes first."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.set_default_timeout(300_000)
    page = context.new_page()
    page.add_init_script(WATCH)
    page.goto(address)
    found = page.wait_for_function(AT_REST, polling=200).json_value()
    context.close()
    return float(found) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=200)
    parser.add_argument("--toy", action="store_true", help="plain runs and a page, once")
    options = parser.parse_args()
    pages = PAGES
    if options.toy:
        options.rounds = 1
        pages = {name: PAGES[name] for name in ("a variant's run",)}
        if not Path(CHROMIUM).exists():
            print(f"no Chromium at {CHROMIUM}")
            return
    layers, before = options.layers - 1, mlflow.get_tracking_uri()
    with tempfile.TemporaryDirectory() as folder:
        try:
            database = Path(folder) / "mlflow.db"
            uri = f"sqlite:///{database}"
            client = MlflowClient(uri)
            client.search_experiments()  # makes the store
            with serving(database) as address:
                mlflow.set_tracking_uri(address)
                kinds = {"plain": plain(client)}
                if options.toy:
                    kinds["deep"] = plain(client)
                else:
                    kinds["tutorial's"] = pipeline(client, "tutorial", (10,), (7,))
                    kinds["deep"] = pipeline(client, "deep", (4,) * layers, (3,) * layers)
                for name, kind in kinds.items():
                    kind.view = name != "plain"
                print(f"| page | a plain run's, s | {'the tutorial, s | ' * (not options.toy)}"
                      f"{options.layers} layers, s | ÷ plain |\n|---|{'---:|' * (len(kinds) + 1)}")
                with chromium() as browser:
                    for name, page in pages.items():
                        times = [[seconds(browser, page(address, kind)) for kind in kinds.values()]
                                 for _ in range(options.rounds)]
                        print(row(name, times), flush=True)
        finally:
            mlflow.set_tracking_uri(before)


def row(name: str, times: list[list[float]]) -> str:
    ratio = statistics.median(each[-1] / each[0] for each in times)
    cells = [f"{statistics.median(column):.1f}" for column in zip(*times, strict=True)]
    return f"| {name} | {' | '.join(cells)} | {ratio:.2f} |"


if __name__ == "__main__":
    main()
