"""The sentences on budgets, against sentences written by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from wua_mlflow.verdict.budgets import TrainingSummary, budget_sentences

BIG, SLIM = (TrainingSummary(epochs, epochs, score, 10, 594)
             for epochs, score in ((40, 0.97), (60, 0.9752)))
CONTROL = TrainingSummary(60, 60, 0.98, 1, 594)
SCRATCH = TrainingSummary(40, 40, 0.9712, 10, 594)
UNEQUAL = "Budgets differ: the original trained for 40 epochs, the slim one for 60 epochs."
CONTROL_SCORES = (" for 60 epochs too, the original scores 0.9800 with its one seed; the slim one "
                  "is 0.5 points below that.")
SCRATCH_SCORES = (" for 40 epochs (Scratch-E, Liu et al. 2019) a network scores 0.9712 on average "
                  "over 10 seeds; the pruned one is 0.4 points above that.")


@pytest.mark.parametrize(("original", "slim", "options", "sentences"), [
    (BIG, SLIM, {}, UNEQUAL),
    (BIG, SLIM, {"same_budget": CONTROL}, f"{UNEQUAL} Trained{CONTROL_SCORES}"),
    (BIG, SLIM, {"same_budget": CONTROL, "judged": "95% interval −2.0 to +1.0: inconclusive"},
     f"{UNEQUAL} Trained{CONTROL_SCORES[:-1]} (95% interval −2.0 to +1.0: inconclusive)."),
    (BIG, replace(SLIM, epochs=70), {"same_budget": CONTROL},
     "Budgets differ: the original trained for 40 epochs, the slim one for at most 70 epochs "
     "(stopped after 60)."),
    (BIG, SLIM, {"same_budget": CONTROL, "from_scratch": SCRATCH},
     f"{UNEQUAL} Trained{CONTROL_SCORES} From scratch at these widths{SCRATCH_SCORES}"),
    (BIG, replace(SLIM, epochs=40, epochs_trained=40), {}, ""),
    (BIG, replace(SLIM, epochs=40, epochs_trained=40),
     {"from_scratch": replace(SCRATCH, parameters=2834)},
     "From scratch at the nearest widths that the factory can make (2,834 parameters, not 594)"
     f"{SCRATCH_SCORES}"),
    (replace(BIG, pretrained=True), SLIM, {"same_budget": CONTROL, "trained_on": True},
     "The original was trained elsewhere, so nothing is known of its budget. Trained on"
     f"{CONTROL_SCORES}"),
])
def test_budgets(original, slim, options, sentences):
    assert budget_sentences(original, slim, "accuracy", **options) == sentences


def test_budgets_of_a_regression():
    assert "the slim one is 0.005 below that." in budget_sentences(
        BIG, SLIM, "R²", same_budget=CONTROL)
