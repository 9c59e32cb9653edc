"""The search over widths: against brute force with the same rule, seeds one by one, its budgets."""

from __future__ import annotations

import json
import math
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from wua_mlflow.signals import Stopped, handle_signals
from wua_mlflow.widths.results import SearchResult
from wua_mlflow.widths.retrain_search import (
    FINE,
    MOST_SEEDS,
    FinalVerdict,
    _Rule,
    search_widths,
)

EXAMPLES = 1000
MARGIN = 0.02
Widths = tuple[int, ...]


def scores_of(accuracy: float) -> np.ndarray:
    """Scores of that accuracy, the same examples wrong first, shape (examples,)."""
    return np.arange(EXAMPLES) < round(accuracy * EXAMPLES)


def saturating(widths: Sequence[int]) -> float:
    """The first layer must stay near 24; of a second one unit is enough."""
    return 0.95 - 0.5 * math.exp(-widths[0] / 6)


def searched(
    original: Sequence[int], suggestion: Sequence[int],
    accuracy: Callable[[Widths], float] = saturating, **options: Any,
) -> tuple[SearchResult, list[tuple[Widths, int]]]:
    """The result, and what was trained: widths and number."""
    calls: list[tuple[Widths, int]] = []

    def score(widths: Widths, number: int) -> np.ndarray:
        calls.append((widths, number))
        return scores_of(accuracy(widths))

    result = search_widths(score, original, suggestion, **{
        "margin": MARGIN, "baseline": [scores_of(accuracy(tuple(original)))] * 5, **options})
    return result, calls


def rule_of(baseline: np.ndarray, **options: Any) -> _Rule:
    return _Rule(baseline.astype(float), **{
        "collapses": False, "margin": MARGIN, "confidence": 0.95, "most_seeds": 8,
        "final": FinalVerdict(20, EXAMPLES), **options})


def brute_force(most: int) -> int:
    """The smallest width whose networks reach the rule's limit."""
    rule = rule_of(np.stack([scores_of(saturating([most]))] * 5), final=FinalVerdict(8, EXAMPLES))
    parts = {width: rule.parts(np.stack([scores_of(saturating([width])).astype(float)] * 8))
             for width in range(1, most + 1)}
    return next(width for width in range(1, most + 1)
                if parts[width].mean >= rule.limit(parts[width]))


@pytest.mark.parametrize("suggestion", [64, 40, 13, 2, 1])
def test_one_width_is_within_the_bisections_step_of_what_brute_force_finds(suggestion):
    result, trained = searched([64], [suggestion])
    best = brute_force(64)
    assert best <= result.widths[0] <= FINE * best and result.stopped == "converged"
    tried = list(dict.fromkeys(widths for widths, _ in trained))
    assert [trial.widths for trial in result.trials] == [(64,), *tried]
    assert tried[0] == (suggestion,) or suggestion == 64
    assert len(tried) <= 7 and result.trainings == len(trained)
    assert not [numbers for numbers in Counter(trained).values() if numbers > 1], "none twice"
    table, values = result.table(), json.loads(result.to_json())
    assert table.loc[0, ["widths", "cost", "seeds", "score", "delta", "outcome"]].tolist() == [
        "64", 64, 5, 0.95, 0.0, "original"]
    assert len(table) == len(result.trials)
    assert (values["widths"], values["looks"]) == (list(result.widths), result.looks)


def test_what_is_plain_takes_two_networks_and_what_collapses_one():
    """Seeds that all do the same leave nothing open after the second."""
    result, _ = searched([64], [32], lambda widths: 0.95 if widths[0] >= 20 else 0.5)
    assert {trial.seeds for trial in result.trials[1:] if trial.holds} == {2}
    assert {trial.seeds for trial in result.trials if not trial.holds} == {1}
    slightly, _ = searched([64], [32], lambda widths: 0.95 if widths[0] >= 20 else 0.91)
    assert {trial.seeds for trial in slightly.trials if not trial.holds} == {2}


