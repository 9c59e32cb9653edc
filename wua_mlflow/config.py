"""The settings: every field with its type, its default and what it means; defaults live here alone.

The fields of ``Settings`` are MLproject's parameters and the command line's options; a test holds
the three together. Tests: ``tests/test_config.py``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wua_mlflow.errors import did_you_mean
from wua_mlflow.imports import is_reference
from wua_mlflow.old_settings import of_today
from wua_mlflow.safe_yaml import YamlRefused, read_mapping
from wua_mlflow.setting_errors import LONGEST_NAME, problem_line, short, shown
from wua_mlflow.setting_values import (
    CRITERIA,
    FIRST_SEEDS,
    IMPUTE,
    SCORES,
    TABLE_KEYS,
    WIDTH_METHODS,
    BatchSize,
    Confidence,
    Count,
    Criteria,
    Impute,
    Limit,
    LimitText,
    Line,
    Mapped,
    Margin,
    Named,
    Names,
    Positive,
    Score,
    Seeds,
    Share,
    SlimEpochs,
    SlimWidths,
    What,
    Widths,
    merged_tables,
    most_seeds,
    with_table_keys,
)
from wua_mlflow.what_to_cut import WhatToCut

__all__ = [
    "CODE", "COMMAND_FIELDS", "CONFIGS", "CRITERIA", "ConfigError", "IMPUTE", "OWN_MODEL",
    "OWN_ONLY", "SCORES", "Settings", "TABLE_KEYS", "TOPICS", "TUTORIAL", "TableSettings",
    "WIDTH_METHODS", "config_names", "given_fields", "load_settings", "settings_yaml",
    "table_text", "unused_settings", "yes_or_no",
]


TUTORIAL = "usecase"
OWN_MODEL = ("data", "target", "table", "task", "batch_to_inputs", "model", "hidden", "state",
             "seed")
"""What names a model of ``analyze`` and ``slim`` without a run."""
OF_DATA = ("data", "target", "table", "task", "batch_to_inputs", "seed", "layers")
"""Those of them that may be said beside a logged model, too; ``layers``, which is none, as well."""
OWN_ONLY = ("layers",)
"""What ``analyze`` can be told of such a model only: a variant's figures are of all its layers."""
CODE = ("data", "model", "train", "criterion", "batch_to_inputs", "loss", "score")
"""What may name code (``package.module:name``); a test holds them equal to what is described so."""

_RECIPE = ("data", "target", "table", "task", "batch_to_inputs", "model", "train", "hidden",
           "epochs", "optimizer", "batch_size", "lr", "patience", "loss", "score", "seed", "seeds")
_MACHINE = ("device", "threads", "experiment")
_USAGE = ("criterion", "null_draws")
_SLIM = ("how", "what", "slim_hidden", "slim_epochs", "limit", "distill", "fold", "rounds")
_VERDICT = ("margin", "confidence", "class_margin", "max_collapse")
_END = ("register", "gate")
_FINE_TUNING = ("train", "optimizer", "batch_size", "lr", "patience", "seeds")
COMMAND_FIELDS: dict[str, tuple[str, ...]] = {
    "run": (*_RECIPE, *_USAGE, *_SLIM, *_VERDICT, *_MACHINE, *_END),
    "train": (*_RECIPE, *_MACHINE),
    "analyze": ("run_id", "trust", *OWN_MODEL, *OWN_ONLY, "loss", *_USAGE, *_MACHINE),
    "slim": ("run_id", "trust", *OWN_MODEL, *_FINE_TUNING, "loss", "score", *_USAGE,
             *_SLIM, *_VERDICT, *_MACHINE, *_END),
    "compare": ("run_id", "baseline", "candidate", "trust", "data", "target", "table", "task",
                "score", "seed", *_VERDICT, *_MACHINE),
}
"""The fields that each command takes: its options, and the parameters of its entry point."""
TOPICS: dict[str, tuple[str, ...]] = {
    "Data": ("data", "target", "task", "table", "batch_to_inputs"),
    "The model": ("run_id", "baseline", "candidate", "trust", "model", "state", "hidden"),
    "Training": ("train", "epochs", "optimizer", "batch_size", "lr", "patience", "loss"),
    "How far to slim": ("slim_hidden", "limit", "rounds"),
    "How to slim": ("how", "what", "slim_epochs", "distill", "fold"),
    "Is it as good?": ("score", "margin", "confidence", "class_margin", "max_collapse", "gate"),
    "Seeds": ("seed", "seeds"),
    "How weights are used": ("criterion", "layers", "null_draws"),
    "The machine and MLflow": ("device", "threads", "experiment", "register"),
}
"""Every field once, by what it is about; ``--help-all`` shows them so."""


