"""The sections of a report: the variants' figures, the verdict, rounds, widths, usage.

Tests: ``tests/report/test_sections.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from wua_mlflow.errors import group_by_reason
from wua_mlflow.report.content import Block, Bullets, Picture, Report, Section, Table, Text
from wua_mlflow.results import Round, TargetWidths
from wua_mlflow.tracking.names import Metric
from wua_mlflow.usage.results import PERMUTED, LayerUsage, ModelUsage
from wua_mlflow.verdict import text
from wua_mlflow.widths.results import Trial, widths_name

__all__ = [
    "METHODS", "change_cell", "figures_table", "reason_points", "scores_sentence", "second_line",
    "sections", "usage_blocks",
]


def sections(report: Report) -> list[Section]:
    """All sections of the report, the most important first; the first holds the figures table."""
    score = report.comparison.verdict.score
    content: dict[str, list[Block]] = {
        "": [figures_table(report),
             Picture("comparison", "The verdict's interval, and what is saved.")],
        "What the verdict rests on": [_verdict(report)],
        "Rounds": _rounds(report),
        f"{score[:1].upper()}{score[1:]} against FLOPs": [
            Picture("pareto", f"Test {score} of each variant against the FLOPs of one sample, with "
                              f"intervals over seeds.")],
        "Layers before and after": _layers(report),
        "How the widths were found": _widths(report.widths) if report.widths else [],
        "How it was slimmed": [Text(report.slimmed_by)],
        "How concentrated the original's importance is": usage_blocks(report),
        "What was not analysed": [Bullets(_not_analysed(report))],
        "Run it again": [Text(report.again)],
    }
    return [Section(title, tuple(block for block in blocks if block))
            for title, blocks in content.items() if any(blocks)]


MOST_NAMED = 5
CAUTION = ("Effective weights measure how concentrated the importance is. A low number alone does "
           "not show that weights can be removed. It depends on how the network is parametrised, "
           "so compare it with the value of untrained networks.")


def usage_blocks(report: Report) -> list[Block]:
    """On the usage of the original's weights; nothing if it was not analysed."""
    usage = report.usages.get(report.names[0])
    if usage is None or not usage.layers:
        return []
    slim = report.usages.get(report.names[-1]) if len(report.names) > 1 else None
    return [Bullets((*_concentrated_layers(usage), *_named_layers(usage), CAUTION)),
            _usage_table(usage, slim),
            Picture("layers", "Effective share of each layer of the original, beside networks that "
                              "learned nothing.")]


def _concentrated_layers(usage: ModelUsage) -> list[str]:
    """Names the layers below the range of their null; if none is, the most concentrated one."""
    by = f"By the criterion {usage.criterion}, importance is"
    layers = [layer for layer in usage.layers.values() if not layer.dead]
    known = [(layer, layer.null) for layer in layers if layer.null]
    below = [(layer, null) for layer, null in known if layer.effective_share < null.low]
    below.sort(key=lambda pair: pair[0].effective_share / pair[1].low)
    if below:
        named = [f"{_layer_name(layer)} ({layer.effective_share:.0%} of its weights are effective; "
                 f"{null.low:.0%} to {null.high:.0%} in networks that learned nothing)"
                 for layer, null in below]
        return [f"{by} more concentrated than in networks that learned nothing in "
                f"{_join_names(named)}."]
    if known:
        which = "the layer lies" if len(known) == 1 else f"all {len(known):,} layers lie"
        return [f"{by} nowhere more concentrated than in networks that learned nothing: {which} "
                "within their range or above it."]
    least = sorted(layers, key=lambda layer: layer.effective_share)[:1]
    return [f"{by} most concentrated in {_layer_name(layer)}: {layer.effective_share:.0%} of its "
            "weights are effective. It was not compared with networks that learned nothing."
            for layer in least]


def _named_layers(usage: ModelUsage) -> list[str]:
    """Names the layers that could not be re-initialised, those with dead units, the dead ones."""
    layers = list(usage.layers.values())
    dead = sorted((layer for layer in layers if layer.dead_units),
                  key=lambda layer: -(layer.dead_units or 0) / layer.units)
    no_draw = "since they could not be re-initialised"
    points = [
        (f"Compared with their own weights in another order, {no_draw}",
         [_layer_name(layer) for layer in layers if layer.null and layer.null.kind == PERMUTED],
         ""),
        (f"Not compared with networks that learned nothing, {no_draw}",
         [_layer_name(layer) for layer in layers if usage.null and not layer.null], ""),
        ("Dead units, zero on all of these data or never above zero before a ReLU",
         [f"{_layer_name(layer)} ({_dead_units(layer)})" for layer in dead],
         " Other data may still activate them."),
        ("No importance at all", [_layer_name(layer) for layer in layers if layer.dead], ""),
    ]
    return [f"{words}: {_join_names(names)}.{after}" for words, names, after in points if names]


