"""Verdicts: is the candidate as good as the baseline, within a margin and at a confidence?

``compare`` takes per-example scores and gives a ``Verdict``. Definitions: ``docs/conventions.md``.
Tests: ``tests/verdict/test_compare.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wua_mlflow.display import Displayed, Summary
from wua_mlflow.verdict import intervals, sample_size, text
from wua_mlflow.verdict.bootstrap import inflated_bootstrap_t
from wua_mlflow.verdict.guards import Guarded, guarded
from wua_mlflow.verdict.inputs import (
    check_count,
    check_seed,
    checked_groups,
    checked_level,
    checked_plan,
    checked_r2_targets,
    checked_scores,
)
from wua_mlflow.verdict.predictions import Paired, checked_predictions, paired_scores
from wua_mlflow.verdict.recipe import METHOD, SeedCounts, collapse_confidence, recipe_interval
from wua_mlflow.verdict.sample_size import RequiredRange, RequiredSampleSize, check_share
from wua_mlflow.verdict.scores import EXAMPLE_MEANS, SCORES, by_group

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Scored", "Verdict", "compare"]


Floats = NDArray[np.float64]


class Scored(Protocol):
    """What ``compare`` accepts in place of an array: an object with per-example scores.

    It may also have ``digest``, a string that names the test set, and ``r2_targets``: the targets,
    shape (n,), of a regression whose scores are 1 − squared error ÷ their variance.
    """

    @property
    def scores(self) -> Any:
        """Shape (n,) or (seeds, n), higher is better."""


@dataclass(frozen=True, repr=False)
class Verdict(Displayed):
    """Whether a candidate is as good as a baseline, on the same test examples.

    Attributes:
        kind: ``artifact`` (two saved models) or ``recipe`` (both trained with several seeds).
        outcome: ``non_inferior`` if low > −margin, ``inferior`` if high < −margin, else
            ``inconclusive``; a recipe's also by its collapses.
        delta: candidate minus baseline, mean of the per-example difference, as a fraction.
        low: lower limit of the two-sided interval of ``delta``.
        high: its upper limit.
        margin: the loss that is accepted, as a fraction.
        confidence: of the interval.
        examples: number of test examples.
        seeds: the candidate's; 1 for an artifact.
        method: how the interval was made.
        score: the score's name in sentences.
        settle: where inconclusive, one sentence on what would settle it.
        needed: the numbers in it, where more examples or seeds would (``sample_size.py``).
        counts: of a recipe: both sides' seeds, those that collapsed, the looks.
        groups: number of groups, where examples of one group are one draw.
        baseline_score: of predictions, the score itself, the mean over seeds that did not collapse.
        candidate_score: the same.
        constant_score: of a constant answer on the same examples (``guards.py``).
        guard: why a guard lowered the outcome, a clause; "" where none did.
    """

    kind: str
    outcome: str
    delta: float
    low: float
    high: float
    margin: float
    confidence: float
    examples: int
    seeds: int
    method: str
    score: str
    settle: str | None
    counts: SeedCounts | None = None
    groups: int | None = None
    baseline_score: float | None = None
    candidate_score: float | None = None
    constant_score: float | None = None
    guard: str = ""
    needed: RequiredRange | None = None

    @property
    def sentence(self) -> str:
        """The verdict in one sentence; accuracies are in percentage points."""
        return text.verdict_sentence(self)

    @property
    def headline(self) -> str:
        """The verdict in a few words, with the difference, its interval and the margin."""
        return text.verdict_headline(self)

    def summary(self) -> Summary:
        """What is shown of it: the headline, a figure a row, what would settle it."""
        return Summary(self.headline, ("", ""), text.verdict_rows(self),
                       notes=[self.settle] if self.settle else [])

    def table(self) -> pd.DataFrame:
        """Its figures in one row, as fractions; rows of several verdicts stand one below another.
        """
        import pandas as pd

        names = ("outcome", "score", "delta", "low", "high", "margin", "confidence", "examples",
                 "seeds", "kind", "method", "baseline_score", "candidate_score", "groups")
        return pd.DataFrame([{name: getattr(self, name) for name in names}])


def compare(  # noqa: PLR0913 - what is compared, and how surely, each by name
    baseline: ArrayLike | Scored,
    candidate: ArrayLike | Scored,
    *,
    margin: float = 0.02,
    confidence: float = 0.95,
    score: str = "accuracy",
    seed: int = 0,
    planned_seeds: Sequence[int] | Sequence[tuple[int, int]] | None = None,
    compared_seeds: int | None = None,
    max_collapse: float | None = None,
    targets: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    class_margin: float | None = 0.10,
    classes: Sequence[Any] | None = None,
    screened: int = 1,
    beyond_plan: int = 0,
    constant: ArrayLike | None = None,
) -> Verdict:
    """Compare two models (artifact) or two recipes over seeds (recipe) on the same test examples.

    With ``targets`` the two are predictions, and ``score`` is computed: ``delta`` is the difference
    of scikit-learn's two values. Without them they are scores per example, higher is better: 1 or 0
    for right or wrong; for regression 1 − squared error / Var(y), whose mean is R² (Var(y) is
    taken as known, unless both are objects that know their ``r2_targets``). Of ``perplexity`` they
    are the tokens' log-likelihoods (``groups`` says of which sequences), of ``iou`` the images'.

    * shape (n,) or (1, n), all 0 or 1: Tango's score interval;
    * shape (n,) or (1, n), other values: paired bootstrap-t, 10,000 resamples;
    * shape (S, n), S ≥ 5: each side's own seeds, unpaired, crossed with the examples, Student's t;
      the two numbers of seeds at most a factor of two apart. A baseline of shape (n,) beside it is
      one given network, and the verdict is against that network.

    A score of predictions that is no mean of examples is taken as one, of its value plus each
    example's influence on it (``scores.py``). Where less is better (``rmse``, ``mae``,
    ``log_loss``, ``brier``) ``delta`` is 1 − candidate's ÷ baseline's value and the margin a share
    of the latter; the interval is that of the logarithm of their ratio.

    A seed has collapsed that lies below its own side's median by more than three margins and by
    more than five robust standard deviations. Collapsed seeds are left out of the interval; the
    sentence counts them, and says how many could collapse unseen.

    Both of the last are widened where few examples carry the spread (``variance_inflation``).
    In the last two, where fewer than five examples tell the candidate from the baseline, the
    interval reaches at least span · z²/(n + z²) to either side (span: of the scores, at least 1),
    as Tango's does without discordant pairs.

    Predictions are guarded (scores alone cannot be): ``non_inferior`` becomes ``inconclusive``
    where the candidate's are constant or score below a constant answer by the interval, or where
    the baseline is not shown to be above one by at least twice the margin, so that the test could
    not tell; classes as ``class_margin`` says.

    Args:
        baseline: scores as an array, tensor, list, pandas Series, DataFrame (rows are examples,
            columns seeds), or an object with ``.scores`` (and ``.digest``, which must agree). With
            ``targets`` predictions: labels, numbers, or probabilities (or scores) of the positive
            class, which is the last in sorted order; shape (n,) or (S, n). Probabilities also
            (n, classes) or (S, n, classes), in the classes' sorted order.
        candidate: the same, of the same examples in the same order, with seeds of its own; tables
            are aligned by their index.
        margin: the loss that is accepted, 0 or from 10⁻¹² to below 1, as a fraction.
        confidence: of the two-sided interval, from 10⁻⁹ to 1 − 10⁻⁹.
        score: with ``targets`` one of ``accuracy``, ``balanced_accuracy``, ``f1``, ``f1_macro``,
            ``mcc``, ``roc_auc``, ``average_precision``, ``log_loss``, ``brier``, ``r2``, ``rmse``,
            ``mae``, or ``package.module:function`` of (targets, predictions), for one number (it is
            then called n times for each seed) or one an example, higher is better. Without them
            the score's name in sentences. Accuracies are shown in percentage points.
        seed: of the bootstrap's own generator.
        planned_seeds: the candidate's seeds at each planned look, where seeds are added until the
            verdict is settled; the interval then holds for all looks together (``looks.py``). Or
            pairs, the candidate's and the baseline's.
        compared_seeds: how many of the candidate's seeds, the first ones, are compared; the others
            count among those that may collapse, and nowhere else. None: all.
        beyond_plan: how many of the candidate's seeds were added beyond the plan, after a verdict
            on fewer was known: the sentence says that it is exploratory.
        max_collapse: the share of seeds that may collapse, in (0, 1): a recipe is non-inferior only
            where the upper limit of that share is not above it, and inferior where the lower one
            is. None: collapses are counted only.
        screened: how many candidates were screened for collapses, of which this one is left; the
            limits of the share that collapses hold for all of them together.
        targets: shape (n,): labels of any kind, or a regression's numbers.
        groups: shape (n,): whose examples they are (patient, user, document); those of one are a
            single draw.
        class_margin: the loss of a class's recall that is accepted, in (0, 1), None for any. Of
            predicted classes: a class that loses more, its interval (Bonferroni over the classes)
            below 0, makes the outcome at most ``inconclusive``, and ``inferior`` where the whole
            interval is beyond.
        constant: beside scores by example what an answer that takes no notice of the inputs scores
            in each, shape (n,): so scores alone are guarded too.
        classes: all classes in the order of the columns, where ``targets`` lack some or they are
            not sorted.

    Raises:
        ValueError: a margin, confidence, shape or value outside the above, 2 to 4 seeds, fewer
            than two examples, two different test sets, looks that are no plan or do not hold the
            candidate's number of seeds, ``max_collapse`` of a single network, ``screened`` below
            1, ``beyond_plan`` below 0 or not below the candidate's number of seeds, or a score that
            needs ``targets``.

    >>> full = np.ones(1000)
    >>> slim = np.where(np.arange(1000) < 5, 0, 1)
    >>> compare(full, slim, margin=0.02).outcome
    'non_inferior'
    >>> compare(full, slim, margin=0.01).outcome
    'inconclusive'
    >>> sick = np.arange(1000) < 60
    >>> verdict = compare(sick, np.zeros(1000), targets=sick, margin=0.1, class_margin=None)
    >>> verdict.outcome, verdict.guard
    ('inconclusive', 'the slim model gives one and the same answer to every test example')
    """
    margin, confidence = checked_level(margin, confidence)
    check_seed(seed)
    check_count("screened", screened, least=1)
    check_count("beyond_plan", beyond_plan, least=0)
    _check_shares(max_collapse=max_collapse, class_margin=class_margin)
    score = "r2" if score == "R²" and targets is not None else score
    if targets is None:
        old, new, pair = _scores_alone(score, baseline, candidate, compared_seeds, constant)
    elif constant is not None:
        raise ValueError("constant: expected none beside targets, which say it, but got some")
    else:
        pair = checked_predictions(baseline, candidate, targets, score, classes=classes,
                                   compared=compared_seeds)
        old, new = pair.scores(margin)
    seeds = len(new) if compared_seeds is None else compared_seeds
    if len(new) == 1 and max_collapse is not None:
        raise ValueError("max_collapse: expected scores of several seeds beside it, but the "
                         "candidate has one")
    plan = None if planned_seeds is None else checked_plan(planned_seeds, seeds, len(old))
    if groups is not None:
        groups = checked_groups(groups, (targets, baseline, candidate))
    r2_targets = checked_r2_targets(baseline, candidate, new.shape[1]) if pair is None else None
    if pair is not None and pair.score.name == "r2":
        r2_targets = np.asarray(pair.targets, dtype=np.float64)
        old, new = (1 - np.square(side - r2_targets) / r2_targets.var()
                    for side in (pair.baseline, pair.candidate))
    draws = _Draws.of(old, new, None if pair is None else pair.moved, groups, r2_targets)
    scaled = margin if pair is None else pair.scaled(margin)
    interval, counts = _interval(draws, scaled, confidence, seed, _Seeds(plan, seeds, screened))
    if counts is not None:
        counts = _beyond(counts, beyond_plan)
    outcome, settle, needed = _outcome(interval, scaled), None, None
    if counts is not None:
        outcome, settle = _with_collapses(outcome, counts, confidence, max_collapse)
    guards = None if pair is None or not pair.guarded else guarded(
        _kept(pair, old, new, seeds, scaled), outcome, margin=margin, confidence=confidence,
        class_margin=class_margin, groups=groups)
    if guards is not None and guards.finding is not None:
        outcome, settle = guards.finding.outcome, guards.finding.remedy
    if outcome == "inconclusive" and settle is None:
        settle, needed = _settle(interval, (seeds, new.shape[1]), scaled, confidence)
    delta, low, high = (value if pair is None else pair.unscaled(value)
                        for value in (interval.delta, interval.low, interval.high))
    return Verdict(
        kind="recipe" if counts else "artifact", outcome=outcome, delta=delta,
        low=low, high=high, margin=margin, confidence=confidence,
        examples=new.shape[1], seeds=seeds, method=interval.method,
        score="R²" if pair is not None and score == "r2" else score,
        settle=settle if outcome == "inconclusive" else None,
        counts=counts, groups=draws.groups, needed=needed, **_values(guards))


def _beyond(counts: SeedCounts, beyond_plan: int) -> SeedCounts:
    """With the seeds that were not planned; raise where all would be."""
    if beyond_plan >= counts.candidate:
        raise ValueError(f"beyond_plan: expected fewer than the candidate's {counts.candidate} "
                         f"seeds, but got {beyond_plan}")
    return replace(counts, beyond_plan=beyond_plan)


def _check_shares(**shares: float | None) -> None:
    for name, share in shares.items():
        if share is not None:
            check_share(name, share, zero=False)


def _interval(
    draws: _Draws, margin: float, confidence: float, seed: int, seeds: _Seeds
) -> tuple[_Interval, SeedCounts | None]:
    """The interval by the design, with sizes in examples."""
    counts = None
    if len(draws.new) > 1:
        interval, counts = _recipe(draws, margin, confidence, seed, seeds)
    elif bool(np.isin([draws.old, draws.new], (0.0, 1.0)).all()):
        interval = _tango(draws.old[0], draws.new[0], margin, confidence)
    else:
        interval = _bootstrap(draws, margin, confidence, seed)
    return draws.by_example(interval), counts


def _values(guards: Guarded | None) -> dict[str, Any]:
    """The verdict's fields of what both and a constant answer score."""
    if guards is None:
        return {}
    return {"baseline_score": guards.baseline, "candidate_score": guards.candidate,
            "constant_score": guards.constant,
            "guard": guards.finding.words if guards.finding else ""}


