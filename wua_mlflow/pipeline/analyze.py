"""One analysis as the settings ask for it: the criteria, the loss, the null, the effective rank.

May import: torch, analysis, dotted, evaluation, importance, usage, the pipeline's data and models.
Tests: ``tests/pipeline/test_analysing.py``.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from wua_mlflow import __version__
from wua_mlflow.config import COMMAND_FIELDS, Settings, settings_yaml
from wua_mlflow.data.datasets import DataSplit, is_file, takes
from wua_mlflow.data.loaders import Feed, load_feed, part_feed, shared
from wua_mlflow.data.tasks import OutputKind, loss_for, output_kind
from wua_mlflow.device import device_of, use_threads
from wua_mlflow.distributed import on_all_ranks, processes, rank
from wua_mlflow.errors import one_line
from wua_mlflow.flops import CONVENTION, FlopCount, count_flops, count_parameters
from wua_mlflow.imports import load_object
from wua_mlflow.pipeline.models import BUILT_IN, check_fit, factory, made_by, naming, users_factory
from wua_mlflow.pipeline.pictures import usage_pictures
from wua_mlflow.pipeline.pretrained import load_weights
from wua_mlflow.pipeline.train import (
    datasets_of,
    missing_params,
    run_scope,
    shown_params,
    step_status,
)
from wua_mlflow.pipeline.variant import ModelVariant
from wua_mlflow.plots.style import variant_colour
from wua_mlflow.pruning.cut import unit_groups
from wua_mlflow.pruning.importance import unit_importance
from wua_mlflow.rng import isolated, seed_all
from wua_mlflow.tracking.log import Files, layers_table, usage_metrics, write
from wua_mlflow.tracking.names import (
    ArtifactPath,
    Kind,
    Metric,
    Tag,
    further_layers_table,
    step_tag,
)
from wua_mlflow.tracking.names import Variant as VariantName
from wua_mlflow.tracking.store import Store
from wua_mlflow.usage.analyze import analyze
from wua_mlflow.usage.batches import Batch, Batches
from wua_mlflow.usage.criteria import CRITERIA, Criterion, inputs_of
from wua_mlflow.usage.gradients import Loss
from wua_mlflow.usage.results import ModelUsage
from wua_mlflow.widths.fidelity import fidelity

__all__ = [
    "Analysis", "analyze_model", "analyze_variant", "batch_to_inputs", "call_with_two",
    "criteria_of", "example_of", "fidelity_metrics", "first_criterion", "loss_of", "measured",
    "two_samples",
]


def first_criterion(settings: Settings) -> str:
    """The criterion whose figures become the run's metrics."""
    return settings.criterion.partition(",")[0]


def criteria_of(settings: Settings) -> list[str | Criterion]:
    """The criteria that are asked for: names, and the user's functions.

    Raises:
        ValueError: one line; a function cannot be imported, or asks for what is not there.
    """
    return [name if name in CRITERIA else _theirs(name) for name in settings.criterion.split(",")]


def _theirs(name: str) -> Criterion:
    rule = load_object(name, argument="criterion")
    if rule in CRITERIA.values():
        return rule
    inputs_of(rule)
    return _named(rule, f"criterion: {name} failed")


def batch_to_inputs(settings: Settings) -> Callable[[Any], Any] | None:
    """The user's function from a batch to the model's inputs, if there is one.

    Raises:
        ValueError: one line; it cannot be imported.
    """
    name = settings.batch_to_inputs
    return None if name is None else _named(load_object(name, argument="batch_to_inputs"),
                                            f"batch_to_inputs: {name} failed")


def _named(function: Callable[..., Any], what: str) -> Callable[..., Any]:
    """The user's function, its errors in one line that begins with ``what``."""
    @functools.wraps(function)
    def call(*values: Any, **named: Any) -> Any:
        with naming(what, ours=False):
            return function(*values, **named)

    return call


def loss_of(
    settings: Settings,
    model: nn.Module,
    split: DataSplit | None,
    device: torch.device,
    *,
    kind: OutputKind | None = None,
) -> Loss | None:
    """The loss of the settings, else the task's own where a criterion needs gradients.

    Args:
        settings: ``loss`` and ``criterion``.
        model: on ``device``.
        split: the data, where their task is known.
        device: the model's.
        kind: what the model's outputs are, if that is known.

    Raises:
        ValueError: one line; it cannot be imported, or the outputs do not fit the task.
    """
    if settings.loss is not None:
        return _named(load_object(settings.loss, argument="loss"), f"loss: {settings.loss} failed")
    asked = [CRITERIA[rule] if isinstance(rule, str) else rule for rule in criteria_of(settings)]
    if split is None or not any("gradient" in inputs_of(rule) for rule in asked):
        return None
    if kind is None:
        check_fit(model, split)
        kind = output_kind(model, split.train.inputs[:2].to(device), split.task)
    return loss_for(split.task, kind)