def _join_names(names: Sequence[str]) -> str:
    """The first of the names, and how many more there are."""
    if len(names) > MOST_NAMED:
        return f"{', '.join(names[:MOST_NAMED])} and {len(names) - MOST_NAMED:,} more"
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _usage_table(usage: ModelUsage, slim: ModelUsage | None) -> Table:
    layers, of_slim = usage.layers.values(), slim.layers if slim else {}
    columns = {
        "layer": [_layer_name(layer) for layer in layers],
        "weights": [f"{layer.weights:,}" for layer in layers],
        "effective share": [f"{layer.effective_share:.1%}" for layer in layers],
        "learned nothing": [f"{layer.null.low:.1%} to {layer.null.high:.1%}" if layer.null else ""
                            for layer in layers],
        "share that holds 90%": [f"{layer.top90_share:.1%}" for layer in layers],
        "dead units": [_dead_units(layer) for layer in layers],
        "slim: effective share": [f"{of_slim[layer.name].effective_share:.1%}"
                                  if layer.name in of_slim else "" for layer in layers],
    }
    columns = {head: cells for head, cells in columns.items() if any(cells)}
    return Table(tuple(columns), list(zip(*columns.values(), strict=True)))


def _dead_units(layer: LayerUsage) -> str:
    return "" if layer.dead_units is None else f"{layer.dead_units:,} of {layer.units:,}"


def _layer_name(layer: LayerUsage) -> str:
    return layer.name or "the model"


_ROWS = (
    (Metric.ACCURACY_TEST, "accuracy, test", "{:.4f}", "difference"),
    (Metric.ACCURACY_TEST_MEAN, "accuracy, test, mean over seeds", "{:.4f}", "difference"),
    (Metric.ACCURACY_TEST_STD, "its standard deviation over seeds", "{:.4f}", ""),
    (Metric.ACCURACY_TRAIN, "accuracy, training data", "{:.4f}", "difference"),
    (Metric.SCORE_TEST, "{}, test", "{:.4f}", "difference"),
    (Metric.SCORE_TEST_MEAN, "{}, test, mean over seeds", "{:.4f}", "difference"),
    (Metric.SCORE_TEST_STD, "its standard deviation over seeds", "{:.4f}", ""),
    (Metric.SCORE_TRAIN, "{}, training data", "{:.4f}", "difference"),
    (Metric.FLOPS_FORWARD, text.FLOPS_ONE_SAMPLE, "{:,.0f}", "ratio"),
    (Metric.FLOPS_TRAINING, "FLOPs, training", "{:,.0f}", "ratio"),
    (Metric.FLOPS_PTFLOPS_INFERENCE, "FLOPs, inference, tutorial's count", "{:,.0f}", "ratio"),
    (Metric.FLOPS_PTFLOPS_TRAINING, "FLOPs, training, tutorial's count", "{:,.0f}", "ratio"),
    (Metric.PARAMS_TOTAL, "parameters", "{:,.0f}", "ratio"),
    (Metric.SIZE_BYTES, "bytes on disk", "{:,.0f}", "ratio"),
    (Metric.LATENCY_P50, "latency, p50, ms", "{:.4f}", "ratio"),
    (Metric.LATENCY_P95, "latency, p95, ms", "{:.4f}", "ratio"),
    (Metric.LATENCY_THROUGHPUT, "samples a second, batched", "{:,.0f}", "inverse"),
    (Metric.TRAINING_SECONDS, "training, seconds", "{:,.2f}", "ratio"),
    (Metric.USAGE_ENTROPY, "entropy, nats", "{:.4f}", ""),
    (Metric.USAGE_EFFECTIVE_WEIGHTS, "effective weights", "{:,.4f}", ""),
    (Metric.USAGE_EFFECTIVE_SHARE, "effective share", "{:.3f}", ""),
    (Metric.USAGE_NULL_SHARE, "the same in untrained networks", "{:.3f}", ""),
    (Metric.USAGE_TOP90_SHARE, "share of weights that holds 90%", "{:.2%}", ""),
    (Metric.USAGE_LOW_SHARE, "share of low weights", "{:.2%}", ""),
)


