"""How long judging takes at size: exact kNN and the linear probe, beside scikit-learn's own on the same arrays.

    python benchmarks/evaluate.py --rows 50000 --queries 10000 --dim 512

Features are drawn, so no data set is needed: 10 classes that a linear probe tells apart three times in four. Each side
runs in turn, `--times` times, and the median is printed with the ratio. The arithmetic floor of kNN is
2·queries·rows·dim operations at the rate this machine multiplies matrices of that size, measured here.
nearfar's probe includes choosing C among six on 5,000 rows; scikit-learn's is one fit at that C on the same
standardised rows, in float32 and to the same tolerance, and in brackets in float64 to 1e-6.
"""

import argparse
import statistics
import time

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors

from nearfar.evaluate import knn, linear_probe, neighbours
from nearfar.evaluate.retrieval import unit


def drawn(n: int, d: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    means = np.random.default_rng(7).normal(size=(10, d)) * 0.3 / d**0.5
    scale = np.arange(1, d + 1) ** -0.25  # a spectrum that falls
    y = rng.integers(0, 10, n)
    return ((means[y] + rng.normal(size=(n, d)) * scale * 0.5) * 3).astype(np.float32), y


def timed(call) -> tuple[float, object]:
    start = time.perf_counter()
    got = call()
    return time.perf_counter() - start, got


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--times", type=int, default=3)
    given = parser.parse_args()
    x, y = drawn(given.rows, given.dim, 0)
    q, yq = drawn(given.queries, given.dim, 1)
    names = [str(c) for c in range(10)]
    flops = 2 * given.rows * given.queries * given.dim
    a, b = torch.randn(1024, given.dim), torch.randn(given.dim, given.rows)
    a @ b
    floor = flops / (2 * 1024 * given.dim * given.rows) * statistics.median(timed(lambda: a @ b)[0] for _ in range(5))
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {given.rows:,} × {given.dim}, "
          f"{given.queries:,} queries, median of {given.times}")  # fmt: skip

    def sklearns() -> np.ndarray:
        near = NearestNeighbors(n_neighbors=20, algorithm="brute").fit(unit(x))  # on unit rows cosine's order
        return near.kneighbors(unit(q), return_distance=False)

    runs = {"nearfar": [], "scikit-learn": []}
    for _ in range(given.times):
        for who, call in (("nearfar", lambda: neighbours(q, x, 20)[0]), ("scikit-learn", sklearns)):
            seconds, index = timed(call)
            runs[who].append((seconds, index))
    ours, theirs = (statistics.median(s for s, _ in runs[w]) for w in runs)
    same = float((np.sort(runs["nearfar"][0][1]) == np.sort(runs["scikit-learn"][0][1])).mean())
    print(f"20 neighbours    nearfar {ours:.2f} s   scikit-learn {theirs:.2f} s   {theirs / ours:.1f}×   "
          f"floor {floor:.2f} s   same neighbours {same:.5f}")  # fmt: skip
    seconds, judged = timed(lambda: knn(x, y, q, yq, names))
    print(f"kNN accuracy     nearfar {seconds:.2f} s   {judged.result.value:.4f}")

    scale = (x - x.mean(0)) / x.std(0)
    test = (q - x.mean(0)) / x.std(0)
    runs = {"nearfar": [], "scikit-learn": []}
    for _ in range(given.times):
        seconds, probe = timed(lambda: linear_probe(x, y, q, yq, names))
        runs["nearfar"].append(seconds)
        c = probe.result.detail["C"]
        seconds, model = timed(lambda c=c: LogisticRegression(C=c, max_iter=1000).fit(scale, y))
        runs["scikit-learn"].append(seconds)
    ours, theirs = (statistics.median(s) for s in runs.values())
    exact, best = timed(lambda: LogisticRegression(C=c, max_iter=5000, tol=1e-6).fit(scale.astype(np.float64), y))
    print(f"linear probe     nearfar {ours:.2f} s   scikit-learn {theirs:.2f} s ({exact:.2f})   C {c:g}   accuracy "
          f"{probe.result.value:.4f}, {model.score(test, yq):.4f} ({best.score(test, yq):.4f})   "
          f"converged {probe.result.detail['converged']}")  # fmt: skip


if __name__ == "__main__":
    main()
