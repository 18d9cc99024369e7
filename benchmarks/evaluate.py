"""How long judging takes at size: exact kNN and the linear probe, beside scikit-learn's and the peers'.

    python benchmarks/evaluate.py --rows 50000 --queries 10000 --dim 512

Features are drawn, so no data set is needed: 10 classes that a linear probe tells apart three times in four. Each side
runs in turn, `--times` times, and the median is printed with the ratio. The arithmetic floor of kNN is
2·queries·rows·dim operations at the rate this machine multiplies matrices of that size, measured here.
nearfar's probe includes choosing C among six on 5,000 rows; scikit-learn's is one fit at that C on the same
standardised rows, in float32 and to the same tolerance, and in brackets in float64 to 1e-6.

Peers: lightly's ``knn_predict`` in its benchmarks' batches of 256; FAISS's exact index (what pytorch-metric-learning
searches by); lightly's linear probe as its benchmarks set it (SGD, learning rate 0.1, momentum 0.9, cosine, 90 epochs
of batches of 256), on features that are held, without its loading of images, once.
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


def lightlys_knn(x: np.ndarray, y: np.ndarray, q: np.ndarray) -> np.ndarray:
    from lightly.utils.benchmarking.knn import knn_predict

    bank, labels = torch.from_numpy(unit(x)).T.contiguous(), torch.from_numpy(y)
    parts = torch.from_numpy(unit(q)).split(256)
    return torch.cat([knn_predict(p, bank, labels, 10, 20, 0.07)[:, 0] for p in parts]).numpy()


def faisss(x: np.ndarray, q: np.ndarray) -> np.ndarray:
    import faiss

    index = faiss.IndexFlatIP(x.shape[1])
    index.add(unit(x))
    return index.search(unit(q), 20)[1]


def lightlys_probe(x: np.ndarray, y: np.ndarray, q: np.ndarray, yq: np.ndarray, epochs: int = 90) -> float:
    a, b = torch.from_numpy(x), torch.from_numpy(y)
    head = torch.nn.Linear(x.shape[1], 10)
    steps = epochs * (len(a) // 256)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(a)).split(256)[: len(a) // 256]:
            loss = torch.nn.functional.cross_entropy(head(a[rows]), b[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return float((head(torch.from_numpy(q)).argmax(1).numpy() == yq).mean())


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
    peers = {"nearfar": lambda: knn(x, y, q, yq, names).predictions, "lightly": lambda: lightlys_knn(x, y, q),
             "FAISS, search alone": lambda: faisss(x, q)}  # fmt: skip
    held = {who: [] for who in peers}
    for _ in range(given.times):
        for who, call in peers.items():
            held[who].append(timed(call))
    ours = statistics.median(s for s, _ in held["nearfar"])
    for who, runs in held.items():
        seconds, said = statistics.median(s for s, _ in runs), runs[0][1]
        right = f"accuracy {(said == yq).mean():.4f}" if said.ndim == 1 else ""
        print(f"kNN, judged      {who} {seconds:.2f} s   {seconds / ours:.1f}×   {right}")

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
    seconds, right = timed(lambda: lightlys_probe(x, y, q, yq))
    print(f"                 lightly's settings {seconds:.2f} s   {seconds / ours:.1f}×   accuracy {right:.4f}")


if __name__ == "__main__":
    main()
