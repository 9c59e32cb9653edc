"""The step ``analyze``: how a variant's weights, or those of any other model, are used.

What is measured are the settings' criteria, by their loss, beside the null and the effective rank
that they ask for. Tests: ``tests/pipeline/test_analyze.py``.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from mlflow.entities import LoggedModelInput
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from wua_mlflow.config import COMMAND_FIELDS, Settings, settings_yaml
from wua_mlflow.data.batches import Batch, Batches, mapped
from wua_mlflow.data.datasets import DataSplit, is_file
from wua_mlflow.data.loaders import (
    AnalysisData,
    load_analysis_data,
    local_share,
    null_sample,
    training_batches,
)
from wua_mlflow.data.parts import Part
from wua_mlflow.data.tasks import OutputKind, output_kind
from wua_mlflow.device import device_of, use_threads
from wua_mlflow.distributed import on_all_ranks, processes, rank
from wua_mlflow.errors import one_line
from wua_mlflow.flops import FlopCount, count_flops, count_parameters
from wua_mlflow.hooks import evaluating
from wua_mlflow.imports import load_object, local_path
from wua_mlflow.pipeline.logged_models import LoggedModel, LoggedSource
from wua_mlflow.pipeline.models import (
    BUILT_IN,
    check_fit,
    factory,
    made_by,
    naming,
    users_factory,
    users_function,
)
from wua_mlflow.pipeline.pretrained import pretrained_settings
from wua_mlflow.pipeline.train import (
    add_to_run,
    datasets_of,
    measured_on,
    run_scope,
    step_status,
    variant_tags,
    write_params,
)
from wua_mlflow.pipeline.variant import ModelVariant
from wua_mlflow.pipeline.weights import load_weights
from wua_mlflow.progress import say, stage
from wua_mlflow.pruning.computed_weights import plain_weights
from wua_mlflow.pruning.cut import unit_groups
from wua_mlflow.pruning.importance import unit_importance
from wua_mlflow.rng import isolated, seed_all
from wua_mlflow.tracking.log import Files, last_step, layers_table, usage_metrics, write
from wua_mlflow.tracking.names import (
    ArtifactPath,
    Metric,
    Tag,
    further_layers_table,
    importance_plot,
    keys_of,
    step_tag,
)
from wua_mlflow.tracking.names import Variant as VariantName
from wua_mlflow.tracking.pictures import usage_pictures
from wua_mlflow.tracking.store import Store, system_metrics
from wua_mlflow.tracking.ui_view import (
    IMAGES_TAG,
    IMPORTANCE_IMAGE,
    NETWORK_IMAGE,
    chart_images,
)
from wua_mlflow.training.evaluation import Objective
from wua_mlflow.usage.analyze import analyze
from wua_mlflow.usage.criteria import CRITERIA, Criterion, inputs_of
from wua_mlflow.usage.gradients import Loss
from wua_mlflow.usage.results import ModelUsage
from wua_mlflow.widths.fidelity import fidelity
from wua_mlflow.widths.results import widths_name

__all__ = [
    "Analysis", "analyze_model", "analyze_variant", "call_with_two", "criteria_of", "example_of",
    "fidelity_metrics", "first_criterion", "loss_of", "needs_loss", "output_names", "two_samples",
]


def first_criterion(settings: Settings) -> str:
    """The first of the criteria: its figures are the run's metrics."""
    return settings.criterion.partition(",")[0]


def criteria_of(settings: Settings) -> list[str | Criterion]:
    """The criteria of the settings: names, and the user's functions.

    Raises:
        ValueError: one line; a function cannot be imported, or asks for what is not there.
    """
    return [name if name in CRITERIA else _user_criterion(name)
            for name in settings.criterion.split(",")]


def _user_criterion(name: str) -> Criterion:
    criterion: Criterion = load_object(name, argument="criterion")
    if criterion in CRITERIA.values():
        return criterion
    inputs_of(criterion)
    return users_function(name, "criterion")


