"""Results written by hand: variants, comparisons, rounds, widths."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from wua_mlflow.config import load_settings
from wua_mlflow.report.content import Report
from wua_mlflow.results import Comparison, Round, TargetWidths, VariantResult, WidthParameter
from wua_mlflow.verdict.compare import Verdict, compare
from wua_mlflow.widths.results import Curve, LayerWidth, SearchResult, Trial, WidthRecommendation

SAME = compare(np.ones(2000), np.ones(2000), margin=0.02)
"""The verdict on two models that are right on all of 2,000 examples."""


def verdict(outcome: str = "non_inferior", **fields: object) -> Verdict:
    """``SAME`` with another outcome and other figures."""
    return replace(SAME, outcome=outcome, **{"low": -0.01, "high": 0.01, **fields})


def comparison(artifact: Verdict = SAME, **fields: object) -> Comparison:
    """Of two models, with one verdict."""
    return replace(Comparison(artifact, None, None, None, 1, {}), **fields)


def variant(name: str, widths: tuple[int, ...], **fields: object) -> VariantResult:
    """A variant of the use case that was trained on a CPU."""
    kind, tags = name.split()[0], {"wua.widths": ",".join(map(str, widths))}
    plain = VariantResult(
        run_id=name.replace(" ", "-"), experiment_id="0", name=name, kind=kind,
        settings=load_settings(None, {"hidden": ",".join(map(str, widths))}), tags=tags,
        metrics={}, scores=(0.9,), training_examples=1000, device="cpu", threads=1,
        model_id=f"m-{kind}")
    return replace(plain, **{**fields, "tags": {**tags, **fields.pop("tags", {})}})  # type: ignore[dict-item]


def round_of(name: str, widths: tuple[int, ...], judged: Verdict, flops_ratio: float) -> Round:
    """A round without controls."""
    ratios = {"compare/flops_ratio": flops_ratio}
    return Round(None, variant(name, widths), (), comparison(judged, ratios=ratios))


def widths_of_a_search(layer: str = "fc1") -> TargetWidths:
    """64 units, of which a search keeps 16; it began with the method ``rank``."""
    curve = Curve((16, 64), (0.96, 0.97), 0.97, 0.95, "accuracy")
    trials = (Trial((64,), 8000, "original", 0, 0, 0, 0.97),
              Trial((16,), 2000, "holds", -0.01, -0.015, -0.005, 0.96),
              Trial((4,), 500, "fails", -0.07, -0.08, -0.06, 0.9))
    return TargetWidths(
        (WidthParameter(layer, 64, (layer,)),), (16,), "search",
        WidthRecommendation("rank", 0.02, (LayerWidth(layer, 64, 16, curve, 16, (layer,)),), None,
                            {"fc9": "it is never called"}),
        SearchResult((16,), trials, "converged", "It took long.", 0.02))


OLD = {"accuracy/test": 0.9, "accuracy/train": 0.95, "score/test": 0.9, "flops/forward": 60.0,
       "params/total": 41.0, "latency/samples_per_s": 1000.0, "usage/top90_share": 0.65}
NEW = {"accuracy/test": 0.89, "accuracy/train": 0.93, "score/test": 0.89, "flops/forward": 42.0,
       "params/total": 29.0, "latency/samples_per_s": 1500.0}


def report_with(ratios: dict[str, float], looks: int = 1) -> Report:
    """Of two models, of which the second is wrong on 10 of 2,000 examples."""
    artifact = compare(np.ones(2000), 1.0 * (np.arange(2000) >= 10), margin=0.02)
    judged = comparison(artifact, churn=0.005, worst_class_delta=-0.01, looks=looks, ratios=ratios)
    return Report("demo 10 → 7", ["old", "new"], [OLD, NEW], judged, again="Again.")


SAVES = {"compare/flops_ratio": 60 / 42, "compare/params_ratio": 41 / 29,
         "compare/size_ratio": 1.01, "compare/latency_ratio": 1.3}
