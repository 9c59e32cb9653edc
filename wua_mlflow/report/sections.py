"""The sections of a report: the variants' figures, the verdict, rounds, widths, usage.

Tests: ``tests/report/test_sections.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from wua_mlflow.errors import group_by_reason
from wua_mlflow.report.content import (
    Block,
    Bullets,
    Picture,
    Report,
    Section,
    Table,
    Text,
)
from wua_mlflow.results import Round, TargetWidths
from wua_mlflow.tracking.names import Metric
from wua_mlflow.usage.results import PERMUTED, LayerUsage, ModelUsage
from wua_mlflow.verdict.text import interval_words, margin_words, other_readings, short_outcome
from wua_mlflow.widths.results import Trial

__all__ = ["figures_table", "second_line", "sections", "usage_section"]


MOST_NAMED = 5
CAUTION = ("Effective weights measure how concentrated the importance is. A low number alone does "
           "not show that weights can be removed. It depends on how the network is parametrised, "
           "so compare it with the value of untrained networks.")


def usage_section(report: Report) -> Section | None:
    """Of the original; None where it was not analysed."""
    usage = report.usages.get(report.names[0])
    if usage is None or not usage.layers:
        return None
    slim = report.usages.get(report.names[-1]) if len(report.names) > 1 else None
    blocks: list[Block] = [
        Bullets((*_concentrated(usage), *_permuted(usage), *_dead(usage), CAUTION)),
        _table(usage, slim),
        Picture("layers", "Effective share of each layer of the original, beside networks that "
                          "learned nothing."),
    ]
    return Section("How concentrated the original's importance is", tuple(blocks))


def _concentrated(usage: ModelUsage) -> list[str]:
    """The layers below the range of their null, the most concentrated first; else the lowest."""
    layers = [layer for layer in usage.layers.values() if not layer.dead]
    known = [(layer, layer.null) for layer in layers if layer.null]
    below = [(layer, null) for layer, null in known if layer.effective_share < null.low]
    below.sort(key=lambda pair: pair[0].effective_share / pair[1].low)
    if below:
        named = [f"{_name(layer)} ({layer.effective_share:.0%} of its weights are effective; "
                 f"{null.low:.0%} to {null.high:.0%} in networks that learned nothing)"
                 for layer, null in below[:MOST_NAMED]]
        return [f"By the criterion {usage.criterion}, importance is more concentrated than in "
                f"networks that learned nothing in {_listed(named, len(below))}."]
    if known:
        which = "the layer lies" if len(known) == 1 else f"all {len(known):,} layers lie"
        return [f"By the criterion {usage.criterion}, importance is nowhere more concentrated than "
                f"in networks that learned nothing: {which} within their range or above it."]
    if not layers:
        return []
    least = min(layers, key=lambda layer: layer.effective_share)
    return [f"By the criterion {usage.criterion}, importance is most concentrated in "
            f"{_name(least)}: {least.effective_share:.0%} of its weights are effective. It was not "
            f"compared with networks that learned nothing."]


def _permuted(usage: ModelUsage) -> list[str]:
    """The layers whose weights no module could re-initialise; by magnitude they have no range."""
    layers, said = usage.layers.values(), []
    permuted = [_name(layer) for layer in layers if layer.null and layer.null.kind == PERMUTED]
    if permuted:
        said.append("Compared with their own weights in another order, since they could not be "
                    f"re-initialised: {_listed(permuted[:MOST_NAMED], len(permuted))}.")
    without = [_name(layer) for layer in layers if usage.null and not layer.null]
    if without:
        said.append("Not compared with networks that learned nothing, since they could not be "
                    f"re-initialised: {_listed(without[:MOST_NAMED], len(without))}.")
    return said


def _dead(usage: ModelUsage) -> list[str]:
    some = [layer for layer in usage.layers.values() if layer.dead_units]
    some.sort(key=lambda layer: -(layer.dead_units or 0) / layer.units)
    said = []
    if some:
        named = [f"{_name(layer)} ({layer.dead_units:,} of {layer.units:,})"
                 for layer in some[:MOST_NAMED]]
        said.append(f"Dead units, zero on all of these data or never above zero before a ReLU: "
                    f"{_listed(named, len(some))}. Other data may still activate them.")
    silent = [_name(layer) for layer in usage.layers.values() if layer.dead]
    if silent:
        said.append(f"No importance at all: {_listed(silent[:MOST_NAMED], len(silent))}.")
    return said


def _listed(named: Sequence[str], count: int) -> str:
    more = count - len(named)
    if more:
        return f"{', '.join(named)} and {more:,} more"
    return " and ".join(filter(None, (", ".join(named[:-1]), named[-1])))


def _table(usage: ModelUsage, slim: ModelUsage | None) -> Table:
    layers = list(usage.layers.values())
    columns = [
        ("layer", [_name(layer) for layer in layers]),
        ("weights", [f"{layer.weights:,}" for layer in layers]),
        ("effective share", [f"{layer.effective_share:.1%}" for layer in layers]),
        ("learned nothing", [_null(layer) for layer in layers]),
        ("share that holds 90%", [f"{layer.top90_share:.1%}" for layer in layers]),
        ("dead units", [_dead_units(layer) for layer in layers]),
        ("slim: effective share", [_share_in(slim, layer.name) for layer in layers]),
    ]
    told = [(head, texts) for head, texts in columns if any(texts)]
    return Table(tuple(head for head, _ in told),
                 list(zip(*(texts for _, texts in told), strict=True)))


def _null(layer: LayerUsage) -> str:
    return f"{layer.null.low:.1%} to {layer.null.high:.1%}" if layer.null else ""


def _dead_units(layer: LayerUsage) -> str:
    return "" if layer.dead_units is None else f"{layer.dead_units:,} of {layer.units:,}"


def _share_in(usage: ModelUsage | None, name: str) -> str:
    found = usage.layers.get(name) if usage else None
    return f"{found.effective_share:.1%}" if found else ""


def _name(layer: LayerUsage) -> str:
    return layer.name or "the model"


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
              "data; the cheapest one that is as good was taken, and compared once on test data.",
}


def sections(report: Report) -> list[Section]:
    """All that there is to say, the most important first; the first one is the table's."""
    found = [
        _found(report), _proof(report), _rounds(report), _pareto(report), _layers(report),
        _widths(report.widths), _slimmed(report), usage_section(report),
        _left_out("What was not analysed", _skipped(report)), _again(report),
    ]
    return [one for one in found if one and one.blocks]