def measured(
    model: nn.Module, batches: Any, settings: Settings, loss: Loss | None, *,
    layers: Sequence[str] | None = None, batch_to_inputs: Callable[[Any], Any] | None = None,
) -> dict[str, ModelUsage]:
    """The usage by criterion, in the order asked for; several processes get the same.

    ``layers`` and ``batch_to_inputs`` are as for ``analyze``, which is told the rest by the
    settings.

    Raises:
        ValueError: as ``analyze``.
    """
    return analyze(model, batches, criterion=criteria_of(settings), null=settings.null_draws,
                   seed=settings.seed, loss=loss, effective_rank=settings.effective_rank,
                   layers=layers, batch_to_inputs=batch_to_inputs)


MOST_FLOPS = 2e11
"""Of the forwards that leave a unit out each; above, the exact changes cost too much unasked."""
MOST_FORWARDS = 500
"""Of the greedy order; above, the ablation curves' areas cost too much unasked."""
ORDERS = 10
"""Random orders that the areas are set against."""


def fidelity_metrics(variant: ModelVariant, flops: float) -> tuple[dict[str, float], str]:
    """``fidelity/<criterion>`` of what units are cut by, and of the settings' criteria; or why not.

    Of small networks also ``fidelity_area/<criterion>``: where the ablation curve lies between
    random orders (0) and the greedy one (1).

    Args:
        variant: an original, on its device; left as found.
        flops: of its forward, one sample.
    """
    if processes() > 1:
        return {}, "Fidelity not measured: it is by one process alone, and there are several."
    split, device = variant.recipe.split, variant.recipe.device
    train, held_out = ((part.inputs.to(device), part.targets.to(device))
                       for part in (split.train, split.validation))
    loss = loss_for(split.task, variant.kind)
    asked = {"taylor", "spanning", *(name for name in variant.settings.criterion.split(",")
                         if name in CRITERIA)}
    try:
        structure = unit_groups(variant.model, train[0][:4])
        units = sum(group.units for group in structure.groups)
        if not units:
            return {}, "Fidelity not measured: the network has no units that can be removed."
        if units * len(held_out[0]) * flops > MOST_FLOPS:
            return {}, (f"Fidelity not measured: leaving out each of {units:,} units on "
                        f"{len(held_out[0]):,} examples takes too long unasked; "
                        f"wua_mlflow.widths.fidelity does it.")
        importances = {name: unit_importance(variant.model, structure, train, loss, criterion=name)
                       for name in sorted(asked)}
        forwards = sum(group.units**2 for group in structure.groups)
        found = fidelity(variant.model, held_out, structure, importances, task=split.task,
                         loss=loss, orders=ORDERS if forwards <= MOST_FORWARDS else 0,
                         seed=variant.settings.seed)
    except (RuntimeError, ValueError) as error:  # of the network's own forward, in other shapes
        return {}, f"Fidelity not measured: {one_line(error)}"
    return found.metrics(), ""


@dataclass(frozen=True)
class Analysis:
    """What was found of one model, by criterion, and the run that holds it.

    ``parameters`` is how many the model has; ``remarks`` what could not be had, a line each.
    """

    run_id: str
    name: str
    usages: Mapping[str, ModelUsage]
    parameters: int
    remarks: tuple[str, ...] = ()

    @property
    def usage(self) -> ModelUsage:
        """By the first criterion: its figures are the run's metrics."""
        return next(iter(self.usages.values()))


@dataclass(frozen=True)
class Subject:
    """A model that a factory made, on its device, and the data for it.

    ``widths`` are those that the factory was given, if any; ``example`` is a first batch, and
    ``to_inputs`` makes the model's inputs of it, where it is of a kind of the user's own.
    """

    settings: Settings
    name: str
    model: nn.Module
    widths: tuple[int, ...] | None
    feed: Feed = field(repr=False)
    example: Any = field(repr=False)
    device: torch.device
    to_inputs: Callable[[Any], Any] | None = None

    @property
    def split(self) -> DataSplit | None:
        """The data, where they are not the user's own batches."""
        return self.feed if isinstance(self.feed, DataSplit) else None