@pytest.mark.parametrize("shift", [-0.03, -0.0105, -0.0095, 0.0])
def test_seeds_are_added_until_the_rest_could_hardly_change_it(shift):
    """Against the rule: no further network once the chance has left 10 to 90%."""
    rng = np.random.default_rng(7)
    baseline = (rng.random((5, EXAMPLES)) < 0.9).astype(float)
    rows = (rng.random((8, EXAMPLES)) < 0.9 + shift).astype(float)
    final = FinalVerdict(20, 20)
    rule = rule_of(baseline, final=final)
    chances = {seeds: rule.chance(rule.parts(rows[:seeds])) for seeds in range(2, 9)}
    expected = next((seeds for seeds in range(2, 8) if not 0.1 <= chances[seeds] <= 0.9), 8)
    result = search_widths(lambda widths, number: rows[number], [64], [8], baseline=baseline,
                           margin=MARGIN, final=final, runs=2)
    trial = result.trials[1]
    assert trial.seeds == expected
    assert trial.delta == pytest.approx(rows[:expected].mean() - baseline.mean())
    assert trial.holds == (trial.delta >= rule.limit(rule.parts(rows[:expected])))
    assert chances[8] in (0.0, 1.0), "nothing is open after the last"


def test_the_chance_is_that_of_the_mean_with_all_its_seeds():
    """Simulated: the truth may be anything, the seeds are normal, their variance is estimated."""
    rng = np.random.default_rng(3)
    hits, chances = [], []
    for _ in range(2000):
        means = rng.normal(0.9, 0.01, 13)
        means[5:] += rng.uniform(-0.035, 0.015)
        networks = np.repeat(means[:, None], 50, axis=1)
        rule = rule_of(networks[:5], final=FinalVerdict(20, 4))
        parts = rule.parts(networks[5:8])
        limit = rule.limit(parts)
        chances.append(rule.chance(parts))
        hits.append(networks[5:].mean() - networks[:5].mean() >= limit)
    chances, hits = np.array(chances), np.array(hits)
    for low, high in ((0.0, 0.3), (0.3, 0.7), (0.7, 1.0)):
        some = (chances >= low) & (chances <= high)
        assert some.sum() >= 100
        assert hits[some].mean() == pytest.approx(chances[some].mean(), abs=0.1)


@pytest.mark.parametrize(("right", "validated_on", "judged_on", "why"), [
    (0.999, 4000, 1000, "judged"), (0.99, 4000, 10, "half"), (0.99, 300, 1000, "validated"),
    (0.9, 30, 1000, "zero")])
def test_the_limit_leaves_room_for_what_validation_and_test_data_leave_open(
        right, validated_on, judged_on, why):
    """From independent draws; for the final verdict at most half the margin is set aside."""
    rng = np.random.default_rng(5)
    networks = (rng.random((13, validated_on)) < right).astype(float)
    networks[5:] *= rng.random(validated_on) < right  # by example, so that it counts
    rule = rule_of(networks[:5], final=FinalVerdict(20, judged_on))
    parts = rule.parts(networks[5:])
    last, now = parts.predicted(20, 20, judged_on), parts.predicted(8, 5, validated_on)
    room = {"judged": last.half_width(0.95) + 0.8416 * (last.variance + now.variance)**0.5,
            "validated": 1.96 * now.variance**0.5, "half": MARGIN / 2, "zero": MARGIN}
    assert rule.limit(parts) == pytest.approx(room[why] - MARGIN, rel=1e-4)


def test_collapses_drop_a_width_unless_the_originals_collapse_too():
    """One network of 8 at 50%: gone at once; beside an original of which one is as bad, left out.
    """
    def score(widths: Widths, number: int) -> np.ndarray:
        return scores_of(0.5 if number == 1 else 0.9 + (number % 3) / 1000)

    sound = np.stack([scores_of(0.9 + i / 1000) for i in range(5)])
    options: dict[str, Any] = {"original": [64], "suggestion": [8], "margin": MARGIN, "runs": 2}
    trial = search_widths(score, baseline=sound, **options).trials[1]
    assert (trial.holds, trial.seeds) == (False, 2)
    trial = search_widths(score, baseline=np.concatenate([sound, scores_of(0.5)[None]]),
                          **options).trials[1]
    assert trial.holds and abs(trial.delta) < 0.005


def test_against_one_given_network():
    result, trained = searched([64], [16], baseline=scores_of(saturating([64])))
    assert result.widths[0] < 64 and {number for _, number in trained} == {0, 1}
    result, trained = searched([64], [16], baseline=scores_of(saturating([64])), most_seeds=1)
    assert result.widths[0] < 64 and {number for _, number in trained} == {0}


