"""Rounds of slimming: each against the original, the last good one is the result."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.pipeline.slimming_cases import (  # noqa: F401 - store is a fixture
    HERE,
    QUICK,
    judging,
    original_in,
    settings_of,
    store,
    store_at,
    tags_of,
    text_of,
    variant_of,
)
from wua_mlflow.flops import count_flops
from wua_mlflow.pipeline import slim as slim_module
from wua_mlflow.pipeline.networks import PruningPlan, cached, from_scratch, pruned_and_tuned
from wua_mlflow.pipeline.recipe import load_recipe
from wua_mlflow.pipeline.slim import SlimmingContext
from wua_mlflow.pipeline.variant import ModelVariant, load_variant
from wua_mlflow.pipeline.workflow import SlimmingResult, run_pipeline
from wua_mlflow.pruning.cut import Specification, cut, rebuild
from wua_mlflow.results import TargetWidths
from wua_mlflow.tracking.names import ArtifactPath
from wua_mlflow.tracking.runs import runs
from wua_mlflow.tracking.store import Store

GOOD, BAD = "non_inferior", "inferior"
STILL = {"optimizer": "sgd", "lr": 1e-30, "width_method": "effective", "fold": "false"}
"""Training that changes no weight: what was cut is there to be seen."""


@dataclass(frozen=True)
class Rounds:
    """A pipeline of several rounds, and what was compared with what."""

    store: Store
    outcome: SlimmingResult
    compared: list[tuple[str, str]]

    def named(self, name: str) -> ModelVariant:
        (found,) = [one for one in self.outcome.variants if one.variant == name]
        return found


@pytest.fixture(scope="module", params=["prune", "rebuild"])
def ran(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory,
    migrated_database: Path,
) -> Iterator[Rounds]:
    """Two rounds that are as good, and a third that is not; a fourth is asked for."""
    seen: list[tuple[str, str]] = []
    with store_at(tmp_path_factory.mktemp("rounds"), migrated_database) as found:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(slim_module, "compare_variants", judging([GOOD, GOOD, BAD], seen))
            outcome = run_pipeline(found, settings_of(
                **STILL, how=request.param, rounds=4, hidden="16", seeds=2, slim_epochs=2))
        yield Rounds(found, outcome, seen)


def test_rounds_end_at_the_first_that_is_not_as_good(ran: Rounds) -> None:
    rounds = ran.outcome.slimmed.rounds
    assert [each.variant.kind for each in rounds] == ["slim", "slim-2", "slim-3"]
    assert [one.as_good for one in rounds] == [True, True, False]
    widths = [one.variant.widths for one in rounds]
    assert (16,) > widths[0] > widths[1] > widths[2]


def test_each_round_is_compared_with_the_original(ran: Rounds) -> None:
    original, slims = ran.outcome.variants[0], [each.variant for each in ran.outcome.slimmed.rounds]
    assert original.variant == "oversized"
    assert ran.compared == [(original.run_id, one.run_id) for one in slims]
    assert {tags_of(ran.store, one.run_id)["wua.baseline"] for one in slims} == {original.run_id}


def test_the_result_is_the_last_good_one_and_is_what_is_shown(ran: Rounds) -> None:
    second = ran.named("slim-2")
    assert ran.outcome.slimmed.result.variant.run_id == second.run_id
    assert ran.outcome.variants[-1] is second
    tags = tags_of(ran.store, ran.outcome.run_id)
    assert tags["wua.result"] == second.run_id
    assert tags["wua.verdict"] == GOOD
    row = runs("slimming", "pipeline").iloc[0]
    assert row["run_id"] == ran.outcome.run_id
    assert row["name"].endswith(f" 16 → {second.widths[0]}")
    assert row["compare/params_ratio"] == pytest.approx(
        ran.outcome.variants[0].metrics["params/total"] / second.metrics["params/total"])


def test_all_that_was_trained_is_analysed_and_is_in_the_pipeline(ran: Rounds) -> None:
    assert len({one.run_id for one in ran.outcome.variants}) == len(ran.outcome.variants)
    for one in ran.outcome.variants:
        tags = tags_of(ran.store, one.run_id)
        assert (tags["wua.step.train"], tags["wua.step.analyze"]) == ("done", "done")
        assert tags["wua.pipeline"] == ran.outcome.run_id
        assert len(one.replicates) == 2


def test_a_loaded_slim_variant_gives_the_same_answers(ran: Rounds) -> None:
    """From what its run holds: the factory, the specification, the weights."""
    for name in ("slim", "slim-2", "slim-3"):
        made = ran.named(name)
        again = load_variant(ran.store, made.run_id)
        inputs = made.recipe.split.test.inputs
        assert torch.equal(again.model(inputs), made.model(inputs))
        assert again.widths == made.widths
        assert np.array_equal(again.replicate_scores, made.replicate_scores)


def test_widths_are_told_with_what_they_were_read_from(ran: Rounds) -> None:
    first, second = ran.named("slim"), ran.named("slim-2")
    told = json.loads(text_of(ran.store, second.run_id, "widths.json"))
    assert told["method"] == "effective"
    assert told["widths"] == [{"name": "fc1", "layers": ["fc1"],
                               "units": first.widths[0], "width": second.widths[0]}]


@pytest.mark.parametrize("ran", ["prune"], indirect=True)
def test_each_round_is_cut_from_the_one_before(ran: Rounds) -> None:
    before = ran.outcome.variants[0]
    for number, name in enumerate(("slim", "slim-2", "slim-3"), 1):
        made = ran.named(name)
        history = Specification.from_json(text_of(ran.store, made.run_id, ArtifactPath.STRUCTURE))
        assert len(history.rounds) == number
        expected = cut(before.model, made.recipe.split.train.inputs[:4], history.rounds[-1]).model
        for found, one in zip(made.model.parameters(), expected.parameters(), strict=True):
            assert torch.equal(found, one)
        fresh = rebuild(made.recipe.build((16,)), made.recipe.split.train.inputs[:2], history)
        fresh.load_state_dict(made.model.state_dict())
        before = made


def test_controls_of_equal_budget(ran: Rounds) -> None:
    """Rebuilt: one of 2 epochs. Cut: each round has had 2 epochs more, and another width."""
    pruning = ran.outcome.slimmed.original.settings.how == "prune"
    budgets = [one.settings.epochs for one in ran.outcome.variants
               if one.variant == "oversized-same-budget"]
    assert budgets == ([5, 7, 9] if pruning else [2])
    slims = [ran.named(name) for name in ("slim", "slim-2", "slim-3")]
    assert [one.settings.epochs for one in slims] == ([5, 7, 9] if pruning else [2, 2, 2])
    assert [one.epochs_trained for one in slims] == [one.settings.epochs for one in slims]
    scratch = [(one.widths, one.settings.epochs) for one in ran.outcome.variants
               if one.variant == "from-scratch"]
    assert scratch == ([(one.widths, 3) for one in slims] if pruning else [])


def test_training_costs_what_it_was_cut_from_cost_too(ran: Rounds) -> None:
    """Forward and backward of a sample by the counter, times samples, times epochs."""
    def a_sample(variant: ModelVariant) -> float:
        count = count_flops(variant.model, variant.recipe.split.train.inputs[:1])
        return count.forward_flops + count.backward_flops

    original, slim = ran.outcome.variants[0], ran.named("slim")
    spent = a_sample(slim) * 160 * 2
    if ran.outcome.slimmed.original.settings.how == "prune":
        spent += a_sample(original) * 160 * 3
    assert slim.metrics["flops/training"] == spent


def test_no_round_is_as_good(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Then the first is the result, and there is no second."""
    monkeypatch.setattr(slim_module, "compare_variants", judging(["inconclusive"], []))
    outcome = run_pipeline(store, settings_of(**STILL, rounds=3))
    assert [each.variant.kind for each in outcome.slimmed.rounds] == ["slim"]
    assert tags_of(store, outcome.run_id)["wua.result"] == outcome.variants[-1].run_id


