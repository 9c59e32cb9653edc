"""What the values of settings are, and how they are read from text, YAML and Python.

Tests: ``tests/test_config.py``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field

from wua_mlflow.errors import did_you_mean
from wua_mlflow.levels import is_confidence, is_margin
from wua_mlflow.safe_yaml import YamlRefused, parse_mapping
from wua_mlflow.what_to_cut import parse as parse_what

__all__ = [
    "BatchSize", "CRITERIA", "Confidence", "Count", "Criteria", "FIRST_SEEDS", "IMPUTE", "Impute",
    "Limit", "LimitText", "Line", "MOST_SEEDS", "Mapped", "Margin", "Named", "Names",
    "Positive", "SCORES", "Score", "Seeds", "Share", "SlimEpochs", "SlimWidths", "TABLE_KEYS",
    "WIDTH_METHODS", "What", "Widths", "merged_tables", "most_seeds", "with_table_keys",
]


CRITERIA = ("output", "input", "wanda", "magnitude", "taylor")
"""The criteria that have a name; a test holds them equal to ``usage.criteria.CRITERIA``."""
SCORES = ("accuracy", "balanced_accuracy", "f1", "f1_macro", "mcc", "roc_auc",
          "average_precision", "log_loss", "brier", "r2", "rmse", "mae", "perplexity", "iou")
"""The scores that have a name; a test holds them equal to ``verdict.scores.SCORES``."""
Method = Literal["effective", "rank", "projection", "ablation", "search"]
WIDTH_METHODS: tuple[str, ...] = get_args(Method)
IMPUTE = ("median", "mean", "most_frequent", "drop")
"""Words of ``table: impute``."""
FIRST_SEEDS, MOST_SEEDS = 5, 20
"""Replicates before the first look at the verdict, and at most, where ``seeds`` is auto."""


def _widths(value: Any) -> Any:
    """``"64,32"``, ``64`` or ``[64, 32]`` -> ``(64, 32)``; a word stays."""
    if value == "auto" or value in WIDTH_METHODS:
        return value
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    if isinstance(value, int) and not isinstance(value, bool):
        value = [value]
    return tuple(value) if isinstance(value, list) else value


def _number_or_word(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.strip().isdigit() else value


def _seeds(value: Any) -> Any:
    """A number; ``auto``; or a range ``5-40``, of which ``5-20`` is ``auto``."""
    value = _number_or_word(value)
    if not isinstance(value, str) or value == "auto":
        return value
    first, _, last = (part.strip() for part in value.partition("-"))
    if first != str(FIRST_SEEDS) or not re.fullmatch(r"\d{1,9}", last) or int(last) < FIRST_SEEDS:
        raise ValueError("")
    return "auto" if int(last) == MOST_SEEDS else f"{first}-{int(last)}"


def most_seeds(seeds: int | str) -> int:
    """The maximum number of replicates that ``seeds`` allows.

    >>> most_seeds(3), most_seeds("auto"), most_seeds("5-40")
    (3, 20, 40)
    """
    if isinstance(seeds, int):
        return seeds
    return MOST_SEEDS if seeds == "auto" else int(seeds.partition("-")[2])


SECONDS = {"s": 1, "m": 60, "h": 3600}
_TIME = re.compile(r"(\d+\.?\d*(?:e[+-]?\d+)?|\.\d+)\s*([smh])")


@dataclass(frozen=True)
class Limit:
    """How much may be trained; None where nothing is said.

    Attributes:
        runs: widths that a search trains, the original's included.
        seconds: for all of it.
    """

    runs: int | None = None
    seconds: float | None = None

    @classmethod
    def of(cls, text: str) -> Limit:
        """What a text such as ``8,30m`` says.

        Raises:
            ValueError: it says something twice, or something else.

        >>> Limit.of("12"), Limit.of("8, 30m")
        (Limit(runs=12, seconds=None), Limit(runs=8, seconds=1800.0))
        """
        runs: list[int] = []
        seconds: list[float] = []
        for part in (part.strip() for part in text.split(",")) if text else ():
            time = _TIME.fullmatch(part)
            if time:
                seconds.append(float(time[1]) * SECONDS[time[2]])
            elif re.fullmatch(r"\d{1,9}", part):
                runs.append(int(part))
            else:
                raise ValueError("")
        if len(runs) > 1 or len(seconds) > 1 or min(runs, default=2) < 2 \
                or not all(0 < number < math.inf for number in seconds):
            raise ValueError("")
        return cls(*runs or (None,), *seconds)

    def __str__(self) -> str:
        """The text; a time in seconds."""
        seconds = None if self.seconds is None else f"{self.seconds:.10g}s"
        return ",".join(str(part) for part in (self.runs, seconds) if part is not None)


def _limit(value: Any) -> Any:
    """The text of a limit, whose numbers are right."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, str) and str(Limit.of(value)) == "":
        raise ValueError("")
    return value


