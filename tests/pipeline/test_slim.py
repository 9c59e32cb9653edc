"""The step ``slim``: rounds, each against the original; budgets, controls, what does not fit."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.pipeline import slimming_cases
from tests.pipeline.slimming_cases import judging, original_in, same, settings_of, tags_of, text_of
from wua_mlflow.config import load_settings
from wua_mlflow.flops import count_flops
from wua_mlflow.pipeline import replicates as replicates_module
from wua_mlflow.pipeline import slim as slim_module
from wua_mlflow.pipeline import target_widths, workflow
from wua_mlflow.pipeline.networks import PruningPlan, cached, from_scratch, pruned_and_tuned
from wua_mlflow.pipeline.recipe import load_recipe
from wua_mlflow.pipeline.slim import SlimmingContext, check_slimming
from wua_mlflow.pipeline.variant import ModelVariant, load_variant
from wua_mlflow.pipeline.workflow import SlimmingResult, run_pipeline
from wua_mlflow.pruning.cut import Specification, cut, rebuild
from wua_mlflow.results import TargetWidths
from wua_mlflow.signals import Stopped
from wua_mlflow.tracking.names import ArtifactPath
from wua_mlflow.tracking.runs import runs
from wua_mlflow.tracking.store import Store

GOOD, BAD = "non_inferior", "inferior"
STILL = {"optimizer": "sgd", "lr": 1e-30, "slim_hidden": "effective", "fold": "false"}
"""Training that changes no weight: what was cut is there to be seen."""


@dataclass(frozen=True)
class Rounds:
    """A pipeline of several rounds, and what was compared with what."""

    store: Store
    outcome: SlimmingResult
    compared: list[tuple[str, str]]
    pruned: bool

    @property
    def original(self) -> ModelVariant:
        return self.outcome.variants[0]

    @property
    def slims(self) -> list[ModelVariant]:
        return sorted((variant for variant in self.outcome.variants
                       if variant.variant.startswith("slim")), key=lambda slim: slim.variant)

    def tags(self, variant: ModelVariant) -> dict[str, str]:
        return tags_of(self.store, variant.run_id)


@pytest.fixture(scope="module", params=["prune", "rebuild"])
def ran(request, tmp_path_factory, migrated_database):
    """Two rounds that are as good, and a third that is not; a fourth is asked for."""
    compared: list[tuple[str, str]] = []
    folder = tmp_path_factory.mktemp("rounds")
    with slimming_cases.store_at(folder, migrated_database) as rounds_store:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(slim_module, "compare_variants", judging([GOOD, GOOD, BAD], compared))
            outcome = run_pipeline(rounds_store, settings_of(
                **STILL, how=request.param, rounds=4, hidden="16", seeds=2, slim_epochs=2))
        yield Rounds(rounds_store, outcome, compared, request.param == "prune")


def test_rounds_end_at_the_first_that_is_not_as_good(ran):
    rounds = ran.outcome.slimmed.rounds
    assert [each.variant.run_id for each in rounds] == [slim.run_id for slim in ran.slims]
    assert [each.as_good for each in rounds] == [True, True, False]
    widths = [slim.widths for slim in ran.slims]
    assert (16,) > widths[0] > widths[1] > widths[2]
    assert ran.compared == [(ran.original.run_id, slim.run_id) for slim in ran.slims]
    variants = ran.outcome.variants
    assert len({variant.run_id for variant in variants}) == len(variants)
    for variant in variants:
        tags = ran.tags(variant)
        assert (tags["wua.step.train"], tags["wua.step.analyze"]) == ("done", "done")
        assert tags["wua.pipeline"] == ran.outcome.run_id
        assert tags.get("wua.baseline", ran.original.run_id) == ran.original.run_id
        assert len(variant.replicates) == 2


def test_the_result_is_the_last_good_one_and_is_what_is_shown(ran):
    first, second, _ = ran.slims
    assert ran.outcome.slimmed.result.variant.run_id == second.run_id
    assert ran.outcome.variants[-1] is second
    tags = tags_of(ran.store, ran.outcome.run_id)
    assert (tags["wua.result"], tags["wua.verdict"]) == (second.run_id, GOOD)
    row = runs("slimming", "pipeline").iloc[0]
    assert row["run_id"] == ran.outcome.run_id
    assert row["name"].endswith(f" 16 → {second.widths[0]}")
    assert row["compare/params_ratio"] == pytest.approx(
        ran.original.metrics["params/total"] / second.metrics["params/total"])
    record = json.loads(text_of(ran.store, second.run_id, "widths.json"))
    assert record["method"] == "effective"
    assert record["widths"] == [{"name": "fc1", "layers": ["fc1"],
                                 "units": first.widths[0], "width": second.widths[0],
                                 **({"multiple_of": 8} if ran.pruned else {})}]


def test_each_round_is_cut_from_the_one_before(ran):
    """And a run holds all of its network: the factory, the cuts, the weights."""
    before = ran.original
    for number, made in enumerate(ran.slims if ran.pruned else (), 1):
        history = Specification.from_json(text_of(ran.store, made.run_id, ArtifactPath.STRUCTURE))
        assert len(history.rounds) == number
        inputs = made.recipe.split.train.inputs[:4]
        assert same(cut(before.model, inputs, history.rounds[-1]).model, made.model)
        rebuild(made.recipe.build((16,)), inputs, history).load_state_dict(made.model.state_dict())
        before = made
    made = ran.slims[-1]
    again = load_variant(ran.store, made.run_id)
    inputs = made.recipe.split.test.inputs
    assert torch.equal(again.model(inputs), made.model(inputs))
    assert again.widths == made.widths
    assert np.array_equal(again.replicate_scores, made.replicate_scores)


def test_budgets_and_controls(ran):
    """Rebuilt: one of 2 epochs. Cut: each round has had 2 epochs more, and another width."""
    budgets = [slim.settings.epochs for slim in ran.slims]
    assert budgets == ([5, 7, 9] if ran.pruned else [2, 2, 2])
    assert [slim.epochs_trained for slim in ran.slims] == budgets
    controls = [(control.variant, control.widths, control.settings.epochs)
                for control in ran.outcome.variants if control not in (ran.original, *ran.slims)]
    expected = [("oversized-same-budget", (16,), epochs) for epochs in sorted({*budgets})]
    if ran.pruned:
        expected += [("from-scratch", slim.widths, 3) for slim in ran.slims]
    assert sorted(controls) == sorted(expected)


def test_training_costs_what_it_was_cut_from_cost_too(ran):
    """Forward and backward of a sample by the counter, times samples, times epochs."""
    slim, inputs = ran.slims[0], ran.original.recipe.split.train.inputs[:1]
    new, old = (count.forward_flops + count.backward_flops for count in (
        count_flops(variant.model, inputs) for variant in (slim, ran.original)))
    assert slim.metrics["flops/training"] == new * 160 * 2 + ran.pruned * old * 160 * 3


@pytest.mark.parametrize(("outcome", "options", "ended"), [
    ("inconclusive", {}, ""),
    (GOOD, {"how": "prune", "hidden": "2"},
     "Nothing is left to cut: fc2: its units are the network's outputs; fc1: it has one unit."),
])
def test_no_second_round(outcome, options, ended, store, monkeypatch):
    """Where the first is not as good, or nothing is narrower: the first is the result."""
    monkeypatch.setattr(slim_module, "compare_variants", judging([outcome], []))
    result = run_pipeline(store, settings_of(**{**STILL, "rounds": 3, "epochs": 1, **options}))
    assert [each.variant.kind for each in result.slimmed.rounds] == ["slim"]
    assert result.slimmed.ended == ended
    assert tags_of(store, result.run_id)["wua.result"] == result.variants[-1].run_id


@pytest.mark.parametrize(("rounds", "stop", "goes_on"), [
    ([GOOD], KeyboardInterrupt(), True), ([], KeyboardInterrupt(), False),
    ([GOOD], Stopped(signal.SIGTERM), False)])
def test_ctrl_c_in_a_later_round_ends_with_the_rounds_so_far(
        rounds, stop, goes_on, store, monkeypatch):
    """Nothing is there to go on with in the first one, and other signals end all."""
    judge, ahead = judging(rounds, []), [*rounds]

    def interrupted(*args, **options):
        if not ahead:
            raise stop
        ahead.pop()
        return judge(*args, **options)

    monkeypatch.setattr(slim_module, "compare_variants", interrupted)
    settings = settings_of(**{**STILL, "rounds": 3, "epochs": 1, "hidden": "16", "seeds": 1})
    if not goes_on:
        with pytest.raises(KeyboardInterrupt):
            run_pipeline(store, settings)
        return
    result = run_pipeline(store, settings)
    assert [each.variant.kind for each in result.slimmed.rounds] == ["slim"]
    assert "interrupted" in result.slimmed.ended
    assert tags_of(store, result.run_id)["wua.verdict"] == GOOD


def test_a_layer_with_one_unit_left_is_still_a_width():
    """It is no dimension any more; the control from scratch has it all the same."""
    settings = settings_of(hidden="4,8", how="prune", epochs=1)
    recipe = load_recipe(settings)
    root = cached(from_scratch(recipe, (4, 8), 1))
    once = pruned_and_tuned(recipe, root, root, PruningPlan({"fc1": 1, "fc2": 6}, 1))
    original, parent = (slimming_cases.variant_of(recipe, make) for make in (root, once))
    context = SlimmingContext(settings, original, parent, parent.make, root)
    (dimension,) = context.dimensions
    assert (dimension.name, dimension.units) == ("fc2", 6)
    goal = TargetWidths(context.dimensions, (3,), "given")
    assert context.units(goal) == {"fc1": 1, "fc2": 3}
    assert context.factory_widths(goal) == (1, 3)
    assert context.cost((6,)) > context.cost((3,)) == 2 * (6 * 1 + 1 * 3 + 3 * 3)


def test_what_a_method_measured_is_logged_where_it_finds_nothing(store, monkeypatch):
    def all_units(*args, **options):
        real = recommend(*args, **options)
        return replace(real, layers=tuple(replace(each, width=each.units) for each in real.layers),
                       skipped={"2.rnn": "no method sees it", "3.rnn": "no method sees it"})

    recommend = target_widths.recommend_widths
    monkeypatch.setattr(target_widths, "recommend_widths", all_units)
    outcome = run_pipeline(store, settings_of(hidden="6", slim_hidden="rank", epochs=1, seeds=1))
    assert "; *.rnn (2): no method sees it." in outcome.slimmed.ended
    record = json.loads(text_of(store, str(outcome.run_id), ArtifactPath.WIDTHS))
    assert [each["width"] for each in record["widths"]] == [6]
    assert record["recommendation"]["layers"][0]["curve"]["widths"]


def test_equal_training_flops(store):
    """Scratch-B: what is trained is at most what the original was, and less than an epoch below.

    A sample of 6-16-3, by hand: forward 2·(6·16 + 16·3); backward all weights' gradients, and the
    second layer's inputs'.
    """
    outcome = run_pipeline(store, settings_of(hidden="16", slim_hidden="5", slim_epochs="flops",
                                              epochs=4))
    old, new = (2 * 2 * (6 * units + units * 3) + 2 * units * 3 for units in (16, 5))
    spent = [outcome.variants[place].metrics["flops/training"] for place in (0, -1)]
    assert spent[0] == old * 160 * 4
    assert 4 * old // new == 12
    assert 0 <= spent[0] - spent[1] < new * 160
    assert [variant.settings.epochs for variant in outcome.variants] == [4, 12, 12]


def test_the_networks_that_are_cut_are_those_that_were_judged(store, monkeypatch):
    """The original is not trained a second time to be cut: a trainer may give another one.

    Where it came from is a comment in the configuration, which gives the same again.
    """
    trained, fit = [], replicates_module.fit
    monkeypatch.setattr(replicates_module, "fit", lambda model, *args, **options:
                        trained.append(model[0].out_features) or fit(model, *args, **options))
    asked = {"how": "prune", "slim_hidden": "5", "slim_epochs": 1}
    outcome = run_pipeline(store, settings_of(**asked))
    assert trained == [8, 8, 5, 5, 5]  # the original, its two controls, the cut in both ways
    original, slim = outcome.variants[0], outcome.variants[-1]
    assert text_of(store, slim.run_id, "config.yaml").startswith(
        f"# Cut from the network that run {original.run_id} left (oversized 8, 3 epochs).\n"
        f"# Both again: the original's config.yaml with how: prune, slim_hidden: [5], "
        f"slim_epochs: 1\n")
    Path("again.yaml").write_text(text_of(store, original.run_id, "config.yaml"))
    again = run_pipeline(store, load_settings("again.yaml", asked))
    assert same(again.variants[-1].model, slim.model)


@pytest.mark.parametrize(("options", "message"), [
    ({"distill": True, "how": "rebuild"}, "distill: expected how=prune beside it, since a rebuilt "
     "network is the control that learns from the data alone, but got how=rebuild"),
    ({"distill": True, "how": "prune", "train": "own:trainer"},
     "distill: expected the built-in trainer, but got train=own:trainer"),
    ({"fold": True, "how": "rebuild"}, "fold: expected how=prune beside it, since in a rebuilt "
     "network there is nothing to fold, but got how=rebuild"),
    ({"what": "units", "how": "rebuild"}, "what: expected how=prune beside it, since the widths of "
     "a rebuilt network are the factory's own, but got how=rebuild and what=units"),
    ({"slim_epochs": "flops", "how": "prune"}, "slim_epochs: expected a number where the network "
     "is cut and fine-tuned, but got flops; equal training FLOPs are for how=rebuild"),
    ({"rounds": 2, "slim_hidden": "4,2", "how": "prune"},
     "rounds: expected slim_hidden=auto or a method, since each round needs widths of its own, but "
     "got 4,2"),
    ({"register": "team/digits", "how": "prune"},
     "register: expected a name without any of / : ?, but got 'team/digits'"),
])
def test_what_does_not_fit_together(options, message):
    with pytest.raises(ValueError) as caught:
        check_slimming(settings_of(**options))
    assert str(caught.value) == message


def test_the_step_slim_cuts_the_network_that_its_run_holds(store):
    original = original_in(store, seeds=2, epochs=2)
    slim = workflow.slim_run(store, load_settings(None, {
        "run_id": original.run_id, "how": "prune", "slim_hidden": "3", "slim_epochs": "1",
        "distill": "true", "fold": "false"})).variants[-1]
    history = Specification.from_json(text_of(store, slim.run_id, ArtifactPath.STRUCTURE))
    assert history.summary == "fc1 3"
    assert (slim.settings.epochs, len(slim.replicates)) == (3, 2)
    for distill in (True, False):
        plan = PruningPlan({"fc1": 3}, 1, distill=distill)
        expected = pruned_and_tuned(slim.recipe, original.make, original.make, plan)(0, 42)
        assert same(slim.model, expected) is distill


def test_how_the_slim_network_is_trained_is_nothing_to_the_controls(store):
    """A learning rate for fine-tuning would make weak controls; another seed is of the search.

    Fewer than five replicates are as many as the original has.
    """
    settings = settings_of(how="prune", slim_hidden="4", slim_epochs=1, lr=1e-30, seed=7, seeds=3,
                           optimizer="sgd")
    slimmed, networks = slim_module.slim_variant(store, original_in(store), None,
                                                 settings=settings, pipeline=None)
    *controls, slim = [networks[each.run_id] for each in slimmed.variants[1:]]
    for control in controls:
        trained = control.settings
        assert (trained.lr, trained.optimizer, trained.seed) == (0.03, "adam", 42)
        assert control.test.score > 0.7
    assert (slim.settings.lr, slim.settings.optimizer) == (1e-30, "sgd")
    assert (slim.settings.seed, len(slim.replicates)) == (42, 1)
    inputs = slim.recipe.split.test.inputs
    assert torch.equal(load_variant(store, slim.run_id).model(inputs), slim.model(inputs))


@pytest.mark.slow
@pytest.mark.parametrize("options", [
    {"data": "digits", "model": "cnn", "hidden": "8,12", "lr": 0.01, "distill": True},
    {"data": "breast_cancer", "hidden": "16,8", "lr": 0.01, "rounds": 2, "distill": True},
    {"data": "diabetes", "hidden": "16", "lr": 0.01, "distill": True},
    {"data": "wine", "hidden": "16", "how": "rebuild", "slim_hidden": "search", "limit": 4},
], ids=["cnn", "binary", "regression", "search"])
def test_real_data_from_the_original_to_the_recipes_verdict(store, options):
    outcome = run_pipeline(store, settings_of(**{
        "how": "prune", "epochs": 4, "slim_epochs": 2, "seeds": 5, "margin": 0.2, **options}))
    assert outcome.comparison.recipe.seeds == 5
    original, slim = outcome.variants[0], outcome.variants[-1]
    for name in ("params/total", "flops/forward"):
        assert slim.metrics[name] < original.metrics[name]
    inputs = slim.recipe.split.test.inputs
    assert torch.equal(load_variant(store, slim.run_id).model(inputs), slim.model(inputs))