_ROWS = (
    (Metric.ACCURACY_TEST, "accuracy, test", "{:.4f}", "difference"),
    (Metric.ACCURACY_TEST_MEAN, "accuracy, test, mean over seeds", "{:.4f}", "difference"),
    (Metric.ACCURACY_TEST_STD, "its standard deviation over seeds", "{:.4f}", ""),
    (Metric.ACCURACY_TRAIN, "accuracy, training data", "{:.4f}", "difference"),
    (Metric.SCORE_TEST, "R², test", "{:.4f}", "difference"),
    (Metric.SCORE_TRAIN, "R², training data", "{:.4f}", "difference"),
    (Metric.FLOPS_FORWARD, "FLOPs, one sample", "{:,.0f}", "ratio"),
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
    """The figures of all variants; a quantity that none of them has is left out."""
    metrics = report.metrics
    rows = []
    for key, label, form, change in _ROWS:
        values = [of_variant.get(key) for of_variant in metrics]
        other_task = key.startswith("score/") and Metric.ACCURACY_TEST in metrics[0]
        if other_task or all(value is None for value in values):
            continue
        cells = ("–" if value is None else form.format(value) for value in values)
        rows.append((label, *cells, _change(values[0], values[-1], change)))
    return Table(("", *report.names, "change"), rows, may_be_cut=False)


def _change(first: float | None, last: float | None, change: str) -> str:
    """The difference, or the ratio original ÷ slim (``inverse``: of what should be large)."""
    if first is None or last is None or not change:
        return ""
    if change == "difference":
        return f"{last - first:+.4f}".replace("-", "−")
    ratio = first / last if last else 0.0
    return f"{1 / ratio if change == 'inverse' and ratio else ratio:.2f}×"


def _found(report: Report) -> Section:
    return Section("", (figures_table(report),
                        Picture("comparison", "The verdict's interval, and what is saved.")))


def _proof(report: Report) -> Section:
    comparison = report.comparison
    said = [comparison.verdict.sentence, comparison.budget, comparison.verdict.settle or ""]
    if comparison.recipe is None:
        said.append(comparison.no_recipe)
    else:
        said.append(comparison.artifact.sentence)
    if comparison.churn is not None:
        said.append(f"The two models' predictions differ on {100 * comparison.churn:.1f}% of the "
                    f"test examples.")
    if comparison.worst_class_delta is not None:
        change = f"{100 * comparison.worst_class_delta:+.1f}".replace("-", "−")
        which = f" ({comparison.worst_class})" if comparison.worst_class else ""
        said.append(f"The class with the worst change{which}: {change} points of accuracy.")
    said += comparison.notes
    said.append(_latency(report))
    return Section("What the verdict rests on", (Bullets(tuple(filter(None, said))),))


def _latency(report: Report) -> str:
    if report.comparison.latency_ratio is None:
        return ""
    ratio, low, high = report.comparison.latency_ratio
    percent = f"{100 * report.comparison.verdict.confidence:.4g}%"
    where = f" on {report.measured_on}" if report.measured_on else ""
    return (f"Latency{where}, the models timed in turns: original ÷ slim {ratio:.2f} ({percent} "
            f"interval {low:.2f} to {high:.2f}).")


def _rounds(report: Report) -> Section | None:
    if len(report.rounds) < 2 and not report.ended:
        return None
    blocks: list[Block] = []
    if len(report.rounds) > 1:
        margin = margin_words(report.comparison.verdict)
        result = report.names[-1]
        blocks.append(Text(f"Each round slims the network of the round before, and is judged "
                           f"against the original, with a margin of {margin}. The result is "
                           f"{result}."))
        strong = [i for i, each in enumerate(report.rounds) if each.variant.name == result]
        blocks.append(Table(("round", "verdict", "difference (interval)", "fewer FLOPs", ""),
                            [_round(each, each.variant.name == result) for each in report.rounds],
                            strong=strong[0] if strong else None, may_be_cut=False))
    if report.ended:
        blocks.append(Text(f"There was no further round: {report.ended}"))
    return Section("Rounds", tuple(blocks))


def _round(row: Round, is_result: bool) -> tuple[str, ...]:
    verdict = row.comparison.verdict
    ratio = row.comparison.ratios.get(Metric.FLOPS_RATIO)
    unit = " points" if verdict.score == "accuracy" else ""
    return (row.variant.name, short_outcome(verdict.outcome), interval_words(verdict) + unit,
            "–" if ratio is None else f"{ratio:.2f}×", "the result" if is_result else "")


def _pareto(report: Report) -> Section:
    score = report.comparison.verdict.score
    return Section(f"{score[:1].upper()}{score[1:]} against FLOPs", (
        Picture("pareto", f"Test {score} of each variant against the FLOPs of one sample, with "
                          f"intervals over seeds."),))


def _layers(report: Report) -> Section | None:
    blocks: list[Block] = []
    if report.layers:
        rows = [(one.layer or "the model", f"{one.before:,}", f"{one.after:,}",
                 "as many" if one.before == one.after else f"{one.share:.0%}")
                for one in report.layers]
        blocks.append(Picture("changes", "Units of each layer, before and after."))
        blocks.append(Table(("layer", "units, original", "units, slim", "kept"), rows))
    if report.uncut:
        blocks.append(Text("Not cut:"))
        blocks.append(Bullets(_reasons(report.uncut)))
    return Section("Layers before and after", tuple(blocks))


def _widths(found: TargetWidths | None) -> Section | None:
    if found is None:
        return None
    blocks: list[Block] = [Text(METHODS.get(found.method, f"Method: {found.method}."))]
    if found.dimensions:
        blocks.append(Table(("what", "units", "chosen"), [
            (parameter.name or "the model", f"{parameter.units:,}", f"{width:,}")
            for parameter, width in zip(found.dimensions, found.widths, strict=True)]))
    blocks.append(Picture("trials", "The widths that the search tried, each against the original "
                                    "on validation data."))
    recommendation, searched = found.recommendation, found.searched
    if searched and searched.trials:
        blocks.append(_trials(searched.trials, found.widths))
    if searched and recommendation:
        blocks.append(Text(f"The search began with the widths of the method "
                           f"{recommendation.method}: {METHODS.get(recommendation.method, '')}"))
    blocks.append(Picture("curves", "By layer, the curve that the width was read from."))
    notes = [source.note for source in (recommendation, searched) if source and source.note]
    skipped = recommendation.skipped if recommendation else {}
    notes += [f"No width for {layers}" for layers in _reasons(skipped)]
    if notes:
        blocks.append(Bullets(tuple(notes)))
    return Section("How the widths were found", tuple(blocks))


def _trials(trials: Sequence[Trial], chosen: tuple[int, ...]) -> Table:
    tried = sorted(trials, key=lambda trial: -trial.cost)
    rows = [("-".join(map(str, trial.widths)), f"{trial.cost:,.0f}", f"{trial.score:.4f}",
             "–" if trial.outcome == "original" else
             f"{trial.delta:+.4f} ({trial.low:+.4f} to {trial.high:+.4f})".replace("-", "−"),
             short_outcome(trial.outcome)) for trial in tried]
    strong = [i for i, trial in enumerate(tried) if trial.widths == chosen]
    return Table(("widths tried", "FLOPs, one sample", "score, validation",
                  "difference (interval)", "found"), rows, strong=strong[0] if strong else None)


def _slimmed(report: Report) -> Section | None:
    return Section("How it was slimmed", (Text(report.slimmed_by),)) if report.slimmed_by else None


def _left_out(title: str, reasons: Mapping[str, str]) -> Section | None:
    return Section(title, (Bullets(_reasons(reasons)),)) if reasons else None


def _skipped(report: Report) -> dict[str, str]:
    """What was not analysed, each once; of a slim variant only what the original does not have."""
    found: dict[str, str] = {}
    for usage in report.usages.values():
        for layer, reason in usage.skipped.items():
            found.setdefault(layer, reason)
    return found


def _reasons(reasons: Mapping[str, str]) -> tuple[str, ...]:
    """By reason the layers that it holds for."""
    return tuple(f"{layers}: {reason.rstrip('.')}." for layers, reason in group_by_reason(reasons))


def _again(report: Report) -> Section | None:
    return Section("Run it again", (Text(report.again),)) if report.again else None


def second_line(report: Report) -> str:
    """The verdict's figures, what another reading of them says, and what is saved."""
    comparison = report.comparison
    readings = other_readings(comparison.verdict, comparison.artifact, comparison.looks,
                              comparison.bonferroni)
    sentences = (f"{report.headline}.", comparison.class_loss, *readings, report.saved)
    return " ".join(filter(None, sentences))
