"""The commands and options of ``wua``, read by click; the settings' options come from ``Settings``.

Tests: ``tests/cli/test_options.py``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import click

from wua_mlflow.config import COMMAND_FIELDS, TOPICS, ConfigError, Settings, yes_or_no
from wua_mlflow.errors import did_you_mean
from wua_mlflow.old_settings import GONE, instead, of_today

__all__ = ["COMMANDS", "QUERIES", "parse"]

COMMANDS = {
    "run": "the whole pipeline: train, analyze, slim, compare, report",
    "train": "train the original as a run of its own",
    "analyze": "measure how the weights of the variant --run-id, or of --model, are used",
    "slim": "derive a slimmer network from the variant --run-id, and train it",
    "compare": "is B as good as A? run ids, model URIs, or files of per-example predictions",
    "predict": "a saved model's answers to the rows of a file, as CSV",
    "runs": "list the variants, newest first",
    "best": "the smallest variant whose verdict is non-inferior",
    "show": "one run, or two side by side",
}
BASIC = {
    "run": ("data", "target", "model", "train", "hidden", "slim_hidden", "margin", "score",
            "seeds", "device", "experiment", "register"),
    "train": ("data", "target", "model", "train", "hidden", "epochs", "lr", "batch_size", "score",
              "seeds", "device", "experiment"),
    "analyze": ("run_id", "data", "target", "model", "hidden", "state", "criterion", "layers",
                "null_draws", "device", "experiment"),
    "slim": ("run_id", "data", "target", "model", "state", "train", "slim_hidden", "margin",
             "score", "seeds", "device", "register"),
    "compare": ("run_id", "data", "target", "task", "score", "groups", "margin", "confidence",
                "class_margin"),
}
"""What ``--help`` shows of a command's settings, a dozen at most; ``--help-all`` shows all."""
OF_TABLE = {
    "groups": "name of the column in a file that says whose rows they are (patient, user, "
              "document); those of one are a single draw: short for --table 'groups: NAME'",
    "drop_columns": "names of columns of a table that are no inputs, e.g. id,name: short for "
                    "--table 'drop_columns: [id, name]'",
}
"""Keys of the setting ``table`` that are options too: ``config.TABLE_KEYS``."""
TAKES_URI = (("run_id", "analyze"), ("run_id", "slim"))
"""Setting and command: it may be a model's URI as well, and ``--model-uri`` is the same option."""
EXAMPLES = {
    "run": ("wua run --data rows.csv --target y", "wua run --config digits --seeds 5",
            "wua run --data my_module:data --model my_module:build --train my_module:train"),
    "train": ("wua train --data rows.csv --target y --hidden 128,64",),
    "analyze": ("wua analyze --run-id 4be1f0", "wua analyze --model-uri models:/name/3 --data "
                "rows.csv --target y", "wua analyze --model my_module:build --data digits "
                "--state weights.safetensors"),
    "slim": ("wua slim --run-id 4be1f0", "wua slim --model my_module:build --data my_module:data "
             "--state weights.safetensors"),
    "compare": ("wua compare original.csv slim.csv --margin 0.02",
                "wua compare models:/big/1 models:/small/2 --data rows.csv --target y"),
    "predict": ("wua predict 4be1f0 rows.csv --out answers.csv",
                "wua predict models:/name/1 rows.csv"),
    "runs": ("wua runs --kind pipeline --limit 5",),
    "best": ("wua best --experiment wua",),
    "show": ("wua show 4be1f0 9ac2d7",),
}
QUERIES = ("predict", "runs", "best", "show")
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
        raise ConfigError(_message(error, command, words)) from None
    return SimpleNamespace(**{"command": name, "version": False, **context.params})


