"""What each command does: call the pipeline, print its result; queries of the store.

Tests: ``tests/cli/test_main.py``.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pandas as pd

from wua_mlflow.cli.output import (
    _plain,
    _print_csv,
    _print_json,
    _terminal,
    _text,
    _width,
    external_text,
    pipeline_text,
    print_analysis,
    slimmed_text,
    table_text,
    verdicts_record,
    verdicts_text,
)
from wua_mlflow.config import ConfigError, Settings
from wua_mlflow.distributed import is_first, on_all_ranks, process_group, started
from wua_mlflow.pipeline import workflow
from wua_mlflow.pipeline.analyze import analyze_model
from wua_mlflow.pipeline.compare_external import compare_external
from wua_mlflow.tracking.names import Outcome, Tag, step_tag
from wua_mlflow.tracking.runs import COLUMNS, best, compare_runs, find_run, runs, show_run
from wua_mlflow.tracking.store import Store, connect, inherited_run, open_client, shown_uri
from wua_mlflow.tracking.ui_view import LATEST_KEY, run_address, view_address

__all__ = ["answer", "check_experiment", "execute"]


EXIT_CODES = {Outcome.NON_INFERIOR: 0, Outcome.INFERIOR: 3, Outcome.INCONCLUSIVE: 4}
LOCAL_UI = "http://127.0.0.1:5000"


def execute(
    command: str,
    settings: Settings,
    *,
    as_json: bool = False,
    models: tuple[str, ...] = (),
) -> int:
    """Carry out ``command``; gives the exit code.

    Args:
        command: ``run``, ``train``, ``analyze``, ``slim`` or ``compare``.
        settings: a step on a run keeps the run's but for those that were given.
        as_json: print JSON.
        models: ``compare``'s A and B.
    """
    if command == "analyze":
        return _analyze(settings)
    if "TORCHELASTIC_RUN_ID" in os.environ and started() > 1:
        raise ConfigError(f"{command}: expected one process, but torchrun started {started()}; "
                          f"several are for analyze alone")
    if command == "compare":
        return _compare(settings, models, as_json=as_json)
    store = connected(settings)
    if command == "run":
        return _run(store, settings, as_json)
    if command == "train":
        variant = workflow.train_run(store, settings)
        print(f"{variant.name}: {variant.test.score:.4f} on the test part; run {variant.run_id}")
        print(f"Next: wua analyze --run-id {variant.run_id}")
        return 0
    return _slim(store, settings)


def _analyze(settings: Settings) -> int:
    """Every process of ``torchrun`` comes here; the first one alone writes and prints."""
    with process_group(settings.device):
        store = on_all_ranks(lambda: connected(settings) if is_first() else None)
        if settings.run_id is None and {"model", "state"} & settings.given:
            found = analyze_model(store, settings)
        else:
            # the store is there by now, so that the other processes make nothing
            reader = on_all_ranks(lambda: store or connected(settings))
            found = workflow.analyze_run(reader, settings)
    if is_first():
        print_analysis(found)
    return 0


def _slim(store: Store, settings: Settings) -> int:
    outcome = workflow.slim_run(store, settings)
    print("\n".join(filter(None, (slimmed_text(outcome), outcome.registered,
                                  _to_look(store, outcome)))))
    return _code(outcome, settings)


def _run(store: Store, settings: Settings, as_json: bool) -> int:
    with _stdout_for(as_json):
        outcome = workflow.run_pipeline(store, settings)
    if as_json:
        verdicts = verdicts_record(outcome.comparison) if outcome.slimmed.rounds else \
            {"verdict": None, "reason": outcome.slimmed.ended}
        print(json.dumps({
            "run_id": outcome.run_id,
            "variants": {v.name: {"run_id": v.run_id, **v.metrics}
                         for v in outcome.slimmed.variants},
            "registered": outcome.registered or None, **verdicts}, indent=1))
    elif not outcome.slimmed.rounds:
        print("\n".join(filter(None, (outcome.slimmed.ended, outcome.registered))))
    else:
        assert outcome.report is not None, "a pipeline has one"
        print(pipeline_text(outcome.report))
        if outcome.comparison.recipe is None:
            print(outcome.comparison.no_recipe)
        if outcome.registered:
            print(f"\n{outcome.registered}")
        print(_to_look(store, outcome))
    return _code(outcome, settings)


def _to_look(store: Store, outcome: workflow.SlimmingResult) -> str:
    """Where in MLflow's UI a pipeline's variants lie side by side, and its report."""
    if outcome.run_id is None or not outcome.slimmed.rounds:
        return ""
    experiment = outcome.slimmed.original.experiment_id
    base = store.uri if store.uri.startswith("http") else LOCAL_UI
    start = f"start the UI with `{_ui_command(store)}`, then " if base == LOCAL_UI else ""
    return (f"\nTo look: {start}open\n  {view_address(base, experiment, LATEST_KEY)}\n"
            f"The report:\n  {run_address(base, experiment, outcome.run_id)}")


def _code(outcome: workflow.SlimmingResult, settings: Settings) -> int:
    """With ``gate`` the verdict's; no narrower network leaves the question open."""
    if not settings.gate:
        return 0
    decided = outcome.verdict.outcome if outcome.slimmed.rounds else Outcome.INCONCLUSIVE
    return EXIT_CODES[decided]


