"""A progress bar over the passes of an analysis, when a person is watching.

May import: torch, tqdm, chunks, processes. Tests: ``tests/pipeline/test_progress.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor
from tqdm import tqdm

from wua_mlflow.chunks import rows_at_once
from wua_mlflow.processes import rank

__all__ = ["Watched"]


class Watched:
    """Inputs in chunks, to be gone over several times; a bar counts the chunks of all passes.

    With targets the chunks are pairs (inputs, targets). There is no bar where standard error is
    not a terminal, and in every process but the first.

    >>> len(list(Watched(__import__("torch").zeros(5000, 2), passes=1, label="demo")))
    5
    """

    def __init__(
        self, inputs: Tensor, targets: Tensor | None = None, *, passes: int, label: str
    ) -> None:
        rows = rows_at_once(inputs.shape)
        chunks = inputs.split(rows)
        self.chunks: Sequence[Tensor | tuple[Tensor, Tensor]] = chunks if targets is None else \
            list(zip(chunks, targets.split(rows), strict=True))
        self.bar = tqdm(total=passes * len(self.chunks), desc=label, unit="batch", leave=False,
                        disable=True if rank() else None)

    def __iter__(self) -> Iterator[Tensor | tuple[Tensor, Tensor]]:
        for chunk in self.chunks:
            yield chunk
            self.bar.update()
        if self.bar.n >= self.bar.total:
            self.bar.close()