def needs_loss(criteria: Iterable[str | Criterion]) -> bool:
    """Whether one of the criteria needs gradients."""
    return any("gradient" in inputs_of(CRITERIA[each] if isinstance(each, str) else each)
               for each in criteria)


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
        return users_function(settings.loss, "loss")
    if split is None or not needs_loss(criteria_of(settings)):
        return None
    if kind is None:
        check_fit(model, split)
        kind = output_kind(model, split.train.example(model, 2), split.task,
                           next_token=split.spec.next_token)
    return Objective(split.task, kind).loss


def _options(settings: Settings) -> dict[str, Any]:
    """What the settings ask of ``analyze``."""
    return {"criterion": criteria_of(settings), "null": settings.null_draws, "seed": settings.seed,
            "effective_rank": True}


MOST_FLOPS = 2e11
"""Above so many FLOPs of forwards that leave out one unit each, fidelity is not measured."""
MOST_FORWARDS = 500
"""Above so many forwards of the greedy order, the areas under ablation curves are not measured."""
ORDERS = 10
"""Random orders of removal that the areas are compared with."""


def fidelity_metrics(variant: ModelVariant, flops: float) -> tuple[dict[str, float], str]:
    """How well criteria predict the exact change of the loss when a unit is removed; or why not.

    As the metrics ``fidelity/<criterion>``, of the criteria that units are cut by and of the
    settings' own. Of small networks also ``fidelity_area/<criterion>``: where the ablation curve
    lies between random orders (0) and the greedy one (1).

    Args:
        variant: an original, on its device; left as found.
        flops: of its forward, one sample.
    """
    if processes() > 1:
        return {}, "Fidelity not measured: it is by one process alone, and there are several."
    recipe, model = variant.recipe, plain_weights(variant.model)
    split = recipe.split
    train, held_out = split.train.sample(model), split.validation.sample(model)
    loss = recipe.objective(variant.kind).loss
    criteria = {"taylor", "spanning", *CRITERIA.keys() & variant.settings.criterion.split(",")}
    try:
        structure = unit_groups(model, recipe.example(model), variant.settings.what_to_cut.kinds)
        units = sum(group.units for group in structure.groups)
        if not units:
            return {}, "Fidelity not measured: the network has no units that can be removed."
        examples = sum(batch.samples for batch in held_out)
        if units * examples * flops > MOST_FLOPS:
            return {}, (f"Fidelity not measured: leaving out each of {units:,} units on "
                        f"{examples:,} examples takes too long unasked; "
                        f"wua_mlflow.widths.fidelity does it.")
        importances = {name: unit_importance(model, structure, train, loss, criterion=name)
                       for name in sorted(criteria)}
        forwards = sum(group.units**2 for group in structure.groups)
        result = fidelity(model, held_out, structure, importances, task=split.task,
                          loss=loss, orders=ORDERS if forwards <= MOST_FORWARDS else 0,
                          seed=variant.settings.seed)
    except (RuntimeError, ValueError) as error:  # of the network's own forward, in other shapes
        return {}, f"Fidelity not measured: {one_line(error)}"
    return result.metrics(), ""


def _say_fewer_draws(usage: ModelUsage, asked: int) -> None:
    """Where there was no time for all of the null's draws."""
    if usage.null is not None and usage.null.draws < asked:
        say(f"{usage.null.draws} of {asked} untrained networks were drawn for the null, as all of "
            f"them would take long beside the rest; --null-draws N draws as many as it says")


@dataclass(frozen=True)
class Analysis:
    """The usage of one model by criterion, and the run that holds it.

    Attributes:
        run_id: the run.
        name: of the model.
        usages: by criterion.
        parameters: how many the model has.
        remarks: what could not be measured, a line each.
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
class AnalyzedModel:
    """A model that a factory made, or that was logged, on its device, and the data for it.

    Attributes:
        settings: what was asked for; ``hidden`` is empty where the factory gets no widths.
        model: on ``device``.
        feed: the data.
        example: a first batch.
        device: the model's.
        to_inputs: the user's function of a batch, if there is one.
        source: of a logged model.
    """

    settings: Settings
    model: nn.Module
    feed: AnalysisData = field(repr=False)
    example: Any = field(repr=False)
    device: torch.device
    to_inputs: Callable[[Any], Any] | None = None
    source: LoggedSource | None = None

    @property
    def name(self) -> str:
        """Of its run."""
        if self.source is not None:
            return self.source.uri
        widths = widths_name(self.settings.hidden)
        return f"{VariantName.OVERSIZED} {widths}" if widths else \
            self.settings.model.rpartition(":")[2]

    @property
    def split(self) -> DataSplit | None:
        """The data, where they are not the user's own batches."""
        return self.feed if isinstance(self.feed, DataSplit) else None


