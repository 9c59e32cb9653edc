"""The words of a verdict: outcome, figures, what would settle it, what is gained, what to decide.

For readers who know the margin but no statistics. Tests: ``tests/verdict/test_text.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from wua_mlflow.verdict.sample_size import RequiredRange
from wua_mlflow.verdict.scores import SCORES

if TYPE_CHECKING:
    from wua_mlflow.verdict.compare import Verdict
    from wua_mlflow.verdict.recipe import SeedCounts

__all__ = [
    "CONSTANT_REMEDY", "FLOPS_ONE_SAMPLE", "SAME_COST", "SAME_LATENCY", "TOO_FEW_SEEDS",
    "TOO_MANY_COLLAPSED", "amount_words", "basis_words", "below_constant", "blind_test",
    "blind_test_remedy", "class_control_sentence", "class_loss_sentence",
    "constant_answers", "in_points", "interrupted_seeds", "interval_words",
    "latency_unlike_flops", "looks_sentence",
    "lost_class", "lost_class_remedy", "margin_text", "margin_words", "methods_note",
    "no_difference_seen", "no_realistic_n", "other_readings", "outcome_words", "points",
    "question_answered", "ratio", "ratio_words", "reading", "score_text", "seedless_note",
    "seeds_text", "settle_sentence", "short_outcome", "short_verdict",
    "too_few_seeds_for_collapse", "too_long_for_seeds", "unit_of", "verdict_headline",
    "verdict_rows", "verdict_sentence",
]


TOO_FEW_SEEDS = "No recipe verdict: it needs at least 5 seeds (setting `seeds`)."
TOO_MANY_COLLAPSED = ("Fewer than 5 seeds of a side are left that did not collapse; more seeds "
                      "would settle it.")
FLOPS_ONE_SAMPLE = "FLOPs, one sample"
"""What the FLOPs of a forward of one sample are called wherever they are shown."""
SAME_COST, SAME_LATENCY = 1.005, 1.05
"""Ratios nearer to 1 than these are no difference."""
_OUTCOMES = {
    "better": "better (non-inferior)",
    "equal": "as good within the margin (non-inferior)",
    "worse": "worse, but within the margin (non-inferior)",
    "inferior": "worse by more than the margin (inferior)",
    "inconclusive": "the data cannot tell whether the loss stays within the margin (inconclusive)",
}
CONSTANT_REMEDY = "More test examples will not change that: the slim model must be trained better."


def verdict_sentence(verdict: Verdict) -> str:
    """The verdict in one sentence; accuracies are in percentage points."""
    delta, interval, margin = _figures(verdict)
    examples, counts = f"{verdict.examples:,} test examples", verdict.counts
    if verdict.groups:
        examples += f" of {verdict.groups:,} groups"
    subject = f"Artifact verdict (these two saved models, {examples}): "
    if counts:
        subject = (f"Recipe verdict ({_trained_with(counts)}, {examples}{_look(counts)}): "
                   f"on average ")
    what = f"the slim model's {verdict.score} minus the original's"
    if _is_share(verdict.score):
        what = (f"the original's {verdict.score} minus the slim model's, as a share of the "
                f"original's,")
    return (f"{subject}{what} is {delta} "
            f"({_percent(verdict.confidence)}% interval {interval}), against a margin of "
            f"{margin}: {_outcome_sentence(verdict)}{_collapses(counts)}{_values(verdict)}.")


def _outcome_sentence(verdict: Verdict) -> str:
    if verdict.guard:
        return f"{verdict.guard} ({verdict.outcome})"
    return _OUTCOMES[reading(verdict)]


def _values(verdict: Verdict) -> str:
    """What both models score, and a constant answer beside them."""
    if verdict.baseline_score is None or verdict.candidate_score is None:
        return ""
    old, new = (score_text(value, verdict.score)
                for value in (verdict.baseline_score, verdict.candidate_score))
    values = f"; the original scores {old}, the slim model {new}"
    if verdict.constant_score is None:
        return values
    return f"{values}, a constant answer {score_text(verdict.constant_score, verdict.score)}"


def _trained_with(counts: SeedCounts) -> str:
    compared = counts.candidate if counts.compared is None else counts.compared
    if counts.baseline == 1:
        return f"the slim model trained with {compared:,} seeds, against this network"
    if counts.baseline == compared:
        return f"both trained with {compared:,} seeds"
    return (f"the slim model trained with {compared:,} seeds, the original with "
            f"{counts.baseline:,}")


def _look(counts: SeedCounts) -> str:
    if counts.beyond_plan:
        return f"; exploratory: {_seeds(counts.beyond_plan)} beyond the plan"
    return f", look {counts.look} of at most {counts.looks}" if counts.looks > 1 else ""


def _collapses(counts: SeedCounts | None) -> str:
    """How many of the slim model's seeds collapsed, and how many could.

    Those that did, on either side, are not in the average.
    """
    if counts is None:
        return ""
    could = f"up to {100 * counts.collapse_high:.0f}% of seeds could"
    if counts.screened > 1:
        could += f" (a limit for all {counts.screened:,} widths that were screened)"
    if not counts.collapsed + counts.baseline_collapsed:
        return f"; none of its {counts.candidate:,} seeds collapsed, but {could}"
    beside = f" ({counts.baseline_collapsed:,} of {counts.baseline:,} of the original's)" \
        if counts.baseline > 1 else ""
    return (f"; {counts.collapsed:,} of its {counts.candidate:,} seeds collapsed{beside} and are "
            f"not in the average; {could}")


def verdict_headline(verdict: Verdict) -> str:
    """The verdict as a headline: outcome, difference, interval, margin, what it rests on."""
    delta, interval, margin = _figures(verdict)
    guard = f"{verdict.guard}; " if verdict.guard else ""
    outcome = "worse, but within the margin" if reading(verdict) == "worse" else \
        short_outcome(verdict.outcome)
    return (f"{outcome.capitalize()}: {guard}{verdict.score} {delta} "
            f"({_percent(verdict.confidence)}% interval {interval}; margin {margin}; "
            f"{basis_words(verdict, 'these two models')})")


def short_verdict(verdict: Verdict) -> str:
    """A verdict in a bracket: its interval, and whether that is within the margin."""
    interval = _figures(verdict)[1]
    outcome = {"non_inferior": "within the margin", "inferior": "beyond the margin"}.get(
        verdict.outcome, verdict.outcome)
    return f"{_percent(verdict.confidence)}% interval {interval}: {verdict.guard or outcome}"


def verdict_rows(verdict: Verdict) -> list[tuple[str, str]]:
    """The figures of a verdict, each with its name."""
    delta, interval, margin = _figures(verdict)
    scores = [(whose, score_text(value, verdict.score)) for whose, value in (
        ("score of the original", verdict.baseline_score),
        ("score of the slim model", verdict.candidate_score),
        ("score of a constant answer", verdict.constant_score)) if value is not None]
    counts = verdict.counts
    seeds = f"{seeds_text(verdict)} against {counts.baseline:,}" if counts else ""
    groups = f" of {verdict.groups:,} groups" if verdict.groups else ""
    rows = [("outcome", verdict.outcome), ("difference (slim − original)", delta),
            (f"{_percent(verdict.confidence)}% interval", interval), ("margin", margin), *scores,
            ("test examples", f"{verdict.examples:,}{groups}"), ("seeds", seeds),
            ("method", verdict.method)]
    return [row for row in rows if row[1]]


def short_outcome(outcome: str) -> str:
    """An outcome in plain words.

    >>> short_outcome("non_inferior"), short_outcome("original")
    ('as good within the margin', 'original')
    """
    return {"non_inferior": "as good within the margin", "inferior": "not as good"}.get(
        outcome, outcome)


def other_readings(
    verdict: Verdict, artifact: Verdict, looks: int, bonferroni: Verdict | None
) -> list[str]:
    """Where other readings of the same data come to another outcome, a sentence each.

    Args:
        verdict: the one that decides.
        artifact: of the two saved models.
        looks: how many verdicts there are on the test set.
        bonferroni: corrected for these.
    """
    sentences = []
    if artifact.outcome != verdict.outcome:
        sentences.append(f"That is the recipe's verdict, over seeds; of the two saved models alone "
                         f"it is {artifact.outcome.replace('_', '-')} ({_alone(artifact)}).")
    if bonferroni is not None and bonferroni.outcome != verdict.outcome:
        sentences.append(f"Corrected for all {looks:,} verdicts on this test set it is "
                         f"{bonferroni.outcome.replace('_', '-')}.")
    return sentences


def _alone(artifact: Verdict) -> str:
    """The figures of the two saved models' own verdict."""
    delta, interval, _ = _figures(artifact)
    guard = f"{artifact.guard}; " if artifact.guard else ""
    return f"{guard}{artifact.score} {delta}, interval {interval}"


