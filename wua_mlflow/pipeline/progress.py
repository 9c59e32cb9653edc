"""A progress bar over the passes of an analysis, when a person is watching.

May import: torch, tqdm. Tests: ``tests/pipeline/test_progress.py``.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from tqdm import tqdm

from wua_mlflow.chunks import rows_at_once

__all__ = ["Watched"]

class Watched:
    """Inputs in chunks, to be gone over several times; a bar counts the chunks of all passes.

    There is no bar where standard error is not a terminal.

    >>> len(list(Watched(__import__("torch").zeros(5000, 2), passes=1, label="demo")))
    5
    """

    def __init__(self, inputs: Tensor, *, passes: int, label: str) -> None:
        self.chunks = inputs.split(rows_at_once(inputs.shape))
        self.bar = tqdm(total=passes * len(self.chunks), desc=label, unit="batch", leave=False,
                        disable=None)

    def __iter__(self) -> Iterator[Tensor]:
        for chunk in self.chunks:
            yield chunk
            self.bar.update()
        if self.bar.n >= self.bar.total:
            self.bar.close()