def analyze_variant(
    store: Store, variant: ModelVariant, *, model_id: str | None = None,
    null_seconds: float = math.inf,
) -> tuple[Analysis, ModelVariant]:
    """Measure how a variant's weights are used, on training data, and add it to its run.

    Args:
        store: where the run is.
        variant: with its network.
        model_id: the LoggedModel that the metrics are of as well.
        null_seconds: of the null's draws no more than fit into these, and at least 5; of several
            processes all.

    Returns:
        The analysis, and the variant as its run holds it now.

    Raises:
        ValueError: the run holds the null of another criterion, and gets none of this one.
    """
    settings, recipe = variant.settings, variant.recipe
    criterion = first_criterion(settings)
    null_of = variant.tags.get(Tag.CRITERION, criterion)
    other_null = Tag.NULL_KIND in variant.tags and null_of != criterion
    if other_null and not settings.null_draws:
        raise ValueError(f"null_draws: expected at least 1, since {variant.name} holds the null of "
                         f"the criterion {null_of}, but got 0")
    with contextlib.ExitStack() as stack:
        on_all_ranks(lambda: None if rank() else stack.enter_context(
            step_status(store, variant.run_id, "analyze", begin=True)))
        stack.enter_context(stage(f"analysing {variant.name}"))
        loss = loss_of(settings, variant.model, recipe.split, recipe.device, kind=variant.kind)
        batches = training_batches(recipe.split, variant.model, passes=1 + settings.null_draws,
                                   label=f"analysing {variant.name}")
        usages = analyze(variant.model, batches, loss=loss, **_options(settings),
                         null_data=null_sample(recipe.split, variant.model),
                         null_seconds=null_seconds if processes() == 1 else math.inf)
        analysis = Analysis(variant.run_id, variant.name, usages, count_parameters(variant.model))
        _say_fewer_draws(analysis.usage, settings.null_draws)
        if other_null and analysis.usage.null is None:
            raise ValueError(f"criterion: {variant.name} holds the null of {null_of} and has none "
                             f"under {criterion}; analyse it as a model of its own: --model")
        metrics, tags = usage_metrics(analysis.usage), _tags(analysis.usage, criterion)

        def add() -> tuple[str, ...]:
            count = count_flops(variant.model, recipe.example(variant.model, 2), backward=False)
            remarks = count.caveats
            if variant.variant == VariantName.OVERSIZED:
                fidelities, remark = fidelity_metrics(variant, count.forward_flops / count.samples)
                metrics.update(fidelities)
                remarks += (remark,) if remark else ()
            watched = recipe.trainer is not None  # the user's own may have logged on the way
            step = last_step(store.client, variant.run_id, Metric.USAGE_ENTROPY) if watched else 0
            add_to_run(store, variant, metrics, tags=tags, step=step, model_id=model_id,
                       files=_files(variant.model, analysis, recipe.split))
            return remarks

        remarks = on_all_ranks(lambda: () if rank() else add())
    return replace(analysis, remarks=remarks), variant.logged(tags, metrics)


