"""What is said of a test part before anything is trained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from wua_mlflow.config import load_settings
from wua_mlflow.data.datasets import load_data
from wua_mlflow.pipeline.compare import check_classes, check_test_part


@pytest.mark.parametrize(("data", "margin", "said"), [
    ("digits", 0.02, ""),
    ("wine", 0.02, "wua: note: test data: expected at least 189 examples to show even of equal "
                   "models that they are within a margin of 0.02, but got 54; take more, or a "
                   "margin of at least 0.0665\n"),
    ("wine", 0.07, ""),
    ("diabetes", 0.0001, ""),
])
def test_how_large_it_must_be(capsys, data, margin, said):
    check_test_part(load_data(data, seed=42), load_settings(None, {"margin": margin}))
    assert capsys.readouterr() == ("", said)


def test_one_class_alone():
    split = load_data("digits", seed=42)
    rows = split.test.targets == 3
    alone = replace(split, test=replace(split.test, inputs=split.test.inputs[rows],
                                        targets=split.test.targets[rows]))
    with pytest.raises(ValueError, match=f"^test data: expected examples of at least two classes, "
                                         f"but all {int(rows.sum())} are of class 3; "):
        check_test_part(alone, load_settings(None, {}))
    check_classes(np.array([0, 0, 1]))
