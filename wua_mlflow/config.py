"""Typed, strict configuration: schema defaults, then a YAML file, then what was given explicitly.

The fields of ``Settings`` are MLproject's parameters and the command line's options; a test holds
the three together. May import: pydantic, yaml. Tests: ``tests/test_config.py``.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

__all__ = [
    "COMMAND_FIELDS",
    "CONFIGS",
    "CRITERIA",
    "OWN_MODEL",
    "ConfigError",
    "Settings",
    "config_names",
    "given_fields",
    "load_settings",
    "settings_yaml",
]

CONFIGS = Path(__file__).parent / "pipeline" / "configs"
"""The folder of the shipped configurations."""

TUTORIAL = "usecase"
CRITERIA = ("output", "input", "wanda", "magnitude", "taylor")
"""The criteria that have a name; a test holds them equal to ``importance.CRITERIA``."""
OWN_MODEL = ("data", "target", "task", "model", "hidden", "state", "seed")
"""What names a model of ``analyze`` without a run."""

_RECIPE = ("data", "target", "task", "model", "train", "hidden", "epochs", "optimizer",
           "batch_size", "lr", "patience", "seed", "seeds")
_MACHINE = ("device", "threads", "experiment")
_USAGE = ("criterion", "loss", "effective_rank", "null_draws")
_SLIM = ("slim_hidden", "slim_epochs", "width_method")
_VERDICT = ("margin", "confidence")
COMMAND_FIELDS: dict[str, tuple[str, ...]] = {
    "run": (*_RECIPE, *_USAGE, *_SLIM, *_VERDICT, *_MACHINE, "gate"),
    "train": (*_RECIPE, *_MACHINE),
    "analyze": ("run_id", *OWN_MODEL, *_USAGE, *_MACHINE),
    "slim": ("run_id", *_SLIM, *_USAGE, *_MACHINE),
    "compare": ("run_id", "baseline", "candidate", "data", "target", "task", "seed", *_VERDICT,
                *_MACHINE),
}
"""The fields that each command takes: its options, and the parameters of its entry point."""


class ConfigError(ValueError):
    """A setting is not what it must be; the message is one line for the user."""


def _widths(value: Any) -> Any:
    """``"64,32"``, ``64`` or ``[64, 32]`` -> ``(64, 32)``."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    if isinstance(value, int) and not isinstance(value, bool):
        value = [value]
    return tuple(value) if isinstance(value, list) else value


def _widths_or_auto(value: Any) -> Any:
    return value if value == "auto" else _widths(value)