def analyze_model(
    store: Store | None, settings: Settings, *, logged: LoggedModel | None = None
) -> Analysis:
    """Measure a model that the factory makes, with the weights of ``state``, as a new variant.

    Or a logged model, whose LoggedModel then has the figures as well. The run that
    ``mlflow run -e analyze`` made is the variant's; else one is made.

    Args:
        store: where to; None in every process but the first.
        settings: what the model, its weights and its data are; a factory gets widths where
            ``hidden`` is given, or where it can do with nothing less.
        logged: the model, if it is a logged one.

    Raises:
        ValueError: one line that names the setting.
    """
    with contextlib.ExitStack() as stack:
        subject = on_all_ranks(
            lambda: _prepared(settings) if logged is None else _prepared_logged(settings, logged))
        run_id = on_all_ranks(lambda: "" if store is None else _enter_run(stack, store, subject))
        model, settings, split = subject.model, subject.settings, subject.split
        with isolated():  # the user's loaders may shuffle: alike in every process
            seed_all(settings.seed)
            batches = local_share(subject.feed) if split is None else training_batches(  # type: ignore[arg-type]
                split, model, passes=1 + settings.null_draws,
                label=f"analysing {subject.name}")
            usages = analyze(
                model, batches, loss=loss_of(settings, model, split, subject.device),
                layers=settings.layers, batch_to_inputs=subject.to_inputs, **_options(settings),
                null_data=null_sample(split, model) if split else None)
        return on_all_ranks(lambda: _logged(store, run_id, subject, usages))


def _prepared(settings: Settings) -> AnalyzedModel:
    """Load the data, make the model, load its weights."""
    use_threads(settings.threads)
    device, state = device_of(settings.device), settings.state
    user = None if settings.model in BUILT_IN else users_factory(settings.model)
    settings = pretrained_settings(settings)
    to_inputs = None if settings.batch_to_inputs is None else \
        users_function(settings.batch_to_inputs, "batch_to_inputs")
    feed = load_analysis_data(settings, to_inputs)
    example, feed = example_of(feed)
    split = feed if isinstance(feed, DataSplit) else None
    if split is not None and not rank():
        split.say_notes()
    with isolated():
        seed_all(settings.seed)
        if user is None:
            assert split is not None, "built-in models are made for a split"
            model = factory(settings.model, split)(settings.hidden)
        else:
            model = made_by(user, settings.model, settings.hidden or None,
                            lambda made: call_with_two(made, example, to_inputs))
    if state is not None:
        load_weights(model, state)
    if split is not None and is_file(settings.data):
        settings = settings.model_copy(update={"data": split.source})
    return AnalyzedModel(settings, model.to(device), feed, example, device, to_inputs)


def _prepared_logged(settings: Settings, logged: LoggedModel) -> AnalyzedModel:
    """Load a logged model, and the data for it."""
    use_threads(settings.threads)
    device, uri = device_of(settings.device), logged.source.uri
    to_inputs = None if settings.batch_to_inputs is None else \
        users_function(settings.batch_to_inputs, "batch_to_inputs")
    model = logged.module().to(device)
    example, feed = example_of(logged.feed(settings, to_inputs))
    split = feed if isinstance(feed, DataSplit) else None
    if split is not None and not rank():
        split.say_notes()
    with isolated(), naming(f"data: {uri} does not take the inputs of {settings.data}"), \
            evaluating(model):
        call_with_two(model, example, to_inputs)
    if is_file(settings.data):
        settings = settings.model_copy(update={
            "data": str(local_path(settings.data).absolute())})
    settings = settings.model_copy(update={"hidden": ()})
    return AnalyzedModel(settings, model, feed, example, device, to_inputs, logged.source)


def example_of(feed: AnalysisData) -> tuple[Any, AnalysisData]:
    """The first batch (of ours and of a tensor two samples), and the data with it.

    Raises:
        ValueError: there is none.
    """
    if isinstance(feed, DataSplit):
        train = feed.train
        return train[:2] if isinstance(train, Part) else train.first(), feed  # type: ignore[attr-defined]
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

    def first_two(value: Tensor) -> Tensor:
        return value[:2] if value.dim() and len(value) == batch.samples else value

    arguments: tuple[Any, ...] | Mapping[str, Any] = mapped(
        batch.kwargs or batch.args, Tensor, first_two)
    return arguments


def call_with_two(
    model: nn.Module, example: Any, to_inputs: Callable[[Any], Any] | None = None
) -> object:
    """What a model makes of the first two samples of a batch."""
    arguments = two_samples(example, model, to_inputs)
    return model(**arguments) if isinstance(arguments, Mapping) else model(*arguments)


