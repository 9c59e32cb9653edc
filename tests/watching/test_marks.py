"""Notes stay on a tensor until it is changed in place, and cost no copy."""

from __future__ import annotations

import torch

from wua_mlflow.watching.marks import mark, noted


def test_a_note_is_of_one_tensor():
    x = torch.ones(3)
    mark(x, layer="a")
    mark(x, flat=True)
    assert (noted(x, "layer"), noted(x, "flat"), noted(x, "other")) == ("a", True, None)
    assert noted(x.clone(), "layer") is None
    assert noted("no tensor", "layer") is None


def test_a_change_in_place_ends_it():
    x = torch.ones(3)
    mark(x, layer="a")
    x += 1
    assert noted(x, "layer") is None
    mark(x, flat=True)
    assert (noted(x, "layer"), noted(x, "flat")) == (None, True)


def test_in_inference_mode():
    with torch.inference_mode():
        x = torch.ones(3)
        mark(x, layer="a")
        assert noted(x, "layer") == "a"