def figures_table(report: Report) -> Table:
    """The figures of all variants; a metric that none of them has is omitted."""
    metrics = report.metrics
    rows = []
    for key, label, form, change in _ROWS:
        values = [variant.get(key) for variant in metrics]
        is_accuracy = key.startswith("score/") and report.comparison.artifact.score == "accuracy"
        if is_accuracy or all(value is None for value in values):
            continue
        cells = ("–" if value is None else form.format(value) for value in values)
        rows.append((label.format(report.comparison.artifact.score), *cells,
                     change_cell(values[0], values[-1], change)))
    return Table(("", *report.names, "change"), rows, may_be_cut=False)


def change_cell(first: float | None, last: float | None, change: str) -> str:
    """The difference, or the ratio original ÷ slim (``inverse``: slim ÷ original)."""
    if first is None or last is None or not change:
        return ""
    if change == "difference":
        return f"{last - first:+.4f}".replace("-", "−")
    quotient = text.ratio(last, first) if change == "inverse" else text.ratio(first, last)
    return f"{quotient or 0:.2f}×"


def _verdict(report: Report) -> Bullets:
    comparison = report.comparison
    points = [comparison.verdict.sentence, scores_sentence(report), comparison.budget,
              comparison.verdict.settle,
              comparison.artifact.sentence if comparison.recipe else comparison.no_recipe]
    if comparison.worst_class_delta is not None:
        change = f"{100 * comparison.worst_class_delta:+.1f}".replace("-", "−")
        which = f" ({comparison.worst_class})" if comparison.worst_class else ""
        points.append(f"The class with the worst change{which}: {change} points of accuracy.")
    points += [*comparison.notes, _latency_point(report)]
    return Bullets(tuple(filter(None, points)))


def scores_sentence(report: Report) -> str:
    """How the scores that are printed differ: training data, test data, one network, all seeds."""
    comparison, score = report.comparison, report.comparison.verdict.score
    family = "accuracy" if score == "accuracy" else "score"
    (old, new), (old_train, new_train) = (
        [metrics.get(f"{family}/{part}") for metrics in (report.metrics[0], report.metrics[-1])]
        for part in ("test", "train"))
    if old is None or new is None:
        return ""
    on_training = "" if old_train is None or new_train is None else \
        f"{old_train:.4f} and {new_train:.4f} on the training data"
    examples = f"{comparison.verdict.examples:,} test examples"
    churn = "" if comparison.churn is None else \
        f" Their answers differ on {100 * comparison.churn:.1f}% of these."
    if comparison.recipe is None:
        return f"The {score} is of {examples}{on_training and f'; it is {on_training}'}.{churn}"
    counts = comparison.recipe.counts
    collapsed = counts.collapsed + counts.baseline_collapsed if counts else 0
    without = f", without the {collapsed:,} that collapsed" if collapsed else ""
    beside = f" ({on_training})" if on_training else ""
    return (f"The two saved models score {old:.4f} and {new:.4f} on {examples}{beside}; they "
            f"are of one seed, and the verdict compares the means over all seeds{without}.{churn}")


def _latency_point(report: Report) -> str:
    if report.comparison.latency_ratio is None:
        return ""
    times, low, high = report.comparison.latency_ratio
    percent = f"{100 * report.comparison.verdict.confidence:.4g}%"
    where = f" on {report.measured_on}" if report.measured_on else ""
    return (f"Latency{where}, the models timed in turns: original ÷ slim {times:.2f} ({percent} "
            f"interval {low:.2f} to {high:.2f}).")


def _rounds(report: Report) -> list[Block]:
    ended = Text(f"There was no further round: {report.ended}" if report.ended else "")
    if len(report.rounds) < 2:
        return [ended]
    margin, result = text.margin_words(report.comparison.verdict), report.names[-1]
    is_result = [row.variant.name == result for row in report.rounds]
    return [
        Text(f"Each round slims the network of the round before, and is judged against the "
             f"original, with a margin of {margin}. The result is {result}."),
        Table(("round", "verdict", "difference (interval)", "fewer FLOPs", ""),
              list(map(_round_row, report.rounds, is_result)),
              strong=is_result.index(True) if any(is_result) else None, may_be_cut=False),
        Text(text.methods_note((row.variant.name, row.comparison.verdict.method)
                               for row in report.rounds)),
        ended]


