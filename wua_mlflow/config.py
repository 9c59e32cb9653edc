"""The settings: every field with its type, its default and what it means; defaults live here alone.

The fields of ``Settings`` are MLproject's parameters and the command line's options; a test holds
the three together. Tests: ``tests/test_config.py``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from wua_mlflow.errors import did_you_mean, one_line
from wua_mlflow.imports import is_reference
from wua_mlflow.levels import CONFIDENCE_RANGE, MARGIN_RANGE, is_confidence, is_margin
from wua_mlflow.safe_yaml import YamlRefused, parse_mapping, read_mapping

__all__ = [
    "CODE", "COMMAND_FIELDS", "CONFIGS", "CRITERIA", "ConfigError", "IMPUTE", "OWN_MODEL",
    "OWN_ONLY", "Settings", "TOPICS", "TUTORIAL", "TableSettings", "WIDTH_METHODS", "config_names",
    "given_fields", "load_settings", "settings_yaml", "unused_settings", "yes_or_no",
]


TUTORIAL = "usecase"
CRITERIA = ("output", "input", "wanda", "magnitude", "taylor")
"""The criteria that have a name; a test holds them equal to ``usage.criteria.CRITERIA``."""
OWN_MODEL = ("data", "target", "groups", "drop_columns", "table", "task", "batch_to_inputs",
             "model", "hidden", "state", "seed")
"""What names a model of ``analyze`` and ``slim`` without a run."""
OWN_ONLY = ("layers",)
"""What ``analyze`` can be told of such a model only: a variant's figures are of all its layers."""
CODE = ("data", "model", "train", "criterion", "batch_to_inputs", "loss", "score")
"""What may name code (``package.module:name``); a test holds them equal to what is described so."""
SCORES = ("accuracy", "balanced_accuracy", "f1", "f1_macro", "mcc", "roc_auc",
          "average_precision", "log_loss", "brier", "r2", "rmse", "mae", "perplexity", "iou")
"""The scores that have a name; a test holds them equal to ``verdict.scores.SCORES``."""
WIDTH_METHODS = ("effective", "rank", "projection", "ablation", "search")

_RECIPE = ("data", "target", "groups", "drop_columns", "table", "task", "batch_to_inputs", "model",
           "train", "hidden", "epochs", "optimizer", "batch_size", "lr", "patience", "loss",
           "score", "seed", "seeds",
           "max_seeds")
_MACHINE = ("device", "threads", "experiment")
_USAGE = ("criterion", "effective_rank", "null_draws")
_SLIM = ("how", "slim_hidden", "slim_epochs", "width_method", "search_runs", "search_seconds",
         "budget", "distill", "fold", "rounds")
_VERDICT = ("margin", "confidence", "class_margin", "max_collapse")
_END = ("register", "gate")
_FINE_TUNING = ("train", "optimizer", "batch_size", "lr", "patience", "seeds", "max_seeds")
COMMAND_FIELDS: dict[str, tuple[str, ...]] = {
    "run": (*_RECIPE, *_USAGE, *_SLIM, *_VERDICT, *_MACHINE, *_END),
    "train": (*_RECIPE, *_MACHINE),
    "analyze": ("run_id", "trust", *OWN_MODEL, *OWN_ONLY, "loss", *_USAGE, *_MACHINE),
    "slim": ("run_id", "model_uri", "trust", *OWN_MODEL, *_FINE_TUNING, "loss", "score", *_USAGE,
             *_SLIM, *_VERDICT, *_MACHINE, *_END),
    "compare": ("run_id", "baseline", "candidate", "trust", "data", "target", "groups",
                "drop_columns", "task", "score", "seed", *_VERDICT, *_MACHINE),
}
"""The fields that each command takes: its options, and the parameters of its entry point."""
TOPICS: dict[str, tuple[str, ...]] = {
    "Data": ("data", "target", "groups", "task", "drop_columns", "table", "batch_to_inputs"),
    "The model": ("run_id", "model_uri", "baseline", "candidate", "trust", "model", "state",
                  "hidden"),
    "Training": ("train", "epochs", "optimizer", "batch_size", "lr", "patience", "loss"),
    "How far to slim": ("slim_hidden", "width_method", "search_runs", "search_seconds", "rounds"),
    "How to slim": ("how", "slim_epochs", "budget", "distill", "fold"),
    "Is it as good?": ("score", "margin", "confidence", "class_margin", "max_collapse", "gate"),
    "Seeds": ("seed", "seeds", "max_seeds"),
    "How weights are used": ("criterion", "layers", "effective_rank", "null_draws"),
    "The machine and MLflow": ("device", "threads", "experiment", "register"),
}
"""Every field once, by what it is about; ``--help-all`` shows them so."""


