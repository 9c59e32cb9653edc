"""Notes stay on a tensor until it is changed in place, and cost no copy."""

from __future__ import annotations

import torch

from wua_mlflow.usage.tracing.tags import tag, tag_of


def test_a_note_is_of_one_tensor():
    x = torch.ones(3)
    tag(x, layer="a")
    tag(x, flat=True)
    assert (tag_of(x, "layer"), tag_of(x, "flat"), tag_of(x, "other")) == ("a", True, None)
    assert tag_of(x.clone(), "layer") is None
    assert tag_of("no tensor", "layer") is None


def test_a_change_in_place_ends_it():
    x = torch.ones(3)
    tag(x, layer="a")
    x += 1
    assert tag_of(x, "layer") is None
    tag(x, flat=True)
    assert (tag_of(x, "layer"), tag_of(x, "flat")) == (None, True)


def test_in_inference_mode():
    with torch.inference_mode():
        x = torch.ones(3)
        tag(x, layer="a")
        assert tag_of(x, "layer") == "a"