def _ui_command(store: Store) -> str:
    """What starts MLflow's UI on this store: in the repository ``make ui``, elsewhere MLflow's."""
    here = Path("Makefile").is_file() and Path("MLproject").is_file()
    uri = store.uri if shown_uri(store.uri) == store.uri else '"$MLFLOW_TRACKING_URI"'
    return "make ui" if here else f"mlflow ui --backend-store-uri {uri}"


def check_experiment(experiment: str) -> None:
    """``mlflow run`` has chosen the experiment already; another one cannot be had any more.

    Raises:
        ConfigError: it is another one.
    """
    run_id = inherited_run()
    if run_id is None:
        return
    client = open_client()
    name = client.get_experiment(client.get_run(run_id).info.experiment_id).name
    if name != experiment:
        raise ConfigError(f"experiment: expected '{name}', in which `mlflow run` made this run, "
                          f"but got '{experiment}'; choose it with --experiment-name")


def _compare(
    settings: Settings,
    models: tuple[str, ...],
    *,
    as_json: bool,
) -> int:
    if len(models) not in (0, 2):
        raise ConfigError(f"compare: expected two models, A and B, but got {len(models)}")
    pair = models or tuple(m for m in (settings.baseline, settings.candidate) if m)
    if settings.run_id is None:
        if len(pair) != 2:
            raise ConfigError(f"compare: expected two models, A and B, or the run of a slim "
                              f"variant (--run-id), but got {' and '.join(pair) or 'none'}")
        return _compare_pair(settings, pair, as_json=as_json)
    too_many = [*models, *(name for name in ("baseline", "candidate") if getattr(settings, name)),
                *sorted({"data", "target", "task"} & settings.given)]
    if too_many:
        raise ConfigError(f"run_id: a variant is compared with its original on their own test "
                          f"part, so expected nothing like {too_many[0]} beside it; any two models "
                          f"and any data: wua compare A B --data DATA")
    with _stdout_for(as_json):
        original, slim, comparison = workflow.compare_run(connected(settings), settings)
    if as_json:
        print(json.dumps(verdicts_record(comparison), indent=1))
    else:
        print(f"{slim.name} against {original.name}")
        print(verdicts_text(comparison))
    return EXIT_CODES[comparison.verdict.outcome]


def _compare_pair(settings: Settings, pair: tuple[str, ...], *, as_json: bool) -> int:
    step = workflow.step_run(connected(settings), "compare") if inherited_run() else \
        contextlib.nullcontext()
    with step, _stdout_for(as_json):
        result = compare_external(pair[0], pair[1], settings)
    print(json.dumps(verdicts_record(result.comparison), indent=1) if as_json else
          external_text(result))
    return EXIT_CODES[result.comparison.artifact.outcome]


