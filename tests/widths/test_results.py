"""The result as a table and as JSON."""

import json

from wua_mlflow.widths.results import Curve, LayerWidth, WidthRecommendation

CURVE = Curve((3, 5, 8), (0.84, 0.89, 0.9), 0.9, 0.88, "accuracy")
RESULT = WidthRecommendation(
    "ablation", 0.02, (LayerWidth("fc1", 8, 6, CURVE, 5, ("fc1", "norm1")),
                       LayerWidth("fc2", 4, 4, Curve((4,), (0.9,), 0.9, 0.88, "accuracy"), 4)),
    Curve((9, 10, 12), (0.87, 0.89, 0.9), 0.9, 0.88, "accuracy"), {"fc3": "why"}, "a note")


def test_the_table():
    assert RESULT.table().splitlines() == [
        "| layer | units | width | alone | read from |", "|---|---|---|---|---|",
        "| fc1 | 8 | 6 | 5 | accuracy 0.8900 at 5 of 8 (all: 0.9000, at least 0.8800) |",
        "| fc2 | 4 | 4 | 4 | accuracy 0.9000 at 4 of 4 (all: 0.9000, at least 0.8800) |", "",
        "- a note", "- fc3: no width (why)"]


def test_json_holds_all_of_it():
    def curve_of(fields):
        return Curve(**{name: tuple(value) if isinstance(value, list) else value
                        for name, value in fields.items()})

    read = json.loads(RESULT.to_json())
    assert read.pop("widths") == RESULT.widths == {"fc1": 6, "fc2": 4}
    layers = tuple(LayerWidth(**{**layer, "layers": tuple(layer["layers"]),
                                 "curve": curve_of(layer["curve"])})
                   for layer in read.pop("layers"))
    assert WidthRecommendation(layers=layers, joint=curve_of(read.pop("joint")), **read) == RESULT