def _kept(pair: Paired, old: Floats, new: Floats, seeds: int, margin: float) -> Paired:
    """Those that are compared, without the seeds that collapsed."""
    sides = [side if len(side) == 1 else
             side[:most][~intervals.collapsed_seeds(scores, margin)[:most]]
             for side, scores, most in ((pair.baseline, old, None), (pair.candidate, new, seeds))]
    return replace(pair, baseline=sides[0], candidate=sides[1])


def _scores_alone(
    score: str, baseline: Any, candidate: Any, compared: int | None, constant: ArrayLike | None
) -> tuple[Floats, Floats, Paired | None]:
    """Scores by example, and what guards them where it is known what a constant answer scores."""
    _check_score_alone(score)
    old, new = checked_scores(baseline, candidate, compared=compared)
    own = score in SCORES and SCORES[score].takes == "scores"
    return old, new, paired_scores(score, old, new, constant) \
        if own or constant is not None else None


def _check_score_alone(score: str) -> None:
    """Raise where scores by example cannot be the score that is named."""
    if score in SCORES and score not in EXAMPLE_MEANS and SCORES[score].takes != "scores":
        raise ValueError(f"score: {score} is not the mean of scores by example, or less of it is "
                         f"better; pass targets= and the two models' predictions in place of their "
                         f"scores")