def connected(settings: Settings) -> Store:
    """The store, in the settings' experiment.

    Raises:
        ValueError: it cannot be opened.
    """
    try:
        return connect(settings.experiment)
    except OSError as error:
        raise ValueError(f"MLFLOW_TRACKING_URI: expected a store that can be opened, but "
                         f"{shown_uri()} cannot: {error}") from error


def _stdout_for(as_json: bool) -> contextlib.AbstractContextManager[object]:
    """Where JSON is asked for, it alone goes to stdout: the user's own code may print too."""
    return contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()


UNLIKE_ANYWAY = ("name", "start_time", Tag.PIPELINE, Tag.BASELINE, step_tag("train"),
                 step_tag("analyze"), step_tag("compare"))
"""What differs between any two runs, or is in the table's head."""


def answer(options: SimpleNamespace) -> int:
    """Print what ``options.command`` asks for; gives the exit code."""
    if options.command == "show":
        return _show(options)
    if options.command == "best":
        return _best(options)
    table = runs(options.experiment, options.kind, options.where, order_by=options.order_by or (),
                 limit=options.limit)
    if options.json:
        _print_json(_records(table))
    elif options.csv:
        _print_csv(table)
    elif table.empty:
        print(f"wua: no run of kind '{options.kind}' in {shown_uri()}")
    else:
        print(_terminal(table, _width()))
        if len(table) == options.limit:
            print(f"No more than {options.limit} are shown; --limit N shows more.")
    return 0


def _best(options: SimpleNamespace) -> int:
    found = best(options.experiment, where=options.where)
    table = pd.DataFrame(columns=list(COLUMNS)) if found is None else found.to_frame().T
    if options.json:
        _print_json(None if found is None else _records(table)[0])
    elif options.csv:
        _print_csv(table)
    elif found is None:
        print(f"wua: no variant has the verdict non_inferior in {shown_uri()}")
    else:
        print(_terminal(table, _width()))
    return 1 if found is None else 0


def _show(options: SimpleNamespace) -> int:
    if len(options.run) > 2:
        raise ValueError(f"show: expected one run or two, but got {len(options.run)}")
    found = [find_run(run) for run in options.run]
    said = [show_run(run)["value"] for run in found]
    if len(found) == 1:
        if options.json:
            _print_json(_plain(said[0]))
        elif options.csv:
            _print_csv(said[0].reset_index())
        else:
            print(_one(said[0]))
        return 0
    table = compare_runs(*found)
    if options.json:
        _print_json({"runs": [_plain(values) for values in said], "ratio": _plain(table["ratio"])})
    elif options.csv:
        _print_csv(table.reset_index())
    else:
        print(_two(said, table))
    return 0


def _records(table: pd.DataFrame) -> list[dict[str, object]]:
    return [_plain(record) for record in table.to_dict(orient="records")]


def _one(said: pd.Series) -> str:
    """What one run says: itself, its tags, its params, its metrics."""
    blocks: list[list[tuple[str, str]]] = [[], [], [], []]
    for name, value in said.items():
        place = 0 if name in COLUMNS else 1 if name.startswith("wua.") else 3 if "/" in name else 2
        if not pd.isna(value):
            blocks[place].append((name, _text(name, value)))
    width = max(len(name) for block in blocks for name, _ in block)
    parts = []
    for place, block in enumerate(blocks):
        edge = max((len(text) for _, text in block), default=0) if place == 3 else 0
        parts.append("\n".join(f"{name.ljust(width)}  {text.rjust(edge)}" for name, text in block))
    return "\n\n".join(filter(None, parts))


def _two(said: Sequence[pd.Series], table: pd.DataFrame) -> str:
    """What two runs say otherwise, then their metrics and the ratio of them."""
    lines = [("", *table.columns)]
    for name in dict.fromkeys([*said[0].index, *said[1].index]):
        texts = [_text(name, values.get(name)) for values in said]
        if name not in table.index and name not in UNLIKE_ANYWAY and texts[0] != texts[1]:
            lines.append((name, *texts, ""))
    lines.append(("",) * 4)
    lines += [(name, *(_text(name, values.get(name)) for values in said),
               _text(name, table["ratio"][name], ratio=True)) for name in table.index]
    return table_text(lines, (False, True, True, True))