def looks_sentence(looks: int, verdict: Verdict | None = None) -> str:
    """How often the test set was looked at, and the verdict read for so many looks."""
    sentence = (f"This test set has been used for {looks:,} verdicts: the more there are, the "
                f"likelier that one is good by chance.")
    if verdict is None:
        return sentence
    return (f"{sentence} Corrected for {looks:,} verdicts (Bonferroni, "
            f"{_percent(verdict.confidence)}% interval {_figures(verdict)[1]}): "
            f"{_OUTCOMES[reading(verdict)]}.")


def question_answered(original: str, candidate: str, verdict: Verdict) -> str:
    """Whether the candidate is as good as the original, by their names: a picture's headline."""
    if verdict.guard:
        return f"No: {candidate} is worse than {original} in one class" \
            if verdict.outcome == "inferior" else \
            f"Undecided: a difference within {margin_words(verdict)} proves nothing here"
    answer = {
        "inferior": "No: {1} is worse than {0} by more than {2}",
        "inconclusive": "Undecided: {1} may be worse than {0} by more than {2}",
        "worse": "Worse, but within the margin: {1} is behind {0} by less than {2}",
    }.get(reading(verdict), "Yes: {1} is as good as {0}, to within {2}")
    models = "" if verdict.kind == "recipe" else " (these two models)"
    return answer.format(original, candidate, margin_words(verdict)) + models


