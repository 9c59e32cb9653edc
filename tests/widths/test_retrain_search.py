"""The search over widths: against brute force with the same verdicts, within its budgets."""

from __future__ import annotations

import json
import logging
import math
import signal
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optuna
import pytest
from torch import nn

from tests.networks import kept_streams, snapshot
from wua_mlflow.signals import Stopped, handle_signals
from wua_mlflow.verdict.compare import compare
from wua_mlflow.widths.results import SearchResult
from wua_mlflow.widths.retrain_search import search_widths

EXAMPLES = 1000
Widths = tuple[int, ...]


def scores_of(accuracy: float, seeds: int = 1) -> np.ndarray:
    """Scores of that accuracy, the same examples wrong first, shape (examples,) or more seeds'."""
    scores = np.arange(EXAMPLES) < round(accuracy * EXAMPLES)
    return scores if seeds == 1 else np.stack([scores] * seeds)


def saturating(widths: Sequence[int]) -> float:
    """The first layer must stay near 24; of a second one unit is enough."""
    return 0.95 - 0.5 * math.exp(-widths[0] / 6)


def searched(
    original: Sequence[int], suggestion: Sequence[int],
    accuracy: Callable[[Widths], float] = saturating, *, seeds: int = 1, **options: Any,
) -> tuple[SearchResult, list[Widths]]:
    """The result, and the widths that were trained."""
    calls: list[Widths] = []

    def score(widths: Widths) -> np.ndarray:
        calls.append(widths)
        return scores_of(accuracy(widths), seeds)

    return search_widths(score, original, suggestion, **{"margin": 0.02, **options}), calls


def brute_force(most: int, seeds: int = 1) -> int:
    """The smallest width that is as good as ``most``."""
    whole = scores_of(saturating([most]), seeds)
    return next(width for width in range(1, most + 1) if compare(
        whole, scores_of(saturating([width]), seeds), margin=0.02).outcome == "non_inferior")


@pytest.mark.parametrize(("suggestion", "seeds"), [(64, 1), (40, 1), (13, 5), (2, 1), (1, 1)])
def test_one_width_is_what_brute_force_finds(suggestion, seeds):
    result, trained = searched([64], [suggestion], seeds=seeds)
    assert result.widths == (brute_force(64, seeds),) and result.stopped == "converged"
    assert result.looks == len(result.trials) - 1 <= 2 + math.ceil(math.log2(65))
    assert trained[:2] == [(64,), (suggestion,)] or suggestion == 64
    assert len(set(trained)) == len(trained) == len(result.trials)
    table, values = result.table(), json.loads(result.to_json())
    assert "| 64 | 64 | 0.9500 | +0.0000 (+0.0000 to +0.0000) | original |" in table
    assert len(table.splitlines()) == 2 + len(result.trials)
    assert (values["widths"], values["looks"]) == (list(result.widths), result.looks)


@pytest.mark.parametrize("runs", [2, 3, 5])
def test_the_budget_in_runs_is_kept(runs):
    result, trained = searched([64], [60], runs=runs)
    assert (len(trained), result.stopped) == (runs, "budget") and result.widths != (64,)


@pytest.mark.parametrize(("seconds", "looks"), [(25, 2), (1, 1)])
def test_the_budget_in_seconds_is_kept_once_a_candidate_was_tried(seconds, looks):
    now = [0.0]

    def score(widths: Widths) -> np.ndarray:
        now[0] += 10
        return scores_of(saturating(widths))

    result = search_widths(score, [64], [32], margin=0.02, seconds=seconds, clock=lambda: now[0])
    assert (now[0], result.looks, result.stopped) == (10.0 * (looks + 1), looks, "budget")
    assert looks > 1 or result.widths == (32,)


@pytest.mark.parametrize(("options", "note"), [
    ({"runs": 2}, "stopped after 1 of 1 width; smaller ones were not tried"),
    ({"runs": 12, "seconds": 1e-9}, "stopped after 1 of 11 widths; smaller ones were not tried"),
    ({"runs": 12}, "")])
def test_a_search_cut_short_says_what_was_not_tried(options, note):
    assert searched([64], [60], **options)[0].note == note
    both = searched([8, 8], [4, 4], lambda widths: 0.95 if min(widths) > 2 else 0.5, runs=6)[0]
    assert both.note == "stopped after 5 of 5 widths; other combinations of them were not tried"


@pytest.mark.parametrize(("number", "at"), [
    (signal.SIGINT, 2), (signal.SIGINT, 3), (signal.SIGINT, 1), (signal.SIGTERM, 3)])
