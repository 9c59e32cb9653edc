"""The comparison of two models in other forms than a terminal's: markdown for a pull request, JSON.

Tests: ``tests/report/test_pair.py``.
"""

from __future__ import annotations

from dataclasses import asdict

from wua_mlflow.markdown import markdown_text
from wua_mlflow.report.content import Report
from wua_mlflow.report.render import markdown_table
from wua_mlflow.report.sections import figures_table
from wua_mlflow.results import Comparison
from wua_mlflow.tracking.names import Outcome
from wua_mlflow.verdict.compare import Verdict

__all__ = ["pair_markdown", "verdicts_record"]


MARKS = {Outcome.NON_INFERIOR: "\N{WHITE HEAVY CHECK MARK}", Outcome.INFERIOR: "\N{CROSS MARK}",
         Outcome.INCONCLUSIVE: "\N{WHITE QUESTION MARK ORNAMENT}"}


def pair_markdown(report: Report, caution: str = "") -> str:
    """For who decides on a merge: the verdict, its sentence, the figures, what they rest on.

    Args:
        report: of the two models.
        caution: why a figure is not to be trusted, if so.
    """
    comparison = report.comparison
    verdict = comparison.verdict
    rests_on = [verdict.settle, *comparison.notes, caution]
    return "\n\n".join((
        f"### {MARKS[verdict.outcome]} `{verdict.outcome}`: "
        f"{markdown_text(report.headline)}",
        markdown_text(f"{report.asked} {report.in_short}"),
        markdown_table(figures_table(report)),
        *(markdown_text(sentence) for sentence in rests_on if sentence))) + "\n"


def verdicts_record(comparison: Comparison) -> dict[str, object]:
    """For JSON."""
    def shown(verdict: Verdict) -> dict[str, object]:
        record = {name: getattr(verdict, name) for name in (
            "outcome", "delta", "low", "high", "margin", "confidence", "examples", "seeds",
            "method", "sentence", "settle", "score", "baseline_score", "candidate_score",
            "constant_score", "guard", "groups")}
        return record | ({"counts": asdict(verdict.counts)} if verdict.counts else {})

    return {
        "verdict": comparison.verdict.outcome,
        "artifact": shown(comparison.artifact),
        "recipe": shown(comparison.recipe) if comparison.recipe else None,
        "budget": comparison.budget,
        "metrics": comparison.metrics,
    }
