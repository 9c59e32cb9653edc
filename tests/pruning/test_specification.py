"""What was cut, as text, and the module that it makes again."""

from __future__ import annotations

import json

import pytest
import torch

from tests.networks import kept_streams
from tests.pruning.cutting_cases import CASES
from tests.pruning.test_heads import Attending
from wua_mlflow.pruning.cut import Specification, cut, rebuild


@pytest.fixture(autouse=True)
def _seeded():
    with kept_streams():
        torch.manual_seed(0)
        yield


def test_after_two_rounds_heads_and_units():
    example = torch.randn(3, 5, 8)
    first = cut(Attending().eval(), example, {"attention": [0, 1, 3]})
    second = cut(first.model, example, {"attention": [0, 2]})
    both = first.specification.then(second.specification)
    assert both.summary == "attention 2"
    fresh = rebuild(Attending().eval(), example, Specification.from_json(both.to_json()))
    fresh.load_state_dict(second.model.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(fresh(example), second.model(example))


def test_the_text_is_plain():
    text = Specification(({"fc1": (0, 2)}, {"fc1": (1,)})).to_json()
    assert json.loads(text) == {"format": 1, "kept": [{"fc1": [0, 2]}, {"fc1": [1]}]}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2, "kept": []}',
                                  '{"format": 1, "kept": [{"fc1": ["x"]}]}',
                                  '{"format": 1, "kept": [3]}'])
def test_another_text_is_refused(text):
    with pytest.raises(ValueError, match=r"^structure: expected a specification of format 1, but "):
        Specification.from_json(text)


def test_another_factory_is_refused():
    found = cut(CASES["mlp"].whole(), torch.zeros(2, 4), {"0": [0, 6]})
    with pytest.raises(ValueError, match="^units: expected numbers below 4 for 0, but got 6$"):
        rebuild(CASES["mlp"].build(4, 5), torch.zeros(2, 4), found.specification)