def _outcome(interval: _Interval, margin: float) -> str:
    if interval.low > -margin:
        return "non_inferior"
    return "inferior" if interval.high < -margin else "inconclusive"


def _with_collapses(
    outcome: str, counts: SeedCounts, confidence: float, max_collapse: float | None
) -> tuple[str, str | None]:
    """The outcome as the seeds that collapsed leave it, and what would settle that."""
    if max_collapse is not None and counts.collapse_low > max_collapse:
        return "inferior", None
    if outcome != "non_inferior":
        return outcome, None
    if not counts.enough:
        return "inconclusive", text.TOO_MANY_COLLAPSED
    if max_collapse is not None and counts.collapse_high > max_collapse:
        needed = sample_size.required_seeds_without_collapse(
            max_collapse, collapse_confidence(confidence, counts.screened))
        return "inconclusive", text.too_few_seeds_for_collapse(
            max_collapse, counts.collapsed, needed)
    return outcome, None


@dataclass(frozen=True)
class _Seeds:
    """The looks, how many of the candidate's seeds are compared, and the widths screened."""

    plan: tuple[tuple[int, int], ...] | None
    compared: int
    screened: int


@dataclass(frozen=True)
class _Interval:
    """A mean difference with its interval, and the sample size that would exclude −margin.

    ``required`` gives that size for a true difference and a factor on the variance seen; ``ends``
    are those of the interval of the difference at the confidence ``sample_size.RANGE``, ``factors``
    those of the variance's. ``span`` is the range of the scores, ``same`` says that no score
    differs.
    """

    method: str
    delta: float
    low: float
    high: float
    span: float
    same: bool
    required: Callable[[float, float], RequiredSampleSize]
    ends: tuple[float, float]
    factors: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True, eq=False)
