"""Tensors within containers, each kept as what it is."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass

from wua_mlflow.usage.batches import mapped


class Batch(dict):
    """A dict with attributes, as the outputs of transformers' models are."""

    @property
    def first(self):
        return self["a"]


def test_containers_stay_what_they_are():
    pair = namedtuple("pair", "x y")
    given = {"p": pair(1, "s"), "b": Batch(a=2), "o": OrderedDict(z=[3, (4.5, None)])}
    found = mapped(given, int, lambda one: one * 10)
    assert found == {"p": pair(10, "s"), "b": Batch(a=20), "o": OrderedDict(z=[30, (4.5, None)])}
    assert isinstance(found["p"], pair) and isinstance(found["b"], Batch)
    assert found["b"].first == 20
    assert given["b"].first == 2 and given["o"]["z"][0] == 3


def test_what_a_tokenizer_gives_is_a_mapping_and_no_dict():
    given = UserDict(a=[1], b="x")
    assert mapped((given, 2), int, lambda one: one * 10) == ({"a": [10], "b": "x"}, 20)
    assert given["a"] == [1]


def test_other_objects_are_let_through():
    @dataclass
    class Own:
        x: int

    own = Own(3)
    assert mapped([own], int, str) == [own]