def _number_or_full(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.strip().isdigit() else value


def _criteria(value: Any) -> Any:
    """``"output, mine:rule"`` or a list -> ``"output,mine:rule"``, each of them once."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise ValueError("")
    parts = [part.strip() for part in parts]
    for part in parts:
        module, _, name = part.partition(":")
        if part not in CRITERIA and not (name.isidentifier() and module):
            raise ValueError(_nearest(part, list(CRITERIA)))
    if len(set(parts)) < len(parts):
        raise ValueError("")
    return ",".join(parts)


def _finite(value: Any) -> Any:
    if isinstance(value, str | float) and not isinstance(value, bool):
        number = float(value)
        if not math.isfinite(number):
            raise ValueError("expected a finite number")
    return value


Count = Annotated[int, Field(ge=1)]
Widths = Annotated[tuple[Count, ...], BeforeValidator(_widths), Field(min_length=1)]
SlimWidths = Annotated[
    Literal["auto"] | tuple[Count, ...], BeforeValidator(_widths_or_auto), Field(min_length=1)
]
BatchSize = Annotated[Literal["full"] | Count, BeforeValidator(_number_or_full)]
Criteria = Annotated[str, BeforeValidator(_criteria)]
Positive = Annotated[float, BeforeValidator(_finite), Field(gt=0)]


class Settings(BaseModel):
    """Everything that a pipeline can be told; see ``docs/configuration.md``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str = Field("usecase", description="a bundled set, a .csv/.parquet/.npz file, or "
                      "package.module:function of seed -> (train, validation, test); analyze: "
                      "or batches")
    target: str | None = Field(None, description="the target's column in a file")
    task: Literal["binary", "multiclass", "regression"] | None = Field(
        None, description="binary, multiclass or regression, where the target leaves it open")
    model: str = Field("mlp", description="mlp, cnn, or package.module:factory of widths; "
                       "analyze: or of nothing")
    state: str | None = Field(None, description="analyze: the model's weights, a .safetensors "
                              "file; as the factory made them, if unset")
    train: str | None = Field(None, description="your trainer: package.module:function of "
                              "(model, data, budget, seed) -> model")
    hidden: Widths = Field((64, 32), description="hidden widths of the original, e.g. 64,32")
    epochs: Count = Field(50, description="epochs of the original")
    slim_hidden: SlimWidths = Field("auto", description="auto, or the slim widths, e.g. 40,20")
    slim_epochs: Count | None = Field(None, description="epochs of the slim one (as epochs)")
    width_method: Literal["effective"] = Field(
        "effective", description="how auto finds the widths: effective")
    criterion: Criteria = Field(
        "output", description="what makes a weight important: output, input, wanda, magnitude, "
        "taylor, package.module:function, or several of them, e.g. output,wanda")
    loss: str | None = Field(None, description="taylor's loss: package.module:function of "
                             "(outputs, targets) -> mean; the task's own, if unset")
    effective_rank: bool = Field(False, description="also the effective rank of each layer's "
                                 "activations: true or false")
    null_draws: Annotated[int, Field(ge=0)] = Field(
        20, description="networks that learned nothing, drawn beside the analysis")
    optimizer: Literal["adam", "sgd"] = Field("adam", description="adam or sgd")
    batch_size: BatchSize = Field(64, description="samples a step, or full")
    lr: Positive = Field(0.003, description="learning rate of the built-in trainer")
    patience: Count | None = Field(None, description="stop early after so many epochs without a "
                                   "better validation loss, and keep the best")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(42, description="of everything random")
    seeds: Count = Field(5, description="replicates of the recipe; the recipe verdict needs 5")
    margin: Annotated[float, BeforeValidator(_finite), Field(ge=0, lt=1)] = Field(
        0.02, description="how much worse is still as good: a fraction of 1 in accuracy or R²")
    confidence: Annotated[float, BeforeValidator(_finite), Field(gt=0, lt=1)] = Field(
        0.95, description="confidence of the interval")
    device: str = Field("cpu", pattern=r"^(cpu|auto|cuda(:\d+)?|mps)$", description="cpu, cuda, "
                        "cuda:N, mps, or auto")
    threads: Count | None = Field(None, description="torch's threads; its own choice, if unset")
    experiment: str = Field("wua", min_length=1, description="MLflow experiment")
    run_id: str | None = Field(None, description="the variant that a step adds to")
    baseline: str | None = Field(None, description="compare: the original, as A")
    candidate: str | None = Field(None, description="compare: the slim one, as B")
    gate: bool = Field(False, description="end with the verdict's exit code: 0 non_inferior, "
                       "3 inferior, 4 inconclusive")

    @property
    def slim_budget(self) -> int:
        """Epochs of the slim variant."""
        return self.slim_epochs if self.slim_epochs is not None else self.epochs


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
            f"but got '{config}'{_nearest(config, config_names())}"
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
        if isinstance(value, bool) and name in Settings.model_fields \
                and Settings.model_fields[name].annotation is not bool:
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
        return f"{field}: no such setting{_nearest(field, list(Settings.model_fields))}"
    nearest = str(problem["msg"]).partition("error, ")[2] if field == "criterion" else ""
    return (f"{field}: expected {_expectation(field, problem)}, but got {_shown(values[field])}"
            f"{nearest}")


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


def _nearest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""
