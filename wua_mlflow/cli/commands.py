"""What each command does: call the pipeline, print its result; queries of the store.

Tests: ``tests/cli/test_main.py``.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import click
import pandas as pd

from wua_mlflow.cli.output import (
    external_text,
    print_analysis,
    record,
    records,
    run_text,
    runs_text,
    terminal_width,
    two_runs_text,
)
from wua_mlflow.config import TUTORIAL, ConfigError, Settings
from wua_mlflow.distributed import is_first, on_all_ranks, process_group, started
from wua_mlflow.errors import printable, without_controls
from wua_mlflow.pipeline import workflow
from wua_mlflow.pipeline.analyze import analyze_model
from wua_mlflow.pipeline.cautions import shown_score
from wua_mlflow.pipeline.compare_external import compare_external
from wua_mlflow.pipeline.predict import predict
from wua_mlflow.pipeline.trust import remember
from wua_mlflow.progress import hushed
from wua_mlflow.redaction import without_user
from wua_mlflow.report.answer import (
    answer_text,
    details_text,
    next_step,
    tutorial_text,
    verdicts_text,
)
from wua_mlflow.report.build import report_of
from wua_mlflow.report.content import Report
from wua_mlflow.report.pair import pair_markdown, verdicts_record
from wua_mlflow.tracking.names import Outcome
from wua_mlflow.tracking.run_table import OWN
from wua_mlflow.tracking.runs import best, compare_runs, find_run, runs, show_run
from wua_mlflow.tracking.store import (
    Store,
    connect,
    inherited_run,
    open_client,
    shown_uri,
    sqlite_file,
)
from wua_mlflow.tracking.ui_view import LATEST_KEY, run_address, view_address

__all__ = ["Shown", "answer", "check_experiment", "execute"]


EXIT_CODES = {Outcome.NON_INFERIOR: 0, Outcome.INFERIOR: 3, Outcome.INCONCLUSIVE: 4}
LOCAL = ("127.0.0.1", "5000")
"""Host and port of MLflow's UI and of ``make ui``, unless variables say otherwise."""
EXPERIMENT_VARIABLES = ("MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME")
EVERYWHERE = ("0.0.0.0", "::")
"""What a server listens on that is to be opened here."""


@dataclass(frozen=True)
class Shown:
    """How a result is shown.

    Attributes:
        as_json: as JSON.
        as_markdown: as a summary for a pull request.
        verbose: with all details.
        command: what was typed.
        given: the settings that were typed with it, and the configuration.
    """

    as_json: bool = False
    as_markdown: bool = False
    verbose: bool = False
    command: str = "run"
    given: Mapping[str, object] = field(default_factory=dict)

    @property
    def for_others(self) -> bool:
        """Whether what is printed is read by a program, and nothing else may be among it."""
        return self.as_json or self.as_markdown

    def again(self, **changes: object) -> str:
        """The command as a line of a shell, with other settings.

        >>> Shown(given={"data": "my rows.csv", "seeds": 5}).again(seeds=9)
        "wua run --data 'my rows.csv' --seeds 9"
        """
        words = [word for field, value in {**self.given, **changes}.items()
                 for word in (f"--{field.replace('_', '-')}", " ".join(str(value).split()))]
        return shlex.join(["wua", self.command, *words])


def execute(
    command: str, settings: Settings, shown: Shown, *, models: tuple[str, ...] = ()
) -> int:
    """Carry out ``command``; gives the exit code.

    Args:
        command: ``run``, ``train``, ``analyze``, ``slim`` or ``compare``.
        settings: a step on a run keeps the run's but for those that were given.
        shown: how.
        models: ``compare``'s A and B.
    """
    if is_first():
        remember(settings)
    if command == "analyze":
        return _analyze(settings)
    if "TORCHELASTIC_RUN_ID" in os.environ and started() > 1:
        raise ConfigError(f"{command}: expected one process, but torchrun started {started()}; "
                          f"several are for analyze alone")
    if command == "compare":
        return _compare(settings, models, shown)
    store = connected(settings)
    if command == "train":
        variant = workflow.train_run(store, settings)
        print(f"{variant.name}: {shown_score(variant.test)} on the test part; run "
              f"{variant.run_id}")
        print(f"Next: wua analyze --run-id {variant.run_id}")
        return 0
    return _pipeline(workflow.run_pipeline if command == "run" else workflow.slim_run, store,
                     settings, shown)


def _analyze(settings: Settings) -> int:
    """Every process of ``torchrun`` comes here; the first one alone writes and prints."""
    with process_group(settings.device):
        store = on_all_ranks(lambda: connected(settings) if is_first() else None)
        if settings.run_id is None and {"model", "state"} & settings.given:
            analysis = analyze_model(store, settings)
        else:
            # the store is there by now, so that the other processes make nothing
            reader = on_all_ranks(lambda: store or connected(settings))
            analysis = workflow.analyze_run(reader, settings, ask=_ask_at_terminal())
    if is_first():
        print_analysis(analysis)
    return 0