def outcome_words(verdict: Verdict) -> str:
    """The outcome in a few words, beside its interval."""
    if verdict.outcome == "non_inferior":
        return "worse, within the margin" if verdict.high < 0 else "non-inferior"
    return verdict.outcome


def interval_words(verdict: Verdict) -> str:
    """Difference and interval without a unit, ``−1.2 (−3.1 to +0.7)``; accuracy in points.

    There are as many decimals as show each limit on its side of the margin.
    """
    delta, interval, _ = _figures(verdict)
    return f"{delta.removesuffix(unit_of(verdict.score)[1])} ({interval})"


def margin_words(verdict: Verdict) -> str:
    """A verdict's margin with its unit, as ``margin_text`` writes it."""
    return margin_text(verdict.margin, verdict.score)


def in_points(score: str) -> bool:
    """Whether a score is a share of right answers, shown in percent and percentage points."""
    return score in ("accuracy", "balanced_accuracy")


def unit_of(score: str) -> tuple[float, str]:
    """What a difference is multiplied by when it is shown, and its unit.

    >>> unit_of("accuracy"), unit_of("rmse"), unit_of("f1")
    ((100.0, ' points'), (100.0, '%'), (1.0, ''))
    """
    if in_points(score):
        return 100.0, " points"
    return (100.0, "%") if _is_share(score) else (1.0, "")


def _is_share(score: str) -> bool:
    """Whether differences are shares of the original's value."""
    return score in SCORES and SCORES[score].less_is_better


def score_text(value: float, score: str) -> str:
    """A score's value.

    >>> score_text(0.873, "accuracy"), score_text(-0.5, "R²"), score_text(12.3456, "rmse")
    ('87.3%', '−0.500', '12.35')
    """
    if in_points(score):
        return f"{100 * value:.1f}%"
    return (f"{value:.4g}" if _is_share(score) else f"{value:.3f}").replace("-", "−")


