"""The setting ``what``: which kinds of units may be cut, and which widths a method may choose.

Tests: ``tests/test_what_to_cut.py``.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from wua_mlflow.errors import did_you_mean

__all__ = ["EXPECTED", "KINDS", "ROUNDED_ABOVE", "WhatToCut", "alike", "parse", "rounded_up"]


KINDS = ("units", "heads", "stream")
"""Units of layers (hidden units of recurrent ones too), heads of attention, and the model's width:
what norms and means go over. A test holds them equal to ``pruning.find_groups.KINDS``."""
DEFAULT_KINDS = ("units", "heads")
DEFAULT_MULTIPLE = 8
ROUNDED_ABOVE = 64
"""Widths up to so many units are left as they are: there a unit more is a larger share."""
_OPTIONS = ("multiple_of", "same_widths")
_YES_OR_NO = {"": True, "yes": True, "true": True, "no": False, "false": False}
EXPECTED = ("units, heads or stream, or several of them, each once, multiple_of=N, same_widths or "
            "same_widths=no, e.g. units,heads,multiple_of=16")


@dataclass(frozen=True)
class WhatToCut:
    """What may be cut, and which widths a method may choose.

    Attributes:
        kinds: which of ``KINDS``.
        multiple_of: above ``ROUNDED_ABOVE`` units widths are multiples of it; 1 for any.
        same_widths: whether groups that are alike get the same width; None: in models of the
            transformers library, whose configuration has one number for all blocks.
    """

    kinds: tuple[str, ...] = DEFAULT_KINDS
    multiple_of: int = DEFAULT_MULTIPLE
    same_widths: bool | None = None

    @classmethod
    def of(cls, value: str | Sequence[str] | WhatToCut) -> WhatToCut:
        """What a text such as ``units,stream,multiple_of=16`` says, or a list of its parts.

        Raises:
            ValueError: it says something else, or something twice.

        >>> WhatToCut.of("units, multiple_of=1")
        WhatToCut(kinds=('units',), multiple_of=1, same_widths=None)
        """
        if isinstance(value, WhatToCut):
            return value
        try:
            return parse(value)
        except ValueError as error:
            raise ValueError(f"what: expected {EXPECTED}, but got {value!r}{error}") from None

    def __str__(self) -> str:
        """The shortest text that says the same.

        >>> str(WhatToCut()), str(WhatToCut(same_widths=False))
        ('units,heads', 'same_widths=no')
        """
        options = [f"multiple_of={self.multiple_of}"] * (self.multiple_of != DEFAULT_MULTIPLE)
        if self.same_widths is not None:
            options.append("same_widths" if self.same_widths else "same_widths=no")
        kinds = self.kinds if self.kinds != DEFAULT_KINDS or not options else ()
        return ",".join((*kinds, *options))

    def are_same(self, model: Any) -> bool:
        """Whether groups of this model that are alike get the same width."""
        return _is_of_transformers(model) if self.same_widths is None else self.same_widths

    def multiple_for(self, kind: str) -> int:
        """What widths of groups of this kind are multiples of, above ``ROUNDED_ABOVE``.

        >>> WhatToCut().multiple_for("hidden"), WhatToCut().multiple_for("heads")
        (8, 1)
        """
        return 1 if kind == "heads" else self.multiple_of


def parse(value: Any) -> WhatToCut:
    """What a text, or a list of its parts, says.

    Raises:
        ValueError: it is none; the message is what may be meant instead, or empty.
    """
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not parts \
            or not all(isinstance(part, str) for part in parts):
        raise ValueError("")
    said: dict[str, str] = {}
    for part in (part.strip() for part in parts):
        name, equals, number = (each.strip() for each in part.partition("="))
        if name not in (*KINDS, *_OPTIONS):
            raise ValueError(did_you_mean(name, (*KINDS, *_OPTIONS)))
        if name in said or (equals and (name in KINDS or not number)):
            raise ValueError("")
        said[name] = number
    multiple = said.get("multiple_of", str(DEFAULT_MULTIPLE))
    same = said.get("same_widths", "")
    if not re.fullmatch(r"[1-9]\d{0,5}", multiple, re.ASCII) or same not in _YES_OR_NO:
        raise ValueError(did_you_mean(same, ("yes", "no")) if same else "")
    return WhatToCut(tuple(kind for kind in KINDS if kind in said) or DEFAULT_KINDS, int(multiple),
                     _YES_OR_NO[same] if "same_widths" in said else None)


def _is_of_transformers(model: Any) -> bool:
    """Whether it is, or holds, a model of the transformers library; that is not imported."""
    return any(hasattr(getattr(module, "config", None), "to_diff_dict")
               or any(each.__name__ == "PreTrainedModel" for each in type(module).__mro__)
               for module in model.modules())


def rounded_up(width: int, most: int, multiple_of: int) -> int:
    """The width, above ``ROUNDED_ABOVE`` the next multiple; never more than there are.

    >>> [rounded_up(width, 100, 8) for width in (63, 65, 72, 99)]
    [63, 72, 72, 100]
    """
    if width <= ROUNDED_ABOVE:
        return width
    return min(most, -(-width // multiple_of) * multiple_of)


def alike(groups: Iterable[tuple[str, Hashable]]) -> list[list[int]]:
    """The places of groups that are alike: names equal but for numbers, and all else equal.

    Args:
        groups: of each its name, and what else must be equal, as units and kind.

    >>> alike([("h.0.up", 8), ("h.0.down", 8), ("h.1.up", 8), ("h.2.up", 4)])
    [[0, 2], [1], [3]]
    """
    places: dict[tuple[str, Hashable], list[int]] = {}
    for place, (name, rest) in enumerate(groups):
        places.setdefault((re.sub(r"\d+", "*", name), rest), []).append(place)
    return list(places.values())