SEARCH_RUNS = 12
"""Widths that a search trains at most, where ``limit`` says none."""


# BaseModel inherits ABCMeta.register, which nobody calls on it
warnings.filterwarnings("ignore", message='Field name "register" in "Settings" shadows')


class TableSettings(BaseModel):
    """What a table's columns are, and how they become numbers, where that is not the defaults.

    ``groups`` is the column that says whose rows they are; ``drop_columns`` are no inputs.
    ``impute`` says for all columns with gaps, or by column, what stands in a gap: the training
    part's ``median``, ``mean`` or ``most_frequent`` value, a constant, or ``drop``: rows with a
    gap are left out. ``categories`` is the most levels of a text column that get a column each.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    groups: str | None = None
    drop_columns: Names = ()
    impute: dict[str, float | str] | Impute = "median"
    categories: Annotated[int, Field(ge=2, le=1000)] = 20

    @property
    def text(self) -> str:
        """What differs from the defaults, as ``table`` reads it.

        >>> TableSettings(groups="patient", drop_columns=("id", "day")).text
        'groups: patient, drop_columns: [id, day]'
        """
        values = self.model_dump(mode="json", exclude_defaults=True)
        return yaml.safe_dump(values, sort_keys=False, default_flow_style=True, allow_unicode=True,
                              width=math.inf).strip()[1:-1]


class Settings(BaseModel):
    """All settings of a pipeline; see ``docs/configuration.md``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str = Field("usecase", description="a bundled data set, a file (.csv, .tsv, .parquet, "
                      ".feather, .arrow, .npz), or package.module:function of seed -> (train, "
                      "validation, test) or a DataFrame; analyze: or of seed -> batches")
    target: str | None = Field(None, description="name of the target column in a file")
    table: Annotated[TableSettings, Mapped] | None = Field(
        None, description="what a table's columns are: groups (the one that says whose rows they "
        "are), drop_columns (no inputs), impute (median, mean, most_frequent, a constant, drop: "
        "leave such rows out; or one by column), categories (most levels of a text column, 20), "
        "e.g. 'impute: mean, categories: 10'")
    task: Literal["binary", "multiclass", "regression", "multilabel", "token_classification",
                  "language_modeling", "segmentation", "custom"] | None = Field(
        None, description="binary, multiclass, regression, multilabel, token_classification, "
        "language_modeling, segmentation, or custom (loss and score of your own); inferred from "
        "the targets, if unset")
    model: str = Field("mlp", description="mlp, cnn, or package.module:factory of the widths; "
                       "analyze, slim: or of no argument")
    state: str | None = Field(None, description="analyze, slim: file of the model's weights: "
                              ".safetensors, or a state dict or checkpoint saved by "
                              "torch.save (.pt, .pth, .bin, .ckpt, .tar); the factory's weights, "
                              "if unset")
    train: str | None = Field(None, description="training function: package.module:function of "
                              "(model, data, budget, seed[, widths]) -> model, or None for the "
                              "one it was given; the built-in trainer, if unset")
    hidden: Widths = Field((64, 32), description="hidden widths of the original model, e.g. 64,32; "
                           "[] in YAML: the factory takes no widths")
    epochs: Count = Field(50, description="training epochs of the original model")
    slim_hidden: SlimWidths = Field(
        "auto", description="hidden widths of the slim model, e.g. 40,20, or the method that finds "
        f"them: {', '.join(WIDTH_METHODS)}; auto: search, or rank where a training function of "
        "your own would run for every width")
    slim_epochs: SlimEpochs | None = Field(
        None, description="training epochs of the slim model, or flops: as many as the original's "
        "training FLOPs allow (where it is rebuilt); as epochs, if unset")
    how: Literal["auto", "rebuild", "prune"] = Field(
        "auto", description="rebuild: train a new network of the slim widths from scratch; prune: "
        "cut the trained network, then fine-tune it; auto: prune a model that was trained "
        "elsewhere, else rebuild")
    what: What = Field(
        str(WhatToCut()), description="prune: which units may be cut: units (neurons, channels, "
        "hidden units), heads (of attention), stream (the model's width, which norms go over), or "
        "several; multiple_of=N: widths that a method finds above 64 units are multiples of N (8, "
        "if unset; 1: any); same_widths: the same width in all blocks (same_widths=no: each its "
        "own; if unset, the same in models of transformers)")
    limit: LimitText | None = Field(
        None, description="how much may be trained: a number of widths of a search, the original's "
        "included (12, if unset), a time such as 600s, 30m or 2h (of a search, and where seeds are "
        "added of all that is trained: an hour, if unset; eight minutes for a model that was "
        "trained elsewhere), or both: 8,30m")
    distill: bool = Field(False, description="prune: fine-tune with the original's outputs as "
                          "further targets (knowledge distillation): true or false")
    fold: Literal["auto"] | bool = Field(
        "auto", description="prune: compensate removed units in the next layer by least squares: "
        "true or false; auto: fine-tune both ways, and keep the compensation if it is ahead on the "
        "validation data by more than a standard error (false with a training function of your "
        "own)")
    rounds: Count = Field(1, description="maximum number of slimming rounds; another one starts "
                          "only while the verdict is non_inferior")
    criterion: Criteria = Field(
        "output", description="importance criterion of the weights: output, input, wanda, "
        "magnitude, taylor, package.module:function, or several, e.g. output,wanda")
    layers: Annotated[Names, Field(min_length=1)] | None = \
        Field(None, description="analyze: names of the layers to analyse, e.g. fc1,fc2; all but "
              "the output layer, if unset")
    batch_to_inputs: str | None = Field(None, description="package.module:function of a "
                                        "batch -> the model's inputs: a tensor, a tuple of "
                                        "positional or a dict of keyword arguments")
    loss: str | None = Field(None, description="loss of training, and of the criterion taylor: "
                             "package.module:function of (outputs, targets) -> mean; the task's, "
                             "or the outputs' own, if unset")
    null_draws: Annotated[int, Field(ge=0)] = Field(
        20, description="number of untrained networks that give the null distribution of the "
        "analysis")
    optimizer: Literal["adam", "sgd"] = Field("adam", description="optimizer of the built-in "
                                              "trainer: adam or sgd")
    batch_size: BatchSize = Field(64, description="samples per training step, or full")
    lr: Positive = Field(0.003, description="learning rate of the built-in trainer")
    patience: Count | None = Field(None, description="early stopping: number of epochs without a "
                                   "lower validation loss (or a better score, where score is "
                                   "set); the best epoch's weights are kept")
    score: Score | None = Field(
        None, description=f"what models are judged by: {', '.join(SCORES)}, or "
        "package.module:function of (targets, predictions); accuracy or r2, if unset")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(42, description="seed of all random "
                                                        "numbers")
    seeds: Seeds = Field("auto", description="number of replicates, each trained with another "
                         "seed; the recipe verdict needs 5; a range, e.g. 5-40: 5, and more until "
                         "the verdict is settled, up to the last number; auto: 5-20")
    margin: Margin = Field(
        0.02, description="non-inferiority margin: the loss of the score that is accepted, as a "
        "fraction; of rmse, mae, log_loss and brier a share of the original's")
    class_margin: Literal["none"] | Share = Field(
        0.10, description="the loss of a single class's recall that is accepted, as a fraction; "
        "none: any")
    max_collapse: Share | None = Field(
        None, description="largest share of seeds that may collapse, with the verdict's "
        "confidence; collapses are only counted, if unset")
    confidence: Confidence = Field(
        0.95, description="confidence level of the intervals")
    device: str = Field("cpu", pattern=r"^(cpu|auto|cuda(:\d{1,3})?|mps)$",
                        description="cpu, cuda, cuda:N, mps, or auto")
    threads: Count | None = Field(None, description="number of torch's CPU threads; torch's "
                                  "default, if unset")
    experiment: Line = Field(
        "wua", max_length=500, description="name of the MLflow experiment")
    run_id: str | None = Field(None, description="id of the run of the variant that the step "
                               "reads and writes to; analyze, slim: or URI of a logged model, e.g. "
                               "models:/name/1 (of slim one that a run of wua logged)")
    baseline: str | None = Field(None, description="compare: model A, the original")
    candidate: str | None = Field(None, description="compare: model B, the slim model")
    trust: Annotated[tuple[Literal["code", "pickle"], ...], Named] | None = Field(
        None, description="what may run that a run or a logged model brings along: code (what a "
        "run names as package.module:name and you have not named), pickle (pickled models), or "
        "both: code,pickle; only on the command line")
    register: str | None = Field(None, min_length=1, description="register the slim model under "
                                 "this name, if its artifact verdict is non_inferior")
    gate: bool = Field(False, description="exit with the verdict's code: 0 non_inferior, 3 "
                       "inferior, 4 inconclusive")

    @property
    def is_logged_model(self) -> bool:
        """Whether ``run_id`` is a model's URI."""
        return self.run_id is not None and ":/" in self.run_id

    @property
    def until_settled(self) -> bool:
        """Whether replicates are added until the verdict is settled."""
        return isinstance(self.seeds, str)

    @property
    def first_seeds(self) -> int:
        """Replicates to begin with; there may be more later, where ``until_settled``."""
        return FIRST_SEEDS if isinstance(self.seeds, str) else self.seeds

    @property
    def most_seeds(self) -> int:
        """The maximum number of replicates."""
        return most_seeds(self.seeds)

    @property
    def slim_widths(self) -> tuple[int, ...] | None:
        """The widths of ``slim_hidden``; None where they are to be found."""
        return None if isinstance(self.slim_hidden, str) else self.slim_hidden

    @property
    def width_method(self) -> str:
        """How the slim widths are found: ``given``, ``auto`` or a method's name."""
        return self.slim_hidden if isinstance(self.slim_hidden, str) else "given"

    @property
    def search_runs(self) -> int:
        """The maximum number of widths that a search trains, the original's included."""
        return Limit.of(self.limit or "").runs or SEARCH_RUNS

    @property
    def search_seconds(self) -> float | None:
        """The time of ``limit``, if it says one."""
        return Limit.of(self.limit or "").seconds

    def within(self, seconds: float) -> Settings:
        """The settings with another time in ``limit``."""
        limit = Limit(Limit.of(self.limit or "").runs, seconds)
        return self.model_copy(update={"limit": str(limit)})

    @property
    def what_to_cut(self) -> WhatToCut:
        """``what``, read."""
        return WhatToCut.of(self.what)

    @property
    def table_settings(self) -> TableSettings:
        """``table``, or the defaults."""
        return self.table or TableSettings()

    @property
    def accepted_class_loss(self) -> float | None:
        """``class_margin`` as a number; None for any loss."""
        return None if self.class_margin == "none" else self.class_margin

    @property
    def given(self) -> frozenset[str]:
        """Names of the settings that were asked for; all others have their defaults."""
        return frozenset(self.model_fields_set)