class _Draws:
    """Both sides' scores, shape (S, draws): a draw is an example, or a group of them.

    ``moved`` is as in ``intervals.score_range``; ``examples`` ÷ ``groups`` are in one draw. Where
    there are ``r2_targets`` the scores are 1 − squared error ÷ their variance.
    """

    old: Floats
    new: Floats
    moved: NDArray[np.bool_] | None
    examples: int
    groups: int | None = None
    r2_targets: Floats | None = None

    @classmethod
    def of(
        cls, old: Floats, new: Floats, moved: NDArray[np.bool_] | None, groups: ArrayLike | None,
        r2_targets: Floats | None,
    ) -> _Draws:
        """Of groups R² is linearised once, as each group's share of the targets' variance is."""
        examples = old.shape[1]
        if groups is None:
            return cls(old, new, moved, examples, r2_targets=r2_targets)
        if r2_targets is not None:
            old, new = (intervals.linearized_r2(side, r2_targets) for side in (old, new))
        old, new = by_group(old, groups), by_group(new, groups)
        if moved is not None:
            _, member = np.unique(np.asarray(groups), return_inverse=True)
            moved = np.bincount(member, weights=moved) > 0
        return cls(old, new, moved, examples, old.shape[1])

    def by_example(self, interval: _Interval) -> _Interval:
        """What would settle it in numbers of examples, the groups as large as those at hand."""
        if self.groups is None:
            return interval
        size = self.examples / self.groups

        def required(delta: float, factor: float) -> RequiredSampleSize:
            found = interval.required(delta, factor)
            return RequiredSampleSize(
                found.seeds, found.examples and math.ceil(size * found.examples),
                found.both and (found.both[0], math.ceil(size * found.both[1])))

        return replace(interval, span=size * interval.span, required=required)


