"""The search over widths: against brute force with the same verdicts, within its budgets."""

from __future__ import annotations

import json
import logging
import math
import random
from collections.abc import Callable, Sequence

import numpy as np
import optuna
import pytest
import torch

from wua_mlflow.verdict.compare import compare
from wua_mlflow.widths.retrain_search import search_widths

EXAMPLES = 1000


def scoring(accuracy: Callable[[tuple[int, ...]], float], *, seeds: int = 1) -> Callable:
    """Scores of that accuracy, the same examples wrong first; counts what it was asked for."""
    calls: list[tuple[int, ...]] = []

    def score(widths: tuple[int, ...]) -> np.ndarray:
        calls.append(widths)
        right = np.arange(EXAMPLES) < round(accuracy(widths) * EXAMPLES)
        return right if seeds == 1 else np.stack([right] * seeds)

    score.calls = calls  # type: ignore[attr-defined]
    return score


def saturating(widths: Sequence[int]) -> float:
    return 0.95 - 0.5 * math.exp(-widths[0] / 6)


@pytest.mark.parametrize("suggestion", [64, 40, 13, 2, 1])
@pytest.mark.parametrize("seeds", [1, 5])
def test_one_width_is_what_brute_force_finds(suggestion: int, seeds: int) -> None:
    score = scoring(saturating, seeds=seeds)
    found = search_widths(score, [64], [suggestion], margin=0.02)
    whole = score((64,))
    smallest = next(width for width in range(1, 65)
                    if compare(whole, score((width,)), margin=0.02).outcome == "non_inferior")
    assert found.widths == (smallest,)
    assert found.stopped == "converged"
    assert found.looks == len(found.trials) - 1 <= 2 + math.ceil(math.log2(65))
    trained = score.calls[:len(found.trials)]  # type: ignore[attr-defined]
    assert trained[:2] == [(64,), (suggestion,)] or suggestion == 64
    assert len(set(trained)) == len(trained)


@pytest.mark.parametrize("runs", [2, 3, 5])
def test_the_budget_in_runs_is_kept(runs: int) -> None:
    score = scoring(saturating)
    found = search_widths(score, [64], [60], margin=0.02, runs=runs)
    assert len(score.calls) == runs  # type: ignore[attr-defined]
    assert found.stopped == "budget"
    assert found.widths != (64,)


def test_the_budget_in_seconds_is_kept_once_a_candidate_was_tried() -> None:
    now = [0.0]

    def score(widths: tuple[int, ...]) -> np.ndarray:
        now[0] += 10
        return scoring(saturating)(widths)

    found = search_widths(score, [64], [32], margin=0.02, seconds=25, clock=lambda: now[0])
    assert (now[0], found.looks, found.stopped) == (30.0, 2, "budget")
    now[0] = 0.0
    found = search_widths(score, [64], [32], margin=0.02, seconds=1, clock=lambda: now[0])
    assert (found.looks, found.widths) == (1, (32,)), "one candidate is always tried"


def useful_first(widths: Sequence[int]) -> float:
    """The first layer must stay near 24; of the second one unit is enough."""
    return 0.95 - 0.5 * math.exp(-widths[0] / 6)


def test_layers_of_different_use_move_apart() -> None:
    whole = scoring(useful_first)((32, 32))
    needed = next(width for width in range(1, 33) if compare(
        whole, scoring(useful_first)((width, width)), margin=0.02).outcome == "non_inferior")
    found = search_widths(scoring(useful_first), [32, 32], [16, 16], margin=0.02, runs=40,
                          cost=lambda widths: widths[0] * widths[1])
    best = next(trial for trial in found.trials if trial.widths == found.widths)
    assert needed <= best.cost <= 1.2 * needed < needed**2, "the path alone costs the square"
    assert best.outcome == "non_inferior"
    assert len(found.trials) <= 40


