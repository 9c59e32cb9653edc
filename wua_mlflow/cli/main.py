"""The console script ``wua``: parse, call, print. ``mlflow run`` goes through it too.

Imports torch and mlflow only once a command needs them. Tests: ``tests/cli/test_main.py``.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from wua_mlflow.cli.options import QUERIES, parse
from wua_mlflow.config import (
    COMMAND_FIELDS,
    TABLE_KEYS,
    TUTORIAL,
    ConfigError,
    given_fields,
    load_settings,
    unused_settings,
)
from wua_mlflow.errors import WORDED, one_line
from wua_mlflow.progress import kept, stage
from wua_mlflow.redaction import redacted, redacted_output
from wua_mlflow.signals import handle_signals
from wua_mlflow.tracking_uri import check_tracking_uri, missing_driver

__all__ = ["entry", "main"]


RARELY = (100_000, 20, 100)
"""Thresholds of the garbage collector's generations; Python's own are 700, 10, 10."""
EXIT_ERROR, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
FILES = (".csv", ".parquet", ".npz")
ANSWER_S = 10
"""A server that does not answer its first request within so many seconds is not there."""
DATABASES = ("postgresql", "mysql", "mssql")
_WITH_TIMEOUT = ("psycopg2", "psycopg", "pymysql", "mysqldb")
"""Drivers whose option for it is called ``connect_timeout``."""
STORES = ("mlflow", "sqlalchemy", "sqlite3", "requests", "urllib3")
"""Packages whose errors are the tracking store's."""


class _NoServerError(ValueError):
    """There is no tracking server; nothing may be asked of it again."""


def entry(arguments: Sequence[str] | None = None) -> int:
    """``main`` for a process of its own: the garbage collector leaves the imports alone.

    Importing torch and MLflow makes millions of objects that live as long as the process; going
    over them again and again, and once more on leaving, costs much of a short run.
    """
    gc.set_threshold(*RARELY)
    code = main(arguments)
    gc.freeze()
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; gives the exit code.

    0 done; 1 or 2 an error, in one line; with ``--gate``, and for ``compare``, the verdict's:
    0 non_inferior, 3 inferior, 4 inconclusive; 128 and its number after a signal (130: Ctrl-C,
    143: SIGTERM).
    """
    with redacted_output():
        return _main(list(sys.argv[1:] if arguments is None else arguments))


def _main(words: list[str]) -> int:
    kept()
    try:
        with handle_signals():
            _go_where_asked()
            code = _dispatch(parse(words))
            sys.stdout.flush()
            return code
    except KeyboardInterrupt as stop:
        code = int(getattr(stop, "exit_code", EXIT_INTERRUPTED))
        _say("interrupted" if code == EXIT_INTERRUPTED else "terminated")
        for words_kept in kept():
            _say(f"kept: {words_kept}")
        _end_inherited(stop)
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except Exception as error:  # the user's mistake or ours: one line, unless --debug
        if "--debug" in words:
            print(redacted(traceback.format_exc()), end="", file=sys.stderr)
        _say(_worded(error))
        _end_inherited(error)
        return EXIT_USAGE if isinstance(error, ConfigError) else EXIT_ERROR


def _say(line: str) -> None:
    """To standard error; of several processes the first alone speaks."""
    from wua_mlflow.distributed import is_first

    if is_first():
        print(f"wua: {line}", file=sys.stderr)


def _dispatch(options: SimpleNamespace) -> int:
    if options.version:
        from wua_mlflow import __version__

        print(__version__)
        return 0
    if options.command is None:
        return 0
    _quiet()
    try:
        with stage(options.command, begin=False):
            return _answer(options) if options.command in QUERIES else _execute(options)
    except SystemExit as stop:  # of the user's own code
        raise RuntimeError(f"sys.exit({stop.code!r}) was called on the way") from stop


def _answer(options: SimpleNamespace) -> int:
    _check_server()
    from wua_mlflow.cli import commands

    return commands.answer(options)


def _execute(options: SimpleNamespace) -> int:
    fields = COMMAND_FIELDS[options.command]
    explicit = given_fields({field: getattr(options, field) for field in (
        *fields, *(TABLE_KEYS if "table" in fields else ()))})
    # `mlflow run` names the tutorial's configuration where the user named none
    config = None if options.config == TUTORIAL else options.config
    settings = load_settings(config, explicit, options.command)
    _say_unused(config, options.command)
    models = getattr(options, "models", ())
    if not models or not all(model.lower().endswith(FILES) for model in models):
        _check_server()
    from wua_mlflow.cli import commands

    if "experiment" in explicit:
        commands.check_experiment(settings.experiment)
    shown = commands.Shown(
        getattr(options, "json", False), getattr(options, "markdown", False),
        getattr(options, "verbose", False), options.command,
        {"config": config, **explicit} if config else explicit)
    return commands.execute(options.command, settings, shown, models=models)


def _say_unused(config: str | None, command: str) -> None:
    """A line on what a configuration sets that the command does not have."""
    names = unused_settings(config, command) if config else []
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        _say(f"note: config: wua {command} has no setting {', '.join(names[:5])}{more}; not used")


def _go_where_asked() -> None:
    """Under ``mlflow run``, work in the folder where that was typed, not in the project's.

    MLflow starts the command in the project's folder, so that the relative paths of files, of the
    user's own modules and of the store itself would mean another place than to the person who
    typed them. The folder is the parent process's, which Linux tells.
    """
    if os.environ.get("MLFLOW_RUN_ID") and Path("MLproject").is_file():
        with contextlib.suppress(OSError):
            os.chdir(f"/proc/{os.getppid()}/cwd")


def _quiet() -> None:
    """Leave out what third parties say that is nothing to the user."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    warnings.filterwarnings("ignore", module=r"mlflow|pydantic|sqlalchemy|alembic")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # its table by table progress on a fresh database, and errors, which are raised as well
    logging.getLogger("mlflow.store.db.utils").addFilter(_is_warning)


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno == logging.WARNING


