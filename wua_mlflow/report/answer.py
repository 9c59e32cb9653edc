"""What a pipeline prints: the answer first, in one block; the details where they are asked for.

Tests: ``tests/report/test_answer.py``.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable

from wua_mlflow.data.datasets import is_file
from wua_mlflow.display import LINE, table_text
from wua_mlflow.report.content import Report
from wua_mlflow.report.sections import (
    METHODS,
    change_cell,
    figures_table,
    reason_points,
    scores_sentence,
)
from wua_mlflow.results import Comparison, Slimmed, TargetWidths
from wua_mlflow.tracking.names import ArtifactPath, Metric, Outcome, Tag
from wua_mlflow.tracking.names import Variant as VariantName
from wua_mlflow.tutorial import flops_text, report_text
from wua_mlflow.verdict import text

__all__ = ["answer_text", "details_text", "figures_text", "next_step", "tutorial_text",
           "verdicts_text", "widths_sentence"]


def answer_text(report: Report) -> str:
    """The answer: the verdict, five figures of both models, and what they rest on."""
    comparison = report.comparison
    verdict = _paragraphs(f"Verdict: {report.headline}", f"In short: {report.in_short}")
    rests_on = _paragraphs(
        *text.other_readings(comparison.verdict, comparison.artifact, comparison.looks, None),
        scores_sentence(report),
        widths_sentence(report.widths) if report.widths else "",
        f"There was no further round: {report.ended}" if report.ended else "",
        *comparison.cautions, comparison.class_loss, comparison.seedless,
        text.looks_sentence(comparison.looks, comparison.bonferroni)
        if comparison.looks > 1 else "",
        "" if comparison.recipe else comparison.no_recipe)
    return "\n\n".join(filter(None, (verdict, _five_figures(report), rests_on)))


def _paragraphs(*sentences: str) -> str:
    """Each sentence from the beginning of a line, broken where it is long."""
    return "\n".join(textwrap.fill(sentence, LINE, break_long_words=False, break_on_hyphens=False)
                     for sentence in sentences if sentence)


def _five_figures(report: Report) -> str:
    """Score, FLOPs, parameters, bytes and latency of the original and of the slim model."""
    original, slim = report.metrics[0], report.metrics[-1]
    score = report.comparison.verdict.score
    counts = report.comparison.recipe
    family = "accuracy" if score == "accuracy" else "score"
    test = f"{family}/test_mean" if counts else f"{family}/test"
    over = ", mean over seeds" if counts else ""
    rows = [(test, f"{score}, test{over}", "{:.4f}", "difference"),
            (Metric.FLOPS_FORWARD, text.FLOPS_ONE_SAMPLE, "{:,.0f}", "ratio"),
            (Metric.PARAMS_TOTAL, "parameters", "{:,.0f}", "ratio"),
            (Metric.SIZE_BYTES, "bytes on disk", "{:,.0f}", "ratio"),
            (Metric.LATENCY_P50, "latency, median at batch 1, ms", "{:.4f}", "ratio")]
    names = report.names[0], report.names[-1]
    if max(map(len, names)) > _LONGEST_NAME:
        names = "original", "slim"
    lines: list[tuple[str, ...]] = [("", *names, "original ÷ slim")]
    for key, label, form, change in rows:
        if key in original or key in slim:
            pair = original.get(key), slim.get(key)
            cells = ["–" if value is None else form.format(value) for value in pair]
            lines.append((label, *cells, change_cell(*pair, change)))
    if Metric.LATENCY_P50 in original and report.latency_gain:
        words, is_gain = report.latency_gain
        lines[-1] = (*lines[-1][:3], lines[-1][3] if is_gain else words.removesuffix(" per sample"))
    return table_text(lines, (False, True, True, True)) if len(lines) > 1 else ""


def _layer_words(name: str) -> str:
    """A layer's name before a number: ``fc1``, but ``layer 0:``."""
    return f"layer {name}:" if name[:1].isdigit() else name or "the model"


