"""The geometry of an embedding, without labels: spectrum, effective rank, alignment, uniformity, a 2-D map."""

from __future__ import annotations

import numpy as np
import torch

from nearfar.evaluate.retrieval import unit


def spectrum(z: np.ndarray) -> np.ndarray:
    """Eigenvalues of the covariance, falling, summing to one (all zero for constant features). (N, d) -> (d,)

    By torch, whose threads those are that train: NumPy's would go on spinning beside them for a tenth of a second.
    """
    x = torch.as_tensor(np.asarray(z, dtype=np.float64))
    x = x - x.mean(0)
    values = torch.linalg.eigvalsh(x.T @ x).numpy()[::-1].clip(min=0)
    return values / values.sum() if values.sum() > 1e-20 else np.zeros_like(values)


def effective_rank(z: np.ndarray) -> float:
    r"""exp of the entropy of the centred features' normalised singular values; 0 where they are constant.

    .. math:: \exp\Big(-\sum_k p_k\log p_k\Big),\quad p_k = \sigma_k/\textstyle\sum_j\sigma_j

    Roy & Vetterli 2007; RankMe (Garrido et al. 2023, arXiv:2210.02885) takes it without centring.
    """
    sigma = np.sqrt(spectrum(z))
    if sigma.sum() == 0:
        return 0.0
    p = sigma / sigma.sum()
    p = p[p > 0]
    return float(np.exp(-(p * np.log(p)).sum()))


def alignment(a: np.ndarray, b: np.ndarray) -> float:
    """Mean squared distance of positives on the unit sphere (Wang & Isola 2020): 0 is best. (N, d), (N, d)"""
    return float(((unit(a).astype(np.float64) - unit(b)) ** 2).sum(1).mean())


def uniformity(z: np.ndarray, t: float = 2.0, chunk: int = 1024) -> float:
    """log mean exp(-t ‖zi - zj‖²) over pairs i ≠ j on the unit sphere (Wang & Isola 2020): lower is more even."""
    u, total = unit(z).astype(np.float64), 0.0
    for at in range(0, len(u), chunk):
        squared = 2 - 2 * (u[at : at + chunk] @ u.T)
        total += float(np.exp(-t * squared.clip(min=0)).sum())
    n = len(u)
    return float(np.log(max(total - n, 1e-300) / (n * (n - 1)))) if n > 1 else 0.0


def similarity_pairs(a: np.ndarray, b: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of positives (a_i, b_i) and of as many negatives (a_i, b_j), j ≠ i. -> (N,), (N,)"""
    u, v = unit(a), unit(b)
    shift = np.random.default_rng(seed).integers(1, max(len(u), 2), len(u))
    other = (np.arange(len(u)) + shift) % len(u)
    return (u * v).sum(1), (u * v[other]).sum(1)


def map2d(z: np.ndarray, seed: int = 0) -> np.ndarray:
    """A map of the embedding in the plane: PCA to 50 dimensions, then t-SNE on cosines. (N, d) -> (N, 2)"""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    u = unit(z)
    if len(u) < 10 or spectrum(u)[0] == 0:
        return (u - u.mean(0))[:, :2] if u.shape[1] > 1 else np.zeros((len(u), 2), np.float32)
    flat = PCA(min(50, *u.shape), random_state=seed).fit_transform(u)
    perplexity = min(30.0, (len(u) - 1) / 3)
    return TSNE(2, perplexity=perplexity, init="pca", random_state=seed, max_iter=500).fit_transform(flat)
