"""A tag stays on its tensor until that is changed in place."""

from __future__ import annotations

import torch

from wua_mlflow.usage.tracing.layer import TracedLayer
from wua_mlflow.usage.tracing.tags import UnitTag, propagate_units, tag, tag_of


def test_a_tag_is_of_one_tensor_as_it_is_now():
    x = torch.ones(3)
    tag(x, call=1)
    tag(x, flat=True)
    assert tag_of(x) == UnitTag(call=1, flat=True)
    assert tag_of(x.clone()) == tag_of("no tensor") == UnitTag()
    x += 1
    assert tag_of(x) == UnitTag()
    tag(x, positive=True)
    assert tag_of(x) == UnitTag(positive=True)
    with torch.inference_mode():
        x = torch.ones(3)
        tag(x, call=1)
        assert tag_of(x).call == 1


def test_images_that_were_flattened_have_their_units_in_rows_only():
    source = UnitTag(TracedLayer("name", "kind", "module", "conv", 3, spatial=2), call=1)
    in_rows, elsewhere, unflattened = torch.ones(2, 12), torch.ones(2, 3, 4), torch.ones(2, 3, 2, 2)
    propagate_units(source, in_rows, flattened=True)
    propagate_units(source, elsewhere, flattened=True)
    propagate_units(source, unflattened, flattened=False)
    assert tag_of(in_rows) == UnitTag(source.layer, call=1, flat=True)
    assert tag_of(elsewhere) == UnitTag()
    assert tag_of(unflattened) == source