@pytest.mark.parametrize(("how", "said"), [
    ("rebuild", "The network has one unit in every layer; no width is below that."),
    ("prune", "Nothing is left to cut: fc2: its units are the network's outputs; fc1: it has one "
              "unit."),
])
def test_rounds_end_where_nothing_narrower_is_left(
    store: Store, monkeypatch: pytest.MonkeyPatch, how: str, said: str  # noqa: F811
) -> None:
    monkeypatch.setattr(slim_module, "compare_variants", judging([GOOD], []))
    outcome = run_pipeline(store, settings_of(**STILL, how=how, hidden="2", rounds=3, epochs=1))
    assert [one.variant.widths for one in outcome.slimmed.rounds] == [(1,)]
    assert outcome.slimmed.ended == said
    assert tags_of(store, outcome.run_id)["wua.result"] == outcome.variants[-1].run_id


def test_a_layer_with_one_unit_left_is_still_a_width() -> None:
    """It is no dimension any more; the control from scratch has it all the same."""
    settings = settings_of(hidden="4,8", how="prune", epochs=1)
    recipe = load_recipe(settings)
    root = cached(from_scratch(recipe, (4, 8), 1))
    original, parent = variant_of(recipe, root), variant_of(recipe, pruned_and_tuned(
        recipe, root, root, PruningPlan({"fc1": 1, "fc2": 6}, 1)))
    context = SlimmingContext(settings, original, parent, parent.make, root)
    (left,) = context.dimensions
    assert (left.name, left.units) == ("fc2", 6)
    goal = TargetWidths(context.dimensions, (3,), "given")
    assert context.units(goal) == {"fc1": 1, "fc2": 3}
    assert context.factory_widths(goal) == (1, 3)
    assert context.cost((6,)) > context.cost((3,)) == 2 * (6 * 1 + 1 * 3 + 3 * 3)


@pytest.mark.slow
def test_a_layer_with_one_unit_left_keeps_it(
    store: Store, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    """It is no dimension any more, and still a width of the network and of its control."""
    goals = iter([{"fc1": 1, "fc2": 6}, {"fc2": 3}])

    def given(settings: object, parent: object, dimensions: tuple, *_: object) -> TargetWidths:
        keep = next(goals)
        assert [one.name for one in dimensions] == list(keep)
        return TargetWidths(dimensions, tuple(keep.values()), "given")

    monkeypatch.setattr(slim_module, "compare_variants", judging([GOOD, GOOD], []))
    monkeypatch.setattr(slim_module, "choose_widths", given)
    outcome = run_pipeline(store, settings_of(**STILL, how="prune", hidden="4,8", rounds=2,
                                              epochs=1))
    second = outcome.slimmed.result
    assert second.variant.name == "slim-2 1-3"
    assert [one.name for one in second.controls if one.kind == "from-scratch"] == [
        "from-scratch 1-3"]
    assert [tuple(one.shape) for one in outcome.variants[-1].model.parameters()] == [
        (1, 6), (1,), (3, 1), (3,), (3, 3), (3,)]