def widths_sentence(target: TargetWidths) -> str:
    """Which widths were chosen, and how."""
    units, widths = target.total
    groups = sum(len(parameter.names) for parameter in target.dimensions)
    chosen = ", ".join(f"{_layer_words(parameter.name)} {parameter.units:,} → {width:,}"
                       for parameter, width in zip(target.dimensions, target.widths, strict=True))
    if len(target.widths) > _MOST_WIDTHS or len(chosen) > 2 * LINE:
        chosen = f"{units:,} → {widths:,} units or heads in {groups:,} groups"
    remark = target.searched.remark if target.searched else ""
    method = METHODS.get(target.method, f"Method: {target.method}.")
    return " ".join(filter(None, (f"Widths: {chosen}.", method, target.rounding, remark)))


_MOST_WIDTHS, _LONGEST_NAME = 6, 24


def next_step(slimmed: Slimmed, again: Callable[..., str], *, registered: bool = False) -> str:
    """What to do next: a command where one would help, on one line, so that it can be copied.

    Args:
        slimmed: at least one round.
        again: gives the command that was typed, with other settings.
        registered: whether it was asked to register the slim model.
    """
    step = _next_step(slimmed, again, registered)
    if step.startswith(("wua ", "mlflow ")):
        commands = [line for line in step.splitlines() if not line.startswith("(")]
        remark = step.removeprefix("\n".join(commands)).strip()
        return "\n".join(filter(None, (f"Next: {commands[0]}", *(
            f"      {command}" for command in commands[1:]), _paragraphs(remark))))
    return _paragraphs(f"Next: {step}") if step else ""


def _what_loads_it(slimmed: Slimmed, registered: bool) -> str:
    """How to use a slim model that is as good."""
    result, comparison = slimmed.result, slimmed.result.comparison
    if Tag.UNEXPORTED in result.variant.tags:
        reason = result.variant.tags[Tag.UNEXPORTED].removeprefix("model: ")
        return (f"the slim model's weights are {ArtifactPath.STATE} of run "
                f"{result.variant.run_id}: wua_mlflow.load_slim loads them (docs/own_model.md, "
                f"\"The slim network again\"); there is no model that MLflow loads by itself: "
                f"{reason}")
    run_id, from_file = result.variant.run_id, is_file(result.variant.settings.data)
    loads = "the slim model's answers to new rows" if from_file else \
        f'mlflow.pytorch.load_model("models:/{result.variant.model_id}") is the slim model'
    if comparison.artifact.outcome != Outcome.NON_INFERIOR:
        loads += ("; --register NAME takes it only once the verdict on it alone is "
                  f"non_inferior too. {comparison.artifact.settle or ''}").rstrip()
    elif not registered:
        loads += "; --register NAME puts it into the registry"
    return f"wua predict {run_id} NEW.csv --out answers.csv\n({loads})" if from_file else loads


def _next_step(slimmed: Slimmed, again: Callable[..., str], registered: bool) -> str:
    comparison = slimmed.result.comparison
    verdict, needed = comparison.verdict, comparison.verdict.needed
    if verdict.outcome == Outcome.NON_INFERIOR:
        return _what_loads_it(slimmed, registered)
    control = comparison.class_control if verdict.guard else None
    if control is not None and control.of_training:
        return _with_the_original_trained_on(slimmed, again, control.name)
    if verdict.outcome == Outcome.INFERIOR:
        goal = slimmed.result.goal
        method = goal.method if goal else ""
        if method == "search":
            return "keep the original: no narrower network was found that is as good"
        return again(slim_hidden="auto" if method == "given" else "search")
    if verdict.guard and verdict.settle:
        return verdict.settle
    if comparison.recipe is None and comparison.no_recipe == text.TOO_FEW_SEEDS:
        return again(seeds=5)
    if needed and needed.kind == "seeds" and needed.as_seen:
        return (f"{again(seeds=needed.as_seen[0])}\n(enough, if all is as seen; it may take "
                f"{text.amount_words(needed)}, and seeds beyond those planned are exploratory)")
    return verdict.settle or ""