def analyze_variant(store: Store, variant: ModelVariant) -> Analysis:
    """Measure how a variant's weights are used, on training data, and add it to its run.

    Raises:
        ValueError: the run holds the null of another criterion, and gets none of this one.
    """
    settings, recipe = variant.settings, variant.recipe
    first = first_criterion(settings)
    held = variant.tags.get(Tag.CRITERION, first)
    if not settings.null_draws and Tag.NULL_KIND in variant.tags and held != first:
        raise ValueError(f"null_draws: expected at least 1, since {variant.name} holds the null of "
                         f"the criterion {held}, but got 0")
    with contextlib.ExitStack() as stack:
        on_all_ranks(lambda: None if rank() else _begin(stack, store, variant.run_id))
        loss = loss_of(settings, variant.model, recipe.split, recipe.device, kind=variant.kind)
        batches = part_feed(recipe.split, recipe.device, passes=1 + settings.null_draws,
                            label=f"analysing {variant.name}")
        usages = measured(variant.model, batches, settings, loss)
        found = Analysis(variant.run_id, variant.name, usages, count_parameters(variant.model))
        if found.usage.null is None and Tag.NULL_KIND in variant.tags and held != first:
            raise ValueError(f"criterion: {variant.name} holds the null of {held} and has none "
                             f"under {first}; analyse it as a model of its own: --model")
        metrics, tags = usage_metrics(found.usage), _tags(found.usage, first)

        def add() -> tuple[str, ...]:
            count = count_flops(variant.model, recipe.split.train.inputs[:2].to(recipe.device),
                                backward=False)
            foretold, remark = ({}, "") if variant.variant != VariantName.OVERSIZED else \
                fidelity_metrics(variant, count.forward_flops / count.samples)
            metrics.update(foretold)
            write(store.client, variant.run_id, metrics=metrics, tags=tags,
                  files=_files(variant.model, found))
            return (*count.caveats, *filter(None, [remark]))

        remarks = on_all_ranks(lambda: () if rank() else add())
    variant.metrics.update(metrics)
    variant.tags.update(tags)
    return replace(found, remarks=remarks)


def analyze_model(store: Store | None, settings: Settings) -> Analysis:
    """Measure a model that the factory makes, with the weights of ``state``, as a new variant.

    The run that ``mlflow run -e analyze`` made is the variant's; else one is made.

    Args:
        store: where to; None in every process but the first.
        settings: what the model, its weights and its data are; a factory gets widths where
            ``hidden`` is given, or where it can do with nothing less.

    Raises:
        ValueError: one line that names the setting.
    """
    with contextlib.ExitStack() as stack:
        subject = on_all_ranks(lambda: _prepared(settings))
        run_id = on_all_ranks(lambda: "" if store is None else _own_run(stack, store, subject))
        model, settings = subject.model, subject.settings
        with isolated():  # the user's loaders may shuffle: alike in every process
            seed_all(settings.seed)
            usages = measured(model, _batches(subject), settings,
                              loss_of(settings, model, subject.split, subject.device),
                              layers=settings.layers, batch_to_inputs=subject.to_inputs)
        return on_all_ranks(lambda: _logged(store, run_id, subject, usages))


def _begin(stack: contextlib.ExitStack, store: Store, run_id: str) -> None:
    store.client.set_tag(run_id, step_tag("analyze"), "running")
    stack.enter_context(step_status(store, run_id, "analyze"))


def _prepared(settings: Settings) -> Subject:
    """Load the data, make the model, load its weights."""
    use_threads(settings.threads)
    device = device_of(settings.device)
    user = None if settings.model in BUILT_IN else users_factory(settings.model)
    to_inputs = batch_to_inputs(settings)
    feed = load_feed(settings)
    example, feed = example_of(feed)
    split = feed if isinstance(feed, DataSplit) else None
    widths: tuple[int, ...] | None = settings.hidden
    with isolated():
        seed_all(settings.seed)
        if user is None:
            assert split is not None, "built-in models are made for a split"
            model = factory(settings.model, split)(settings.hidden)
        else:
            widths = None if "hidden" not in settings.given and takes(user) else widths
            model = made_by(user, settings.model, widths,
                            lambda made: call_with_two(made, example, to_inputs))
    if settings.state is not None:
        load_weights(model, settings.state)
        settings = settings.model_copy(
            update={"state": str(Path(settings.state).expanduser().absolute())})
    if split is not None and is_file(settings.data):
        settings = settings.model_copy(update={"data": split.source})
    name = settings.model.rpartition(":")[2] if widths is None else \
        f"{VariantName.OVERSIZED} {'-'.join(map(str, widths))}"
    return Subject(settings, name, model.to(device), widths, feed, example, device, to_inputs)


def example_of(feed: Feed) -> tuple[Any, Feed]:
    """The first batch (of ours and of a tensor two samples), and the data with it.

    Raises:
        ValueError: there is none.
    """
    if isinstance(feed, DataSplit):
        return (feed.train.inputs[:2], feed.train.targets[:2]), feed
    if isinstance(feed, Tensor | np.ndarray):
        return feed[:2], feed
    source = DataLoader(feed, batch_size=2) if isinstance(feed, Dataset) else feed
    with isolated():
        try:
            iterator = iter(source)
            first = next(iterator, None)
        except Exception as error:  # the user's own code may raise anything
            raise ValueError(f"data: expected batches, but got {one_line(error)}") from error
    if first is None:
        raise ValueError("data: expected at least one batch, but got none")
    if isinstance(feed, Iterator):
        return first, itertools.chain([first], feed)
    return first, feed