def _tango(old: Floats, new: Floats, margin: float, confidence: float) -> _Interval:
    n = old.size
    gained, lost = int((new > old).sum()), int((new < old).sum())
    low, high = intervals.tango_interval(gained, lost, n, confidence=confidence)

    delta, differing = (gained - lost) / n, (gained + lost) / n

    def required(delta: float, factor: float) -> RequiredSampleSize:
        if delta == -margin:
            return RequiredSampleSize()
        share = min(1.0, max(factor * differing, abs(delta)))
        return RequiredSampleSize(examples=sample_size.required_tango(
            (share + delta) / 2, (share - delta) / 2, margin=margin, confidence=confidence))

    return _Interval(
        "Tango score interval", delta, low, high, 1.0, not differing, required,
        intervals.tango_interval(gained, lost, n, confidence=sample_size.RANGE),
        sample_size.share_factors(differing, n) if differing else (1.0, 1.0))


def _bootstrap(draws: _Draws, margin: float, confidence: float, seed: int) -> _Interval:
    old, new, n = draws.old[0], draws.new[0], draws.old.shape[1]
    differences, unlike = new - old, intervals.UNSEEN
    delta = float(differences.mean())
    influences = differences
    if draws.r2_targets is not None:
        unlike = intervals.unseen_examples(np.stack([old, new]))
        influences = differences - delta * intervals.excess_spread(draws.r2_targets)
    low, high = inflated_bootstrap_t(differences, confidence=confidence, seed=seed,
                                     targets=draws.r2_targets, unseen=unlike)
    half = delta - low if delta > -margin else high - delta
    error = float(influences.std(ddof=1)) / n**0.5
    span, unseen, same = intervals.score_range(old, new, draws.moved)
    reach = unseen * intervals.zero_event_limit(n, confidence=confidence)

    def required(delta: float, factor: float) -> RequiredSampleSize:
        distance = abs(delta + margin)
        if not distance:
            return RequiredSampleSize()
        return RequiredSampleSize(examples=max(
            sample_size.required_mean(factor**0.5 * half, factor**0.5 * error, distance, n),
            sample_size.required_zero_events(distance, span=unseen, confidence=confidence)))

    share = intervals.normal_quantile(sample_size.RANGE) / intervals.normal_quantile(confidence)
    ends = delta - share * (delta - low), delta + share * (high - delta)
    carried = intervals.effective_examples(influences)
    low, high = min(low, delta - reach), max(high, delta + reach)
    return _Interval("paired bootstrap-t", delta, low, high, span, same, required, ends,
                     sample_size.variance_factors(max(0.0, 1 / carried - 1 / n) ** 0.5))