def margin_text(margin: float, score: str, *, of: bool = True) -> str:
    """A margin with its unit; that of an accuracy in points, named unless not ``of``.

    >>> margin_text(0.02, "accuracy"), margin_text(0.01, "accuracy", of=False)
    ('2 points of accuracy', '1 point')
    >>> margin_text(0.02, "R²"), margin_text(0.05, "rmse")
    ('0.02 of R²', "5% of the original's rmse")
    """
    words = points(margin, score)
    if _is_share(score):
        return f"{words}% of the original's {score}"
    if not in_points(score):
        return f"{words} of {score}"
    return f"{words} point{'' if words == '1' else 's'}{f' of {score}' if of else ''}"


def points(value: float, score: str) -> str:
    """A margin or a difference without rounding noise; accuracy in points (0.02 is 2 points).

    >>> points(-0.02, "accuracy"), points(0.05, "R²")
    ('−2', '0.05')
    """
    scaled = unit_of(score)[0] * value + 0.0  # + 0.0: no sign on a zero
    return f"{scaled:.4g}".replace("-", "−")


def ratio(original: float | None, slim: float | None) -> float | None:
    """Original ÷ slim, above 1 if saved; None where one is not known, or the slim one is 0."""
    return original / slim if slim and original is not None else None


def ratio_words(
    times: float, less: str, more: str, *, same_within: float = SAME_COST, same: str = "same"
) -> str:
    """A ratio original ÷ slim in words; one nearer to 1 than ``same_within`` is ``same``.

    >>> ratio_words(122 / 86, "fewer", "more"), ratio_words(0.5, "faster", "slower")
    ('1.4× fewer', '2.0× slower')
    """
    times, word = (times, less) if times >= 1 else (1 / times, more)
    if times < same_within:
        return same
    digits = 2 if times < 1.095 else 1 if times < 9.95 else 0
    return f"{times:,.{digits}f}× {word}"


def latency_unlike_flops(
    flops_ratio: float, latency_ratio: tuple[float, float, float] | None
) -> str:
    """A sentence where FLOPs fall and the latency is not shown to fall; else "".

    Args:
        flops_ratio: original ÷ slim.
        latency_ratio: the same of the latencies at batch 1, with its interval.
    """
    if latency_ratio is None or flops_ratio <= SAME_LATENCY or latency_ratio[1] > 1:
        return ""
    ratio, low, high = latency_ratio
    return (f"FLOPs fall {flops_ratio:.1f}×, but latency at batch 1 does not: ratio {ratio:.2f} "
            f"({low:.2f} to {high:.2f}).")


def class_loss_sentence(
    losses: Sequence[tuple[str, int, float]], class_margin: float | None = None
) -> str:
    """The classes in which the saved slim model loses more than the margin.

    Args:
        losses: name, test examples, change of the accuracy.
        class_margin: what the verdict allows a class to lose; None for any loss.
    """
    if not losses:
        return ""
    classes = ", ".join(f"{name} ({examples:,} test examples) −{-100 * change:.1f} points"
                        for name, examples, change in losses)
    allowed = ""
    if class_margin is not None:
        within = all(change >= -class_margin for _, _, change in losses)
        allowed = f"{100 * class_margin:.4g} points"
        allowed = (f"; that is within the {allowed} that the verdict allows a single class "
                   f"(class_margin)") if within else \
            f"; the verdict allows a single class {allowed} (class_margin)"
    return (f"Of the two saved models alone, single classes lose more than the margin: {classes}"
            f"{allowed}.")


def class_control_sentence(
    name: str, change: float, seeds: int, *, trained_on: bool, of_training: bool
) -> str:
    """What the original with the slim one's budget does on a class that the slim one loses.

    Args:
        name: of the class.
        change: of its recall.
        seeds: of that original.
        trained_on: whether it goes on from the original's weights.
        of_training: whether that accounts for the slim one's loss.
    """
    fewer = f"{-100 * change:.1f} points fewer" if change < 0 else \
        f"{100 * change:.1f} points more"
    over = f" on average over {_seeds(seeds)}" if seeds > 1 else ""
    also = ", too: it is the training, not the size" if of_training else ""
    return (f"Of the class {name} the original, trained {'on ' if trained_on else ''}for as long, "
            f"finds {fewer} than before{over}{also}.")


