"""Nearest neighbours by FAISS's inverted lists: not all rows are looked at, and how many are missed is measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from nearfar.errors import require

RECALL, SAMPLE = 0.99, 200  # of the exact neighbours found, at least, among so many queries
_SEED = 1234  # of the clusters; FAISS's own default


@dataclass(frozen=True)
class Neighbours:
    """Rows of the bank nearest to each query, and by which search they were found."""

    index: np.ndarray  # (Q, k)
    cosine: np.ndarray  # (Q, k), falling
    engine: str  # exact or faiss
    recall: float  # of the exact neighbours, on a sample of the queries


def search(query: np.ndarray, bank: np.ndarray, k: int, *, itself: bool, seed: int = 0) -> Neighbours:
    r"""The nearest rows in the lists that lie nearest to each query; ties go to the lower index.

    The bank is cut into :math:`4\sqrt N` lists by k-means (FAISS's IVFFlat: Douze et al. 2024, arXiv:2401.08281). As
    many lists are looked through, twice as many each time, as it takes to find 99 % of the exact neighbours of a sample
    of 200 queries; all of them is the exact search. Cosines are computed anew, not FAISS's.

    query (Q, d), bank (N, d) of unit rows, float32; itself: row i of the bank is query i and is left out. Where lists
    hold too few rows for k, more are looked through. Raises ``MissingExtra`` without faiss.
    """
    faiss = require("faiss", "faiss", "approximate search")
    lists = max(1, min(int(4 * len(bank) ** 0.5), len(bank) // 39))  # FAISS asks for 39 rows a list
    quantiser = faiss.IndexFlatIP(bank.shape[1])
    index = faiss.IndexIVFFlat(quantiser, bank.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = _SEED
    index.train(bank)
    index.add(bank)
    rows = np.sort(np.random.default_rng(seed).permutation(len(query))[:SAMPLE])
    index.nprobe = lists
    truth = _found(index, query, bank, k, rows, itself)[0]
    index.nprobe = 1
    while True:
        near, cosine = _found(index, query, bank, k, rows, itself)
        recall = float(np.mean([np.isin(t, n).mean() for t, n in zip(truth, near)]))
        if index.nprobe >= lists or (recall >= RECALL and (near >= 0).all()):
            break
        index.nprobe = min(2 * index.nprobe, lists)
    near, cosine = _found(index, query, bank, k, np.arange(len(query)), itself)
    short = np.flatnonzero((near < 0).any(1))
    if len(short):
        index.nprobe = lists
        near[short], cosine[short] = _found(index, query, bank, k, short, itself)
    return Neighbours(near, cosine, "faiss", recall)


def _found(
    index: object, query: np.ndarray, bank: np.ndarray, k: int, rows: np.ndarray, itself: bool, chunk: int = 1024
) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours of some queries, in the order of their true cosines; -1 and -inf where lists held too few."""
    near, cosine = np.empty((len(rows), k), np.int64), np.empty((len(rows), k), np.float32)
    for at in range(0, len(rows), chunk):
        mine = rows[at : at + chunk]
        _, found = index.search(query[mine], k + itself)  # (chunk, k + 1)
        if itself:
            found = np.where(found == mine[:, None], -1, found)
        picked, wanted = torch.from_numpy(bank[found]), torch.from_numpy(query[mine])
        true = torch.einsum("qkd,qd->qk", picked.double(), wanted.double()).float().numpy()
        true = np.where(found < 0, -np.inf, true)
        order = np.lexsort((found, -true))[:, :k]
        near[at : at + chunk] = np.take_along_axis(found, order, 1)
        cosine[at : at + chunk] = np.take_along_axis(true, order, 1)
    return near, cosine
