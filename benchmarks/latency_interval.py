"""How often the interval of ``compare/latency_ratio`` holds the true ratio, by simulation.

``python benchmarks/latency_interval.py --trials 1000``. Two models are timed in turns; the noise of
a forward is lognormal with rare spikes, and a load on the machine may drift over the rounds and
slow both alike (a first-order autoregression in the logarithm).
"""

from __future__ import annotations

import argparse

import numpy as np

from wua_mlflow.training.latency import Latency, latency_ratio

RATIO, NOISE, SPIKES, DRIFT, KEPT = 1.3, 0.05, 0.02, 0.03, 0.97


def times(rng: np.random.Generator, rounds: int, drifting: bool) -> np.ndarray:
    """Milliseconds of both models, shape (2, rounds); the medians' true ratio is RATIO."""
    noise = NOISE * rng.standard_normal((2, rounds))
    noise += (rng.random((2, rounds)) < SPIKES) * rng.exponential(1.0, (2, rounds))
    load = np.zeros(rounds)
    if drifting:
        load[0] = rng.standard_normal() * DRIFT / np.sqrt(1 - KEPT**2)
        for at in range(1, rounds):
            load[at] = KEPT * load[at - 1] + DRIFT * rng.standard_normal()
    return np.array([[RATIO], [1.0]]) * np.exp(noise + load)


def coverage(rounds: int, drifting: bool, trials: int) -> float:
    """The share of trials whose 95% interval holds the true ratio."""
    rng, held = np.random.default_rng([rounds, drifting]), 0
    for trial in range(trials):
        pair = [Latency(float(np.median(one)), 0.0, 0.0, rounds, tuple(one))
                for one in times(rng, rounds, drifting)]
        _, low, high = latency_ratio(*pair, seed=trial)
        held += low <= RATIO <= high
    return held / trials


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--toy", action="store_true", help="seconds, to see that it runs")
    options = parser.parse_args()
    trials = 2 if options.toy else options.trials
    print("| rounds | steady machine | drifting load |\n|---:|---:|---:|")
    for rounds in (10, 50, 300):
        print(f"| {rounds} | {coverage(rounds, False, trials):.1%} | "
              f"{coverage(rounds, True, trials):.1%} |")


if __name__ == "__main__":
    main()
