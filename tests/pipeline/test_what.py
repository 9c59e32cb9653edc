"""The setting ``what`` from a pipeline to the store: the model's width, widths of a kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from torch import nn

import wua_mlflow as wua
from tests.pipeline.slimming_cases import (
    QUICK,
    judging,
    recipe_of,
    same,
    settings_of,
    store_at,
    tags_of,
    text_of,
    variant_of,
)
from tests.pruning.cutting_cases import Stream
from wua_mlflow.config import Settings, load_settings
from wua_mlflow.pipeline import slim as slim_module
from wua_mlflow.pipeline import target_widths, train
from wua_mlflow.pipeline.analyze import fidelity_metrics
from wua_mlflow.pipeline.networks import PruningPlan, pruned_and_tuned
from wua_mlflow.pipeline.slim import SlimmingContext
from wua_mlflow.pipeline.target_widths import choose_widths
from wua_mlflow.pipeline.variant import ModelVariant, load_variant
from wua_mlflow.pipeline.workflow import run_pipeline, slim_run
from wua_mlflow.pruning.cut import Specification, cut, unit_groups
from wua_mlflow.tracking.models import log_model
from wua_mlflow.widths.results import Curve, LayerWidth, WidthRecommendation

HERE = "tests.pipeline.test_what"
GOOD = "non_inferior"


def stream(widths: tuple[int, ...]) -> nn.Module:
    """The model's width, and that of its two blocks."""
    return Stream(*widths, features=6)


def trained_stream() -> nn.Module:
    torch.manual_seed(1)
    return stream((10, 8))


STREAM = {**QUICK, "model": f"{HERE}:stream", "hidden": "10,8", "how": "prune",
          "what": "units,stream", "slim_epochs": 1}


@pytest.fixture(scope="module")
def ran(tmp_path_factory, migrated_database):
    """Two rounds, whose second slims what the first has cut, and whose network is exported."""
    folder = tmp_path_factory.mktemp("what")
    with store_at(folder, migrated_database) as store:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(slim_module, "compare_variants", judging([GOOD, GOOD], []))
            patch.setattr(train, "log_model", partial(exported, train.log_model))
            outcome = run_pipeline(store, settings_of(
                **{**STREAM, "slim_hidden": "ablation", "margin": 0.3}, rounds=2))
        yield store, outcome