@pytest.mark.parametrize("runs", [2, 3, 5])
def test_the_budget_in_widths_is_kept(runs):
    result, trained = searched([64], [60], runs=runs)
    assert len({widths for widths, _ in trained}) == runs - 1
    assert result.stopped == "budget" and result.widths != (64,)


@pytest.mark.parametrize(("seconds", "looks", "spent"), [(25, 2, 30.0), (1, 1, 20.0)])
def test_the_budget_in_seconds_is_kept_once_a_candidate_was_tried(seconds, looks, spent):
    """Two networks of the first width, one of the second, which collapses."""
    now = [0.0]

    def score(widths: Widths, number: int) -> np.ndarray:
        now[0] += 10
        return scores_of(saturating(widths))

    result = search_widths(score, [64], [40], baseline=[scores_of(saturating([64]))] * 5,
                           margin=MARGIN, seconds=seconds, clock=lambda: now[0])
    assert (now[0], result.looks, result.stopped) == (spent, looks, "budget")


@pytest.mark.parametrize(("seconds", "seeds", "outcome"), [
    (math.inf, MOST_SEEDS, "holds"), (15.0, 2, "holds"), (35.0, 4, "holds")])
def test_when_the_time_is_up_the_networks_so_far_decide(seconds, seeds, outcome):
    """Of a width whose networks scatter about what holds, so that more would be trained."""
    now = [0.0]

    def score(widths: Widths, number: int) -> np.ndarray:
        now[0] += 10
        return scores_of(0.958 if number % 2 else 0.932)

    result = search_widths(score, [64], [40], baseline=[scores_of(0.95)] * 5, margin=MARGIN,
                           runs=2, seconds=seconds, clock=lambda: now[0])
    assert (result.trials[1].seeds, result.trials[1].outcome) == (seeds, outcome)


@pytest.mark.parametrize(("options", "note"), [
    ({"runs": 2}, "stopped after 1 of 1 width; smaller ones were not tried"),
    ({"runs": 12, "seconds": 1e-9}, "stopped after 1 of 11 widths; smaller ones were not tried"),
    ({"runs": 12}, "")])
def test_a_search_cut_short_says_what_was_not_tried(options, note):
    assert searched([64], [60], **options)[0].note == note
    both = searched([8, 8], [4, 4], lambda widths: 0.95 if min(widths) > 2 else 0.5, runs=5)[0]
    assert both.note == "stopped after 4 of 4 widths; other combinations of them were not tried"


@pytest.mark.parametrize(("number", "at", "looks"), [
    (signal.SIGINT, 1, 0), (signal.SIGINT, 2, 0), (signal.SIGINT, 4, 2), (signal.SIGTERM, 3, 1)])
