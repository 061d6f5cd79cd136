"""How often what `bitsweep recommend` says is wrong, by drawing windows again from real losses.

The committed windows of one text are taken as all there are, so that the truth is known: a
perplexity against full precision's, to which every point is moved that is to lie on a limit. Then a
few windows are drawn, judged as `recommend` judges, and compared with the truth.

    python benchmarks/certainty.py                (Markdown; 40 s on one core)

Columns: `covered`, how often the 95 % interval has the truth in it; `each`, how often a point on
the limit `passes surely`; `any of 24`, how often one of 24 such points does; `widened`, the same
with the intervals for a choice among 24; `beyond noise`, how often two equal points are told apart,
by intervals that do not meet, and by a paired interval between the two.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bitsweep.report.acceptance import TAIL, widening
from bitsweep.store import Store

RESULTS = Path(__file__).parents[1] / "results"
EXPERIMENT = "methods"
METRICS = ("ppl/in_domain", "ppl/stories")
POINTS, PAIRED, WINDOWS, DRAWS, RESAMPLES = 24, 8, (16, 64, 128), 200, 600
SEED = 2


def losses() -> dict[str, np.ndarray]:
    """model -> ``(windows, points)``, the loss of each window less full precision's."""
    found: dict[str, list[np.ndarray]] = {}
    store = Store(RESULTS / EXPERIMENT)
    for record in store.records():
        for row in store.details(record.run_id):
            if row.get("metric") in METRICS and len(found.get(record.point["model"], ())) < POINTS:
                own = np.array(row["losses"]) - np.array(row["reference_losses"])
                if own.any():
                    found.setdefault(record.point["model"], []).append(own)
    return {model: np.stack(columns, 1) for model, columns in sorted(found.items())}


def judged(units: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Of columns whose truth is 0: the means of ``units`` drawn again, and their bounds."""
    n = len(units)
    counts = generator.multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    means = counts @ units / n
    return (means, *np.percentile(means, [100 * TAIL, 100 * (1 - TAIL)], axis=0))


def rates(population: np.ndarray, n: int, generator: np.random.Generator) -> list[float]:
    """The columns of the table for ``n`` windows of ``population``."""
    truth = population - population.mean(0)  # every point exactly as good as the limit
    sums = np.zeros(6)
    pairs = [(a, b) for a in range(PAIRED) for b in range(a)]
    for _ in range(DRAWS):
        units = truth[generator.integers(len(truth), size=n)]
        means, lo, hi = judged(units, generator)
        value = units.mean(0)
        sums[0] += ((lo <= 0) & (hi >= 0)).mean()
        sums[1] += (hi < 0).mean()
        sums[2] += (hi < 0).any()
        sums[3] += (value + widening(truth.shape[1]) * (hi - value) < 0).any()
        for a, b in pairs:
            sums[4] += (lo[a] > hi[b] or lo[b] > hi[a]) / len(pairs)
            low, high = np.percentile(means[:, a] - means[:, b], [100 * TAIL, 100 * (1 - TAIL)])
            sums[5] += (low > 0 or high < 0) / len(pairs)
    return list(100 * sums / DRAWS)


def main() -> None:
    heads = ("covered", "each", f"any of {POINTS}", "widened", "beyond noise", "paired")
    print("| model | windows | " + " | ".join(f"{head} %" for head in heads) + " |")
    print("|---" * (2 + len(heads)) + "|")
    generator = np.random.default_rng(SEED)
    for model, population in losses().items():
        for n in WINDOWS:
            cells = (f"{rate:.1f}" for rate in rates(population, n, generator))
            print(f"| {model} | {n} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