def exported(refused: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Of the last network alone."""
    last = options["tags"]["wua.variant"] == "slim-2"
    return (log_model if last else refused)(*args, **options)


def test_the_models_width_is_cut_and_judged_round_after_round(ran):
    store, outcome = ran
    original, first, second = outcome.variants[0], *(
        outcome.networks[each.variant.run_id] for each in outcome.slimmed.rounds)
    assert [each.settings.what for each in (original, first, second)] == 3 * ["units,stream"]
    history = Specification.from_json(text_of(store, second.run_id, "state/structure.json"))
    assert len(history.rounds) == 2
    assert history.left["stem"] == second.model.stem.out_features < 10
    assert second.model.norm.normalized_shape == (history.left["stem"],)
    assert "wua.verdict.artifact" in tags_of(store, second.run_id)
    assert tags_of(store, outcome.run_id)["wua.verdict"] == GOOD
    assert first.trained.uncut.keys() == {"head"}, "and no width because of a norm"
    assert " (`what: units,stream`): in every group" in outcome.report.slimmed_by
    assert "masked, and each norm over the units that stay. Then" in outcome.report.slimmed_by


def test_it_comes_back_bit_for_bit(ran, tmp_path):
    """From the run, by the library, and as MLflow loads what was exported."""
    store, outcome = ran
    slim = outcome.variants[-1]
    inputs = slim.recipe.split.test.inputs
    again = load_variant(store, slim.run_id)
    assert again.settings.what == "units,stream"
    assert again.widths == slim.widths
    assert same(again.model, slim.model)
    state = store.client.download_artifacts(slim.run_id, "state", str(tmp_path))
    loaded = wua.load_slim(trained_stream(), Path(state), slim.recipe.split.train.inputs[:4])
    assert same(loaded, slim.model)
    served = mlflow.pytorch.load_model(f"models:/{slim.model_id}")
    assert torch.equal(served(inputs), slim.model(inputs))


@pytest.mark.slow
def test_a_run_is_slimmed_with_what_was_asked_of_it_unless_something_else_is(ran):
    store, outcome = ran
    run_id = outcome.variants[0].run_id
    slimmed = slim_run(store, load_settings(None, {
        "run_id": run_id, "slim_hidden": "5,8,8", "rounds": 1}, "slim"))
    slim = slimmed.variants[-1]
    assert slim.model.stem.out_features == 5
    comment = text_of(store, slim.run_id, "config.yaml").splitlines()[1]
    assert comment == ("# Both again: the original's config.yaml with how: prune, what: "
                       "'units,stream', slim_hidden: [5,8,8], slim_epochs: 1")
    other = slim_run(store, load_settings(None, {
        "run_id": run_id, "slim_hidden": "5,5", "rounds": 1, "what": "units"}, "slim"))
    slim = other.variants[-1]
    assert (slim.model.stem.out_features, slim.settings.what) == (10, "units")
    assert "normalises over these units" in slim.trained.uncut["stem"]


@pytest.mark.slow
def test_elsewhere_trained_too(store):
    result = slim_run(store, load_settings(None, {
        **{name: value for name, value in STREAM.items() if name not in ("hidden", "epochs")},
        "model": f"{HERE}:trained_stream", "slim_hidden": "6,8,8"}, "slim"))
    original, *_, slim = result.variants
    assert (original.widths, slim.widths) == ((10, 8, 8), (6, 8, 8))


@pytest.mark.parametrize("fold", [False, True, None])
def test_each_way_of_cutting_begins_with_the_verified_cut(fold):
    recipe = recipe_of(**{**STREAM, "lr": 1e-30, "optimizer": "sgd"})
    variant = stream_variant()
    make = pruned_and_tuned(recipe, variant.make, variant.make, PruningPlan(
        {"stem": 6}, 1, fold=fold, kinds=("stream",)))
    found = make(0, 42)
    keep = found.structure.rounds[0]["stem"]
    plain = cut(variant.model, recipe.example(variant.model), {"stem": keep},
                unit_groups(variant.model, recipe.example(variant.model), ("stream",))).model
    assert len(keep) == 6
    assert same(found.model, plain) is not found.folded
    assert found.folded is fold or fold is None
    assert found.tries == (2 if fold is None else 1)


def stream_variant(**options: object) -> ModelVariant:
    return variant_of(recipe_of(**{**STREAM, **options}))


def context_of(settings: Settings, variant: ModelVariant) -> SlimmingContext:
    return SlimmingContext(settings, variant, variant, variant.make, variant.make)


def test_fidelity_of_the_models_width():
    metrics, reason = fidelity_metrics(stream_variant(what="stream"), 1e3)
    assert reason == "" and {"fidelity/taylor", "fidelity/spanning"} <= metrics.keys()
    assert fidelity_metrics(stream_variant(what="heads"), 1e3) == (
        {}, "Fidelity not measured: the network has no units that can be removed.")


# Which widths a method may choose


@pytest.mark.parametrize(("what", "given", "keep"), [
    ("units,same_widths", "5", (5, 5)), ("units,same_widths", "5,4", (5, 4)),
    ("units", "5,4", (5, 4)), ("units,same_widths", "rank", None), ("units", "search", None),
    ("units,same_widths", "search", None)])
def test_blocks_that_are_alike(what, given, keep):
    """The same width in both, in whatever a search trains as well; each its own where given."""
    settings = settings_of(**{**STREAM, "what": what, "slim_hidden": given, "limit": 3,
                              "margin": 0.3})
    context = context_of(settings, stream_variant())
    goal = choose_widths(settings, context.parent, context.dimensions, context.search_setup)
    assert list(goal.keep) == ["blocks.0.1", "blocks.1.1"]
    tried = [trial.widths for trial in goal.searched.trials] if goal.searched else []
    if keep is not None:
        assert tuple(goal.keep.values()) == keep
    elif "same" in what:
        assert [each.name for each in goal.dimensions] == ["blocks.*.1"]
        assert len(set(goal.keep.values())) == 1
        assert {len(widths) for widths in tried} <= {1}
        assert tuple(context.units(goal).values()) == 2 * goal.widths
    else:
        assert {len(widths) for widths in tried} == {2}
    assert goal.rounding == ""


def test_the_largest_width_found_is_that_of_all(monkeypatch):
    recommends(monkeypatch, {"blocks.0.1": 3, "blocks.1.1": 7})
    settings = settings_of(**{**STREAM, "what": "units,same_widths", "slim_hidden": "rank"})
    context = context_of(settings, stream_variant())
    goal = choose_widths(settings, context.parent, context.dimensions, context.search_setup)
    assert goal.keep == {"blocks.0.1": 7, "blocks.1.1": 7}
    assert context.factory_widths(goal) == (10, 7)


def recommends(monkeypatch: pytest.MonkeyPatch, widths: dict[str, int], units: int = 8) -> None:
    curve = Curve((units,), (1.0,), 1.0, 1.0, "share")
    found = WidthRecommendation("rank", 0.1, tuple(
        LayerWidth(name, units, width, curve, width, (name,)) for name, width in widths.items()),
        None, {})
    monkeypatch.setattr(target_widths, "_recommended", lambda *_: found)


@pytest.mark.parametrize(("options", "width", "said"), [
    ({}, 72, True), ({"what": "units,multiple_of=16"}, 80, True),
    ({"slim_hidden": "67"}, 67, False), ({"what": "multiple_of=1"}, 67, False),
    ({"how": "rebuild"}, 67, False),
    ({"what": "multiple_of=100"}, 90, False)])
def test_above_64_units_a_methods_widths_are_multiples(options, width, said, monkeypatch):
    recommends(monkeypatch, {"fc1": 67}, 90)
    hidden = {"hidden": "90", "epochs": 1}
    variant = variant_of(recipe_of(**hidden))
    settings = settings_of(**{**hidden, "how": "prune", "slim_hidden": "rank", **options})
    context = context_of(settings, variant)
    if width == 90:
        with pytest.raises(target_widths.NoNarrowerError) as caught:
            choose_widths(settings, variant, context.dimensions, context.search_setup)
        goal = caught.value.goal
    else:
        goal = choose_widths(settings, variant, context.dimensions, context.search_setup)
    assert goal.widths == (width,)
    assert bool(goal.rounding) is said


def test_a_search_tries_no_other_widths(monkeypatch):
    """Up from what was recommended, and where networks collapse."""
    recommends(monkeypatch, {"fc1": 67}, 90)
    hidden = {"hidden": "90", "epochs": 1}
    variant = variant_of(recipe_of(**hidden))
    settings = settings_of(**{**hidden, "how": "prune", "slim_hidden": "search", "limit": 8,
                              "margin": 0.3})
    context = context_of(settings, variant)
    setup = replace(context.search_setup, make=lambda *_: variant.make)
    goal = choose_widths(settings, variant, context.dimensions, setup)
    tried = [trial.widths for trial in goal.searched.trials]
    assert tried[:2] == [(90,), (72,)]
    assert all(width <= 64 or width % 8 == 0 for (width,) in tried[1:])
    assert target_widths.wider((50,), context.dimensions) == (80,)
