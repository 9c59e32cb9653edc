"""What a report is made from, out of the variants and the rounds of slimming.

May import: everything but cli and the chain. Tests: ``tests/pipeline/test_reporting.py``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from wua_mlflow.config import Settings
from wua_mlflow.hooks import unwrapped
from wua_mlflow.pipeline.compare import Comparison
from wua_mlflow.pipeline.slim import Slimmed
from wua_mlflow.pipeline.variant import ModelVariant
from wua_mlflow.plots.widths import LayerChange
from wua_mlflow.report.content import Report, RoundRow, WidthsFound
from wua_mlflow.tracking.names import Metric, Tag
from wua_mlflow.usage.results import ModelUsage
from wua_mlflow.widths.results import Curve, LayerWidth, Trial

__all__ = [
    "ReportInputs", "again", "layer_changes", "report_of", "slimming_words",
    "title_of", "widths_found",
]


_UNITS = ("out_features", "out_channels", "hidden_size", "embedding_dim")
"""The attribute of a layer that says how many units it has."""


@dataclass(frozen=True)
class ReportInputs:
    """What is known besides the variants: usage by variant's name, the rounds, how the widths were
    found (``widths.json``)."""

    usages: Mapping[str, ModelUsage] = field(default_factory=dict)
    slimmed: Slimmed | None = None
    widths: str | None = None


def report_of(
    variants: Sequence[ModelVariant], comparison: Comparison, told: ReportInputs
) -> Report:
    """The report of a pipeline.

    Args:
        variants: the original first, the result last, its controls between.
        comparison: of the result with the original.
        told: what else is known.
    """
    original, slim = variants[0], variants[-1]
    return Report(
        title_of(slim.settings, original.widths, slim.widths),
        [one.name for one in variants], [comparison.with_latency(one) for one in variants],
        comparison,
        usages=told.usages, again=again(original),
        layers=layer_changes(original, slim, told.usages),
        uncut=slim.trained.uncut,
        rounds=_rounds(told.slimmed),
        ended=told.slimmed.ended if told.slimmed else "",
        widths=None if told.widths is None else widths_found(told.widths),
        slimmed_by=slimming_words(original, slim, _parent(original, slim, told.slimmed)),
        measured_on=_machine(slim))


def again(original: ModelVariant) -> str:
    """How to run it again; a model that was trained elsewhere is slimmed, not trained."""
    command = "wua slim" if original.adopted else "wua run"
    return (f"To run it again: `{command} --config config.yaml`, with this run's artifact of that "
            f"name.")


def title_of(settings: Settings, *widths: tuple[int, ...]) -> str:
    """The pipeline's name: its data and its networks' widths, ``usecase 10 → 7``."""
    name = settings.data.rsplit("/", 1)[-1]
    data = name.rsplit(".", 1)[0] if "." in name and ":" not in name else name
    return f"{data} {' → '.join('-'.join(map(str, units)) for units in widths)}"


def layer_changes(
    original: ModelVariant, slim: ModelVariant, usages: Mapping[str, ModelUsage]
) -> list[LayerChange]:
    """Units by layer, of the layers that both networks have.

    As analysed, where both were; else as the layers' own attributes say.
    """
    both = [usages.get(one.name) for one in (original, slim)]
    known = [{name: layer.units for name, layer in usage.layers.items()} for usage in both if usage]
    if len(known) < 2:
        known = [_units(one.model) for one in (original, slim)]
    before, after = known
    return [LayerChange(name, units, after[name]) for name, units in before.items()
            if after.get(name) and units]


def widths_found(text: str) -> WidthsFound:
    """How the widths were found, from ``widths.json``."""
    found = json.loads(text)
    recommended: dict[str, Any] = found.get("recommendation") or {}
    searched: dict[str, Any] = found.get("search") or {}
    notes = (recommended.get("note"), searched.get("note"))
    return WidthsFound(
        method=found["method"],
        chosen=[LayerChange(one["name"], one["units"], one["width"]) for one in found["widths"]],
        curves=[curve for one in recommended.get("layers", ()) if (curve := _curve(one))],
        trials=[Trial(**{**trial, "widths": tuple(trial["widths"])})
                for trial in searched.get("trials", ())],
        skipped=recommended.get("skipped", {}),
        notes=[note for note in notes if note],
        start=recommended.get("method", "") if searched else "")


def slimming_words(original: ModelVariant, slim: ModelVariant, parent: ModelVariant | None) -> str:
    """How the slim network was made and trained, against the original.

    Args:
        original: the oversized one.
        slim: the result.
        parent: what it was cut from, if that is known and it was cut.
    """
    settings = slim.settings
    if Tag.STRUCTURE in slim.tags:
        before = 0 if parent is None or parent.adopted else parent.epochs_trained
        length = _length(slim, slim.epochs_trained - before)
        onwards = "" if parent is not None or original.adopted else \
            ", those of the networks that it was cut from included"
        aims = ", aimed at the original's outputs as well as at the targets (distillation)" \
            if settings.distill else ""
        source = parent.name if parent else "the trained network"
        told = slim.tags.get(Tag.FOLDED, "true" if settings.fold is True else "false")
        folded = told.startswith("true")
        fitted = ", and what read the rest reads them for it, by a linear fit" if folded else ""
        uncut = "uncut network, so fitted" if folded else "original"
        chosen = "" if not told.endswith("chosen") else (
            f"; so was one {'without' if folded else 'with'} a linear fit in place of the rest, "
            f"which was {'behind' if folded else 'not ahead'} on validation data by more than a "
            f"standard error")
        return (f"Cut from {source}: of every group those units stayed that add most to the "
                f"others, on training data (attention heads: by |mean of activation × gradient|)"
                f"{fitted}. The cut was verified: shapes, parameters and FLOPs are what was "
                f"planned, and before any fine-tuning the outputs were those of the {uncut} with "
                f"the rest masked. Then fine-tuned for {length}{onwards}{aims}{chosen}.")
    budget = _budget(original, slim)
    return (f"Rebuilt: `{settings.model}` with the new widths, trained from scratch for "
            f"{_length(slim, slim.epochs_trained)}; the original for "
            f"{_length(original, original.epochs_trained)}{budget}.")


def _budget(original: ModelVariant, slim: ModelVariant) -> str:
    if slim.settings.budget == "flops" and slim.settings.slim_epochs is None:
        return ": about equal training FLOPs (Scratch-B, Liu et al. 2019)"
    same = original.settings.epochs == slim.settings.epochs
    return ": equal epochs (Scratch-E, Liu et al. 2019)" if same else ""


def _length(variant: ModelVariant, epochs: int) -> str:
    """Epochs, and updates where the built-in trainer made them."""
    settings, samples = variant.settings, len(variant.recipe.split.train)
    said = f"{epochs:,} epochs" if epochs != 1 else "1 epoch"
    if settings.train is not None:
        return f"{said} by {settings.train}"
    updates = epochs * (1 if settings.batch_size == "full" else
                        math.ceil(samples / settings.batch_size))
    return f"{said} ({updates:,} updates)" if updates != 1 else f"{said} (1 update)"


def _parent(
    original: ModelVariant, slim: ModelVariant, slimmed: Slimmed | None
) -> ModelVariant | None:
    """The network that the result was cut from; None where that is not known."""
    if slim.variant == "slim":
        return original
    variants = [one.variant for one in slimmed.rounds] if slimmed else []
    ids = [one.run_id for one in variants]
    place = ids.index(slim.run_id) if slim.run_id in ids else 0
    return variants[place - 1] if place else None


def _rounds(slimmed: Slimmed | None) -> list[RoundRow]:
    if slimmed is None or not slimmed.rounds:
        return []
    result = slimmed.result.variant.run_id
    return [RoundRow(one.variant.name, one.comparison.verdict,
                     one.comparison.ratios.get(Metric.FLOPS_RATIO), one.variant.run_id == result)
            for one in slimmed.rounds]


def _curve(one: Mapping[str, Any]) -> LayerWidth | None:
    curve = one["curve"]
    numbers = (*curve["scores"], curve["threshold"])
    if not curve["widths"] or not all(map(math.isfinite, numbers)):
        return None
    return LayerWidth(
        one["layer"], one["units"], one["width"],
        Curve(tuple(curve["widths"]), tuple(curve["scores"]), curve["baseline"],
              curve["threshold"], curve["axis"]), one["alone"], tuple(one.get("layers", ())))


def _units(model: nn.Module) -> dict[str, int]:
    found = {}
    for name, module in unwrapped(model).named_modules():
        units = next((getattr(module, one) for one in _UNITS
                      if isinstance(getattr(module, one, None), int)), None)
        if units is not None and getattr(module, "weight", True) is not None:
            found[name] = int(units)
    return found


def _machine(variant: ModelVariant) -> str:
    device = variant.recipe.device
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"a CPU ({threads} thread{'s' if threads > 1 else ''})"
    return str(device)
