"""Makes the report of a pipeline from what slimming found.

Tests: ``tests/report/test_build.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from wua_mlflow.config import Settings
from wua_mlflow.report.content import Report
from wua_mlflow.results import Slimmed, VariantResult
from wua_mlflow.tracking.names import Tag
from wua_mlflow.tracking.names import Variant as VariantName
from wua_mlflow.usage.results import ModelUsage
from wua_mlflow.what_to_cut import WhatToCut
from wua_mlflow.widths.results import LayerChange, widths_name

__all__ = ["again", "layer_changes", "report_of", "slimming_words", "title_of"]


def report_of(slimmed: Slimmed) -> Report:
    """The report of a pipeline: the original, the result of slimming, and the result's controls.

    Args:
        slimmed: at least one round.
    """
    original, result = slimmed.original, slimmed.result
    slim, comparison = result.variant, result.comparison
    shown = (original, *result.controls, slim)
    return Report(
        title_of(slim.settings, original.widths, slim.widths),
        [variant.name for variant in shown],
        [comparison.metrics_of(variant) for variant in shown],
        comparison,
        usages=slimmed.usages, again=again(original),
        layers=layer_changes(original, slim, slimmed.usages),
        uncut=slim.uncut, rounds=slimmed.rounds, ended=slimmed.ended, widths=result.goal,
        slimmed_by=slimming_words(original, slim, _parent(slimmed)),
        measured_on=_machine(slim))


def again(original: VariantResult) -> str:
    """How to run it again; a model that was trained elsewhere is slimmed, not trained."""
    command = "wua slim" if original.pretrained else "wua run"
    return (f"To run it again: `{command} --config config.yaml`, with this run's artifact of that "
            f"name.")


def title_of(settings: Settings, *widths: tuple[int, ...]) -> str:
    """The pipeline's name: its data and its networks' widths, ``usecase 10 → 7``."""
    name = settings.data.rsplit("/", 1)[-1]
    data = name.rsplit(".", 1)[0] if "." in name and ":" not in name else name
    return f"{data} {' → '.join(map(widths_name, widths))}"


def layer_changes(
    original: VariantResult, slim: VariantResult, usages: Mapping[str, ModelUsage]
) -> list[LayerChange]:
    """Units by layer, of the layers that both networks have.

    As analysed, where both were; else as the layers' own attributes say.
    """
    analysed = [usages[variant.name] for variant in (original, slim) if variant.name in usages]
    if len(analysed) == 2:
        before, after = ({name: layer.units for name, layer in usage.layers.items()}
                         for usage in analysed)
    else:
        before, after = dict(original.layer_units), dict(slim.layer_units)
    return [LayerChange(name, units, after[name]) for name, units in before.items()
            if after.get(name) and units]


def slimming_words(
    original: VariantResult, slim: VariantResult, parent: VariantResult | None
) -> str:
    """How the slim network was made and trained, against the original.

    Args:
        original: the oversized one.
        slim: the result.
        parent: what it was cut from, if that is known and it was cut.
    """
    settings = slim.settings
    if not slim.was_cut:
        return (f"Rebuilt: `{settings.model}` with the new widths, trained from scratch for "
                f"{_length(slim, slim.epochs_trained)}; the original for "
                f"{_length(original, original.epochs_trained)}{_budget(original, slim)}.")
    before = 0 if parent is None or parent.pretrained else parent.epochs_trained
    length = _length(slim, slim.epochs_trained - before)
    onwards = "" if parent is not None or original.pretrained else \
        ", those of the networks that it was cut from included"
    aims = ", aimed at the original's outputs as well as at the targets (distillation)" \
        if settings.distill else ""
    compensated, uncut, alternative = _compensation(slim)
    norms = ", and each norm over the units that stay" \
        if "stream" in settings.what_to_cut.kinds else ""
    asked = "" if settings.what_to_cut == WhatToCut() else f" (`what: {settings.what}`)"
    return (f"Cut from {parent.name if parent else 'the trained network'}{asked}: in every group "
            "of units those were kept that add most to the units already kept, on training data "
            "(attention heads: those of the largest |mean of activation × gradient|)"
            f"{compensated}. The cut was verified: shapes, parameters and FLOPs are as planned, "
            f"and before fine-tuning the outputs equal those of the {uncut} with the removed units "
            f"masked{norms}. Then fine-tuned for {length}{onwards}{aims}{alternative}.")


def _compensation(slim: VariantResult) -> tuple[str, str, str]:
    """Whether weights were fitted for the removed units: what, to what network, and if not."""
    folding = slim.tags.get(Tag.FOLDED, "true" if slim.settings.fold is True else "false")
    fitted = folding.startswith("true")
    alternative = "" if not folding.endswith("chosen") else (
        f"; a network {'without' if fitted else 'with'} that fit was fine-tuned too, and was "
        f"{'worse' if fitted else 'not better'} on validation data by more than a standard error")
    if not fitted:
        return "", "original", alternative
    return (", and the weights that read them were fitted by least squares to make up for the "
            "removed units", "uncut network, fitted likewise,", alternative)


def _budget(original: VariantResult, slim: VariantResult) -> str:
    if slim.settings.slim_epochs == "flops":
        return ": about equal training FLOPs (Scratch-B, Liu et al. 2019)"
    same = original.settings.epochs == slim.settings.epochs
    return ": equal epochs (Scratch-E, Liu et al. 2019)" if same else ""


def _length(variant: VariantResult, epochs: int) -> str:
    """Epochs, and updates where the built-in trainer made them."""
    settings, samples = variant.settings, variant.training_examples
    length = f"{epochs:,} epochs" if epochs != 1 else "1 epoch"
    if settings.train is not None:
        return f"{length} by {settings.train}"
    updates = epochs * (1 if settings.batch_size == "full" else
                        math.ceil(samples / settings.batch_size))
    return f"{length} ({updates:,} update{'s' if updates != 1 else ''})"


def _parent(slimmed: Slimmed) -> VariantResult | None:
    """The network that the result was cut from; None where that is not known."""
    slim, variants = slimmed.result.variant, [each.variant for each in slimmed.rounds]
    if slim.kind == VariantName.SLIM:
        return slimmed.original
    place = [variant.run_id for variant in variants].index(slim.run_id)
    return variants[place - 1] if place else None


def _machine(variant: VariantResult) -> str:
    if variant.device == "cpu":
        return f"a CPU ({variant.threads} thread{'s' if variant.threads > 1 else ''})"
    return variant.device