def constant_answers(alike: int, seeds: int) -> str:
    """The slim model answers one and the same, whatever its inputs."""
    return ("the slim model gives one and the same answer to every test example" +
            (f" with {alike:,} of {seeds:,} seeds" if seeds > 1 else ""))


def below_constant(constant: str) -> str:
    """The slim model scores less than a constant answer."""
    return f"the slim model scores below a constant answer ({constant})"


def blind_test(
    score: str, constant: str, lead: float, low: float, high: float, *, margin: float | None
) -> str:
    """The test cannot tell a good model from a constant one.

    Args:
        score: the score's name.
        constant: what the constant answer is.
        lead: of the original over it.
        low: lower limit of its interval.
        high: upper limit.
        margin: where the lead is shown, the margin that it is too small for.
    """
    scale, unit = (100.0, " points") if in_points(score) else (1.0, "")
    figures = [_signed(scale * figure, 1 if scale > 1 else 3).removeprefix("+")
               for figure in (lead, low, high)]
    beside = "" if margin is None else \
        f", less than twice the margin of {scale * margin:.4g}{unit}"
    return (f"this test cannot tell a good model from a constant one: the original is "
            f"{figures[0]}{unit} ({figures[1]} to {figures[2]}) above a constant answer "
            f"({constant}){beside}")


def blind_test_remedy(score: str | None) -> str:
    """What to do about it: ``score`` shows the original above a constant answer, if any does."""
    if score:
        return (f"Judge by score={score}, by which the original is shown to be well above a "
                f"constant answer.")
    return ("No score of these predictions shows the original well above a constant answer: take "
            "more test examples, a smaller margin, or a better original.")


def lost_class(
    name: object, examples: int, change: float, low: float, high: float, confidence: float
) -> str:
    """A class of which fewer are found."""
    return (f"of the class {name} ({examples:,} test examples) the slim model finds "
            f"{-100 * change:.1f} points fewer ({_percent(confidence)}% interval "
            f"{_signed(100 * low, 1)} to {_signed(100 * high, 1)})")


def lost_class_remedy(margin: float) -> str:
    """What to do about it."""
    return (f"More test examples of that class, or a larger class_margin than {margin:g}, would "
            f"settle it.")


def amount_words(needed: RequiredRange, *, as_seen: bool = False) -> str:
    """Between which numbers of examples or seeds, rounded outwards to two digits.

    Args:
        needed: the numbers.
        as_seen: whether the number that is enough if all is as seen follows in a bracket.

    >>> from wua_mlflow.verdict.sample_size import RequiredRange
    >>> amount_words(RequiredRange("examples", (716,), (24_661,), (300,)))
    'between 710 and 25,000 test examples'
    >>> amount_words(RequiredRange("seeds", (7,), None, (5,)))
    'more than 7 seeds'
    >>> amount_words(RequiredRange("examples", (172,), None, (171,)))
    'more than 171 test examples'
    >>> amount_words(RequiredRange("examples", (172,), (284,), (171,)))
    'up to 290 test examples'
    >>> amount_words(RequiredRange("both", (4, 80), (9, 160), (5, 100)))
    'up to 9 seeds with 160 test examples'
    >>> amount_words(RequiredRange("seeds", (7,), None, (5,), (43,)), as_seen=True)
    'more than 7 seeds (43 seeds if all is as seen)'
    """
    if as_seen and needed.as_seen:
        return f"{amount_words(needed)} ({_numbers(needed.kind, needed.as_seen)} if all is as seen)"
    low = tuple(max(_rounded(n, math.floor), now)
                for n, now in zip(needed.low, needed.now, strict=True))
    high = needed.high and tuple(_rounded(n, math.ceil) for n in needed.high)
    if needed.low == needed.high:
        return f"at least {_numbers(needed.kind, needed.low)}"
    if low > needed.now and high:
        first = _numbers(needed.kind, low) if needed.kind == "both" else f"{low[0]:,}"
        return f"between {first} and {_numbers(needed.kind, high)}"
    if not high:
        return f"more than {_numbers(needed.kind, low)}"
    return f"up to {_numbers(needed.kind, high)}"


