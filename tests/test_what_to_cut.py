"""What may be cut: the text and what it says, and which models get the same width in all blocks."""

import pytest
from torch import nn

from wua_mlflow.pruning import find_groups
from wua_mlflow.what_to_cut import KINDS, WhatToCut, alike, rounded_up


def test_the_kinds_are_those_of_the_groups():
    assert KINDS == find_groups.KINDS


@pytest.mark.parametrize(("text", "what", "shortest"), [
    ("units,heads", WhatToCut(), "units,heads"),
    (" stream , units ", WhatToCut(("units", "stream")), "units,stream"),
    (["heads", "multiple_of=8"], WhatToCut(("heads",)), "heads"),
    ("multiple_of = 16, same_widths", WhatToCut(multiple_of=16, same_widths=True),
     "multiple_of=16,same_widths"),
    ("units,same_widths=no", WhatToCut(("units",), same_widths=False), "units,same_widths=no"),
    ("heads,units,same_widths=yes,multiple_of=1", WhatToCut(multiple_of=1, same_widths=True),
     "multiple_of=1,same_widths"),
    (WhatToCut(("stream",)), WhatToCut(("stream",)), "stream"),
])
def test_a_text_says_what_and_what_gives_the_text_back(text, what, shortest):
    assert WhatToCut.of(text) == what
    assert str(what) == shortest
    assert WhatToCut.of(shortest) == what


EXPECTED = ("what: expected units, heads or stream, or several of them, each once, multiple_of=N, "
            "same_widths or same_widths=no, e.g. units,heads,multiple_of=16, but got ")


@pytest.mark.parametrize(("text", "got"), [
    ("unit", "'unit'; did you mean 'units'?"),
    ("units,head", "'units,head'; did you mean 'heads'?"),
    ("multipl_of=4", "'multipl_of=4'; did you mean 'multiple_of'?"), ("", "''"),
    ("units,units", "'units,units'"), ("units=3", "'units=3'"), ("multiple_of", "'multiple_of'"),
    ("multiple_of=0", "'multiple_of=0'"), ("multiple_of=-8", "'multiple_of=-8'"),
    ("multiple_of=8.5", "'multiple_of=8.5'"), ("multiple_of=", "'multiple_of='"),
    ("same_widths=noo", "'same_widths=noo'; did you mean 'no'?"), (3, "3"), ([], "[]"),
    ([8], "[8]"), (None, "None"), ("hidden", "'hidden'"),
])
def test_anything_else_is_one_line(text, got):
    with pytest.raises(ValueError) as caught:
        WhatToCut.of(text)
    assert str(caught.value) == EXPECTED + got


def test_widths_are_rounded_up_above_64_units_and_never_beyond_those_that_there_are():
    for multiple, most in ((8, 100), (7, 90), (1, 80), (200, 150)):
        widths = [rounded_up(width, most, multiple) for width in range(1, most + 1)]
        assert widths[:64] == list(range(1, 65))
        assert widths == sorted(widths), "a wider choice stays the wider one"
        for chosen, width in enumerate(widths[64:], 65):
            assert chosen <= width < chosen + multiple
            assert width % multiple == 0 or width == most
    assert WhatToCut().multiple_for("units") == WhatToCut().multiple_for("stream") == 8
    assert WhatToCut().multiple_for("heads") == 1


def test_groups_are_alike_by_name_but_for_numbers_and_by_all_else():
    groups = [("layer.0.up", (64, "units")), ("layer.1.up", (64, "units")),
              ("layer.0.attention", (64, "heads")), ("layer.10.up", (64, "units")),
              ("layer.2.up", (32, "units"))]
    assert alike(groups) == [[0, 1, 3], [2], [4]]


class Configuration:
    """As transformers' configurations are."""

    def to_diff_dict(self) -> dict:
        return {}


class PreTrainedModel(nn.Linear):
    """By the name of the library's class."""


@pytest.mark.parametrize("of_the_library", [False, True])
def test_models_of_transformers_get_the_same_widths_unless_it_is_said(of_the_library):
    plain, derived = nn.Linear(2, 2), PreTrainedModel(2, 2)
    plain.config = Configuration() if of_the_library else {"width": 3}
    models = (plain, nn.Sequential(plain), *([derived] * of_the_library))
    for model in models:
        assert WhatToCut().are_same(model) is of_the_library
        assert WhatToCut(same_widths=True).are_same(model)
        assert not WhatToCut(same_widths=False).are_same(model)
