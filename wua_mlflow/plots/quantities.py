"""What a variant costs and uses, quantity by quantity, and how a smaller or larger one is called.

Imports nothing but ``canvas`` for numbers. Test: ``tests/plots/test_comparison.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from wua_mlflow.plots import canvas

__all__ = ["QUANTITIES", "Quantity", "against", "savings"]


def _bytes(value: float) -> str:
    for power, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= power:
            return f"{value / power:.3g} {unit}"
    return f"{value:,.0f} B"


@dataclass(frozen=True)
class Quantity:
    """A quantity that is drawn as bars; ``less`` and ``more`` say what a smaller value means."""

    metric: str
    title: str
    write: Callable[[float], str]
    less: str
    more: str
    noun: str | None = None
    """What the line of savings calls it; it does not mention a quantity without."""
    same_within: float = 1.005
    same: str = "same"
    """The words for a ratio that is nearer to 1 than ``same_within``."""


QUANTITIES = (
    Quantity("flops/forward", "FLOPs per sample, forward", canvas.number, "fewer", "more", "FLOPs"),
    Quantity("params/total", "Parameters", canvas.number, "fewer", "more", "parameters"),
    Quantity("size/bytes", "Size on disk", _bytes, "smaller", "larger", "on disk"),
    Quantity(
        "latency/p50_ms",
        "Latency, median at batch 1",
        "{:.3g} ms".format,
        "faster",
        "slower",
        "at batch 1",
        same_within=1.05,
        same="about as fast",
    ),
    Quantity("usage/effective_weights", "Effective weights", canvas.number, "fewer", "more"),
    Quantity("usage/entropy", "Entropy of the importance", "{:.3f} nats".format, "", ""),
)


def against(original: float, value: float, quantity: Quantity) -> str:
    """``value`` against the original's in words; empty where one of them is zero.

    >>> against(122, 86, QUANTITIES[0]), against(2.7584, 2.4191, QUANTITIES[-1])
    ('1.4× fewer', '−0.34')
    """
    if not quantity.less:
        return f"{value - original:+.2f}".replace("-", "−")
    return _ratio_words(original / value, quantity) if original > 0 and value > 0 else ""


def savings(original: Mapping[str, float], candidate: Mapping[str, float]) -> str:
    """What the candidate costs less or more, in one line; empty where both cost the same.

    >>> savings({"flops/forward": 122, "params/total": 41}, {"flops/forward": 86})
    '1.4× fewer FLOPs'
    """
    said = []
    for quantity in QUANTITIES:
        before, after = original.get(quantity.metric), candidate.get(quantity.metric)
        if quantity.noun and before and after:
            words = _ratio_words(before / after, quantity)
            said.append("" if words == "same" else f"{words} {quantity.noun}")
    return ", ".join(filter(None, said))


def _ratio_words(ratio: float, quantity: Quantity) -> str:
    times, word = (ratio, quantity.less) if ratio >= 1 else (1 / ratio, quantity.more)
    if times < quantity.same_within:
        return quantity.same
    digits = 2 if times < 1.095 else 1 if times < 9.95 else 0
    return f"{times:,.{digits}f}× {word}"