def test_the_same_seed_gives_the_same_search_in_silence_and_no_global_stream_moves(
    caplog: pytest.LogCaptureFixture,
) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    level = optuna.logging.get_verbosity()
    optuna.logging.enable_propagation()
    try:
        with caplog.at_level(logging.INFO):
            results = [search_widths(scoring(useful_first), [32, 32], [16, 16], margin=0.02,
                                     runs=12, seed=3) for _ in range(2)]
    finally:
        optuna.logging.disable_propagation()
    assert results[0] == results[1]
    assert [record for record in caplog.records if record.name.startswith("optuna")] == []
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]
    assert optuna.logging.get_verbosity() == level


def test_a_lucky_narrow_network_under_a_failing_wider_one_is_not_chosen() -> None:
    """Bisection: 32 holds, 8 fails clearly, 16 holds; 4 would hold again, and is never trusted."""
    accuracy = {64: 0.95, 32: 0.95, 4: 0.95}
    found = search_widths(scoring(lambda widths: accuracy.get(widths[0], 0.6)), [64], [4],
                          margin=0.02, runs=12)
    tried = {trial.widths[0]: trial.outcome for trial in found.trials}
    below = [width for width, outcome in tried.items() if outcome == "inferior"]
    assert not below or found.widths[0] > max(below)


def test_a_validation_part_that_is_too_small_is_said() -> None:
    def score(widths: tuple[int, ...]) -> np.ndarray:
        return np.arange(100) < 95

    found = search_widths(score, [16], [8], margin=0.02)
    assert found.widths == (16,)
    assert "100 validation examples show nothing at this margin: it takes at least 189" \
        in found.note
    assert "nearest came " in found.note
    assert search_widths(score, [16], [8], margin=0.02, rule="mean").widths == (1,)


def test_where_nothing_holds_the_original_stays() -> None:
    found = search_widths(scoring(lambda widths: 0.9 if widths == (16,) else 0.5), [16], [8],
                          margin=0.02)
    assert found.widths == (16,)
    assert found.note.startswith("nearest came ")


def test_widths_of_one_leave_nothing_to_search() -> None:
    found = search_widths(scoring(saturating), [1], [1], margin=0.02)
    assert (found.widths, found.looks, found.stopped) == ((1,), 0, "converged")


def test_table_and_json() -> None:
    found = search_widths(scoring(saturating), [64], [32], margin=0.02)
    assert "| 64 | 64 | 0.9500 | +0.0000 (+0.0000 to +0.0000) | original |" in found.table()
    assert len(found.table().splitlines()) == 2 + len(found.trials)
    values = json.loads(found.to_json())
    assert (values["widths"], values["looks"]) == (list(found.widths), found.looks)


@pytest.mark.parametrize(("change", "message"), [
    ({"runs": 1}, "runs: expected at least 2, the original's and a candidate's, but got 1"),
    ({"seconds": 0}, "seconds: expected a number above 0, but got 0"),
    ({"suggestion": [65]}, r"suggestion: expected 1 widths of .* \(64\), but got 65"),
    ({"suggestion": [0]}, "suggestion: expected 1 widths of at least 1 .*, but got 0"),
    ({"suggestion": [3, 3]}, "suggestion: expected 1 widths .*, but got 3,3"),
    ({"rule": "best"}, "rule: expected non_inferior or mean, but got 'best'"),
    ({"margin": 1.0}, r"margin: expected a number in \[0, 1\), but got 1.0"),
    ({"confidence": 1.0}, r"confidence: expected a number in \(0, 1\), but got 1.0"),
])
def test_bad_input_is_one_line(change: dict, message: str) -> None:
    given = {"suggestion": [32], "margin": 0.02, **change}
    with pytest.raises(ValueError, match=f"^{message}$"):
        search_widths(scoring(saturating), [64], given.pop("suggestion"), **given)


@pytest.mark.parametrize(("scores", "message"), [
    (np.ones(3), r"score: expected the shape \(4,\) for the widths 32 too, but got \(3,\)"),
    (np.array([1, 1, 1, np.nan]), "score: expected finite scores for the widths 32, but got NaN"),
])
def test_scores_that_do_not_fit_are_named(scores: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        search_widths(lambda widths: np.ones(4) if widths == (64,) else scores, [64], [32],
                      margin=0.02)