def _message(error: click.UsageError, command: click.Command, words: Sequence[str]) -> str:
    """What is wrong with an option or an argument, in one line that begins with its name."""
    if isinstance(error, click.NoSuchOption):
        gone, fields = _gone(words), COMMAND_FIELDS.get(str(command.name), ())
        if _field(error.option_name) in gone and fields and set(of_today(gone)) <= set(fields):
            return f"{error.option_name}: no option any more; {instead(gone)}"
        known = [name for option in command.params for name in option.opts if name[:2] == "--"]
        where = "wua" if command.name == "wua" else f"wua {command.name}"
        return (f"{error.option_name}: no such option of {where}"
                f"{did_you_mean(error.option_name, known)}")
    if isinstance(error, click.BadOptionUsage):
        return f"{error.option_name}: expected a value, but got none"
    if isinstance(error, click.MissingParameter) and error.param:
        hint = "; `wua runs` lists the runs" if error.param.name == "run" else ""
        return f"{error.param.human_readable_name}: expected a value, but got none{hint}"
    if isinstance(error, click.BadParameter) and error.param:
        return f"{error.param.opts[0]}: {error.message.rstrip('.')}"
    if error.message.startswith("Got unexpected extra argument"):
        extra = error.message.partition("(")[2].split(")")[0].split()[0]
        return f"{extra}: expected options only after wua {command.name}"
    return error.message


