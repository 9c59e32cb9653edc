"""Names of layers as rows are labelled: the block apart, what all share left out, long ones cut.

Imports ``canvas`` for the cut. Test: ``tests/plots/test_naming.py``.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from wua_mlflow.plots import canvas

__all__ = ["RowNames", "row_names", "shortened"]

_LONGEST_BLOCK, _LONGEST_NAME = 24, 30
_LONGEST_ALONE = 38
_CUTS = (0.5, 0.25, 0.75)
"""Where a long name is cut, as a share of what stays; the first that keeps names apart."""


@dataclass(frozen=True)
class RowNames:
    """One entry a row. A name in full is ``prefix``, its block, a dot, and its name, cuts aside.

    ``blocks`` is empty for a row that stands alone; rows of one block follow one another.
    """

    prefix: str
    blocks: tuple[str, ...]
    names: tuple[str, ...]

    def starts_block(self, row: int) -> bool:
        """Whether the row is the first of its block, or stands alone."""
        return not self.blocks[row] or row == 0 or self.blocks[row] != self.blocks[row - 1]


def row_names(names: Sequence[str], *, by_block: bool = True) -> RowNames:
    """Labels that stay apart: two rows look alike only if their names are the same.

    A block is what a name begins with up to its first number, as in ``encoder.layers.17``; a layer
    that is alone in its block keeps its name whole.

    >>> row_names(["net.0.k_proj", "net.0.fc", "net.head"])
    RowNames(prefix='net.', blocks=('0', '0', ''), names=('k_proj', 'fc', 'head'))
    """
    prefix = _shared(names)
    rest = [name[len(prefix) :] or "model" for name in names]
    blocks: list[str] = []
    for block, run in itertools.groupby(_block(name) if by_block else "" for name in rest):
        rows = len(list(run))
        blocks += [block if rows > 1 else ""] * rows
    own = [
        name[len(block) + 1 :] if block else name for name, block in zip(rest, blocks, strict=True)
    ]
    short = shortened(own, _LONGEST_NAME if any(blocks) else _LONGEST_ALONE)
    return RowNames(prefix, tuple(shortened(blocks, _LONGEST_BLOCK)), tuple(short))


def shortened(names: Sequence[str], longest: int) -> list[str]:
    """Names of at most ``longest`` characters, more where different ones would look the same.

    >>> shortened(["encoder.layers.0.out_proj", "encoder.layers.1.out_proj"], 12)
    ['enc…0.out_proj', 'enc…1.out_proj']
    """
    different = dict.fromkeys(names)
    for length in itertools.count(longest, 2):
        for cut in _CUTS:
            short = {name: canvas.elide(name, length, cut) for name in different}
            if len(set(short.values())) == len(short):
                return [short[name] for name in names]
    raise AssertionError("unreachable: at some length no name is cut")


def _shared(names: Sequence[str]) -> str:
    """The whole parts, dots included, with which every name begins."""
    if len(names) < 2:
        return ""
    parts = [name.split(".")[:-1] for name in names]
    same = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False))
    return "".join(f"{column[0]}." for column in same)


def _block(name: str) -> str:
    parts = name.split(".")[:-1]
    number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return "" if number is None else ".".join(parts[: number + 1])
