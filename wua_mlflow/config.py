"""Typed, strict configuration: schema defaults, then a YAML file, then what was given explicitly.

May import: pydantic, yaml, settings, dotted. Tests: ``tests/test_config.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from wua_mlflow.dotted import nearest
from wua_mlflow.settings import (
    COMMAND_FIELDS,
    CRITERIA,
    OWN_MODEL,
    OWN_ONLY,
    TUTORIAL,
    WIDTH_METHODS,
    Settings,
    yes_or_no,
)

__all__ = [
    "COMMAND_FIELDS",
    "CONFIGS",
    "CRITERIA",
    "OWN_MODEL",
    "OWN_ONLY",
    "TUTORIAL",
    "WIDTH_METHODS",
    "ConfigError",
    "Settings",
    "config_names",
    "given_fields",
    "load_settings",
    "settings_yaml",
    "yes_or_no",
]

CONFIGS = Path(__file__).parent / "pipeline" / "configs"
"""The folder of the shipped configurations."""


class ConfigError(ValueError):
    """A setting is not what it must be; the message is one line for the user."""


def config_names() -> list[str]:
    """Names of the shipped configurations."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def load_settings(config: str | None = None, given: Mapping[str, Any] | None = None) -> Settings:
    """The settings of a configuration, with ``given`` over it.

    Args:
        config: the name of a shipped configuration or the path of a YAML file; None and
            ``usecase`` mean the tutorial's, unless ``given`` names other data, for which the
            schema's own defaults hold.
        given: explicit values by field name; None and the empty string mean "as configured".

    Raises:
        ConfigError: one line that names the setting, what was expected and what came.
    """
    explicit = given_fields(given or {})
    if config in (None, "", TUTORIAL) and explicit.get("data", TUTORIAL) != TUTORIAL:
        base: dict[str, Any] = {}
    else:
        base = _read(config or TUTORIAL)
    return _validated({**base, **explicit})


def given_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that were given; None and the empty string mean "as configured".

    >>> given_fields({"epochs": "5", "hidden": "", "seed": None})
    {'epochs': '5'}
    """
    return {key: value for key, value in values.items() if value not in (None, "")}


def settings_yaml(settings: Settings, fields: Iterable[str] | None = None) -> str:
    """The settings as YAML, from which ``load_settings`` makes the same settings.

    Args:
        settings: all of them.
        fields: names of those to write; all, if None.
    """
    chosen = None if fields is None else set(fields)
    values = settings.model_dump(mode="json", exclude_none=True, include=chosen)
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None, allow_unicode=True)


def _read(config: str) -> dict[str, Any]:
    path = CONFIGS / f"{config}.yaml" if config in config_names() else Path(config)
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(
            f"config: expected a YAML file or one of {', '.join(config_names())}, "
            f"but got '{config}'{nearest(config, config_names())}"
        )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"config: no such file: {config}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config: {config} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"config: {config} is not valid YAML: {reason}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"config: expected 'key: value' lines in {config}, but got a "
                          f"{type(values).__name__}")
    return {str(key): value for key, value in values.items()}


def _validated(values: Mapping[str, Any]) -> Settings:
    for name, value in values.items():
        if isinstance(value, bool) and name in Settings.model_fields and not yes_or_no(name):
            raise ConfigError(f"{name}: expected a value, but got {str(value).lower()} (YAML reads "
                              f"yes, no, on and off so)")
    try:
        return Settings.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(_one_line(error, values)) from None


def _one_line(error: ValidationError, values: Mapping[str, Any]) -> str:
    problem = error.errors()[0]
    field = str(problem["loc"][0])
    if problem["type"] == "extra_forbidden":
        return f"{field}: no such setting{nearest(field, Settings.model_fields)}"
    meant = str(problem["msg"]).partition("error, ")[2] if field == "criterion" else ""
    return (f"{field}: expected {_expectation(field, problem)}, but got {_shown(values[field])}"
            f"{meant}")


def _expectation(field: str, problem: Mapping[str, Any]) -> str:
    expected = {
        "hidden": "whole numbers of at least 1, e.g. 64,32",
        "slim_hidden": "auto, or whole numbers of at least 1, e.g. 40,20",
        "batch_size": "full, or a whole number of at least 1",
        "margin": "a number of at least 0 and below 1",
        "confidence": "a number above 0 and below 1",
        "lr": "a number above 0",
        "device": "cpu, auto, mps, cuda or cuda:N",
        "gate": "true or false",
        "effective_rank": "true or false",
        "distill": "true or false",
        "fold": "auto, true or false",
        "search_seconds": "a number of seconds above 0",
        "register": "a name",
        "layers": "names of layers, e.g. fc1,fc2",
        "criterion": f"{', '.join(CRITERIA)}, package.module:function, or several of them, each "
                     "once",
    }
    if field in expected:
        return expected[field]
    kind, context = str(problem["type"]), problem.get("ctx", {})
    if kind == "greater_than_equal":
        return f"a whole number of at least {context['ge']}"
    if kind == "less_than":
        return f"a number below {context['lt']}"
    if kind.startswith("int"):
        return "a whole number"
    if kind == "literal_error":
        return f"{context['expected']}"
    return str(problem["msg"]).removeprefix("Input should be ").removeprefix("Value error, ")


def _shown(value: Any) -> str:
    return f"'{value}'" if isinstance(value, str) else repr(value)
