"""The result as a table and as JSON."""

from __future__ import annotations

import dataclasses
import json

import pytest

from wua_mlflow.widths.results import Curve, LayerWidth, WidthRecommendation

CURVE = Curve((3, 5, 8), (0.84, 0.89, 0.9), 0.9, 0.88, "accuracy")
FOUND = WidthRecommendation(
    "ablation", 0.02, (LayerWidth("fc1", 8, 6, CURVE, 5, ("fc1", "norm1")),
                       LayerWidth("fc2", 4, 4, Curve((4,), (0.9,), 0.9, 0.88, "accuracy"), 4)),
    Curve((9, 10, 12), (0.87, 0.89, 0.9), 0.9, 0.88, "accuracy"), {"fc3": "why"}, "a note")


def test_the_table():
    assert FOUND.table().splitlines() == [
        "| layer | units | width | alone | read from |",
        "|---|---|---|---|---|",
        "| fc1 | 8 | 6 | 5 | accuracy 0.8900 at 5 of 8 (all: 0.9000, at least 0.8800) |",
        "| fc2 | 4 | 4 | 4 | accuracy 0.9000 at 4 of 4 (all: 0.9000, at least 0.8800) |",
        "",
        "- a note",
        "- fc3: no width (why)",
    ]


def test_json_holds_all_of_it():
    read = json.loads(FOUND.to_json())
    assert read.pop("widths") == FOUND.widths == {"fc1": 6, "fc2": 4}
    layers = tuple(
        LayerWidth(**{**one, "layers": tuple(one["layers"]), "curve": curve_of(one["curve"])})
        for one in read.pop("layers"))
    joint = curve_of(read.pop("joint"))
    assert WidthRecommendation(layers=layers, joint=joint, **read) == FOUND


def curve_of(read):
    return Curve(**{**read, "widths": tuple(read["widths"]), "scores": tuple(read["scores"])})


@pytest.mark.parametrize("one", [FOUND, FOUND.layers[0], CURVE])
def test_results_cannot_be_changed(one):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(one, dataclasses.fields(one)[0].name, None)