def _pipeline(
    slim: Callable[..., workflow.SlimmingResult], store: Store, settings: Settings, shown: Shown
) -> int:
    with _stdout_for(shown.as_json):
        outcome = slim(store, settings, ask=_ask_at_terminal())
    print(_outcome_json(outcome) if shown.as_json else _outcome_text(store, outcome, shown))
    return _code(outcome, settings)


def _outcome_text(store: Store, outcome: workflow.SlimmingResult, shown: Shown) -> str:
    """The answer, what to do next and where to look; the tutorial's figures, and details, after it.
    """
    slimmed = outcome.slimmed
    if not slimmed.rounds:
        return "\n".join(filter(None, (slimmed.ended, outcome.registered)))
    report = outcome.report or report_of(slimmed)
    return "\n\n".join(filter(None, (
        answer_text(report),
        "\n".join(filter(None, (
            outcome.registered,
            next_step(slimmed, shown.again, registered=bool(outcome.registered)),
            _to_look(store, outcome)))),
        tutorial_text(report) if slimmed.original.settings.data == TUTORIAL else "",
        details_text(report, slimmed) if shown.verbose else "")))


def _outcome_json(outcome: workflow.SlimmingResult) -> str:
    verdicts = verdicts_record(outcome.comparison) if outcome.slimmed.rounds else \
        {"verdict": None, "reason": outcome.slimmed.ended}
    return json.dumps({
        "run_id": outcome.run_id,
        "variants": {v.name: {"run_id": v.run_id, **v.metrics} for v in outcome.slimmed.variants},
        "registered": outcome.registered or None, **verdicts}, indent=1)


def _ask_at_terminal() -> Callable[[str], bool] | None:
    """How the user is asked; None where nobody sits at a terminal."""
    if started() > 1 or not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        return None

    def ask(question: str) -> bool:
        with hushed():
            return click.confirm(question, err=True)

    return ask


def _to_look(store: Store, outcome: workflow.SlimmingResult) -> str:
    """Where in MLflow's UI a pipeline's variants lie side by side, and its report."""
    if outcome.run_id is None or not outcome.slimmed.rounds:
        return ""
    experiment = outcome.slimmed.original.experiment_id
    served = store.uri.startswith(("http://", "https://"))
    base = without_user(store.uri).rstrip("/") if served else _local_address(store)
    start = "" if served else f"start the UI with `{_ui_command(store)}`, then "
    return (f"To look: {start}open\n  {view_address(base, experiment, LATEST_KEY)}\n"
            f"The report:\n  {run_address(base, experiment, outcome.run_id)}")


def _code(outcome: workflow.SlimmingResult, settings: Settings) -> int:
    """With ``gate`` the verdict's; no narrower network leaves the question open."""
    if not settings.gate:
        return 0
    decided = outcome.verdict.outcome if outcome.slimmed.rounds else Outcome.INCONCLUSIVE
    return EXIT_CODES[decided]


def _ui_command(store: Store) -> str:
    """What starts MLflow's UI on this store: in the repository ``make ui``, elsewhere MLflow's."""
    uri = shlex.quote(store.uri) if shown_uri(store.uri) == store.uri else '"$MLFLOW_TRACKING_URI"'
    return "make ui" if _has_make_ui(store) else f"mlflow ui --backend-store-uri {uri}"


def _has_make_ui(store: Store) -> bool:
    """Whether ``make ui`` is there and shows this store."""
    database = sqlite_file(store.uri)
    return (Path("Makefile").is_file() and Path("MLproject").is_file()
            and database is not None and database.resolve() == Path("mlflow.db").resolve())


def _local_address(store: Store) -> str:
    """Where that UI is: the variables that it reads say which host and port."""
    names = ("ADDRESS", "PORT") if _has_make_ui(store) else ("MLFLOW_HOST", "MLFLOW_PORT")
    host, port = (os.environ.get(name) or usual for name, usual in zip(names, LOCAL, strict=True))
    return f"http://{LOCAL[0] if host in EVERYWHERE else host}:{port}"


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


def _compare(settings: Settings, models: tuple[str, ...], shown: Shown) -> int:
    if len(models) not in (0, 2):
        raise ConfigError(f"compare: expected two models, A and B, but got {len(models)}")
    pair = models or tuple(m for m in (settings.baseline, settings.candidate) if m)
    if settings.run_id is None:
        if len(pair) != 2:
            raise ConfigError(f"compare: expected two models, A and B, or the run of a slim "
                              f"variant (--run-id), but got {' and '.join(pair) or 'none'}")
        return _compare_pair(settings, pair, shown)
    too_many = [*models, *(name for name in ("baseline", "candidate") if getattr(settings, name)),
                *sorted({"data", "target", "table", "task"} & settings.given)]
    if too_many:
        raise ConfigError(f"run_id: a variant is compared with its original on their own test "
                          f"part, so expected nothing like {too_many[0]} beside it; any two models "
                          f"and any data: wua compare A B --data DATA")
    with _stdout_for(shown.for_others):
        original, slim, comparison = workflow.compare_run(
            connected(settings), settings, ask=_ask_at_terminal())
    report = Report("", [original.name, slim.name], [
        comparison.metrics_of(variant.result()) for variant in (original, slim)], comparison)
    text = "\n\n".join(filter(None, (
        f"{slim.name} against {original.name}\n{answer_text(report)}",
        verdicts_text(comparison) if shown.verbose else "")))
    print(_in_form(report, shown, text))
    return EXIT_CODES[comparison.verdict.outcome]