def _widths(value: Any) -> Any:
    """``"64,32"``, ``64`` or ``[64, 32]`` -> ``(64, 32)``; ``auto`` stays."""
    if value == "auto":
        return value
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    if isinstance(value, int) and not isinstance(value, bool):
        value = [value]
    return tuple(value) if isinstance(value, list) else value


def _number_or_word(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.strip().isdigit() else value


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


def _names(value: Any) -> tuple[str, ...]:
    """``"fc1, fc2"`` or a list -> ``("fc1", "fc2")``, each of them once."""
    return tuple(dict.fromkeys(_parts(value)))


def _mapping(value: Any) -> Any:
    """``"impute: mean, categories: 10"`` -> a dict, with braces or without."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    try:
        return parse_mapping(text if text.startswith("{") else f"{{{text}}}")
    except YamlRefused:
        raise ValueError("") from None


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


IMPUTE = ("median", "mean", "most_frequent", "drop")
"""Words of ``table: impute``."""
Count = Annotated[int, Field(ge=1)]
Names = Annotated[tuple[str, ...], BeforeValidator(_names), Field(min_length=1)]
Widths = Annotated[tuple[Count, ...], BeforeValidator(_widths)]
SlimWidths = Annotated[
    Literal["auto"] | tuple[Count, ...], BeforeValidator(_widths), Field(min_length=1)
]
BatchSize = Annotated[Literal["full"] | Count, BeforeValidator(_number_or_word)]
Seeds = Annotated[Literal["auto"] | Count, BeforeValidator(_number_or_word)]
Criteria = Annotated[str, BeforeValidator(_criteria)]
Score = Annotated[str, BeforeValidator(_score)]
Share = Annotated[float, BeforeValidator(_finite), Field(gt=0, lt=1)]
Positive = Annotated[float, BeforeValidator(_finite), Field(gt=0)]
Margin = Annotated[float, BeforeValidator(_finite), AfterValidator(partial(_where, is_margin))]
Confidence = Annotated[
    float, BeforeValidator(_finite), AfterValidator(partial(_where, is_confidence))]


# BaseModel inherits ABCMeta.register, which nobody calls on it
warnings.filterwarnings("ignore", message='Field name "register" in "Settings" shadows')


FIRST_SEEDS = 5
"""Replicates where ``seeds`` is auto, before the first look at the verdict."""


class TableSettings(BaseModel):
    """How a table's columns become numbers, where that is not left to the defaults.

    ``impute`` says for all columns with gaps, or by column, what stands in a gap: the training
    part's ``median``, ``mean`` or ``most_frequent`` value, a constant, or ``drop``: rows with a
    gap are left out. ``categories`` is the most levels of a text column that get a column each.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    drop_columns: Annotated[tuple[str, ...], BeforeValidator(_names)] = ()
    impute: dict[str, float | str] | Annotated[
        float | str, BeforeValidator(_word_or_number)] = "median"
    categories: Annotated[int, Field(ge=2, le=1000)] = 20


class Settings(BaseModel):
    """All settings of a pipeline; see ``docs/configuration.md``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str = Field("usecase", description="a bundled data set, a file (.csv, .tsv, .parquet, "
                      ".feather, .arrow, .npz), or package.module:function of seed -> (train, "
                      "validation, test) or a DataFrame; analyze: or of seed -> batches")
    target: str | None = Field(None, description="name of the target column in a file")
    groups: str | None = Field(None, description="name of the column in a file that says whose "
                               "rows they are (patient, user, document); those of one are a "
                               "single draw")
    drop_columns: Names | None = Field(
        None, description="names of columns of a table that are no inputs, e.g. id,name")
    table: Annotated[TableSettings, BeforeValidator(_mapping)] | None = Field(
        None, description="how a table's columns become numbers: drop_columns, impute (median, "
        "mean, most_frequent, a constant, drop: leave such rows out; or one by column), categories "
        "(most levels of a text column, 20), e.g. 'impute: mean, categories: 10'")
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
    model_uri: str | None = Field(None, description="slim: URI of a model that an earlier run "
                                  "logged, e.g. models:/name/1")
    train: str | None = Field(None, description="training function: package.module:function of "
                              "(model, data, budget, seed[, widths]) -> model, or None for the "
                              "one it was given; the built-in trainer, if unset")
    hidden: Widths = Field((64, 32), description="hidden widths of the original model, e.g. 64,32; "
                           "[] in YAML: the factory takes no widths")
    epochs: Count = Field(50, description="training epochs of the original model")
    slim_hidden: SlimWidths = Field("auto", description="hidden widths of the slim model, e.g. "
                                    "40,20; auto: chosen by width_method")
    slim_epochs: Count | None = Field(None, description="training epochs of the slim model; as "
                                      "epochs, if unset")
    how: Literal["auto", "rebuild", "prune"] = Field(
        "auto", description="rebuild: train a new network of the slim widths from scratch; prune: "
        "cut the trained network, then fine-tune it; auto: prune a model that was trained "
        "elsewhere, else rebuild")
    width_method: Literal["auto", "effective", "rank", "projection", "ablation", "search"] = Field(
        "auto", description=f"how slim_hidden=auto chooses the widths: {', '.join(WIDTH_METHODS)}; "
        "auto: search, or rank where a training function of your own would run for every width")
    search_runs: Annotated[int, Field(ge=2)] = Field(
        12, description="search: maximum number of widths to train, the original's included")
    search_seconds: Positive | None = Field(None, description="maximum time in seconds of the "
                                            "search, and with seeds=auto of all that is trained; "
                                            "an hour, if unset")
    budget: Literal["epochs", "flops"] = Field(
        "epochs", description="rebuild: train the slim model for the original's epochs, or for its "
        "training FLOPs (where slim_epochs is unset)")
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
    layers: Annotated[tuple[str, ...], BeforeValidator(_names), Field(min_length=1)] | None = \
        Field(None, description="analyze: names of the layers to analyse, e.g. fc1,fc2; all but "
              "the output layer, if unset")
    batch_to_inputs: str | None = Field(None, description="package.module:function of a "
                                        "batch -> the model's inputs: a tensor, a tuple of "
                                        "positional or a dict of keyword arguments")
    loss: str | None = Field(None, description="loss of training, and of the criterion taylor: "
                             "package.module:function of (outputs, targets) -> mean; the task's, "
                             "or the outputs' own, if unset")
    effective_rank: bool = Field(False, description="also compute the effective rank of each "
                                 "layer's activations: true or false")
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
                         "seed; the recipe verdict needs 5; auto: 5, and more until the verdict is "
                         "settled, up to max_seeds")
    max_seeds: Annotated[int, Field(ge=5)] = Field(
        20, description="maximum number of replicates where seeds is auto")
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
    experiment: Annotated[str, AfterValidator(partial(_where, _is_a_line))] = Field(
        "wua", max_length=500, description="name of the MLflow experiment")
    run_id: str | None = Field(None, description="run of the variant that the step reads and "
                               "writes to")
    baseline: str | None = Field(None, description="compare: model A, the original")
    candidate: str | None = Field(None, description="compare: model B, the slim model")
    trust: Annotated[tuple[Literal["code", "pickle"], ...], BeforeValidator(_names)] | None = Field(
        None, description="what may run that a run or a logged model brings along: code (what a "
        "run names as package.module:name and you have not named), pickle (pickled models), or "
        "both: code,pickle; only on the command line")
    register: str | None = Field(None, min_length=1, description="register the slim model under "
                                 "this name, if its artifact verdict is non_inferior")
    gate: bool = Field(False, description="exit with the verdict's code: 0 non_inferior, 3 "
                       "inferior, 4 inconclusive")

    @property
    def first_seeds(self) -> int:
        """Replicates to begin with; where ``seeds`` is auto there may be more later."""
        return FIRST_SEEDS if self.seeds == "auto" else self.seeds

    @property
    def table_settings(self) -> TableSettings:
        """``table``, with the columns of ``drop_columns`` among those that it drops."""
        table = self.table or TableSettings()
        dropped = dict.fromkeys((*table.drop_columns, *(self.drop_columns or ())))
        return table.model_copy(update={"drop_columns": tuple(dropped)})

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
        given: explicit values by field name; None and the empty string mean "as configured".
        command: only its fields count among those of the configuration; all, if None.

    Raises:
        ConfigError: one line that names the setting, what was expected and what came.
    """
    explicit = given_fields(given or {})
    other_data = explicit.get("data", TUTORIAL) != TUTORIAL
    base = {} if config in (None, "", TUTORIAL) and other_data else _read(config or TUTORIAL)
    settings = _validated({**base, **explicit})
    configured = set(base) if config else set()
    if command is not None:
        configured.intersection_update(COMMAND_FIELDS[command])
        _check_beside_run(command, settings, set(explicit))
    if settings.run_id is not None or settings.model_uri is not None:
        configured.difference_update(OWN_MODEL, OWN_ONLY, ("score",))
    return Settings.model_construct(_fields_set=configured | set(explicit), **dict(settings))


_BESIDE_RUN = {"analyze": ("analysed", (*OWN_MODEL, *OWN_ONLY)),
               "slim": ("slimmed", (*OWN_MODEL, "train", "score"))}
"""By command what is done with a run's variant, and the fields that are the variant's own then."""


NAMED_BESIDE_RUN = ("data", "model", "train")
"""What may be named beside a run where it is code, and the same as the run's: so it may run."""


def _check_beside_run(command: str, settings: Settings, explicit: set[str]) -> None:
    """Whether nothing is given beside a run that is the run's own."""
    has_run = settings.run_id is not None or (command == "slim" and settings.model_uri is not None)
    if not has_run or command not in _BESIDE_RUN:
        return
    verb, fields = _BESIDE_RUN[command]
    named = [name for name in NAMED_BESIDE_RUN if is_reference(str(getattr(settings, name)))]
    beside = sorted(explicit.intersection(fields) - set(named))
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
            f"but got {_shown(config)}{did_you_mean(config, config_names())}"
        )
    name = config if len(config) <= LONGEST_NAME else f"…{config[1 - LONGEST_NAME:]}"
    try:
        values = read_mapping(path)
    except FileNotFoundError:
        raise ConfigError(f"config: no such file: {name}") from None
    except YamlRefused as error:
        raise ConfigError(_short(f"config: {name} {error}")) from None
    if NEVER_IN_A_FILE in values:
        raise ConfigError(f"config: {NEVER_IN_A_FILE} is given on the command line alone, but "
                          f"{name} has it")
    for key in values:
        if key not in Settings.model_fields:
            raise ConfigError(f"config: no such setting {_shown(key)} in {name}"
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
        raise ConfigError(_one_line(error, values)) from None


def _one_line(error: ValidationError, values: Mapping[str, Any]) -> str:
    problem = error.errors()[0]
    field = str(problem["loc"][0])
    if field == "table" and len(problem["loc"]) > 1:
        return _about_table(str(problem["loc"][1]), problem)
    if problem["type"] == "extra_forbidden":
        return f"{_beginning(field)}: no such setting{did_you_mean(field, Settings.model_fields)}"
    meant = str(problem["msg"]).partition("error, ")[2] if field in ("criterion", "score") else ""
    return _short(f"{field}: expected {_expectation(field, problem)}, but got "
                  f"{_shown(values[field])}{meant}")


_TABLE = {
    "drop_columns": "names of columns, e.g. id,name",
    "impute": f"{', '.join(IMPUTE)}, or a number; or one of them, or a text, by column",
    "categories": "a whole number from 2 to 1000",
}
"""What the keys of ``table`` must be."""


def _about_table(key: str, problem: Mapping[str, Any]) -> str:
    got = _shown(problem["input"])
    if key not in _TABLE:
        return _short(f"table: expected only {', '.join(_TABLE)}, but got {key!r}"
                      f"{did_you_mean(key, _TABLE)}")
    meant = did_you_mean(str(problem["input"]), IMPUTE) if key == "impute" else ""
    return _short(f"table: {key}: expected {_TABLE[key]}, but got {got}{meant}")


EXPECTED = {
    "hidden": "whole numbers of at least 1, e.g. 64,32",
    "slim_hidden": "auto, or whole numbers of at least 1, e.g. 40,20",
    "batch_size": "full, or a whole number of at least 1",
    "seeds": "auto, or a whole number of at least 1",
    "margin": MARGIN_RANGE,
    "confidence": CONFIDENCE_RANGE,
    "max_collapse": "a number above 0 and below 1",
    "class_margin": "none, or a number above 0 and below 1",
    "score": f"{', '.join(SCORES)}, or package.module:function",
    "lr": "a number above 0",
    "device": "cpu, auto, mps, cuda or cuda:N",
    **dict.fromkeys(("gate", "effective_rank", "distill"), "true or false"),
    "fold": "auto, true or false",
    "search_seconds": "a number of seconds above 0",
    "register": "a name",
    "experiment": "a name in one line of at most 500 characters",
    "trust": "code, pickle, or code,pickle",
    "layers": "names of layers, e.g. fc1,fc2",
    "drop_columns": "names of columns, e.g. id,name",
    "table": "drop_columns, impute and categories, e.g. impute: mean, categories: 10",
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


def _short(line: str) -> str:
    return one_line(ValueError(line), limit=LONGEST_LINE, bare=(ValueError,))


def _shown(value: Any) -> str:
    """A value as a message shows it; of a long one the beginning.

    >>> _shown("abc"), _shown([1, 2]), len(_shown("x" * 9999))
    ("'abc'", '[1, 2]', 62)
    """
    if isinstance(value, str):
        text = _beginning(value, LONGEST_VALUE)
        return f"'{text}'" if text.isprintable() else repr(text)
    return _beginning(repr(value), LONGEST_VALUE)


def _beginning(text: str, longest: int = LONGEST_NAME) -> str:
    return text if len(text) <= longest else f"{text[:longest - 1]}…"
