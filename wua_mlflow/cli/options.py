"""The commands and options of ``wua``, read by click; the settings' options come from ``Settings``.

Tests: ``tests/cli/test_options.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import click

from wua_mlflow.config import COMMAND_FIELDS, ConfigError, Settings, yes_or_no
from wua_mlflow.errors import did_you_mean

__all__ = ["COMMANDS", "QUERIES", "parse"]

COMMANDS = {
    "run": "the whole pipeline: train, analyze, slim, compare, report",
    "train": "train the original as a run of its own",
    "analyze": "measure how the weights of the variant --run-id, or of --model, are used",
    "slim": "derive a slimmer network from the variant --run-id, and train it",
    "compare": "is B as good as A? run ids, model URIs, or files of per-example predictions",
    "runs": "list the variants, newest first",
    "best": "the smallest variant whose verdict is non-inferior",
    "show": "one run, or two side by side",
}
QUERIES = ("runs", "best", "show")
"""The commands that only read."""
DESCRIPTION = ("Is my PyTorch model bigger than it needs to be, how much smaller can it get, and "
               "is the smaller one as good?")
CONTEXT: dict[str, Any] = {
    "token_normalize_func": lambda token: token.replace("_", "-"), "max_content_width": 100}
"""``--run_id`` means ``--run-id``: MLflow passes parameters on with underscores."""


class _Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


def parse(words: Sequence[str]) -> SimpleNamespace:
    """The options by name; ``command`` is None where the help or the version was all, and is shown.

    Raises:
        ConfigError: an unknown command or option, with the nearest; or a value is missing.

    >>> parse(["analyze", "--run_id", "a1b2"]).run_id
    'a1b2'
    """
    place = next((i for i, word in enumerate(words) if not word.startswith("-")), len(words))
    name = words[place] if place < len(words) else None
    if name is not None and name not in COMMANDS:
        raise ConfigError(f"command: expected one of {', '.join(COMMANDS)}, but got '{name}'"
                          f"{did_you_mean(name, COMMANDS)}")
    command: click.Command = _group()
    try:
        context = command.make_context("wua", list(words[:place]), **CONTEXT)
        if name is not None:
            command = _command(name)
            context = command.make_context(name, list(words[place + 1:]), parent=context)
        elif not context.params["version"]:
            click.echo(context.get_help())
    except click.exceptions.Exit:  # --help was asked for, and is printed
        return SimpleNamespace(command=None, version=False)
    except click.UsageError as error:
        raise ConfigError(_message(error, command)) from None
    return SimpleNamespace(**{"command": name, "version": False, **context.params})


def _message(error: click.UsageError, command: click.Command) -> str:
    """What is wrong with an option or an argument, in one line that begins with its name."""
    if isinstance(error, click.NoSuchOption):
        known = [name for option in command.params for name in option.opts if name[:2] == "--"]
        where = "wua" if command.name == "wua" else f"wua {command.name}"
        return (f"{error.option_name}: no such option of {where}"
                f"{did_you_mean(error.option_name, known)}")
    if isinstance(error, click.BadOptionUsage):
        return f"{error.option_name}: expected a value, but got none"
    if isinstance(error, click.MissingParameter) and error.param:
        return f"{error.param.human_readable_name}: expected a value, but got none"
    if isinstance(error, click.BadParameter) and error.param:
        return f"{error.param.opts[0]}: {error.message.rstrip('.')}"
    if error.message.startswith("Got unexpected extra argument"):
        extra = error.message.partition("(")[2].split(")")[0].split()[0]
        return f"{extra}: expected options only after wua {command.name}"
    return error.message


def _group() -> click.Group:
    commands = [click.Command(name, short_help=text) for name, text in COMMANDS.items()]
    return _Group("wua", commands={str(each.name): each for each in commands},
                  help=DESCRIPTION, invoke_without_command=True, params=[
        click.Option(["--version"], is_flag=True, help="print the version"), _debug()])


def _command(name: str) -> click.Command:
    params = _query_params(name) if name in QUERIES else _settings_params(name)
    return click.Command(name, params=[*params, _debug()],
                         help=COMMANDS[name][0].upper() + COMMANDS[name][1:])


def _debug() -> click.Option:
    return click.Option(["--debug"], is_flag=True, help="show the traceback of an error")


def _settings_params(name: str) -> list[click.Parameter]:
    params: list[click.Parameter] = [_value(
        "config", "a shipped configuration (usecase, digits, breast_cancer) or a YAML file")]
    if name == "compare":
        params.insert(0, click.Argument(["models"], nargs=-1, metavar="[A B]"))
    params += [_value(field, Settings.model_fields[field].description or "",
                      flag=yes_or_no(field)) for field in COMMAND_FIELDS[name]]
    if name in ("run", "compare"):
        params.append(click.Option(["--json"], is_flag=True, help="print the result as JSON"))
    return params


def _query_params(name: str) -> list[click.Parameter]:
    params: list[click.Parameter] = []
    if name == "show":
        params.append(click.Argument(["run"], nargs=-1, required=True, metavar="RUN"))
    else:
        params += [_value("experiment", "name of an experiment; all experiments, if unset"),
                   _value("where", "MLflow's filter, e.g. \"metrics.`accuracy/test` > 0.9\"")]
    if name == "runs":
        params += [
            click.Option(["--kind"], default="variant", help="variant, pipeline or step"),
            _value("order_by", "MLflow's order, e.g. \"metrics.`flops/forward` ASC\""),
            click.Option(["--limit"], type=int, default=50, help="maximum number of runs (50)")]
    return [*params, click.Option(["--json"], is_flag=True, help="print JSON"),
            click.Option(["--csv"], is_flag=True, help="print CSV with all columns")]


def _value(field: str, text: str, *, flag: bool = False) -> click.Option:
    """An option that takes a value; with ``flag`` it means true where it stands alone."""
    alone: dict[str, Any] = {"is_flag": False, "flag_value": "true"} if flag else {}
    return click.Option([f"--{field.replace('_', '-')}", field], metavar="VALUE", help=text,
                        default=None, callback=_not_an_option, **alone)


def _not_an_option(context: click.Context, option: click.Parameter, value: Any) -> Any:
    """The value as it came; click would take the next option as the value of one without."""
    if isinstance(value, str) and value.startswith("--"):
        raise click.BadOptionUsage(option.opts[0], "", context)
    return value
