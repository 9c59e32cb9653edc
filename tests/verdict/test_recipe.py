"""The recipe verdict's interval: collapses, one given network, looks."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from wua_mlflow.verdict import intervals
from wua_mlflow.verdict.bootstrap import bootstrap_t_interval
from wua_mlflow.verdict.compare import compare
from wua_mlflow.verdict.looks import planned_looks
from wua_mlflow.verdict.recipe import recipe_interval
from wua_mlflow.verdict.text import seeds_text

PLAN = planned_looks(20)


def scores_of(rng, seeds, examples=400, *, delta=0.0, by_seed=0.01, by_example=0.05):
    """Scores of a baseline and a candidate, whose means differ by ``delta``."""
    common, sides = rng.normal(0.9, 0.2, examples), []
    for size, shift in zip(seeds, (0.0, delta), strict=True):
        sides.append(common + shift + rng.normal(0, by_seed, (size, 1))
                     + rng.normal(0, by_example, examples) + rng.normal(0, 0.1, (size, examples)))
    return sides


def test_collapsed_seeds_are_counted_and_left_out():
    base, cand = scores_of(np.random.default_rng(0), (10, 10))
    whole = compare(base, cand, margin=0.03)
    broken = cand.copy()
    broken[[2, 7]] -= 0.5
    verdict = compare(base, broken, margin=0.03)
    rest = compare(base, np.delete(broken, [2, 7], axis=0), margin=0.03)
    assert (verdict.delta, verdict.low, verdict.high) == (rest.delta, rest.low, rest.high)
    assert whole.counts.collapsed == 0
    assert (verdict.counts.collapsed, verdict.counts.baseline_collapsed) == (2, 0)
    exact = stats.binomtest(2, 10).proportion_ci(0.95, method="exact")
    assert (verdict.counts.collapse_low, verdict.counts.collapse_high) == pytest.approx(exact)
    assert verdict.sentence.endswith("; 2 of its 10 seeds collapsed (0 of 10 of the original's) "
                                     "and are not in the average; up to 56% of seeds could.")
    assert whole.sentence.endswith("; none of its 10 seeds collapsed, but up to 31% of seeds "
                                   "could.")
    original = compare(broken, base, margin=0.03)
    assert (original.counts.collapsed, original.counts.baseline_collapsed) == (0, 2)
    assert original.delta == pytest.approx(-verdict.delta)


def test_too_few_seeds_that_did_not_collapse_are_no_evidence():
    base, cand = scores_of(np.random.default_rng(0), (5, 5), 2000)
    assert compare(base, cand, margin=0.03).outcome == "non_inferior"
    cand[0] -= 0.5
    verdict = compare(base, cand, margin=0.03)
    assert verdict.low > -0.03
    assert verdict.outcome == "inconclusive"
    assert verdict.settle.startswith("Fewer than 5 seeds of a side are left")


@pytest.mark.parametrize(("collapsed", "most", "outcome"), [
    (0, None, "non_inferior"), (0, 0.2, "non_inferior"), (0, 0.1, "inconclusive"),
    (8, None, "non_inferior"), (8, 0.2, "inconclusive"), (8, 0.1, "inferior")])
def test_share_of_collapses_that_is_accepted(collapsed, most, outcome):
    """Of none in 20 seeds up to 16.8% could collapse; of 8 at least 19.1% do."""
    base, cand = scores_of(np.random.default_rng(1), (20, 20))
    cand[:collapsed] -= 0.5
    verdict = compare(base, cand, margin=0.03, max_collapse=most)
    assert verdict.outcome == outcome
    if collapsed == 0 and most == 0.1:
        assert verdict.settle == ("Of its seeds none collapsed, but that at most 10% of all do "
                                  "takes 36 seeds without a collapse.")


def test_one_given_network_has_no_spread_between_seeds():
    base, cand = scores_of(np.random.default_rng(0), (10, 10))
    alone = compare(base[0], cand, margin=0.03)
    assert alone.kind == "recipe"
    assert alone.counts.baseline == 1
    assert "(the slim model trained with 10 seeds, against this network, 400" in alone.sentence
    parts = intervals.crossed(base[:1], cand)
    assert parts.baseline.seed_means_variance == 0
    assert alone.high - alone.delta == pytest.approx(parts.half_width(0.95))


def test_other_numbers_of_seeds_on_the_two_sides():
    base, cand = scores_of(np.random.default_rng(0), (10, 20))
    verdict = compare(base, cand, margin=0.03)
    assert (verdict.seeds, verdict.counts.baseline) == (20, 10)
    assert "(the slim model trained with 20 seeds, the original with 10, 400" in verdict.sentence


def test_the_order_of_the_seeds_does_not_matter():
    """They are not paired."""
    rng = np.random.default_rng(0)
    base, cand = scores_of(rng, (8, 8))
    first, other = (compare(base, cand[order], margin=0.03)
                    for order in (np.arange(8), rng.permutation(8)))
    assert (other.low, other.high) == pytest.approx((first.low, first.high))


def test_an_early_look_needs_more_and_the_last_little_more_than_a_fixed_number():
    base, cand = scores_of(np.random.default_rng(0), (20, 20), by_example=0.0)

    def width(seeds, plan=tuple((look, look) for look in PLAN)):
        interval = recipe_interval(base[:seeds], cand[:seeds], margin=0.02, confidence=0.95,
                                   planned=plan)
        return interval.high - interval.low

    early, last = (width(seeds) / width(seeds, None) for seeds in (5, 20))
    assert early > 2
    assert 1.0 < last < 1.1
    verdict = compare(base[:5], cand[:5], margin=0.02, planned_seeds=PLAN)
    assert (verdict.counts.look, verdict.counts.looks) == (1, 5)
    assert "400 test examples, look 1 of at most 5): on average" in verdict.sentence
    assert 0 < verdict.counts.chance_to_settle < 1
    assert compare(base, cand, margin=0.02, planned_seeds=PLAN).counts.chance_to_settle is None


def test_a_candidate_whose_seeds_are_all_there_while_the_baselines_are_added():
    """Looks at pairs of numbers; seeds that are not in the interval count among the collapses."""
    base, cand = scores_of(np.random.default_rng(0), (20, 20), by_example=0.0)
    plan = [(10, 5), (16, 8), (20, 12), (20, 20)]
    looks = [compare(base[:old], cand, margin=0.02, planned_seeds=plan,
                     compared_seeds=new).counts for new, old in plan]
    assert [counts.look for counts in looks] == [1, 2, 3, 4]
    assert [(counts.candidate, counts.compared) for counts in looks] == [
        (20, 10), (20, 16), (20, None), (20, None)]
    first = compare(base[:5], cand, margin=0.02, planned_seeds=plan, compared_seeds=10)
    alone = compare(base[:5], cand[:10], margin=0.02, planned_seeds=plan)
    assert (first.low, first.high, first.seeds) == (alone.low, alone.high, 10)
    assert "with 10 seeds, the original with 5, 400" in first.sentence
    assert "none of its 20 seeds collapsed, but up to 17% of seeds could" in first.sentence
    collapsed = cand.copy()
    collapsed[15] -= 0.5
    seen = compare(base[:5], collapsed, margin=0.02, planned_seeds=plan, compared_seeds=10)
    assert (seen.low, seen.high, seen.outcome) == (first.low, first.high, first.outcome)
    assert "1 of its 20 seeds collapsed" in seen.sentence and seen.counts.compared == 10


@pytest.mark.parametrize(("seeds", "options", "message"), [
    (6, {"planned_seeds": PLAN}, "planned_seeds: expected the candidate's number of seeds among "
                                 "the looks planned (5, 8, 12, 16, 20), but it has 6"),
    (1, {"planned_seeds": PLAN}, "planned_seeds: expected the candidate's number of seeds among "
                                 "the looks planned (5, 8, 12, 16, 20), but it has 1"),
    *((8, {"planned_seeds": plan}, "planned_seeds: expected ascending whole numbers of at least 5, "
                                   f"or pairs of them, but got {plan!r}")
      for plan in ([], [8, 5], [4, 8], [5, 5, 8], [5.0, 8.0], ["5", "8"], "8", 8, [True, 8],
                   [(8, 4)], [8, (8, 8)], [(8, 8), (8, 8)], [(9, 5), (8, 8)], [(8, 8, 8)])),
    (8, {"planned_seeds": [(8, 5), (8, 12)]}, "planned_seeds: expected the candidate's number of "
     "seeds among the looks planned ((8, 5), (8, 12)), but it has 8 beside the baseline's 8"),
    (8, {"compared_seeds": 9}, "compared_seeds: expected at most the candidate's 8, but got 9"),
    (8, {"compared_seeds": 4}, "compared_seeds: expected a whole number of at least 5, but got 4"),
    (1, {"compared_seeds": 5}, "compared_seeds: expected at most the candidate's 1, but got 5"),
    (1, {"max_collapse": 0.1}, "max_collapse: expected scores of several seeds beside it, but the "
                               "candidate has one"),
    (8, {"screened": 0}, "screened: expected a whole number of at least 1, but got 0"),
    (8, {"screened": 1.5}, "screened: expected a whole number of at least 1, but got 1.5"),
    (8, {"beyond_plan": -1}, "beyond_plan: expected a whole number of at least 0, but got -1"),
    (8, {"beyond_plan": 8}, "beyond_plan: expected fewer than the candidate's 8 seeds, but got 8"),
    (8, {"max_collapse": 0}, "max_collapse: expected a number in (0, 1), but got 0"),
])
def test_plans_and_shares_that_are_none(seeds, options, message):
    base, cand = scores_of(np.random.default_rng(0), (seeds, seeds))
    with pytest.raises(ValueError) as raised:
        compare(base, cand, margin=0.02, **options)
    assert str(raised.value) == message


def test_identical_sides_at_a_look():
    """No variance at all: nothing to predict, and the examples bound the interval."""
    ones = np.ones((5, 500))
    verdict = compare(ones, ones, margin=0.02, planned_seeds=PLAN)
    assert verdict.outcome == "non_inferior"
    assert verdict.low == pytest.approx(-intervals.zero_event_limit(500, confidence=0.95))


@pytest.mark.parametrize(("seeds", "planned"), [((5, 5), None), ((5, 10), None), ((20, 20), PLAN)])
def test_false_claims_at_minus_the_margin_are_few(seeds, planned):
    """60 to 200 trials, nominal 2.5%; at looks a claim at any of them counts."""
    rng, claims, trials = np.random.default_rng(7), 0, 60 if planned else 200
    for _ in range(trials):
        base, cand = scores_of(rng, seeds, 100, delta=-0.02, by_example=0.03)
        sizes = seeds[1:] if planned is None else planned
        claims += any(compare(base[:size] if planned else base, cand[:size], margin=0.02,
                              planned_seeds=planned).outcome == "non_inferior" for size in sizes)
    assert claims / trials < 0.05


def test_the_examples_part_of_r2_reaches_as_far_as_the_bootstrap_t():
    """Ten seeds that agree, and losses in a few large errors: the lower quantile is far out."""
    rng = np.random.default_rng(3)
    targets, scales = rng.normal(size=60), np.exp(1.2 * rng.normal(size=60))
    errors = [0.2 * scales * rng.normal(size=60) * factor + 0.001 * rng.normal(size=(10, 60))
              for factor in (1.0, 1.5)]
    old, new = (1 - each**2 / targets.var() for each in errors)
    found = recipe_interval(old, new, margin=0.0, confidence=0.95, targets=targets, seed=4)
    differences = new.mean(axis=0) - old.mean(axis=0)
    low, high = bootstrap_t_interval(differences, confidence=0.95, seed=4, targets=targets)
    unseen = intervals.unseen_examples(np.concatenate([old, new]))
    influences = differences - differences.mean() * intervals.excess_spread(targets)
    factor = np.sqrt(1 + unseen / intervals.effective_examples(influences))
    mean, usual = found.parts.mean, 1.96 * influences.std(ddof=1) / 60**0.5
    assert mean - found.low == pytest.approx(factor * max(usual, mean - low), rel=0.01)
    assert found.high - mean == pytest.approx(factor * max(usual, high - mean), rel=0.01)
    plain = recipe_interval(old, new, margin=0.0, confidence=0.95)
    assert found.high - found.low > 1.2 * (plain.high - plain.low)


def test_seeds_beyond_the_plan_are_said_to_be_exploratory():
    """The figures are those of the looks that are named; the words are in every sentence."""
    base, cand = scores_of(np.random.default_rng(0), (12, 12))
    planned, verdict = (compare(base, cand, margin=0.03, planned_seeds=(5, 12), beyond_plan=beyond)
                        for beyond in (0, 7))
    assert (verdict.low, verdict.high, verdict.outcome) == (
        planned.low, planned.high, planned.outcome)
    assert "(both trained with 12 seeds, 400 test examples; exploratory: 7 seeds beyond the plan)" \
        in verdict.sentence
    assert verdict.headline.endswith("; 12 seeds, 7 of them exploratory)")
    assert seeds_text(verdict) == "12, 7 beyond the plan"
    assert "exploratory" not in planned.sentence + planned.headline
    assert seeds_text(planned) == "12"
    one = compare(base, cand, margin=0.03, beyond_plan=1)
    assert "exploratory: 1 seed beyond the plan" in one.sentence


@pytest.mark.parametrize(("screened", "limit"), [(1, 16.8), (4, 22.4), (12, 26.6)])
def test_the_limit_of_collapses_holds_for_all_widths_that_were_screened(screened, limit):
    """None of 20: 1 − (0.025 ÷ screened)^(1/20); nothing else changes."""
    base, cand = scores_of(np.random.default_rng(1), (20, 20))
    verdict = compare(base, cand, margin=0.03, screened=screened)
    alone = compare(base, cand, margin=0.03)
    assert (verdict.low, verdict.high, verdict.outcome) == (alone.low, alone.high, alone.outcome)
    assert 100 * verdict.counts.collapse_high == pytest.approx(limit, abs=0.05)
    assert verdict.counts.screened == screened
    words = f"could (a limit for all {screened} widths that were screened)." if screened > 1 else \
        "could."
    assert verdict.sentence.endswith(f"but up to {limit:.0f}% of seeds {words}")
    accepted = compare(base, cand, margin=0.03, screened=screened, max_collapse=0.2)
    assert (accepted.outcome == "non_inferior") == (limit < 20)
    if screened > 1:
        needed = int(accepted.settle.split("takes ")[1].split(" ")[0])
        assert (0.025 / screened) ** (1 / needed) >= 0.8 > (0.025 / screened) ** (1 / (needed - 1))