def _numbers(kind: str, numbers: tuple[int, ...]) -> str:
    if kind == "both":
        return f"{numbers[0]:,} seeds with {numbers[1]:,} test examples"
    return f"{numbers[0]:,} {'seeds' if kind == 'seeds' else 'test examples'}"


def _rounded(number: int, direction: Callable[[float], int]) -> int:
    """To two digits."""
    step: int = 10 ** max(0, math.floor(math.log10(max(number, 1))) - 1)
    return direction(number / step) * step


def settle_sentence(needed: RequiredRange | None, *, recipe: bool) -> str:
    """What would settle a verdict, in one sentence."""
    if needed is None:
        return no_realistic_n(recipe=recipe)
    amount = amount_words(needed)
    now = " and ".join(f"{number:,}" for number in needed.now)
    if needed.as_seen:
        now += f"; about {' and '.join(f'{n:,}' for n in needed.as_seen)} if all is as seen"
    same = " on the same test examples" if needed.kind == "seeds" else ""
    start = f"{amount[0].upper()}{amount[1:]}{same} (now {now}) would settle it"
    if needed.high is None:
        return (f"{start} with a chance of 80%, and no number is certain to: the true difference "
                f"may be minus the margin itself.")
    return (f"{start} with a chance of 80%; the range is what this test leaves open of the "
            f"difference and its spread.")


def interrupted_seeds(seeds: int) -> str:
    """Why there is no recipe verdict after Ctrl-C.

    >>> interrupted_seeds(3)
    'No recipe verdict: interrupted after 3 seeds, and it needs at least 5.'
    """
    return (f"No recipe verdict: interrupted after {seeds} seed{'s' if seeds > 1 else ''}, and it "
            f"needs at least 5.")


def too_long_for_seeds(seeds: int, seconds: float, original: str) -> str:
    """Where a recipe verdict would take too long to begin it unasked: how long, and how to ask.

    Args:
        seeds: of the slim model that it needs.
        seconds: what those that there are not would take.
        original: its run.

    >>> too_long_for_seeds(5, 7230.0, "4be1").partition("(")[0]
    'No recipe verdict: 5 seeds would take about 120 minutes more '
    """
    return (f"No recipe verdict: {seeds} seeds would take about {seconds / 60:,.0f} minutes more "
            f"(`wua slim --run-id {original} --seeds {seeds}`).")


def too_few_seeds_for_collapse(share: float, collapsed: int, needed: int) -> str:
    """Where it is not shown that at most ``share`` of seeds collapse: ``needed`` without one do."""
    seen = f"{collapsed:,} collapsed" if collapsed else "none collapsed"
    return (f"Of its seeds {seen}, but that at most {100 * share:.4g}% of all do takes {needed:,} "
            f"seeds without a collapse.")


def no_difference_seen(required: int, *, examples: int) -> str:
    """Where no example tells the two models apart: ``required`` such examples would do."""
    return (f"No test example tells the two apart, but {examples:,} are too few to show it: at "
            f"least {required:,} test examples without a difference would settle it.")


def no_realistic_n(*, recipe: bool) -> str:
    """Where even the difference farthest from −margin that the test allows is too near."""
    what = "seeds or test examples" if recipe else "test examples"
    return (f"No realistic number of {what} would settle it, by what was seen here: more than 100 "
            f"times those at hand, or the difference is minus the margin.")


_MOST_NAMED = 5


def methods_note(methods: Iterable[tuple[str, str | None]]) -> str:
    """Where verdicts that are shown together were made by several methods, or one is not known.

    Args:
        methods: of each verdict whose it is, and its method; None, or "", where none was noted.

    >>> methods_note([("slim 7", "t"), ("slim 5", "Tango"), ("slim 6", "Tango")])
    'The verdicts do not compare, as their methods differ: t (slim 7); Tango (slim 5, slim 6).'
    >>> methods_note([("slim 7", "t"), ("slim 5", None)])
    'By what method an older version made the verdict on slim 5 is not known.'
    """
    names: dict[str, list[str]] = {}
    for name, method in methods:
        names.setdefault(method or "", []).append(name)
    unknown = _listed(names.pop("", []))
    known = "; ".join(f"{method} ({_listed(whose)})" for method, whose in names.items())
    return " ".join(sentence for sentence, holds in (
        (f"The verdicts do not compare, as their methods differ: {known}.", len(names) > 1),
        (f"By what method an older version made the verdict on {unknown} is not known.", unknown),
    ) if holds)