def _recipe(
    draws: _Draws, margin: float, confidence: float, seed: int, seeds: _Seeds
) -> tuple[_Interval, SeedCounts]:
    found = recipe_interval(draws.old, draws.new, margin=margin, confidence=confidence,
                            planned=seeds.plan, compared=seeds.compared, moved=draws.moved,
                            targets=draws.r2_targets, seed=seed, screened=seeds.screened)
    parts = found.parts

    def required(delta: float, factor: float) -> RequiredSampleSize:
        distance = abs(delta + margin) / factor**0.5  # as in units of the standard deviation
        return sample_size.required_crossed(
            parts, distance, confidence=confidence,
            unseen_span=found.unseen_span / factor**0.5) if distance else RequiredSampleSize()

    half = parts.half_width(sample_size.RANGE)
    return _Interval(
        METHOD, parts.mean, found.low, found.high, found.span, found.same, required,
        (parts.mean - half, parts.mean + half),
        sample_size.variance_factors((2 / parts.freedom) ** 0.5)), found.seeds


def _settle(
    interval: _Interval, shape: tuple[int, ...], margin: float, confidence: float
) -> tuple[str, RequiredRange | None]:
    """One sentence, and the numbers in it."""
    seeds, examples = shape
    if interval.same and not margin:
        return text.no_realistic_n(recipe=seeds > 1), None
    if interval.same:
        fewest = sample_size.required_zero_events(margin, span=interval.span,
                                                  confidence=confidence)
        return text.no_difference_seen(fewest, examples=examples), RequiredRange(
            "examples", (fewest,), (fewest,), (examples,))
    needed = sample_size.required_range(
        interval.required, interval.delta, interval.ends, interval.factors, margin=margin,
        now=(seeds, examples))
    return text.settle_sentence(needed, recipe=seeds > 1), needed
