"""The words of the command line: commands, options, and what is wrong with them.

May import: config, dotted. Tests: ``tests/test_arguments.py``.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from wua_mlflow.config import COMMAND_FIELDS, ConfigError, Settings, yes_or_no
from wua_mlflow.errors import did_you_mean

__all__ = ["COMMANDS", "QUERIES", "parse"]


COMMANDS = {
    "run": "the whole chain: train, analyze, slim, compare, report",
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


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        lacking = re.fullmatch(r"argument (--[\w-]+).*: expected one argument", message)
        if lacking:
            message = f"{lacking[1]}: expected a value, but got none"
        raise ConfigError(message.removeprefix("argument "))


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The options by name; ``command`` is None where all is said once the help is printed.

    Raises:
        ConfigError: an unknown command or option, with the nearest; or a value is missing.

    >>> parse(["analyze", "--run_id", "a1b2"]).run_id
    'a1b2'
    """
    command = next((word for word in words if not word.startswith("-")), None)
    if command is not None and command not in COMMANDS:
        raise ConfigError(f"command: expected one of {', '.join(COMMANDS)}, but got '{command}'"
                          f"{did_you_mean(command, COMMANDS)}")
    parser = _parser()
    try:
        options, left = parser.parse_known_args(_joined(words))
    except SystemExit:  # --help was asked for, and is printed
        return argparse.Namespace(command=None, version=False)
    unknown = next((word for word in left if word.startswith("-")), None)
    if unknown is not None:
        name = unknown.partition("=")[0]
        known = [f"--{field.replace('_', '-')}" for field in vars(options)
                 if field not in ("command", "models", "run")]
        raise ConfigError(f"{name}: no such option of wua {command or ''}".rstrip()
                          + did_you_mean(name.replace("_", "-"), known))
    if left and command == "compare":  # argparse takes them only if they stand together
        options.models += left
    elif left:
        raise ConfigError(f"{left[0]}: expected options only after wua {command}")
    if command is None and not options.version:
        parser.print_help()
    return options


def _joined(words: Sequence[str]) -> list[str]:
    """A value that begins with a minus, as in ``--hidden -1,5``, joined to its option."""
    joined: list[str] = []
    for word in words:
        if joined and re.match(r"-(\.?\d|inf|nan)", word, re.IGNORECASE) \
                and re.fullmatch(r"--[\w-]+", joined[-1]):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="wua", allow_abbrev=False, description="Is my PyTorch model bigger than "
                     "it needs to be, how much smaller can it get, and is the smaller one as good?")
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:],
                                      allow_abbrev=False)
        command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS,
                             help="show the traceback of an error")
        if name in QUERIES:
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
        flag: dict[str, Any] = {"nargs": "?", "const": "true"} if yes_or_no(field) else {}
        command.add_argument(f"--{field.replace('_', '-')}", dest=field, metavar="VALUE", **flag,
                             help=Settings.model_fields[field].description)
        if "_" in field:
            command.add_argument(f"--{field}", dest=field, help=argparse.SUPPRESS)
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
        command.add_argument("--limit", type=_count, default=50, help="at most so many (50)")
    command.add_argument("--json", action="store_true", help="as JSON")
    command.add_argument("--csv", action="store_true", help="as CSV, every column")


def _count(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, but got '{text}'") from None