def _listed(names: Sequence[str]) -> str:
    """Each name once, no more than five of them."""
    unique = list(dict.fromkeys(names))
    more = f" and {len(unique) - _MOST_NAMED:,} more" if len(unique) > _MOST_NAMED else ""
    return ", ".join(unique[:_MOST_NAMED]) + more


def seedless_note(losses: Sequence[float]) -> str:
    """Where every seed gave the same network, as the mean test losses of all of them say.

    >>> seedless_note([0.31, 0.32]), seedless_note([0.31]), seedless_note([0.31] * 5)[:42]
    ('', '', 'All 5 seeds gave the same slim model: its ')
    """
    if len(losses) < 2 or len(set(losses)) > 1:
        return ""
    return (f"All {len(losses):,} seeds gave the same slim model: its training does not depend on "
            f"the seed (a training function that does not use it, or full batches from given "
            f"weights), so the verdict is of this one model.")


def seeds_text(verdict: Verdict) -> str:
    """The candidate's seeds, and how many of them were not planned."""
    beyond = verdict.counts.beyond_plan if verdict.counts else 0
    return f"{verdict.seeds}, {beyond} beyond the plan" if beyond else str(verdict.seeds)


def basis_words(verdict: Verdict, models: str) -> str:
    """What a verdict rests on: ``models``, or how many seeds."""
    if verdict.kind != "recipe":
        return models
    beyond = verdict.counts.beyond_plan if verdict.counts else 0
    return _seeds(verdict.seeds) + (f", {beyond:,} of them exploratory" if beyond else "")


def _seeds(number: int) -> str:
    return f"{number:,} seed{'s' * (number != 1)}"


def reading(verdict: Verdict) -> str:
    """The outcome; of a non-inferior one, on which side of zero the interval lies."""
    if verdict.outcome != "non_inferior":
        return verdict.outcome
    return "better" if verdict.low > 0 else "worse" if verdict.high < 0 else "equal"


def _percent(confidence: float) -> str:
    """A confidence in percent, with three digits of what is missing to 100.

    >>> _percent(0.95), _percent(1 - 0.05 / 3), _percent(1 - 0.05 / 1000), _percent(0.8)
    ('95', '98.33', '99.995', '80')
    """
    decimals = max(1, 2 - math.floor(math.log10(100 * (1 - confidence))))
    return f"{100 * confidence:.{decimals}f}".rstrip("0").rstrip(".")


def _figures(verdict: Verdict) -> tuple[str, str, str]:
    """Difference, interval and margin, in percentage points where the score is an accuracy.

    With the fewest decimals at which both limits are shown on their side of −margin and of 0.
    """
    scale, unit = unit_of(verdict.score)
    margin, low, high = (round(scale * value, 9)
                         for value in (verdict.margin, verdict.low, verdict.high))
    unit_of_margin = unit.removesuffix("s") if margin == 1 else unit

    def on_their_sides(decimals: int) -> bool:
        return all(np.sign(limit - bound) == np.sign(round(limit, decimals) - bound)
                   for limit in (low, high) for bound in (-margin, 0.0))

    decimals = next(filter(on_their_sides, range(1 if scale > 1 else 3, 9)), 9)
    delta, lower, upper = (_signed(scale * value, decimals)
                           for value in (verdict.delta, verdict.low, verdict.high))
    return f"{delta}{unit}", f"{lower} to {upper}", f"{margin:g}{unit_of_margin}"


def _signed(value: float, decimals: int) -> str:
    """``value`` with a typographic sign; zero has none."""
    rounded = round(value, decimals)
    text = f"{abs(rounded):.{decimals}f}"
    return text if rounded == 0 else f"{'−' if rounded < 0 else '+'}{text}"