def _parts(value: Any) -> list[str]:
    """``"a, b"`` or ``["a", "b"]`` -> ``["a", "b"]``."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise ValueError("")
    return [part.strip() for part in parts]


def _criteria(value: Any) -> str:
    """``"output, mine:rule"`` or a list -> ``"output,mine:rule"``, each of them once."""
    parts = _parts(value)
    for part in parts:
        module, _, name = part.partition(":")
        if part not in CRITERIA and not (name.isidentifier() and module):
            raise ValueError(did_you_mean(part, CRITERIA))
    if len(set(parts)) < len(parts):
        raise ValueError("")
    return ",".join(parts)


def _score(value: Any) -> str:
    module, _, name = str(value).partition(":")
    if value not in SCORES and not (name.isidentifier() and module):
        raise ValueError(did_you_mean(str(value), SCORES))
    return str(value)


def _what(value: Any) -> str:
    """What may be cut, in its shortest text."""
    return str(parse_what(value))


def _names(value: Any) -> tuple[str, ...]:
    """``"fc1, fc2"`` or a list -> ``("fc1", "fc2")``, each of them once."""
    return tuple(dict.fromkeys(_parts(value)))


def mapping_of(value: Any) -> Any:
    """``"impute: mean, categories: 10"`` -> a dict, with braces or without."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    try:
        return parse_mapping(text if text.startswith("{") else f"{{{text}}}")
    except YamlRefused:
        raise ValueError("") from None


TABLE_KEYS = ("groups", "drop_columns")
"""Keys of ``table`` that are also said beside it."""


def with_table_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, with ``groups`` and ``drop_columns`` in ``table``.

    >>> with_table_keys({"groups": "patient", "table": "impute: mean", "seed": 1})
    {'seed': 1, 'table': {'impute': 'mean', 'groups': 'patient'}}
    """
    beside = {name: values[name] for name in TABLE_KEYS if values.get(name) not in (None, "")}
    others = {name: value for name, value in values.items() if name not in TABLE_KEYS}
    table = others.pop("table", None)
    merged = merged_tables(table, beside)
    return others if merged in (None, {}, "") else {**others, "table": merged}


def merged_tables(under: Any, over: Any) -> Any:
    """Two descriptions of a table: the columns that either drops are dropped, else ``over`` holds.

    What is no description is given back, to be refused.
    """
    if over in (None, {}, "") or under in (None, {}, ""):
        return under if over in (None, {}, "") else over
    try:
        under, over = mapping_of(under), mapping_of(over)
        dropped = [name for table in (under, over)
                   for name in _names(table.get("drop_columns") or ())]
    except (ValueError, AttributeError):
        return over if isinstance(under, Mapping) else under
    return {**under, **over, **({"drop_columns": list(dict.fromkeys(dropped))} if dropped else {})}


def _word_or_number(value: Any) -> Any:
    """How gaps are filled everywhere: a word, or a number written as one."""
    if isinstance(value, str) and value not in IMPUTE:
        try:
            return float(value)
        except ValueError:
            raise ValueError(did_you_mean(value, IMPUTE)) from None
    return value


def _finite(value: Any) -> Any:
    if isinstance(value, str | float) and not math.isfinite(float(value)):
        raise ValueError("expected a finite number")
    return value


def _is_a_line(name: str) -> bool:
    return bool(name.strip()) and name.isprintable()


def _where(fits: Callable[[Any], bool], value: Any) -> Any:
    if not fits(value):
        raise ValueError("")
    return value


Count = Annotated[int, Field(ge=1)]
Named = BeforeValidator(_names)
Names = Annotated[tuple[str, ...], Named]
Widths = Annotated[tuple[Count, ...], BeforeValidator(_widths)]
SlimWidths = Annotated[
    Literal["auto"] | Method | tuple[Count, ...], BeforeValidator(_widths), Field(min_length=1)
]
SlimEpochs = Annotated[Literal["flops"] | Count, BeforeValidator(_number_or_word)]
BatchSize = Annotated[Literal["full"] | Count, BeforeValidator(_number_or_word)]
Seeds = Annotated[Count | str, BeforeValidator(_seeds)]
LimitText = Annotated[str, BeforeValidator(_limit)]
Criteria = Annotated[str, BeforeValidator(_criteria)]
Score = Annotated[str, BeforeValidator(_score)]
What = Annotated[str, BeforeValidator(_what)]
Share = Annotated[float, BeforeValidator(_finite), Field(gt=0, lt=1)]
Positive = Annotated[float, BeforeValidator(_finite), Field(gt=0)]
Margin = Annotated[float, BeforeValidator(_finite), AfterValidator(partial(_where, is_margin))]
Confidence = Annotated[
    float, BeforeValidator(_finite), AfterValidator(partial(_where, is_confidence))]
Line = Annotated[str, AfterValidator(partial(_where, _is_a_line))]
Impute = Annotated[float | str, BeforeValidator(_word_or_number)]
Mapped = BeforeValidator(mapping_of)
