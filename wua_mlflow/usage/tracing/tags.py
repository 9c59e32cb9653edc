"""Notes on a tensor itself: whose units it has. They end where it is changed in place.

May import: torch. Tests: ``tests/watching/test_marks.py``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["tag", "tag_of"]


def tag(tensor: Tensor, **notes: Any) -> None:
    """Add notes to a tensor; what was noted before a change in place is dropped.

    >>> import torch
    >>> x = torch.zeros(2)
    >>> tag(x, layer="fc1")
    >>> tag_of(x, "layer"), tag_of(x.add_(1), "layer")
    ('fc1', None)
    """
    version, before = _notes(tensor)
    kept = before if version == _version(tensor) else {}
    tensor.wua_notes = (_version(tensor), {**kept, **notes})  # type: ignore[attr-defined]


def tag_of(tensor: Any, name: str) -> Any:
    """What was noted of a tensor as it is now; None if nothing was."""
    version, notes = _notes(tensor)
    return notes.get(name) if version is not None and version == _version(tensor) else None


def _notes(tensor: Any) -> tuple[int | None, dict[str, Any]]:
    found: tuple[int | None, dict[str, Any]] = getattr(tensor, "wua_notes", (None, {}))
    return found


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
