"""The result as a table and as JSON."""

import json

from wua_mlflow.widths.results import Curve, LayerWidth, WidthRecommendation

CURVE = Curve((3, 5, 8), (0.84, 0.89, 0.9), 0.9, 0.88, "accuracy")
RESULT = WidthRecommendation(
    "ablation", 0.02, (LayerWidth("fc1", 8, 6, CURVE, 5, ("fc1", "norm1")),
                       LayerWidth("fc2", 4, 4, Curve((4,), (0.9,), 0.9, 0.88, "accuracy"), 4)),
    Curve((9, 10, 12), (0.87, 0.89, 0.9), 0.9, 0.88, "accuracy"), {"fc3": "why"}, "a note")


def test_the_table():
    table = RESULT.table()
    assert table.index.tolist() == ["fc1", "fc2"]
    assert table.loc["fc1"].to_dict() == {
        "units": 8, "width": 6, "alone": 5, "score": 0.89, "baseline": 0.9, "threshold": 0.88,
        "axis": "accuracy", "layers": "fc1, norm1"}
    assert [line.split() for line in str(RESULT).splitlines()[2:4]] == [
        ["fc1", "8", "6", "75.0%", "5", "0.8900", "0.8800"],
        ["fc2", "4", "4", "100.0%", "4", "0.9000", "0.8800"]]


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