def yes_or_no(field: str) -> bool:
    """Whether a setting may be true or false.

    >>> yes_or_no("gate"), yes_or_no("fold"), yes_or_no("how")
    (True, True, False)
    """
    kind = Settings.model_fields[field].annotation
    return kind is bool or bool in get_args(kind)


CONFIGS = Path(__file__).parent / "configs"
"""The folder of the shipped configurations."""


class ConfigError(ValueError):
    """A setting is not what it must be; the message is one line for the user."""


def config_names() -> list[str]:
    """Names of the shipped configurations."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def load_settings(
    config: str | None = None, given: Mapping[str, Any] | None = None, command: str | None = None
) -> Settings:
    """The settings of a configuration, with ``given`` over it.

    ``Settings.given`` of the result are the names of ``given``, and of the settings that a named
    configuration sets. Beside a run, what a configuration says of the model and its data does not
    count: the run has its own.

    Args:
        config: the name of a shipped configuration or the path of a YAML file; None and
            ``usecase`` mean the tutorial's, unless ``given`` names other data, for which the
            schema's own defaults hold.
        given: explicit values by field name, or key of ``table`` (``TABLE_KEYS``), which add to the
            configuration's table; None and the empty string mean "as configured".
        command: only its fields count among those of the configuration; all, if None.

    Raises:
        ConfigError: one line that names the setting, what was expected and what came.
    """
    asked = given_fields(given or {})
    explicit = with_table_keys(asked)
    other_data = explicit.get("data", TUTORIAL) != TUTORIAL
    base = {} if config in (None, "", TUTORIAL) and other_data else _read(config or TUTORIAL)
    table = merged_tables(base.get("table"), explicit.get("table"))
    settings = _validated({**base, **explicit, **({"table": table} if table else {})})
    configured = set(base) if config else set()
    if command is not None:
        configured.intersection_update(COMMAND_FIELDS[command])
        _check_beside_run(command, settings, set(asked))
    if settings.run_id is not None:
        of_run = () if settings.is_logged_model and command == "analyze" else OF_DATA
        configured.difference_update(set(OWN_MODEL) - set(OF_DATA), of_run, ("score",))
    return Settings.model_construct(_fields_set=configured | set(explicit), **dict(settings))


_BESIDE_RUN = {"analyze": ("analysed", (*OWN_MODEL, *OWN_ONLY)),
               "slim": ("slimmed", (*OWN_MODEL, "train", "score"))}
"""By command what is done with a run's variant, and the fields that are the variant's own then."""


NAMED_BESIDE_RUN = ("data", "model", "train")
"""What may be named beside a run where it is code, and the same as the run's: so it may run."""