def _compare_pair(settings: Settings, pair: tuple[str, ...], shown: Shown) -> int:
    step = workflow.step_run(connected(settings), "compare") if inherited_run() else \
        contextlib.nullcontext()
    with step, _stdout_for(shown.for_others):
        result = compare_external(pair[0], pair[1], settings, ask=_ask_at_terminal())
    print(_in_form(result.report, shown, external_text(result), result.caution))
    return EXIT_CODES[result.comparison.artifact.outcome]


def _in_form(report: Report, shown: Shown, text: str, caution: str = "") -> str:
    """A comparison as JSON, as markdown or as its text."""
    if shown.as_json:
        return json.dumps(verdicts_record(report.comparison), indent=1)
    return pair_markdown(report, caution).rstrip() if shown.as_markdown else text


def connected(settings: Settings) -> Store:
    """The store, in the settings' experiment; MLflow's variables choose it where it is not given.

    Raises:
        ValueError: it cannot be opened.
    """
    variable = next((name for name in EXPERIMENT_VARIABLES if os.environ.get(name)), "")
    given = "experiment" in settings.given
    if variable and given and not inherited_run():
        print(f"wua: note: experiment: '{settings.experiment}', as given; "
              f"{variable}={os.environ[variable]} is not used", file=sys.stderr)
    try:
        return connect(None if variable and not given else settings.experiment)
    except OSError as error:
        raise ValueError(f"MLFLOW_TRACKING_URI: expected a store that can be opened, but "
                         f"{shown_uri()} cannot: {error}") from error


def _stdout_for(others: bool) -> contextlib.AbstractContextManager[object]:
    """Where JSON or markdown is asked for, it alone goes to stdout: the user's own code may print.
    """
    return contextlib.redirect_stdout(sys.stderr) if others else contextlib.nullcontext()


def answer(options: SimpleNamespace) -> int:
    """Print what ``options.command`` asks for; gives the exit code."""
    if options.command == "predict":
        return _predict(options)
    if options.command == "show":
        return _show(options)
    if options.command == "best":
        return _best(options)
    table = runs(options.experiment, options.kind, options.where, order_by=options.order_by or (),
                 limit=options.limit)
    note = table.attrs.get("note", "")
    text = _table_text(table, f"no run of kind '{options.kind}'")
    if len(table) == options.limit:
        text += f"\nNo more than {options.limit} are shown; --limit N shows more."
    _print(options, records(table), table, text, note)
    return 0


def _predict(options: SimpleNamespace) -> int:
    table = predict(options.model, options.file)
    if options.out is None:
        print(table.to_csv(index=False), end="")
        return 0
    try:
        table.to_csv(options.out, index=False)
    except OSError as error:
        raise ValueError(f"out: expected a file that can be written, but {options.out!r} cannot: "
                         f"{error}") from error
    print(f"{len(table)} predictions in {options.out}")
    return 0


def _best(options: SimpleNamespace) -> int:
    smallest = best(options.experiment, where=options.where)
    table = pd.DataFrame(columns=list(OWN)) if smallest is None else smallest.to_frame().T
    _print(options, None if smallest is None else records(table)[0], table,
           _table_text(table, "no variant has the verdict non_inferior"),
           "" if smallest is None else smallest.attrs.get("note", ""))
    return 1 if smallest is None else 0


def _table_text(table: pd.DataFrame, nothing: str) -> str:
    return f"wua: {nothing} in {shown_uri()}" if table.empty else \
        runs_text(table, terminal_width())


def _show(options: SimpleNamespace) -> int:
    if len(options.run) > 2:
        raise ValueError(f"show: expected one run or two, but got {len(options.run)}")
    pair = [find_run(run) for run in options.run]
    shown = [show_run(run) for run in pair]
    values = [each["value"] for each in shown]
    if len(pair) == 1:
        _print(options, record(values[0]), values[0].reset_index(), run_text(values[0]),
               shown[0].attrs["note"])
        return 0
    table = compare_runs(*pair)
    _print(options, {"runs": list(map(record, values)), "ratio": record(table["ratio"])},
           table.reset_index(), two_runs_text(values, table), table.attrs["note"])
    return 0


def _print(
    options: SimpleNamespace, content: object, table: pd.DataFrame, text: str, note: str
) -> None:
    """The content as JSON, the table as CSV, or the text; a note on its verdicts, if any.

    Beside what machines read the note goes to standard error.
    """
    if options.json:
        print(json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False))
    elif options.csv:
        print(table.to_csv(index=False), end="")
    else:
        print(without_controls("\n\n".join(filter(None, (text, note)))))
        return
    if note:
        print(f"wua: note: {printable(note)}", file=sys.stderr)
