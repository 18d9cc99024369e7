"""How often the intervals of differences over seeds hold the truth, in simulation.

    python benchmarks/coverage.py

Two kinds of run with equally good seeds on average: a seed has accuracy 0.8 and a normal deviation, each of 2,000 items
is right with that chance, moved by how hard it is, the same for all runs. The truth is a difference of 0. By chance
alone 2,000 items move an accuracy by 0.009, so a deviation of 0.003 is less, one of 0.03 more than that.
"""

import itertools

import numpy as np

from nearfar.evaluate.intervals import of_difference_over_seeds, of_paired_draws

ITEMS, RUNS, SPREADS = 2000, 300, (0.003, 0.03)


def main() -> None:
    rng = np.random.default_rng(0)
    print("| deviation of seeds | seeds a side | bootstrap of two levels | Student's over draws |\n|---|---|---:|---:|")
    for spread, seeds in itertools.product(SPREADS, (2, 3, 5)):
        held = np.zeros((RUNS, 2))
        for i in range(RUNS):
            hard = rng.uniform(-0.2, 0.2, ITEMS)
            chance = 0.8 + rng.normal(0, spread, (2, seeds, 1)) + hard  # (2, S, N)
            a, b = (rng.random(chance.shape) < chance).astype(float)
            draws = 0.8 + rng.normal(0, spread, (2, seeds, 1)) + rng.normal(0, 0.01, (2, seeds, 10))
            draws += rng.normal(0, 0.02, 10)  # what a draw of labels has in common
            for j, (_, low, high) in enumerate((of_difference_over_seeds(a, b, i, 500), of_paired_draws(*draws))):
                held[i, j] = low <= 0 <= high
        print(f"| {spread} | {seeds} | {held[:, 0].mean():.0%} | {held[:, 1].mean():.0%} |", flush=True)


if __name__ == "__main__":
    main()