def _field(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")


def _gone(words: Sequence[str]) -> dict[str, str]:
    """The options of earlier versions among the words, with their values.

    >>> _gone(["run", "--search-runs=4", "--max_seeds", "40", "--effective-rank"])
    {'search_runs': '4', 'max_seeds': '40', 'effective_rank': ''}
    """
    found = {}
    for word, after in zip(words, (*words[1:], ""), strict=True):
        option, equals, value = word.partition("=")
        if option.startswith("--") and _field(option) in GONE:
            found[_field(option)] = value if equals or after.startswith("--") else after
    return found


def _group() -> click.Group:
    commands = [click.Command(name, short_help=text) for name, text in COMMANDS.items()]
    return _Group("wua", commands={str(each.name): each for each in commands},
                  help=DESCRIPTION, invoke_without_command=True, params=[
        click.Option(["--version"], is_flag=True, help="print the version"), _debug()])


_TOPICS = {topic: tuple(name for field in fields for name in (
    (field, *OF_TABLE) if field == "table" else (field,))) for topic, fields in TOPICS.items()}
"""What ``--help-all`` shows, by topic."""


class _Command(click.Command):
    """A command whose ``--help`` shows the settings that most people need, with examples."""

    whole = False
    """Whether the help shows all settings, by topic."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The settings of the command, then the options that are none."""
        name = str(self.name)
        settings = {param.name: param for param in self.get_params(ctx)
                    if param.name in (*COMMAND_FIELDS.get(name, ()), *OF_TABLE)}
        others = [param for param in self.get_params(ctx) if param.name not in settings]
        groups = {topic: [settings[field] for field in fields if field in settings]
                  for topic, fields in _TOPICS.items()} if self.whole else \
            {"Options": [settings[field] for field in BASIC[name]]} if settings else {}
        if self.whole or not settings:
            groups["Options" if not settings else "The command"] = others
        for topic, params in groups.items():
            records = list(filter(None, (param.get_help_record(ctx) for param in params)))
            if records:
                with formatter.section(topic):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Examples, and where the rest is."""
        name = str(self.name)
        with formatter.section("For example"):
            formatter.write("".join(f"  {example}\n" for example in EXAMPLES[name]))
        fields = COMMAND_FIELDS.get(name, ())
        if fields:
            formatter.write("\nIn brackets: defaults.\n")
        if name in ("run", "train"):
            formatter.write("Without --data and --config it is the tutorial, with values of its "
                            "own.\n")
        if fields and not self.whole:
            formatter.write(f"All {len(fields)} settings, by topic: wua {name} --help-all\n")


def _command(name: str) -> _Command:
    params = _query_params(name) if name in QUERIES else _settings_params(name)
    return _Command(name, params=[*params, _debug(), _help_all()],
                    help=COMMANDS[name][0].upper() + COMMANDS[name][1:])


def _help_all() -> click.Option:
    def show(context: click.Context, _: click.Parameter, asked: bool) -> None:
        if asked and isinstance(context.command, _Command):
            context.command.whole = True
            click.echo(context.get_help())
            context.exit()

    return click.Option(["--help-all"], is_flag=True, is_eager=True, expose_value=False,
                        callback=show, help="show all options, by topic")


def _debug() -> click.Option:
    return click.Option(["--debug"], is_flag=True, help="show the traceback of an error")


def _settings_params(name: str) -> list[click.Parameter]:
    params: list[click.Parameter] = [_value(
        "config", "a shipped configuration (usecase, digits, breast_cancer) or a YAML file")]
    if name == "compare":
        params.insert(0, click.Argument(["models"], nargs=-1, metavar="[A B]"))
    params += [_value(field, _described(field, name), flag=yes_or_no(field),
                      also=("--model-uri",) if (field, name) in TAKES_URI else ())
               for field in COMMAND_FIELDS[name]]
    if "table" in COMMAND_FIELDS[name]:
        params += [_value(key, text) for key, text in OF_TABLE.items()]
    if name in ("run", "slim", "compare"):
        params.append(click.Option(["--verbose"], is_flag=True, help="print all details after the "
                                   "answer"))
        params.append(click.Option(["--json"], is_flag=True, help="print the result as JSON"))
    if name == "compare":
        params.append(click.Option(["--markdown"], is_flag=True, help="print the result as "
                                   "markdown, for a pull request"))
    return params


def _described(field: str, command: str) -> str:
    """What a setting means to a command, and its default unless the words say what holds unset."""
    info = Settings.model_fields[field]
    description = _OTHERS.sub(lambda clause: clause[0] if command in clause[1] else "",
                              info.description or "")
    if info.default is None or info.default is False:
        return description
    default = ",".join(map(str, info.default)) if isinstance(info.default, tuple) else info.default
    return f"{description} [{default}]"


_OTHERS = re.compile(r"; (analyze, slim|analyze|slim): [^;]*")
"""A clause on what a setting means to other commands."""


def _query_params(name: str) -> list[click.Parameter]:
    params: list[click.Parameter] = []
    if name == "predict":
        return [click.Argument(["model"], metavar="MODEL"),
                click.Argument(["file"], metavar="FILE"),
                _value("out", "the .csv file to write; standard output, if unset")]
    if name == "show":
        params.append(click.Argument(["run"], nargs=-1, required=True, metavar="RUN"))
    else:
        params += [_value("experiment", "name of an experiment; all, or the one that MLflow's "
                                        "variables name, if unset"),
                   _value("where", "MLflow's filter, e.g. \"metrics.`accuracy/test` > 0.9\"")]
    if name == "runs":
        params += [
            click.Option(["--kind"], default="variant", help="variant, pipeline or step"),
            _value("order_by", "MLflow's order, e.g. \"metrics.`flops/forward` ASC\""),
            click.Option(["--limit"], type=int, default=50, help="maximum number of runs (50)")]
    return [*params, click.Option(["--json"], is_flag=True, help="print JSON"),
            click.Option(["--csv"], is_flag=True, help="print CSV with all columns")]


def _value(
    field: str, text: str, *, flag: bool = False, also: Sequence[str] = ()
) -> click.Option:
    """An option that takes a value; with ``flag`` it means true where it stands alone."""
    alone: dict[str, Any] = {"is_flag": False, "flag_value": "true"} if flag else {}
    return click.Option([f"--{field.replace('_', '-')}", *also, field], metavar="VALUE", help=text,
                        default=None, callback=_not_an_option, **alone)


def _not_an_option(context: click.Context, option: click.Parameter, value: Any) -> Any:
    """The value as it came; click would take the next option as the value of one without."""
    if isinstance(value, str) and value.startswith("--"):
        raise click.BadOptionUsage(option.opts[0], "", context)
    return value