def _with_the_original_trained_on(
    slimmed: Slimmed, again: Callable[..., str], name: str
) -> str:
    """The commands that compare with the original of the slim one's budget."""
    control = next((each for each in slimmed.result.controls
                    if each.kind == VariantName.SAME_BUDGET), None)
    if control is None or not slimmed.original.pretrained:
        epochs = slimmed.result.variant.settings.epochs
        return (f"{again(epochs=epochs)}\n(the original trained for as long loses as much of the "
                f"class {name}: it is the training that does it, not the size)")
    folder, state = "trained_on", ArtifactPath.STATE
    file = f"{folder}/{state.rpartition('/')[2]}"
    load = (f"mlflow artifacts download --run-id {control.run_id} --artifact-path {state} "
            f"--dst-path {folder}")
    return (f"{load}\n{again(state=file)}\n(the original trained on for as long, "
            f"run {control.run_id}, loses as much of the class {name}: if it may take the "
            f"original's place, compare with that. To keep that class instead: a --loss with class "
            f"weights, or a smaller --lr)")


def tutorial_text(report: Report) -> str:
    """The figures of each variant as the tutorial prints them, FLOPs by its own count."""
    blocks = []
    for name, metrics in zip(report.names, report.metrics, strict=True):
        usage = report.usages.get(name)
        block = [name, "=" * len(name)]
        if Metric.FLOPS_PTFLOPS_TRAINING in metrics:
            block.append(flops_text(metrics[Metric.FLOPS_PTFLOPS_TRAINING],
                                    metrics[Metric.FLOPS_PTFLOPS_INFERENCE]))
        if Metric.ACCURACY_TRAIN in metrics:
            block.append(f"Accuracy: {metrics[Metric.ACCURACY_TRAIN]:.4f} on the training data, "
                         f"{metrics[Metric.ACCURACY_TEST]:.4f} on data that training never saw")
        for layer in usage.layers.values() if usage else ():
            block += [f"-- {layer.name}", report_text({
                "total_weights": layer.weights, "nodes": layer.units, "entropy": layer.entropy,
                "effective_weights": layer.effective_weights,
                "top_90_percent_contrib": layer.top90_share,
                "low_contrib_percentage": 100 * layer.low_share})]
        blocks.append("\n".join(block))
    return "\n\n".join(("The tutorial's figures, FLOPs by its own count (ptflops; training: "
                        "2 × inference × epochs)", *blocks))


def details_text(report: Report, slimmed: Slimmed) -> str:
    """All figures, both verdicts, what was not cut: what ``--verbose`` adds."""
    slim = slimmed.result.variant
    score = report.comparison.artifact.score
    runs = [f"{variant.name}: {score} {variant.test_score:.4f} on the test part; run "
            f"{variant.run_id}" for variant in slimmed.variants]
    left = [f"  {name}: {count:,} left" for name, count in slim.units_left.items()]
    uncut = [f"  not cut: {point}" for point in reason_points(slim.uncut)]
    return "\n\n".join(filter(None, (
        figures_text(report), "\n".join([*runs, *left, *uncut]),
        verdicts_text(report.comparison), report.saved, report.slimmed_by)))


def verdicts_text(comparison: Comparison) -> str:
    """Both verdicts, what would settle the deciding one, their budgets, what they do not say."""
    verdicts = []
    for verdict in filter(None, (comparison.recipe, comparison.artifact)):
        settle = verdict.settle if verdict is comparison.verdict else None
        verdicts.append(f"{verdict.sentence} {settle}" if settle else verdict.sentence)
    no_recipe = "" if comparison.recipe else comparison.no_recipe
    return "\n".join(filter(None, (*verdicts, comparison.budget, *comparison.notes, no_recipe)))


def figures_text(report: Report) -> str:
    """The table of all figures in aligned columns."""
    table = figures_table(report)
    return table_text([table.head, *table.rows], [False] + [True] * (len(table.head) - 1))
