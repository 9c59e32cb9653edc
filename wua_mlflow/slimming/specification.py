"""What was cut, as data: with the factory's module it makes the cut module again.

May import: torch, slimming. Tests: ``tests/slimming/test_specification.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

__all__ = ["Specification", "rebuild"]

FORMAT = 1
Kept = Mapping[str, tuple[int, ...]]
"""By group the units that stay."""


@dataclass(frozen=True)
class Specification:
    """The units that were kept, by group; a mapping for each time that the network was cut."""

    rounds: tuple[Kept, ...]

    @property
    def summary(self) -> str:
        """How many units stay, by group.

        >>> Specification(({"fc1": (0, 2, 5)},)).summary
        'fc1 3'
        """
        return ", ".join(f"{name} {count}" for name, count in self.left.items())

    @property
    def left(self) -> dict[str, int]:
        """By group that was cut, how many units are left."""
        return {name: len(units) for kept in self.rounds for name, units in kept.items()}

    def then(self, later: Specification) -> Specification:
        """This, and after it what was cut later."""
        return Specification((*self.rounds, *later.rounds))

    def to_json(self) -> str:
        """As text, from which ``from_json`` makes it again."""
        return json.dumps({"format": FORMAT, "kept": [
            {name: list(units) for name, units in kept.items()} for kept in self.rounds]})

    @classmethod
    def from_json(cls, text: str) -> Specification:
        """What ``to_json`` wrote.

        Raises:
            ValueError: it is no such text.

        >>> one = Specification(({"fc1": (0, 2)},))
        >>> Specification.from_json(one.to_json()) == one
        True
        """
        try:
            found = json.loads(text)
            if found["format"] != FORMAT:
                raise ValueError(f"format {found['format']}")
            return cls(tuple({str(name): tuple(map(int, units)) for name, units in kept.items()}
                             for kept in found["kept"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"structure: expected a specification of format {FORMAT}, but got "
                             f"{type(error).__name__}: {error}") from error


def rebuild(model: nn.Module, example: Any, specification: Specification) -> nn.Module:
    """The cut module, made again from what the factory makes; its weights mean nothing yet.

    Args:
        model: fresh from the factory; left as found.
        example: a batch as the model takes it.
        specification: what was cut.

    Raises:
        ValueError: the factory makes another network than the one that was cut.
    """
    from wua_mlflow.slimming.cutting import cut

    for kept in specification.rounds:
        model = cut(model, example, kept).model
    return model