def _check_server() -> None:
    """Ask a tracking server, or a database's, for a sign of life; MLflow would try for minutes.

    Raises:
        _NoServerError: nothing answers, or the address is none.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    try:
        check_tracking_uri(uri)
    except ValueError as error:
        raise _NoServerError(str(error)) from None
    if uri.startswith(DATABASES):
        _check_database(uri)
    if not uri.startswith(("http://", "https://")):
        return
    import requests

    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=ANSWER_S)
    except requests.exceptions.SSLError:
        return  # it is there; MLflow has settings of its own for certificates
    except requests.RequestException as error:
        raise _NoServerError(f"MLFLOW_TRACKING_URI: expected a tracking server at {_shown(uri)}, "
                             f"but none answers there: {type(error).__name__}") from None


def _check_database(uri: str) -> None:
    import sqlalchemy

    driver = uri.partition("://")[0].partition("+")[2]
    options = {"connect_timeout": ANSWER_S} if driver in _WITH_TIMEOUT else {}
    try:
        engine = sqlalchemy.create_engine(uri, connect_args=options)
        engine.connect().close()
        engine.dispose()
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, ValueError, TypeError) as error:
        reason = one_line(getattr(error, "orig", None) or error, limit=200)
        if isinstance(error, ImportError) and (remedy := missing_driver(uri)):
            reason += f"; {remedy}"
        raise _NoServerError(f"MLFLOW_TRACKING_URI: expected a database at {_shown(uri)}, but "
                             f"there is no connection to it: {reason}") from None


def _end_inherited(error: BaseException) -> None:
    """End the run that ``mlflow run`` made, where the command never got to it."""
    if not os.environ.get("MLFLOW_RUN_ID") or isinstance(error, _NoServerError):
        return
    with contextlib.suppress(Exception, KeyboardInterrupt):
        from wua_mlflow.distributed import is_first
        from wua_mlflow.tracking.store import connect, ended, inherited_run

        if not is_first():
            return
        store, run_id = connect(), str(inherited_run())
        if store.client.get_run(run_id).info.status == "RUNNING":
            with ended(store, run_id):
                raise error


def _worded(error: Exception) -> str:
    """The error as one line; one of the store's begins with the store."""
    if type(error).__module__.partition(".")[0] in STORES:
        uri = os.environ.get("MLFLOW_TRACKING_URI") or "the tracking store"
        return f"{_shown(uri)}: {one_line(error, limit=500).partition(' [SQL: ')[0]}"
    return one_line(error, limit=300 if isinstance(error, ConfigError) else 500, bare=WORDED)


def _shown(uri: str) -> str:
    """An address without a password."""
    from wua_mlflow.tracking.store import shown_uri

    return shown_uri(uri)
