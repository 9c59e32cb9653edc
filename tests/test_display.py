"""What a result of the library shows of itself: text, HTML, a DataFrame, a picture."""

from __future__ import annotations

import html
import re

import numpy as np
import pytest
import torch
from torch import nn

import wua_mlflow as wua
from tests.plots.usages import layer, many, model
from wua_mlflow.flops import FlopCount
from wua_mlflow.pruning.cut import Cut, Specification
from wua_mlflow.widths.results import Curve, LayerWidth, SearchResult, Trial, WidthRecommendation

CURVE = Curve((3, 5, 8), (0.84, 0.89, 0.9), 0.9, 0.88, "accuracy")
HOSTILE = "<script>alert(1)</script>\n" + "block." * 60
REASONS = {f"{HOSTILE}{i}": f"reason {i} " + "why " * 99 for i in range(99)}


def cut_of(names: list[str], fixed: dict[str, str] | None = None) -> Cut:
    units = {name: (256, 30) for name in names}
    return Cut(nn.Identity(), Specification(({name: (0,) for name in names},)), units, 85_002,
               12_456, 675_840, 97_280, fixed or {})


def widths_of(names: list[str], skipped: dict[str, str] | None = None) -> WidthRecommendation:
    return WidthRecommendation("ablation", 0.02, tuple(
        LayerWidth(name, 8, 5, CURVE, 5) for name in names), None, skipped or {})


def flops_of(names: list[str]) -> FlopCount:
    return FlopCount(12_200 * len(names), 0, {"": 12_200 * len(names), **dict.fromkeys(
        names, 12_200)}, {"aten.mm": 12_200 * len(names)}, {"aten.odd": 3}, 100)


def search_of(number: int) -> SearchResult:
    trials = [Trial((64 - i,), 8e3 - i, "holds", -0.01, -0.02, 0.0, 0.95) for i in range(number)]
    return SearchResult((60,), tuple(trials), "converged", HOSTILE, 0.02)


def verdict():
    rng = np.random.default_rng(0)
    return wua.compare(rng.random((5, 90)) > 0.1, rng.random((5, 90)) > 0.1)


NAMES = [f"encoder.{i}.fc" for i in range(200)]
SMALL = {
    "usage": model([layer("fc1", 0.5, (0.4, 0.6), dead_units=2, flops=4_000.0), layer("", 0.9)]),
    "layer": layer("fc1", 0.5, (0.4, 0.6)),
    "cut": cut_of(["fc1", "fc2"]), "widths": widths_of(["fc1", "fc2"]),
    "no widths": WidthRecommendation("rank", 0.02, (), None, {"fc2": "the output layer"}),
    "flops": flops_of(["fc1", "fc2"]), "search": search_of(4), "verdict": verdict(),
}
LARGE = {
    "usage": many(200), "usage, hostile": model([layer(f"{HOSTILE}{i}") for i in range(200)]),
    "cut": cut_of(NAMES, REASONS), "widths": widths_of([f"{HOSTILE}{i}" for i in range(200)],
                                                       REASONS),
    "flops": flops_of(NAMES), "flops, flat": flops_of([f"{HOSTILE}{i}" for i in range(200)]),
    "search": search_of(200),
}
ALL = [pytest.param(result, id=f"{size} {name}") for size, results in (
    ("small", SMALL), ("large", LARGE)) for name, result in results.items()]


@pytest.mark.parametrize("result", ALL)
def test_the_text_is_no_longer_than_a_screen_and_the_html_shows_the_same(result):
    lines = str(result).splitlines()
    assert repr(result) == str(result)
    assert 1 < len(lines) <= 40 and max(map(len, lines)) <= 200
    page = result._repr_html_()
    assert "<script" not in page
    assert set(re.findall(r"</?([a-z]+)", page)) <= {
        "div", "strong", "table", "thead", "tbody", "tfoot", "tr", "th", "td"}
    shown = {html.unescape(cell) for cell in re.findall(r">([^<>]+)</t[dh]>", page)}
    assert not [cell for cell in shown if cell not in str(result)]


@pytest.mark.parametrize("rows", [pytest.param(result, id=name) for name, result in SMALL.items()])
def test_the_table_is_a_frame_with_all_of_it(rows):
    table = rows.table()
    sizes = {"ModelUsage": 2, "Cut": 2, "FlopCount": 3, "SearchResult": 4}
    expected = 0 if not getattr(rows, "layers", True) else sizes.get(
        type(rows).__name__, len(getattr(rows, "layers", [0])))
    assert len(table) == expected


def test_figures_are_exact_in_the_table_and_written_with_their_units_in_the_text():
    usage, cut = SMALL["usage"], SMALL["cut"]
    assert usage.table().loc["fc1", ["weights", "null_low", "forward_flops"]].tolist() == [
        100, 0.4, 4000.0]
    assert cut.table().loc["fc1"].tolist() == [256, 30, 30 / 256]
    for words in ("85,002", "14.7%", "6.82×", "6.95×"):
        assert words in str(cut)
    assert verdict().table().loc[0, "delta"] == verdict().delta
    flops = SMALL["flops"]
    assert flops.table()["forward_flops"].to_dict() == dict(flops.by_module)
    assert "50.0%" in str(flops) and "lower bound" in str(flops)


def test_deep_models_are_shown_to_the_depth_that_a_screen_holds():
    names = [f"{i}" for i in range(9)] + [f"{i}.{k}" for i in range(9) for k in range(9)]
    shown = str(flops_of(names)).splitlines()
    assert [line.split()[0] for line in shown[2:11]] == list(map(str, range(9)))
    assert "to depth 1" in shown[0]


def test_a_cut_as_slim_gives_it_shows_itself():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
    cut = wua.slim(network, (torch.rand(64, 2), torch.randint(2, (64,))), widths={"0": 3})
    assert cut.table()["after"].tolist() == [3] and "37.5%" in str(cut)