def test_ctrl_c_ends_the_search_with_the_best_so_far_and_a_second_one_stops_the_caller(number, at):
    """Real signals while networks are trained; the original's training cannot be done without."""
    calls: list[Widths] = []

    def score(widths: Widths) -> np.ndarray:
        calls.append(widths)
        if len(calls) == at:
            signal.raise_signal(number)
        return scores_of(saturating(widths))

    before = {each: signal.signal(each, signal.default_int_handler if each == signal.SIGINT
                                  else signal.SIG_DFL) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(Stopped), handle_signals():
            result = search_widths(score, [64], [32], margin=0.02, runs=12)
            assert (number, result.stopped, len(calls)) == (signal.SIGINT, "interrupted", at)
            assert result.looks == at - 2 and result.widths == ((64,) if at == 2 else (32,))
            assert result.note.startswith(f"stopped after {at - 2} of 11 widths; smaller ones were")
            signal.raise_signal(number)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert len(calls) == at


def test_no_widths_below_ones_that_failed_are_tried():
    result, trained = searched([32, 32], [16, 16], runs=24,
                               cost=lambda widths: widths[0] * widths[1])
    failed: list[Widths] = []
    for trial in result.trials:
        assert not any(trial.widths[0] <= a and trial.widths[1] <= b for a, b in failed)
        if trial.outcome not in ("original", "non_inferior"):
            failed.append(trial.widths)
    assert len(failed) >= 3 and len(trained) < 24, "what is left is below those"


def test_layers_of_different_use_move_apart():
    needed = brute_force(32)
    result, trained = searched([32, 32], [16, 16], runs=24,
                               cost=lambda widths: widths[0] * widths[1])
    best = next(trial for trial in result.trials if trial.widths == result.widths)
    assert needed <= best.cost <= 1.2 * needed < needed**2, "the path alone costs the square"
    assert best.outcome == "non_inferior"
    assert len(trained) <= 24


def test_the_same_seed_gives_the_same_search_in_silence_and_no_global_stream_moves(caplog):
    level = optuna.logging.get_verbosity()
    optuna.logging.enable_propagation()
    try:
        with caplog.at_level(logging.INFO), kept_streams():
            before = snapshot(nn.Identity())
            results = [searched([32, 32], [16, 16], runs=9, seed=3)[0] for _ in range(2)]
            assert snapshot(nn.Identity()) == before
    finally:
        optuna.logging.disable_propagation()
    assert results[0] == results[1]
    assert [record for record in caplog.records if record.name.startswith("optuna")] == []
    assert optuna.logging.get_verbosity() == level


def test_a_lucky_narrow_network_under_a_failing_wider_one_is_not_chosen():
    """Bisection: 32 holds, 8 fails clearly, 16 holds; 4 would hold again, and is never trusted."""
    accuracy = {64: 0.95, 32: 0.95, 4: 0.95}
    result, _ = searched([64], [4], lambda widths: accuracy.get(widths[0], 0.6), runs=12)
    failing = [trial.widths[0] for trial in result.trials if trial.outcome == "inferior"]
    assert not failing or result.widths[0] > max(failing)


def test_where_nothing_holds_the_original_stays():
    result, _ = searched([16], [8], lambda widths: 0.9 if widths == (16,) else 0.5)
    assert result.widths == (16,)
    assert result.note.startswith("nearest came ") and "show nothing" not in result.note
    small = {"score": lambda widths: np.arange(100) < 95, "original": [16], "suggestion": [8],
             "margin": 0.02}
    result = search_widths(**small)
    assert result.widths == (16,) and "nearest came " in result.note
    assert "100 validation examples show nothing at this margin: it takes at least 189" \
        in result.note
    assert search_widths(**small, rule="mean").widths == (1,)


def test_widths_of_one_leave_nothing_to_search():
    result, _ = searched([1], [1])
    assert (result.widths, result.looks, result.stopped) == ((1,), 0, "converged")


@pytest.mark.parametrize(("change", "message"), [
    ({"runs": 1}, "runs: expected at least 2, the original's and a candidate's, but got 1"),
    ({"seconds": 0}, "seconds: expected a number above 0, but got 0"),
    ({"suggestion": [65]}, r"suggestion: expected 1 widths of .* \(64\), but got 65"),
    ({"suggestion": [0]}, "suggestion: expected 1 widths of at least 1 .*, but got 0"),
    ({"suggestion": [3, 3]}, "suggestion: expected 1 widths .*, but got 3,3"),
    ({"rule": "best"}, "rule: expected non_inferior or mean, but got 'best'"),
    ({"margin": 1.0}, r"margin: expected a number in \[0, 1\), but got 1.0"),
    ({"confidence": 1.0}, r"confidence: expected a number in \(0, 1\), but got 1.0"),
    ({"score": lambda widths: np.ones(4 if widths == (64,) else 3)},
     r"score: expected the shape \(4,\) for the widths 32 too, but got \(3,\)"),
    ({"score": lambda widths: np.ones(4) * (1 if widths == (64,) else np.nan)},
     "score: expected finite scores for the widths 32, but got NaN or infinity")])
def test_bad_input_is_one_line(change, message):
    options: dict[str, Any] = {"score": lambda widths: scores_of(saturating(widths)),
                               "suggestion": [32], "margin": 0.02, **change}
    with pytest.raises(ValueError, match=f"^{message}$"):
        search_widths(original=[64], **options)