def _check_beside_run(command: str, settings: Settings, asked: set[str]) -> None:
    """Whether nothing is given beside a run that is the run's own."""
    if settings.run_id is None or command not in _BESIDE_RUN:
        return
    verb, fields = _BESIDE_RUN[command]
    if settings.is_logged_model and command == "analyze":
        fields = tuple(field for field in fields if field not in OF_DATA)
    named = [name for name in NAMED_BESIDE_RUN if is_reference(str(getattr(settings, name)))]
    keys = TABLE_KEYS if "table" in fields else ()
    beside = sorted(asked.intersection((*fields, *keys)) - set(named))
    if beside and settings.is_logged_model and command == "analyze":
        raise ConfigError(f"run_id: a logged model is analysed as it is, so expected nothing like "
                          f"{beside[0]} beside {settings.run_id}")
    if beside:
        raise ConfigError(f"run_id: a variant is {verb} with its own model and data, so expected "
                          f"nothing like {beside[0]} beside it; a model of your own: "
                          f"wua {command} --model package.module:factory --data DATA")


def given_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that were given; None and the empty string mean "as configured".

    >>> given_fields({"epochs": "5", "hidden": "", "seed": None})
    {'epochs': '5'}
    """
    return {key: value for key, value in values.items() if value not in (None, "")}


def table_text(value: Any) -> str:
    """A table's description, as a run's params say it.

    >>> table_text({"drop_columns": "id,day"}), table_text("groups: patient")
    ('drop_columns: [id, day]', 'groups: patient')
    """
    return _validated({"table": value}).table_settings.text


def settings_yaml(settings: Settings, fields: Iterable[str] | None = None) -> str:
    """The settings as YAML, from which ``load_settings`` makes the same settings.

    Args:
        settings: all of them.
        fields: names of those to write; all, if None.
    """
    values = settings.model_dump(mode="json", exclude_none=True, exclude={NEVER_IN_A_FILE},
                                 include=None if fields is None else set(fields))
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None, allow_unicode=True)


NEVER_IN_A_FILE = "trust"
"""A file may be anybody's."""


