"""New networks of the widths that a search chose: collapses, wider ones, and the verdict."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.pipeline.slimming_cases import recipe_of, settings_of, variant_of
from wua_mlflow.config import load_settings
from wua_mlflow.pipeline import networks as networks_module
from wua_mlflow.pipeline import screen as screen_module
from wua_mlflow.pipeline import slim as slim_module
from wua_mlflow.pipeline.replicates import Replicate
from wua_mlflow.pipeline.screen import screen
from wua_mlflow.pipeline.seeds import SeedHistory, SharedExamples, recipe_verdict
from wua_mlflow.pipeline.slim import SlimmingContext
from wua_mlflow.pipeline.target_widths import FIRST_NUMBER
from wua_mlflow.pipeline.workflow import compare_run, run_pipeline
from wua_mlflow.report.answer import answer_text
from wua_mlflow.rng import seeded_stream
from wua_mlflow.verdict.looks import planned_looks
from wua_mlflow.widths.results import SearchResult

RIGHT = np.arange(100) < 90
WRONG = np.arange(100) < 30


def rows(*collapsed: int, seeds: int) -> np.ndarray:
    """Networks of which those with these numbers collapsed."""
    return np.stack([WRONG if number in collapsed else RIGHT for number in range(seeds)])


@pytest.mark.parametrize(("original", "slim", "trained", "passed"), [
    (rows(seeds=5), rows(seeds=12), 12, True),
    (rows(seeds=5), rows(7, seeds=12), 8, False),
    (rows(seeds=5), rows(1, seeds=12), 5, False),  # a median needs some
    (rows(2, seeds=5), rows(7, 9, seeds=12), 12, True),  # one in five of the original's
    (rows(2, seeds=5), rows(0, 1, 9, seeds=12), 5, False),
    (rows(seeds=1), rows(7, seeds=12), 8, False),
])
def test_it_stops_once_more_collapse_than_of_the_originals(
        original, slim, trained, passed, monkeypatch):
    made = []

    def replicate(recipe, make, number):
        made.append(number)
        return SimpleNamespace(validation_scores=slim[number])

    monkeypatch.setattr(screen_module, "train_replicate", replicate)
    found = screen(recipe_of(margin=0.02), lambda *_: None, original, seeds=len(slim))
    assert made == list(range(trained)) == list(found.replicates)
    assert found.passed is passed
    assert found.collapsed == sum(bool((row == WRONG).all()) for row in slim[:trained])


def found_by_a_search(monkeypatch: pytest.MonkeyPatch, widths: tuple[int, ...]) -> None:
    """Choosing widths gives these, of a search that tried no others."""
    def chosen(*args: Any, **options: Any) -> Any:
        goal = choose(*args, **options)
        return replace(goal, method="search", widths=widths,
                       searched=SearchResult(widths, (), "converged", "", 0.02))

    choose = slim_module.choose_widths
    monkeypatch.setattr(slim_module, "choose_widths", chosen)


def screening(monkeypatch: pytest.MonkeyPatch, failing: int) -> list[tuple[int, int]]:
    """The first widths fail; the rest are screened. Gives the numbers of networks asked and had."""
    screened: list[tuple[int, int]] = []

    def screen_or_fail(*args: Any, **options: Any) -> Any:
        found = screen(*args, **options)
        screened.append((options["seeds"], len(found.replicates)))
        return found if len(screened) > failing else replace(found, passed=False, collapsed=1)

    monkeypatch.setattr(slim_module, "screen", screen_or_fail)
    return screened


@pytest.mark.parametrize(("how", "screened", "originals"), [
    ("rebuild", [(12, 12)] * 2, {5, 8, 12}), ("prune", [(5, 5)] * 2, {5, 8, 12})])
def test_where_networks_collapse_the_next_wider_is_taken_and_judged_on_those_that_screened_it(
        how, screened, originals, store, monkeypatch):
    found_by_a_search(monkeypatch, (3,))
    calls = screening(monkeypatch, failing=1)
    result = run_pipeline(store, settings_of(seeds="5-12", how=how, margin=0.3,
                                             slim_hidden="3", fold="false"))
    assert calls == screened
    goal = result.slimmed.result.goal
    assert (goal.widths, goal.searched.widths, goal.screened) == ((5,), (5,), 2)
    assert goal.searched.screened_seeds == screened[-1][1]
    assert "1 of " in goal.searched.note and "new networks of 3 collapsed" in goal.searched.note
    original, slim = result.variants[0], result.variants[-1]
    assert slim.settings.hidden == ((5,) if how == "rebuild" else (8,))
    assert len(original.replicates) in originals
    assert len(slim.replicates) >= screened[-1][1]
    counts = result.comparison.recipe.counts
    assert counts.candidate == len(slim.replicates) and counts.screened == 2
    assert "a limit for all 2 widths that were screened" in result.comparison.recipe.sentence
    assert "new networks of 3 collapsed" in " ".join(answer_text(result.report).split())
    again = compare_run(store, load_settings(None, {"run_id": slim.run_id}))[2].recipe
    assert (again.low, again.high, again.counts) == (
        result.comparison.recipe.low, result.comparison.recipe.high, counts)
    seeds = [replicate.seed for replicate in slim.replicates]
    assert seeds == list(range(42, 42 + len(seeds))), "none of those that chose"
    assert max(seeds) < 42 + FIRST_NUMBER


def test_networks_that_screen_begin_from_streams_that_nothing_else_has():
    """Neither a candidate's of the search, nor the original's of the same number."""
    variant = variant_of(recipe_of(seeds=5, how="rebuild"))
    context = SlimmingContext(settings_of(seeds="auto", how="rebuild"), variant, variant,
                              variant.make, variant.make)
    begun: list[bytes] = []

    def trained(recipe: Any, *_: Any, seed: int, stream: Any, label: Any = None) -> None:
        begun.append((stream or seeded_stream(seed, recipe.device))["cpu"].numpy().tobytes())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks_module, "train_one", trained)
        screening = context.slim_factory((3,), screened=True)
        candidates = context.factory(context.recipe, (3,))
        for number in range(20):
            screening(number, 42 + number)
            candidates(FIRST_NUMBER + number, 42 + FIRST_NUMBER + number)
            begun.append(seeded_stream(42 + number, context.recipe.device)["cpu"].numpy().tobytes())
    assert len(begun) == len(set(begun)) == 60


def test_where_all_collapse_there_is_no_narrower_network(store, monkeypatch):
    found_by_a_search(monkeypatch, (3,))
    screening(monkeypatch, failing=9)
    result = run_pipeline(store, settings_of(seeds=5, slim_hidden="3"))
    assert not result.slimmed.rounds
    assert "1 of 5 new networks of 3 collapsed; 1 of 5 new networks of 5 collapsed" \
        in result.slimmed.ended


def test_what_was_given_is_not_screened_nor_what_gets_no_recipe_verdict(store, monkeypatch):
    calls = screening(monkeypatch, failing=0)
    run_pipeline(store, settings_of(seeds=5, slim_hidden="3"))
    found_by_a_search(monkeypatch, (3,))
    run_pipeline(store, settings_of(seeds=2, slim_hidden="3"))
    assert calls == []


def test_the_originals_networks_are_added_beside_twice_as_many_of_the_slim_ones():
    """The looks of ``looks.py``; whatever is not compared counts among the collapses."""
    rng = np.random.default_rng(0)
    original, slim = (rng.random((2, 20, 300)) < 0.9).astype(float)
    original, slim = ([Replicate(0, row, 0.0, {}) for row in side] for side in (original, slim))
    settings, history = settings_of(seeds="auto"), SeedHistory(1, 0, 20)
    examples = SharedExamples("multiclass", np.empty(300))
    looks = [recipe_verdict(original[:seeds], slim, examples, settings, history).counts
             for seeds in planned_looks(20)]
    assert [counts.look for counts in looks] == [1, 2, 3, 4, 5]
    assert {counts.looks for counts in looks} == {5}
    assert [counts.compared or counts.candidate for counts in looks] == [10, 16, 20, 20, 20]
    assert {counts.candidate for counts in looks} == {20}
    assert {counts.beyond_plan for counts in looks} == {0}
    given = recipe_verdict(original[:1], slim, examples, settings, history)
    assert (given.counts.baseline, given.counts.looks, given.seeds) == (1, 1, 20)
