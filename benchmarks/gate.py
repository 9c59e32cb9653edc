"""How a gate on one test set ages: tries until one passes, tuning on its answer, a moving baseline.

A try is judged by Tango's interval, plain and at the confidence 1 − (1 − 0.95) ÷ looks that
``wua compare`` prints beside it. Every candidate of the first table is truly worse than the
baseline by exactly the margin, so that each pass is false: "new" tries are unrelated, "tuned" ones
change a fifth of the last one's answers and keep the change where the test score rose, which makes
no candidate any better on fresh data. Run: ``python benchmarks/gate.py --trials 2000``. Prints
markdown.
"""

from __future__ import annotations

import argparse
from functools import cache

import numpy as np

from wua_mlflow.verdict.intervals import tango_interval

__all__ = ["main"]

MARGIN, CONFIDENCE = 0.02, 0.95
DIFFERING = 0.05
"""Of the examples, those that only one of two models gets right."""
EXAMPLES = (2000, 10_000)
LOOKS = (1, 5, 20, 50)
CHANGED, STEP, MERGES = 0.2, 0.01, 10



@cache
def low(gained: int, lost: int, examples: int, confidence: float) -> float:
    """The lower limit of the difference."""
    return tango_interval(gained, lost, examples, confidence=confidence)[0]


def answers(rng: np.random.Generator, difference: float, shape: tuple[int, ...]) -> np.ndarray:
    """By example −1: only the baseline is right, 1: only the candidate, 0: both or neither."""
    lost, gained = (DIFFERING - difference) / 2, (DIFFERING + difference) / 2
    return rng.choice(np.array([-1, 0, 1], dtype=np.int8), shape,
                      p=[lost, 1 - DIFFERING, gained])


def passes(tries: np.ndarray, looks: int) -> bool:
    """Whether the lower limit lies above minus the margin, read for so many looks."""
    gained, lost = int((tries == 1).sum()), int((tries == -1).sum())
    return low(gained, lost, len(tries), 1 - (1 - CONFIDENCE) / looks) > -MARGIN


def first_passes(
    rng: np.random.Generator, examples: int, difference: float, *, tuned: bool
) -> tuple[int, int]:
    """Number of the try that passes first, plain and corrected; beyond the last look, if none."""
    never = LOOKS[-1] + 1
    found = [never, never]
    kept = answers(rng, difference, (examples,))
    for look in range(1, LOOKS[-1] + 1):
        fresh = answers(rng, difference, (examples,))
        tried = np.where(rng.random(examples) < CHANGED, fresh, kept) if tuned else fresh
        for place, looks in enumerate((1, look)):
            if found[place] == never and passes(tried, looks):
                found[place] = look
        if tuned and tried.sum(dtype=int) > kept.sum(dtype=int):
            kept = tried
        if max(found) < never:
            break
    return found[0], found[1]


def lost_by_merges(rng: np.random.Generator, examples: int, *, fixed: bool) -> float:
    """True loss after ten candidates, each a point worse than what it would replace.

    Args:
        rng: of the answers.
        examples: of the test set.
        fixed: whether all are judged against the first model, not the last that was merged.
    """
    loss = 0.0
    for _ in range(MERGES):
        difference = -(loss + STEP) if fixed else -STEP
        loss += STEP * passes(answers(rng, difference, (examples,)), 1)
    return loss


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=2_000, help="per row")
    parser.add_argument("--toy", action="store_true", help="seconds, to see that it runs")
    options = parser.parse_args()
    trials = 4 if options.toy else options.trials
    print(f"{trials:,} trials a row.\n")
    print("| test examples | tries | verdict | " + " | ".join(f"within {n}" for n in LOOKS) + " |")
    print("|---:|---|---|" + "---:|" * len(LOOKS))
    for examples in EXAMPLES[:1] if options.toy else EXAMPLES:
        for name, tuned in (("new", False), ("tuned", True)):
            rng = np.random.default_rng([examples, tuned])
            found = np.array([first_passes(rng, examples, -MARGIN, tuned=tuned)
                              for _ in range(trials)])
            for verdict, first in zip(("plain", "corrected"), found.T, strict=True):
                print(f"| {examples:,} | {name} | {verdict} | " + " | ".join(
                    f"{100 * np.mean(first <= looks):.1f}%" for looks in LOOKS) + " |", flush=True)
    print("\n| test examples | an equal candidate passes | "
          + " | ".join(f"look {n}" for n in LOOKS) + " |")
    print("|---:|---|" + "---:|" * len(LOOKS))
    for examples in EXAMPLES[:1] if options.toy else EXAMPLES:
        rng = np.random.default_rng([examples, 7])
        tries = [answers(rng, 0.0, (examples,)) for _ in range(trials)]
        shares = [np.mean([passes(tried, looks) for tried in tries]) for looks in LOOKS]
        print(f"| {examples:,} | corrected | " + " | ".join(
            f"{100 * share:.0f}%" for share in shares) + " |", flush=True)
    print("\n| test examples | judged against | true loss after 10 candidates, points |")
    print("|---:|---|---:|")
    for examples in EXAMPLES[:1] if options.toy else EXAMPLES:
        for name, fixed in (("the last one merged", False), ("the first one", True)):
            rng = np.random.default_rng([examples, fixed, 3])
            lost = [lost_by_merges(rng, examples, fixed=fixed) for _ in range(trials)]
            print(f"| {examples:,} | {name} | {100 * np.mean(lost):.1f} |", flush=True)


if __name__ == "__main__":
    main()