def two_samples(
    example: Any, model: nn.Module, to_inputs: Callable[[Any], Any] | None = None
) -> tuple[Any, ...] | Mapping[str, Any]:
    """The arguments of a call with the first two samples of a batch."""
    batch: Batch = next(iter(Batches([example], model, to_inputs)))

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dim() and len(value) == batch.samples:
            return value[:2]
        if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
            return type(value)(map(cut, value))
        return value

    if batch.kwargs:
        return {name: cut(value) for name, value in batch.kwargs.items()}
    return tuple(map(cut, batch.args))


def call_with_two(
    model: nn.Module, example: Any, to_inputs: Callable[[Any], Any] | None = None
) -> object:
    """What a model makes of the first two samples of a batch."""
    arguments = two_samples(example, model, to_inputs)
    return model(**arguments) if isinstance(arguments, Mapping) else model(*arguments)


def _batches(subject: Subject) -> Any:
    if subject.split is None:
        return shared(subject.feed)  # type: ignore[arg-type]
    return part_feed(subject.split, subject.device, passes=1 + subject.settings.null_draws,
                     label=f"analysing {subject.name}")


def _own_run(stack: contextlib.ExitStack, store: Store, subject: Subject) -> str:
    """Open the variant's run; it ends with the stack."""
    tags = {
        Tag.KIND: Kind.VARIANT,
        Tag.VARIANT: VariantName.OVERSIZED,
        Tag.VERSION: __version__,
        Tag.FLOP_CONVENTION: CONVENTION,
        step_tag("analyze"): "running",
        "mlflow.runName": subject.name,
        "mlflow.runColor": variant_colour(VariantName.OVERSIZED),
    }
    if subject.widths is not None:
        tags[Tag.WIDTHS] = ",".join(map(str, subject.widths))
    if subject.split is not None:
        tags[Tag.TASK] = subject.split.task
    run_id = stack.enter_context(run_scope(store, subject.name, tags))
    stack.enter_context(step_status(store, run_id, "analyze"))
    params = shown_params(subject.settings, _fields(subject))
    write(store.client, run_id, params=missing_params(store, run_id, params))
    return run_id


def _fields(subject: Subject) -> list[str]:
    """The settings that say what was analysed and how; from them the same can be had again."""
    leave = {"run_id", "experiment"} | (set() if subject.widths else {"hidden"})
    return [name for name in COMMAND_FIELDS["analyze"] if name not in leave]


def _logged(
    store: Store | None, run_id: str, subject: Subject, usages: Mapping[str, ModelUsage]
) -> Analysis:
    count, remarks = _counted(subject) if store is not None else (None, ())
    found = Analysis(run_id, subject.name, usages, count_parameters(subject.model), remarks)
    if store is None:
        return found
    metrics = {**usage_metrics(found.usage), Metric.PARAMS_TOTAL: found.parameters}
    if count is not None:
        metrics[Metric.FLOPS_FORWARD] = count.forward_flops / count.samples
    if subject.split is not None:
        store.client.log_inputs(run_id, datasets=datasets_of(subject.split, "train"))
    settings = subject.settings
    write(store.client, run_id, metrics=metrics, tags=_tags(found.usage, first_criterion(settings)),
          files={ArtifactPath.CONFIG: settings_yaml(settings, _fields(subject)),
                 **_files(subject.model, found)})
    return found


def _counted(subject: Subject) -> tuple[FlopCount | None, tuple[str, ...]]:
    """The FLOPs of two samples; or why there are none."""
    try:
        count = count_flops(subject.model, two_samples(
            subject.example, subject.model, subject.to_inputs), backward=False)
    except Exception as error:  # the user's forward: FLOPs are not what was asked for
        return None, (f"FLOPs not counted: {one_line(error)}",)
    return count, count.caveats


def _tags(usage: ModelUsage, criterion: str) -> dict[str, str]:
    tags = {step_tag("analyze"): "done", Tag.CRITERION: criterion}
    if usage.null:
        tags[Tag.NULL_KIND] = usage.null.kind
    return tags


def _files(model: nn.Module, found: Analysis) -> Files:
    """The tables of all criteria, and the pictures of the first."""
    first, *others = found.usages.values()
    return {
        ArtifactPath.LAYERS_TABLE: layers_table(first),
        **{further_layers_table(usage.criterion): layers_table(usage) for usage in others},
        **usage_pictures(model, first),
    }
