"""The README's example, on six splits and seeds that were fixed before any of them was tried.

Run: ``python benchmarks/readme.py [--seeds 100 101 102 --cuts 3]``. Prints markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import time
from pathlib import Path
from typing import Any

__all__ = ["example", "main"]

README = Path(__file__).resolve().parent.parent / "README.md"
SEEDS = range(6)


def example() -> str:
    """The README's code."""
    block = re.search(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.M | re.S)
    assert block is not None
    return block[1]


def main() -> None:
    """A row a seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--toy", action="store_true", help="one seed and two epochs, to see it run")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--cuts", type=int, default=2, help="how often the network is cut")
    options = parser.parse_args()
    code = example()
    assert "seed = 0\n" in code and "range(100)" in code and "range(2)" in code
    code = code.replace("range(2)", f"range({options.cuts})")
    if options.toy:
        code = code.replace("range(100)", "range(2)")
    print("| seed | verdict | original, % | slim, % | original trained on, % | units | FLOPs | "
          "seconds |")
    print("|---:|---|---:|---:|---:|---|---:|---:|")
    for seed in options.seeds[:1] if options.toy else options.seeds:
        scope: dict[str, Any] = {}
        began = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            exec(code.replace("seed = 0\n", f"seed = {seed}\n"), scope)
        print(_row(seed, scope, time.process_time() - began), flush=True)


def _row(seed: int, scope: dict[str, Any], seconds: float) -> str:
    verdict, fit, original, slim = (
        scope[name] for name in ("verdict", "fit", "original", "slim"))
    widths = ", ".join(f"{original[layer].out_features} → {slim[layer].out_features}"
                       for layer in (0, 2))
    on = fit(fit(original))  # for as long as the slim one was fine-tuned
    right = (on(scope["x_test"]).argmax(1) == scope["y_test"]).double().mean().item()
    scores = (f"{100 * score:.1f}" for score in (
        verdict.baseline_score, verdict.candidate_score, right))
    return (f"| {seed} | {verdict.headline} | {' | '.join(scores)} | {widths} | "
            f"{scope['before'] / scope['after']:.1f}× | {seconds:.0f} |")


if __name__ == "__main__":
    main()
