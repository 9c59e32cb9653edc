"""The console script ``wua``: parse, call, print. ``mlflow run`` goes through it too.

Imports torch and mlflow only once a command needs them. Tests: ``tests/test_cli.py``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from wua_mlflow.config import (
    COMMAND_FIELDS,
    ConfigError,
    Settings,
    given_fields,
    load_settings,
)

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["main"]

EXIT_ERROR, EXIT_USAGE, EXIT_INTERRUPTED, EXIT_TERMINATED = 1, 2, 130, 143
COMMANDS = {
    "run": "the whole chain: train, analyze, slim, compare, report",
    "train": "train the original as a run of its own",
    "analyze": "measure how the weights of the variant --run-id are used",
    "slim": "derive a slimmer network from the variant --run-id, and train it",
    "compare": "is B as good as A? run ids, model URIs, or files of per-example predictions",
    "runs": "list the variants, newest first",
    "best": "the smallest variant whose verdict is non-inferior",
    "show": "one run, or two side by side",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; gives the exit code.

    0 done; 1 or 2 an error, in one line; with ``--gate``, and for ``compare``, the verdict's:
    0 non_inferior, 3 inferior, 4 inconclusive; 130 and 143 when interrupted or terminated.
    """
    try:
        options = _parser().parse_args(arguments)
    except SystemExit as stop:
        code = int(stop.code or 0)
        if code:
            _fail_inherited("wrong arguments on the command line")
        return code
    _go_where_asked()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        return _dispatch(options)
    except KeyboardInterrupt as stop:
        terminated = type(stop).__name__ == "Terminated"
        print("wua: terminated" if terminated else "wua: interrupted", file=sys.stderr)
        return EXIT_TERMINATED if terminated else EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except Exception as error:  # the user's mistake or ours: one line, unless --debug
        if options.debug:
            raise
        print(f"wua: {_one_line(error)}", file=sys.stderr)
        if isinstance(error, ConfigError):
            _fail_inherited(_one_line(error))
            return EXIT_USAGE
        return EXIT_ERROR


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="wua", description="Is my PyTorch model bigger than it needs to be, how "
                     "much smaller can it get, and is the smaller one as good?")
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:],
                                      allow_abbrev=False)
        command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS,
                             help="show the traceback of an error")
        if name in ("runs", "best", "show"):
            _query_options(command, name)
        else:
            _settings_options(command, name)
    return parser


def _settings_options(command: argparse.ArgumentParser, name: str) -> None:
    if name == "compare":
        command.add_argument("models", nargs="*", metavar="A B", help="the original and the slim "
                             "one; none: the variant --run-id against its original")
    command.add_argument("--config", help="a shipped configuration (usecase, digits, "
                         "breast_cancer) or a YAML file")
    for field in COMMAND_FIELDS[name]:
        flags = [f"--{field.replace('_', '-')}"] + ([f"--{field}"] if "_" in field else [])
        flag: dict[str, Any] = {"nargs": "?", "const": "true"} if field == "gate" else {}
        command.add_argument(*flags, dest=field, metavar="VALUE", **flag,
                             help=Settings.model_fields[field].description)
    if name in ("run", "compare"):
        command.add_argument("--json", action="store_true", help="the result as JSON")


def _query_options(command: argparse.ArgumentParser, name: str) -> None:
    if name == "show":
        command.add_argument("run", nargs="+", metavar="RUN", help="a run's id, or two")
    else:
        command.add_argument("--experiment", help="its name; every experiment, if not given")
        command.add_argument("--where", help="MLflow's filter, e.g. \"metrics.`accuracy/test` > "
                             "0.9\"")
    if name == "runs":
        command.add_argument("--kind", default="variant", help="variant, pipeline, step")
        command.add_argument("--order-by", help="e.g. \"metrics.`flops/forward` ASC\"")
        command.add_argument("--limit", type=int, default=50, help="at most so many (50)")
    command.add_argument("--json", action="store_true", help="as JSON")
    command.add_argument("--csv", action="store_true", help="as CSV, every column")


def _dispatch(options: argparse.Namespace) -> int:
    if options.version:
        from wua_mlflow import __version__

        print(__version__)
        return 0
    if options.command is None:
        _parser().print_help()
        return 0
    warnings.filterwarnings("ignore", module=r"mlflow|pydantic|sqlalchemy|alembic")
    if options.command in ("runs", "best", "show"):
        from wua_mlflow import queries

        return queries.answer(options)
    given = given_fields({field: getattr(options, field)
                          for field in COMMAND_FIELDS[options.command]})
    settings = load_settings(options.config, given)
    from wua_mlflow import commands

    return commands.execute(options.command, settings, frozenset(given),
                            as_json=getattr(options, "json", False),
                            models=tuple(getattr(options, "models", ())))


def _go_where_asked() -> None:
    """Under ``mlflow run``, work in the folder where that was typed, not in the project's.

    MLflow starts the command in the project's folder, so that the relative paths of files, of the
    user's own modules and of the store itself would mean another place than to the person who
    typed them. The folder is the parent process's, which Linux tells.
    """
    if not os.environ.get("MLFLOW_RUN_ID"):
        return
    with contextlib.suppress(OSError):
        os.chdir(f"/proc/{os.getppid()}/cwd")


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    from wua_mlflow.tracking.store import Terminated

    raise Terminated


def _fail_inherited(reason: str) -> None:
    """End the run that ``mlflow run`` made as FAILED, where the command never got to it."""
    if not os.environ.get("MLFLOW_RUN_ID"):
        return
    from wua_mlflow.tracking.store import connect, ended, inherited_run

    run_id = inherited_run()
    try:
        with ended(connect(), str(run_id)):
            raise ConfigError(reason)
    except ConfigError:
        return


def _one_line(error: Exception) -> str:
    if isinstance(error, ConfigError):
        return str(error)
    from wua_mlflow.tracking.store import one_line

    return one_line(error)