def unused_settings(config: str, command: str) -> list[str]:
    """Settings of a user's file that the command does not have; those left at their default aside.
    """
    if config in config_names():
        return []
    values, defaults = _read(config), Settings.model_validate({})
    settings = _validated(values)
    return [name for name in values if name not in COMMAND_FIELDS[command]
            and getattr(settings, name) != getattr(defaults, name)]


def _read(config: str) -> dict[str, Any]:
    path = CONFIGS / f"{config}.yaml" if config in config_names() else Path(config)
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(
            f"config: expected a YAML file or one of {', '.join(config_names())}, "
            f"but got {shown(config)}{did_you_mean(config, config_names())}"
        )
    name = config if len(config) <= LONGEST_NAME else f"…{config[1 - LONGEST_NAME:]}"
    try:
        values = read_mapping(path)
    except FileNotFoundError:
        raise ConfigError(f"config: no such file: {name}") from None
    except YamlRefused as error:
        raise ConfigError(short(f"config: {name} {error}")) from None
    if NEVER_IN_A_FILE in values:
        raise ConfigError(f"config: {NEVER_IN_A_FILE} is given on the command line alone, but "
                          f"{name} has it")
    try:
        values = of_today(values)
    except ValueError as error:
        raise ConfigError(short(f"config: {name}: {error}")) from None
    for key in values:
        if key not in Settings.model_fields:
            raise ConfigError(f"config: no such setting {shown(key)} in {name}"
                              f"{did_you_mean(key, Settings.model_fields)}")
    return values


def _validated(values: Mapping[str, Any]) -> Settings:
    for name, value in values.items():
        if isinstance(value, bool) and name in Settings.model_fields and not yes_or_no(name):
            raise ConfigError(f"{name}: expected a value, but got {str(value).lower()} (YAML reads "
                              f"yes, no, on and off so)")
    try:
        return Settings.model_validate(dict(values))
    except ValidationError as error:
        problem = error.errors()[0]
        raise ConfigError(problem_line(problem, values, Settings.model_fields)) from None