def _enter_run(stack: contextlib.ExitStack, store: Store, subject: AnalyzedModel) -> str:
    """Open the model's run; it ends with the stack."""
    tags = variant_tags(VariantName.OVERSIZED, subject.name, "analyze")
    if subject.settings.hidden:
        tags[Tag.WIDTHS] = ",".join(map(str, subject.settings.hidden))
    if subject.split is not None:
        tags[Tag.TASK] = subject.split.task
    run_id = stack.enter_context(run_scope(store, subject.name, tags))
    stack.enter_context(step_status(store, run_id, "analyze"))
    stack.enter_context(system_metrics(store, run_id))
    write_params(store, run_id, subject.settings, _fields(subject))
    return run_id


def _fields(subject: AnalyzedModel) -> list[str]:
    """The settings from which the same analysis can be made again."""
    others = {"experiment", "trust"} | (set() if subject.settings.hidden else {"hidden"})
    others |= {"run_id"} if subject.source is None else {"model", "state"}
    return [name for name in COMMAND_FIELDS["analyze"] if name not in others]


def _logged(
    store: Store | None, run_id: str, subject: AnalyzedModel, usages: Mapping[str, ModelUsage]
) -> Analysis:
    """The analysis; where there is a store its run holds it now."""
    parameters = count_parameters(subject.model)
    if store is None:
        return Analysis(run_id, subject.name, usages, parameters)
    count, remarks = _counted(subject)
    analysis = Analysis(run_id, subject.name, usages, parameters, remarks)
    metrics = {**usage_metrics(analysis.usage), Metric.PARAMS_TOTAL: parameters}
    if count is not None:
        metrics[Metric.FLOPS_FORWARD] = count.forward_flops / count.samples
    settings, split = subject.settings, subject.split
    model_id = subject.source.model_id if subject.source else None
    data = datasets_of(split, "train") if split else []
    if data or model_id:
        store.client.log_inputs(
            run_id, datasets=data, models=[LoggedModelInput(model_id)] if model_id else None)
    write(store.client, run_id, metrics=metrics, model_id=model_id,
          datasets=measured_on(metrics, data),
          tags=_tags(analysis.usage, first_criterion(settings)),
          files={ArtifactPath.CONFIG: settings_yaml(settings, _fields(subject)),
                 **_files(subject.model, analysis, subject.split)})
    return analysis


def _counted(subject: AnalyzedModel) -> tuple[FlopCount | None, tuple[str, ...]]:
    """The FLOPs of two samples; or why there are none."""
    try:
        count = count_flops(subject.model, two_samples(
            subject.example, subject.model, subject.to_inputs), backward=False)
    except Exception as error:  # the user's forward: FLOPs are not what was asked for
        return None, (f"FLOPs not counted: {one_line(error)}",)
    return count, count.caveats


def _tags(usage: ModelUsage, criterion: str) -> dict[str, str]:
    tags = {step_tag("analyze"): "done", Tag.CRITERION: criterion, IMAGES_TAG: "True"}
    if usage.null:
        tags[Tag.NULL_KIND] = usage.null.kind
    return tags


def _files(model: nn.Module, analysis: Analysis, split: DataSplit | None) -> Files:
    """The tables of all criteria, and the pictures of the first; two of these among the charts."""
    first, *others = analysis.usages.values()
    keys = keys_of(analysis.usages)
    pictures = usage_pictures(model, first, inputs=split.columns if split else (),
                              outputs=output_names(split))
    shown = {NETWORK_IMAGE: ArtifactPath.NETWORK_PLOT}
    if first.layers:
        shown[IMPORTANCE_IMAGE] = importance_plot(next(iter(first.layers)), keys_of(first.layers))
    return {
        ArtifactPath.LAYERS_TABLE: layers_table(first),
        **{further_layers_table(usage.criterion, keys): layers_table(usage) for usage in others},
        **pictures,
        **chart_images({key: plot for key, plot in shown.items() if plot in pictures}),
    }


def output_names(split: DataSplit | None) -> tuple[str, ...]:
    """Classes, one an output; of two classes with one output the second, which that is for."""
    if split is None:
        return ()
    names = split.classes[1:] if len(split.classes) == 2 and split.outputs == 1 else split.classes
    return tuple(f"class {name}" if name.isdigit() else name for name in names)
