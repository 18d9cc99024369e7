"""The geometry of an embedding, without labels: spectrum, effective rank, alignment, uniformity, a 2-D map."""

from __future__ import annotations

import math

import numpy as np
import torch

from nearfar.errors import UserError
from nearfar.evaluate.retrieval import unit


def _eigenvalues(z: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Eigenvalues of (n - 1)·covariance, rising, by the smaller of its two shapes. (N, d) -> (min(N, d),) float64

    By torch, whose threads those are that train: NumPy's would go on spinning beside them for a tenth of a second.
    """
    x = torch.as_tensor(z).to("cpu", torch.float64)
    x = x - x.mean(0)
    return torch.linalg.eigvalsh(x.T @ x if x.shape[1] <= len(x) else x @ x.T).clamp(min=0)


def _exp_entropy(p: np.ndarray | torch.Tensor) -> float:
    """exp(-Σ p log p), where 0 log 0 is 0: how many shares there are as if all were alike. (K,)"""
    return float(torch.special.entr(torch.as_tensor(p)).sum().exp())


def spectrum(z: np.ndarray) -> np.ndarray:
    """Eigenvalues of the covariance, falling, summing to one (all zero for constant features). (N, d) -> (d,)"""
    held, values = _eigenvalues(z).numpy()[::-1], np.zeros(z.shape[1])
    if held.sum() > 1e-20:
        values[: len(held)] = held / held.sum()
    return values


def effective_rank(z: np.ndarray | torch.Tensor, *, corrected: bool = False) -> float:
    r"""exp of the entropy of the centred features' normalised singular values; 0 where they are constant.

    .. math:: \exp\Big(-\sum_k p_k\log p_k\Big),\quad p_k = \sigma_k/\textstyle\sum_j\sigma_j

    Roy & Vetterli 2007; RankMe (Garrido et al. 2023, arXiv:2210.02885) takes it without centring.

    Few rows make it too low: 256 of white noise in 512 dimensions give 236. ``corrected`` estimates what rows without
    number would give, from the same eigenvalues: see :func:`_of_endless_rows`. (N, d)
    """
    values = _eigenvalues(z)
    if float(values.sum()) <= 1e-20:
        return 0.0
    if corrected and len(z) > 3:
        x = torch.as_tensor(z)
        return _of_endless_rows(values, len(z) - 1, int((x != x[0]).any(0).sum()))
    return _exp_entropy(values.sqrt() / values.sqrt().sum())


def _of_endless_rows(values: torch.Tensor, n: int, d: int, grid: int = 256) -> float:
    r"""The effective rank of the covariance from which rows with these eigenvalues were drawn.

    The sample's ridge degrees of freedom at μ are the true covariance's at a larger κ (arXiv:2303.01372, after
    Silverstein's equation), which so can be read off without solving for a spectrum:

    .. math:: df(\kappa) = \sum_k \frac{\lambda_k}{\lambda_k+\kappa} = \sum_i \frac{l_i}{l_i+\mu},\quad
              \kappa = \mu / (1 - df(\kappa)/n)

    and what the entropy takes are integrals over it, with :math:`\sigma = \sqrt\lambda`:

    .. math:: \sum\sigma = \frac1\pi\int_0^\infty df(\kappa)\,\kappa^{-1/2}\,d\kappa,\quad
              \sum\sigma\log\sigma = \frac1{2\pi}\int_0^\infty df(\kappa)\,\kappa^{-1/2}\log\kappa\,d\kappa

    With more dimensions than rows, nothing is seen below some κ₀: there m directions are taken to be alike and the
    others larger, which the value and the slope of df at κ₀ decide. values (min(N, d),), n: rows less one
    """
    l = values[values > values[-1] * 1e-12] / n
    span = (float(l[0].log()) - 12, float(l[-1].log()) + 16)
    mu = torch.linspace(*span, grid, dtype=l.dtype).exp()  # (grid,)
    df = (l / (l + mu[:, None])).sum(1)  # (grid,)
    kappa = mu / (1 - df / n)
    if len(l) >= n and d > n:
        t1, t2 = float((1 / l).sum()), float((1 / l.square()).sum())
        k0 = n / t1
        q = min(1.0, max(1e-6, 1 - t1 * t1 / t2 / (d - n)))  # of (d - n) = m·q, q = κ₀ / (λ + κ₀)
        m, small = (d - n) / q, k0 * (1 - q) / q
        below = torch.linspace(-16, 0, grid, dtype=l.dtype).exp() * k0
        kappa, df = torch.cat([below, kappa]), torch.cat([d - m + m * small / (small + below), df])
    k, log = kappa.sqrt(), kappa.log()
    total = torch.trapezoid(df * k, log) + 2 * df[0] * k[0] + 2 * df[-1] * k[-1]
    logs = torch.trapezoid(df * k * log, log) + 2 * df[0] * k[0] * (log[0] - 2) + 2 * df[-1] * k[-1] * (log[-1] + 2)
    sigma = float(total) / math.pi
    return min(float(d), math.exp(math.log(sigma) - float(logs) / (2 * math.pi) / sigma))


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


def rankme(z: np.ndarray) -> float:
    r"""exp of the entropy of the singular values, not centred, each share plus 1e-7. (N, d)

    RankMe (Garrido et al. 2023, arXiv:2210.02885, eq. 1–2). Compare only between embeddings of the same rows.

    >>> round(rankme(np.eye(4)), 3)
    4.0
    """
    s = np.linalg.svd(np.asarray(z, np.float64), compute_uv=False)
    if not s.sum() > 0:
        return 0.0
    return _exp_entropy(s / s.sum() + 1e-7)


def alpha_req(z: np.ndarray, *, first: int = 11, last: int = 100) -> float:
    r"""The exponent α of the covariance's eigenvalues, :math:`\lambda_j\propto j^{-\alpha}`: about 1 is best.

    .. math:: \min_{\alpha,c}\sum_{j=first}^{last}\frac1j\,(\log\lambda_j+\alpha\log j-c)^2

    α-ReQ (Agrawal et al. 2022, arXiv:2202.05808), in the form and with the range of the authors' own package, reptrix:
    ranks 11 to 100 (its ``np.arange(10, 100)``, counted from 0), after Stringer et al. 2019. Their experiments' scripts
    also begin at rank 4 or 6 and end at 50, so a published α is compared only with its range known. Eigenvalues up to
    1e-12 of the largest are left out; NaN where fewer than two of the range are left. (N, d)

    >>> z = np.linalg.qr(np.random.default_rng(0).normal(size=(200, 30)))[0]
    >>> z = np.linalg.qr(z - z.mean(0))[0] * np.arange(1, 31) ** -0.5
    >>> round(alpha_req(z), 3)
    1.0
    """
    if not 1 <= first < last:
        raise UserError(f"eigenvalues {first} to {last}: give ranks from 1, the last above the first")
    values = spectrum(np.asarray(z))
    values = values[values > 1e-12 * max(values[0], 1e-300)][first - 1 : last]
    if len(values) < 2:
        return float("nan")
    rank = np.arange(first, first + len(values), dtype=np.float64)
    return float(-np.polyfit(np.log(rank), np.log(values), 1, w=rank**-0.5)[0])  # polyfit squares its weights


def lidar(z: np.ndarray, *, delta: float = 1e-4) -> float:
    r"""exp of the entropy of the eigenvalues of LDA's matrix, each picture being a class and its views the members.

    .. math:: \Sigma_{lidar}=\Sigma_w^{-1/2}\Sigma_b\Sigma_w^{-1/2},\quad
              \Sigma_w=\frac1{n(q-1)}\sum_{i,j}(z_{ij}-\mu_i)(z_{ij}-\mu_i)^\top+\delta I,\quad
              \Sigma_b=\frac1{n-1}\sum_i(\mu_i-\mu)(\mu_i-\mu)^\top

    LiDAR (Thilak et al. 2024, arXiv:2312.04000). z: (n pictures, q ≥ 2 views, d)
    """
    z = np.asarray(z, np.float64)
    if z.ndim != 3 or z.shape[0] < 2 or z.shape[1] < 2:
        raise UserError(f"LiDAR takes (pictures, views, d), two or more of each, not {z.shape}")
    n, q, d = z.shape
    centre = z.mean(1)  # (n, d)
    inner = (z - centre[:, None]).reshape(-1, d)
    within = inner.T @ inner / (n * (q - 1)) + delta * np.eye(d)  # (d, d)
    outer = centre - centre.mean(0)
    values, vectors = np.linalg.eigh(within)
    half = (vectors / np.sqrt(values)) @ vectors.T  # within^(-1/2)
    found = np.linalg.eigvalsh(half @ (outer.T @ outer / (n - 1)) @ half).clip(min=0)
    if not found.sum() > 0:
        return 0.0
    return _exp_entropy(found / found.sum())
