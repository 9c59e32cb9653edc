"""What the commands print: an analysis by layer, the verdicts as sentences or as JSON.

May import: the pipeline's and the library's result types. Tests: ``tests/test_cli.py``.
"""

from __future__ import annotations

from wua_mlflow.dotted import by_reason
from wua_mlflow.pipeline.analysing import Analysis
from wua_mlflow.pipeline.chain import Outcome
from wua_mlflow.pipeline.comparison import Comparison
from wua_mlflow.pipeline.report import Report
from wua_mlflow.tracking.names import further_layers_table
from wua_mlflow.usage import LayerUsage, ModelUsage
from wua_mlflow.verdict import Verdict

__all__ = ["print_analysis", "slimmed_text", "verdicts_record", "verdicts_text"]


def print_analysis(found: Analysis) -> None:
    """A line for the model, one a layer, and what was left out or could not be had."""
    usage = found.usage
    print(f"{found.name}: {usage.effective_weights:,.4f} effective weights of "
          f"{usage.weights:,}; run {found.run_id}")
    print(_layers_text(usage))
    others = found.parameters - usage.weights
    if others > 0:
        print(f"  not in this table: {others:,} of the model's {found.parameters:,} parameters "
              f"(biases, norms, what is named below)")
    for names, reason in by_reason(usage.skipped):
        print(f"  {names}: not analysed: {reason}")
    for criterion, other in list(found.usages.items())[1:]:
        print(f"{criterion}: {other.effective_weights:,.4f} effective weights of "
              f"{other.weights:,}; {further_layers_table(criterion)}")
    for remark in found.remarks:
        print(remark)


def slimmed_text(outcome: Outcome) -> str:
    """Each network that was trained, what was not cut of the result, the verdicts, the savings."""
    if not outcome.slimmed.rounds:
        return outcome.slimmed.ended
    lines = [f"{one.name}: {one.test.score:.4f} on the test part; run {one.run_id}"
             for one in outcome.variants[1:]]
    last = outcome.variants[-1].trained
    if last.structure is not None:
        left = {name: f"{count:,} left" for name, count in last.structure.left.items()}
        lines += [f"  {layers}: {count}" for layers, count in by_reason(left)]
    lines += [f"  {layers}: not cut: {reason}"
              for layers, reason in by_reason(last.uncut)]
    ends = outcome.variants[0], outcome.variants[-1]
    report = outcome.report or Report(
        "", [one.name for one in ends], [one.metrics for one in ends], outcome.comparison)
    return "\n".join([*lines, verdicts_text(outcome.comparison), report.saved,
                      f"In short: {report.in_short}"])


def verdicts_text(comparison: Comparison) -> str:
    """Both verdicts, what would settle them, on what budgets they rest, what they do not say."""
    lines = [" ".join(filter(None, (verdict.sentence, verdict.settle)))
             for verdict in (comparison.recipe, comparison.artifact) if verdict]
    lines += [comparison.budget] if comparison.budget else []
    lines += comparison.notes
    return "\n".join([*lines, *([] if comparison.recipe else [comparison.no_recipe])])


def verdicts_record(comparison: Comparison) -> dict[str, object]:
    """For JSON."""
    def shown(verdict: Verdict) -> dict[str, object]:
        return {"outcome": verdict.outcome, "delta": verdict.delta, "low": verdict.low,
                "high": verdict.high, "margin": verdict.margin, "confidence": verdict.confidence,
                "examples": verdict.examples, "seeds": verdict.seeds,
                "method": verdict.method, "sentence": verdict.sentence, "settle": verdict.settle}

    return {
        "verdict": comparison.verdict.outcome,
        "artifact": shown(comparison.artifact),
        "recipe": shown(comparison.recipe) if comparison.recipe else None,
        "budget": comparison.budget,
        "metrics": comparison.metrics,
    }


def _layers_text(usage: ModelUsage) -> str:
    """A line a layer under a line of heads; what was not measured for any layer is left out."""
    def told(layer: LayerUsage) -> list[str]:
        null, dead, rank = layer.null, layer.dead_units, layer.effective_rank
        return [f"  {layer.name}", f"{layer.entropy:.4f}", f"{layer.effective_weights:,.1f}",
                f"{layer.weights:,}", f"{layer.effective_share:.1%}",
                f"{null.low:.1%} - {null.high:.1%}" if null else "",
                "" if dead is None else f"{dead} of {layer.units:,}",
                "" if rank is None else f"{rank:.1f}"]

    heads = ["  layer", "entropy", "effective", "weights", "share", "learned nothing", "dead units",
             "rank"]
    columns = [column for column in zip(heads, *map(told, usage.layers.values()), strict=True)
               if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    return "\n".join("  ".join(
        cell.rjust(width) if place else cell.ljust(width)
        for place, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip()
        for line in zip(*columns, strict=True))