def _round_row(row: Round, is_result: bool) -> tuple[str, ...]:
    verdict = row.comparison.verdict
    times = row.comparison.ratios.get(Metric.FLOPS_RATIO)
    unit = text.unit_of(verdict.score)[1]
    return (row.variant.name, text.short_outcome(verdict.outcome),
            text.interval_words(verdict) + unit, "–" if times is None else f"{times:.2f}×",
            "the result" if is_result else "")


def _layers(report: Report) -> list[Block]:
    rows = [(change.layer or "the model", f"{change.before:,}", f"{change.after:,}",
             "as many" if change.before == change.after else f"{change.share:.0%}")
            for change in report.layers]
    return [Picture("changes", "Units of each layer, before and after."),
            Table(("layer", "units, original", "units, slim", "kept"), rows),
            Text("Not cut:" if report.uncut else ""), Bullets(reason_points(report.uncut))]


METHODS = {
    "given": "The widths were given.",
    "effective": "The tutorial's rule: units × the share of effective weights, rounded down.",
    "rank": "The effective rank of each layer's activations on training data (Roy & Vetterli "
            "2007), rounded up.",
    "projection": "The smallest number of principal directions, of training data, that keeps the "
                  "score within the margin, in inference, on validation data (Berngardt 2024, "
                  "arXiv 2405.14147).",
    "ablation": "Units removed from the least important up, on validation data: the smallest "
                "number that keeps the score within the margin, all layers at once.",
    "search": "Networks of other widths were trained and compared with the original on validation "
              "data; the cheapest width that holds was taken, and compared on test data with new "
              "seeds.",
}


def _widths(target: TargetWidths) -> list[Block]:
    recommendation, searched = target.recommendation, target.searched
    began = f"The search began with the widths of the method {recommendation.method}: " \
            f"{METHODS.get(recommendation.method, '')}" if searched and recommendation else ""
    skipped = recommendation.skipped if recommendation else {}
    return [
        Text(METHODS.get(target.method, f"Method: {target.method}.")),
        Text(target.rounding),
        Table(("what", "units", "chosen"), [
            (parameter.name or "the model", f"{parameter.units:,}", f"{width:,}")
            for parameter, width in zip(target.dimensions, target.widths, strict=True)]),
        Picture("trials", " ".join(filter(None, (
            "The widths that the search tried, each against the original on validation data.",
            searched.remark if searched else "")))),
        _trials_table(searched.trials if searched else (), target.widths),
        Text(began),
        Picture("curves", "By layer, the curve that the width was read from."),
        Bullets((*(source.note for source in (recommendation, searched) if source and source.note),
                 *(f"No width for {layers}" for layers in reason_points(skipped)))),
    ]


def _trials_table(trials: Sequence[Trial], chosen: tuple[int, ...]) -> Table:
    tried = sorted(trials, key=lambda trial: -trial.cost)
    rows = [(widths_name(trial.widths), f"{trial.cost:,.0f}", f"{trial.score:.4f}",
             "–" if trial.outcome == "original" else
             f"{trial.delta:+.4f} ({trial.low:+.4f} to {trial.high:+.4f})".replace("-", "−"),
             f"{trial.seeds:,}", trial.outcome) for trial in tried]
    strong = next((i for i, trial in enumerate(tried) if trial.widths == chosen), None)
    return Table(("widths tried", text.FLOPS_ONE_SAMPLE, "score, validation",
                  "difference (interval)", "seeds", "found"), rows, strong=strong)


def _not_analysed(report: Report) -> tuple[str, ...]:
    """The layers that were skipped, each once, with the reason of the first variant that has it."""
    reasons: dict[str, str] = {}
    for usage in report.usages.values():
        reasons |= {layer: usage.skipped[layer] for layer in usage.skipped if layer not in reasons}
    return reason_points(reasons)


def reason_points(reasons: Mapping[str, str]) -> tuple[str, ...]:
    """A point for each reason, with the layers that it applies to."""
    return tuple(f"{layers}: {reason.rstrip('.')}." for layers, reason in group_by_reason(reasons))


def second_line(report: Report) -> str:
    """The verdict's figures, other readings of them, and the savings."""
    comparison = report.comparison
    readings = text.other_readings(comparison.verdict, comparison.artifact, comparison.looks,
                              comparison.bonferroni)
    sentences = (f"{report.headline}.", comparison.class_loss, *readings, report.saved)
    return " ".join(filter(None, sentences))
