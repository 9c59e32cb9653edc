"""Score against FLOPs: means and intervals against scipy, marks where they are, words apart."""

import itertools
import math

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from scipy import stats

from tests.plots.usages import words_of
from tests.report.cases import variant
from wua_mlflow.plots.pareto import pareto_data, plot_pareto
from wua_mlflow.plots.style import VARIANT_COLOURS
from wua_mlflow.tracking.names import Tag

OLD, NEW = VARIANT_COLOURS["oversized"], VARIANT_COLOURS["slim"]


def _variant(name, flops, scores=(), **metrics):
    return variant(name, (10,), metrics={"flops/forward": flops, **metrics}, scores=tuple(scores))


def test_mean_and_interval_are_students_one_model_has_none_and_one_without_figures_no_point():
    scores = [0.91, 0.95, 0.93, 0.90, 0.96]
    data = pareto_data([_variant("old", 60, scores)], confidence=0.9)
    point, = data.points
    low, high = stats.t.interval(0.9, 4, loc=np.mean(scores), scale=stats.sem(scores))
    ends = (point.value - point.half_width, point.high)
    assert (point.value, *ends) == pytest.approx((np.mean(scores), low, high))
    assert point.replicates == tuple(scores)
    data = pareto_data([
        _variant("old", 60, **{"accuracy/test": 0.9}), _variant("none", 50),
        variant("no flops", (10,), metrics={"accuracy/test": 0.8}), _variant("r", 9, [0.5]),
        _variant("regression", 8, **{"score/test": 0.7})])
    assert [(point.name, point.value, point.half_width) for point in data.points] == [
        ("old", 0.9, None), ("r", 0.5, None), ("regression", 0.7, None)]
    assert "with one seed there is no interval" in words_of(plot_pareto(data))


def test_variants_of_the_same_flops_stand_beside_each_other():
    data = pareto_data([_variant(str(i), flops, **{"accuracy/test": 0.9})
                        for i, flops in enumerate([60, 30, 60.2, 60, 30])])
    assert [point.slot for point in data.points] == [-1.0, -0.5, 0.0, 1.0, 0.5]
    marks = [mark.get_offsets() for mark in plot_pareto(data).axes[-1].collections
             if mark.get_offsets().shape == (1, 2)]
    across = sorted(float(at[0, 0]) for at in marks)
    assert all(b / a > 1.01 for a, b in itertools.pairwise(across)), "none covers another"


def test_marks_stand_at_flops_and_score():
    figure = plot_pareto(pareto_data([_variant("oversized", 1000, [0.90, 0.92]),
                                      _variant("slim", 100, [0.89, 0.93])], margin=0.02))
    (band,) = figure.axes[-1].patches
    assert [band.get_y(), band.get_y() + band.get_height()] == pytest.approx([0.89, 0.91])
    marks = {to_hex(mark.get_facecolor()[0]): mark.get_offsets()[0].tolist()
             for mark in figure.axes[-1].collections
             if isinstance(mark, PathCollection) and mark.get_sizes()[0] == 70}
    assert marks == {OLD: pytest.approx([1000, 0.91]), NEW: pytest.approx([100, 0.91])}


def test_what_it_says_and_what_cannot_be_drawn():
    for variants, message in (
            ([], "variants: expected the original's flops/forward and its score"),
            ([_variant("old", 0, [0.5, 0.6])], "variants: expected the original's flops/forward"),
            ([_variant("old", 60, [0.5, math.nan])], "variants: expected finite FLOPs and scores")):
        with pytest.raises(ValueError, match=f"^{message}"):
            pareto_data(variants)
    words = words_of(plot_pareto(pareto_data(
        [_variant("oversized 10", 61, [0.90, 0.92]),
         _variant("slim 7", 43, **{"accuracy/test": 0.873})], margin=0.01)))
    for phrase in ("Test accuracy against FLOPs, one sample", "oversized 10", "91.0%", "87.3%",
                   "A point without a bar is one trained model.",
                   "Shaded: down to 1 point below the original.",
                   "bar: its 95% interval over seeds"):
        assert phrase in words


def test_verdicts_of_several_methods_are_named_in_the_caption():
    variants = [_variant("old", 60, [0.9])] + [
        variant(f"slim-{i}", (10,), metrics={"flops/forward": 9.0 - i}, scores=(0.9,), tags={
            Tag.VERDICT: "inferior", Tag.VERDICT_METHOD: method})
        for i, method in enumerate(["t", "t", "Tango"])]
    assert pareto_data(variants[:3]).methods == ""
    data = pareto_data(variants)
    assert data.methods.endswith("differ: t (slim-0, slim-1); Tango (slim-2).")
    assert data.methods in " ".join(words_of(plot_pareto(data)).split())


@pytest.mark.parametrize(("count", "spread", "score"), [
    (1, 1.0, "accuracy"), (3, 1.0, "R²"), (6, 1.3, "R²"), (6, 1e4, "accuracy")])
def test_every_word_can_be_read(count, spread, score, legible):
    draw = np.random.default_rng(count)
    legible(plot_pareto(pareto_data([
        _variant(f"oversized-same-budget {128 - i}-{64 - i}, 60 epochs", 1e5 / spread**(i / 5),
                 0.9 + 0.02 * draw.normal(size=5)) for i in range(count)],
        margin=0.02, score=score)))