def test_ctrl_c_ends_the_search_with_the_best_so_far_and_a_second_one_stops_the_caller(
        number, at, looks):
    """Real signals while networks are trained; a width of which one is lacking does not count."""
    calls: list[Widths] = []

    def score(widths: Widths, number_of_network: int) -> np.ndarray:
        calls.append(widths)
        if len(calls) == at:
            signal.raise_signal(number)
        return scores_of(saturating(widths))

    before = {each: signal.signal(each, signal.default_int_handler if each == signal.SIGINT
                                  else signal.SIG_DFL) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(Stopped), handle_signals():
            result = search_widths(score, [64], [40], margin=MARGIN, runs=12,
                                   baseline=[scores_of(saturating([64]))] * 5)
            assert (number, result.stopped, len(calls)) == (signal.SIGINT, "interrupted", at)
            assert result.looks == looks and result.widths == ((40,) if looks else (64,))
            assert result.note.startswith(f"stopped after {looks} of 11 widths; smaller ones were")
            signal.raise_signal(number)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert len(calls) == at


def test_no_widths_below_ones_that_failed_are_tried():
    result, _ = searched([32, 32], [16, 16], runs=24, cost=lambda widths: widths[0] * widths[1])
    failed: list[Widths] = []
    for trial in result.trials:
        assert not any(trial.widths[0] <= a and trial.widths[1] <= b for a, b in failed)
        if not trial.holds:
            failed.append(trial.widths)
    assert failed


def test_layers_of_different_use_move_apart():
    result, trained = searched([32, 32], [16, 16], runs=24,
                               cost=lambda widths: widths[0] * widths[1])
    best = next(trial for trial in result.trials if trial.widths == result.widths)
    needed = next(width for width in range(1, 33)
                  if saturating([width]) >= saturating([32]) - MARGIN)
    assert best.holds and best.widths[1] <= 2, "of the second one unit is enough"
    assert best.widths[0] <= FINE**2 * needed
    assert len({widths for widths, _ in trained}) <= 16


def test_where_nothing_holds_the_original_stays():
    result, _ = searched([16], [8], lambda widths: 0.9 if widths == (16,) else 0.5)
    assert result.widths == (16,)
    assert result.note.startswith("nearest came ") and "tell little" not in result.note
    result = search_widths(lambda widths, number: np.arange(100) < 90, [16], [8],
                           baseline=[np.arange(100) < 95] * 5, margin=MARGIN)
    assert result.widths == (16,) and "nearest came " in result.note
    assert "100 validation examples tell little at this margin: it takes at least 189" \
        in result.note


def test_widths_of_one_leave_nothing_to_search():
    result, _ = searched([1], [1])
    assert (result.widths, result.looks, result.stopped) == ((1,), 0, "converged")


@pytest.mark.parametrize(("change", "message"), [
    ({"runs": 1}, "runs: expected at least 2, the original's and a candidate's, but got 1"),
    ({"seconds": 0}, "seconds: expected a number above 0, but got 0"),
    ({"suggestion": [65]}, r"suggestion: expected 1 widths of .* \(64\), but got 65"),
    ({"suggestion": [0]}, "suggestion: expected 1 widths of at least 1 .*, but got 0"),
    ({"suggestion": [3, 3]}, "suggestion: expected 1 widths .*, but got 3,3"),
    ({"margin": 1.0}, r"margin: expected a number in \[0, 1\), but got 1.0"),
    ({"confidence": 1.0}, r"confidence: expected a number in \(0, 1\), but got 1.0"),
    ({"baseline": [[np.nan, 1.0]]}, "baseline: expected finite scores .*, but got NaN or infinity"),
    ({"baseline": [1.0]}, r"baseline: expected finite scores .*, but got \(1, 1\)"),
    ({"score": lambda widths, number: np.ones(3)},
     r"score: expected the shape \(1000,\) for the widths 32 too, but got \(3,\)"),
    ({"score": lambda widths, number: np.ones(EXAMPLES) * np.nan},
     "score: expected finite scores for the widths 32, but got NaN or infinity")])
def test_bad_input_is_one_line(change, message):
    options: dict[str, Any] = {"score": lambda widths, number: scores_of(saturating(widths)),
                               "suggestion": [32], "margin": MARGIN,
                               "baseline": scores_of(0.9), **change}
    with pytest.raises(ValueError, match=f"^{message}$"):
        search_widths(original=[64], **options)


def test_the_most_seeds_are_trained_where_it_stays_open():
    """Networks that lie alternately above and below the limit, which is 0."""
    result = search_widths(
        lambda widths, number: scores_of(0.9501 + (0.03, -0.03)[number % 2]), [8], [4],
        baseline=[scores_of(0.95 + each) for each in (-0.03, 0.03, 0, -0.03, 0.03)],
        margin=MARGIN, runs=2)
    assert result.trials[1].seeds == MOST_SEEDS


@pytest.mark.parametrize(("multiples", "suggestion"), [
    ((8, 1), (136, 20)), ((16, 8), (80, 40)), ((7, 100), (70, 30)), ((8, 8), (200, 90))])
@pytest.mark.parametrize("most", [24, 70, 130])
def test_above_64_units_only_multiples_are_tried(multiples, suggestion, most):
    """The original's own widths, and the suggestion's, aside."""
    def needs(widths):
        return 0.95 - 0.5 * math.exp(-widths[0] * 4 / most)

    original = (200, 90)
    result, calls = searched(original, suggestion, needs, multiples=multiples)
    tried = {widths for widths, _ in calls} - {suggestion}
    assert len(tried) > 2
    for widths in tried:
        for width, units, multiple in zip(widths, original, multiples, strict=True):
            assert width <= 64 or width % multiple == 0 or width == units
    assert result.widths in tried | {suggestion, original}
    assert len({trial.widths for trial in result.trials}) == len(result.trials)


def test_widths_that_are_widened_are_multiples_too():
    result, calls = searched((100,), (50,), lambda widths: 0.95 if widths[0] >= 97 else 0.5,
                             multiples=(8,), widen=1.5)
    assert list(dict.fromkeys(widths for widths, _ in calls)) == [(50,), (80,)]
    assert result.widths == (100,)
