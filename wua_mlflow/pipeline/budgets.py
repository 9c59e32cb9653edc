"""What the variants of a comparison were trained for, in sentences, with what the controls score.

May import: evaluation, names, the pipeline's variant. Tests: ``tests/pipeline/test_comparison.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

from wua_mlflow.evaluation import Task
from wua_mlflow.pipeline.variant import Variant
from wua_mlflow.tracking.names import Metric
from wua_mlflow.tracking.names import Variant as VariantName

__all__ = ["budget_sentence"]


def budget_sentence(variants: Sequence[Variant]) -> str:
    """The sentences on unequal budgets, with what each control scores; "" where there are none.

    Args:
        variants: the original first, the slim one last, controls between.
    """
    original, slim = variants[0], variants[-1]
    said = [_unequal(original, slim)]
    for control in variants[1:-1]:
        if control.variant == VariantName.SAME_BUDGET and \
                control.settings.epochs == slim.settings.epochs:
            onwards = original.adopted and slim.trained.structure is not None
            said.append(_same_budget(control, slim, onwards=onwards))
        elif control.variant == VariantName.FROM_SCRATCH:
            said.append(_from_scratch(control, slim))
    return " ".join(filter(None, said))


def _unequal(original: Variant, slim: Variant) -> str:
    if original.adopted:
        return "The original was trained elsewhere, so nothing is known of its budget."
    if (original.settings.epochs, original.epochs_trained) == (
            slim.settings.epochs, slim.epochs_trained):
        return ""
    return (f"Budgets differ: the original trained for {_length(original)}, the slim one for "
            f"{_length(slim)}.")


def _same_budget(control: Variant, slim: Variant, *, onwards: bool) -> str:
    mean, seeds, gap = _against(control, slim)
    on = " on" if onwards else ""
    return (f"Trained{on} for {_length(control)} too, the original scores {mean:.4f} {seeds}; the "
            f"slim one is {gap} that.")


def _from_scratch(control: Variant, slim: Variant) -> str:
    mean, seeds, gap = _against(control, slim)
    own, whole = (int(one.metrics[Metric.PARAMS_TOTAL]) for one in (slim, control))
    where = "at these widths" if own == whole else \
        f"at the nearest widths that the factory can make ({whole:,} parameters, not {own:,})"
    return (f"From scratch {where} for {_length(control)} (Scratch-E, Liu et al. 2019) a "
            f"network scores {mean:.4f} {seeds}; the pruned one is {gap} that.")


def _against(control: Variant, slim: Variant) -> tuple[float, str, str]:
    mean = float(control.replicate_scores.mean())
    gap = _said(float(slim.replicate_scores.mean()) - mean, slim.test.task)
    count = len(control.replicates)
    return mean, f"on average over {count} seeds" if count > 1 else "with its one seed", gap


def _said(gap: float, task: Task) -> str:
    """A difference in words: in points where the score is an accuracy."""
    amount = f"{abs(gap):.3f}" if task == "regression" else f"{100 * abs(gap):.1f} points"
    return f"{amount} {'below' if gap < 0 else 'above'}"


def _length(variant: Variant) -> str:
    budget, trained = variant.settings.epochs, variant.epochs_trained
    return f"{budget} epochs" if trained == budget else \
        f"at most {budget} epochs (stopped after {trained})"
