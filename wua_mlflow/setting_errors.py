"""What is wrong with a setting, in one line for the user.

Tests: ``tests/test_config.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from wua_mlflow.errors import did_you_mean, one_line
from wua_mlflow.levels import CONFIDENCE_RANGE, MARGIN_RANGE
from wua_mlflow.setting_values import CRITERIA, FIRST_SEEDS, IMPUTE, SCORES, WIDTH_METHODS
from wua_mlflow.what_to_cut import EXPECTED as WHAT_EXPECTED

__all__ = ["LONGEST_NAME", "problem_line", "short", "shown"]


def problem_line(
    problem: Mapping[str, Any], values: Mapping[str, Any], fields: Iterable[str]
) -> str:
    """One of pydantic's problems in a line.

    Args:
        problem: as ``ValidationError.errors`` gives it.
        values: that were given, by name.
        fields: names of all settings.
    """
    field = str(problem["loc"][0])
    if field == "table" and len(problem["loc"]) > 1:
        return _about_table(str(problem["loc"][1]), problem)
    if problem["type"] == "extra_forbidden":
        return f"{_beginning(field)}: no such setting{did_you_mean(field, fields)}"
    meant = str(problem["msg"]).partition("error, ")[2] if field in MEANT else ""
    return short(f"{field}: expected {_expectation(field, problem)}, but got "
                 f"{shown(values[field])}{meant}")


MEANT = ("criterion", "score", "what")
"""Settings of words, of which the nearest is said."""
TABLE = {
    "groups": "the name of a column",
    "drop_columns": "names of columns, e.g. id,name",
    "impute": f"{', '.join(IMPUTE)}, or a number; or one of them, or a text, by column",
    "categories": "a whole number from 2 to 1000",
}
"""What the keys of ``table`` must be."""


def _about_table(key: str, problem: Mapping[str, Any]) -> str:
    got = shown(problem["input"])
    if key not in TABLE:
        return short(f"table: expected only {', '.join(TABLE)}, but got {key!r}"
                     f"{did_you_mean(key, TABLE)}")
    meant = did_you_mean(str(problem["input"]), IMPUTE) if key == "impute" else ""
    return short(f"table: {key}: expected {TABLE[key]}, but got {got}{meant}")


EXPECTED = {
    "hidden": "whole numbers of at least 1, e.g. 64,32",
    "slim_hidden": f"auto, {', '.join(WIDTH_METHODS)}, or whole numbers of at least 1, e.g. 40,20",
    "slim_epochs": "flops, or a whole number of at least 1",
    "limit": "a number of widths of at least 2, a time, e.g. 600s, 30m or 2h, or both: 8,30m",
    "batch_size": "full, or a whole number of at least 1",
    "seeds": f"auto, a whole number of at least 1, or a range from {FIRST_SEEDS}, e.g. "
             f"{FIRST_SEEDS}-40",
    "margin": MARGIN_RANGE,
    "confidence": CONFIDENCE_RANGE,
    "max_collapse": "a number above 0 and below 1",
    "class_margin": "none, or a number above 0 and below 1",
    "score": f"{', '.join(SCORES)}, or package.module:function",
    "lr": "a number above 0",
    "device": "cpu, auto, mps, cuda or cuda:N",
    **dict.fromkeys(("gate", "distill"), "true or false"),
    "fold": "auto, true or false",
    "what": WHAT_EXPECTED,
    "register": "a name",
    "experiment": "a name in one line of at most 500 characters",
    "trust": "code, pickle, or code,pickle",
    "layers": "names of layers, e.g. fc1,fc2",
    "table": f"{', '.join(list(TABLE)[:-1])} and {list(TABLE)[-1]}, e.g. impute: mean, categories: "
             f"10",
    "criterion": f"{', '.join(CRITERIA)}, package.module:function, or several of them, each once",
}
"""What a setting must be, where pydantic's own words say less."""


def _expectation(field: str, problem: Mapping[str, Any]) -> str:
    kind, context = str(problem["type"]), problem.get("ctx", {})
    if field in EXPECTED:
        return EXPECTED[field]
    if kind == "greater_than_equal":
        return f"a whole number of at least {context['ge']}"
    if kind == "less_than":
        return f"a number below {context['lt']}"
    if kind.startswith("int"):
        return "a whole number"
    if kind == "literal_error":
        return f"{context['expected']}"
    return str(problem["msg"]).removeprefix("Input should be ").removeprefix("Value error, ")


LONGEST_LINE, LONGEST_VALUE, LONGEST_NAME = 300, 60, 80
"""Characters of an error's line, and of a value and a file's name in it."""


def short(line: str) -> str:
    """The line, cut where it is too long."""
    return one_line(ValueError(line), limit=LONGEST_LINE, bare=(ValueError,))


def shown(value: Any) -> str:
    """A value as a message shows it; of a long one the beginning.

    >>> shown("abc"), shown([1, 2]), len(shown("x" * 9999))
    ("'abc'", '[1, 2]', 62)
    """
    if isinstance(value, str):
        text = _beginning(value, LONGEST_VALUE)
        return f"'{text}'" if text.isprintable() else repr(text)
    return _beginning(repr(value), LONGEST_VALUE)


def _beginning(text: str, longest: int = LONGEST_NAME) -> str:
    return text if len(text) <= longest else f"{text[:longest - 1]}…"
