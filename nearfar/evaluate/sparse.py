"""Sparse rows (SciPy's), as bags of words are: what judges need of them, without making them dense."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def is_sparse(z: Any) -> bool:
    return hasattr(z, "tocsr")


def not_finite(z: Any) -> int:
    """How many values are NaN or infinite."""
    return int((~np.isfinite(z.data if is_sparse(z) else z)).sum())


def lengths(z: Any) -> np.ndarray:
    """Euclidean lengths of sparse rows, in float64. (N, d) -> (N,)"""
    z = z.tocsr().astype(np.float64)
    return np.sqrt(np.asarray(z.multiply(z).sum(1)).ravel())


def unit_rows(z: Any) -> Any:
    """Sparse rows of length one (rows of zeros stay zero). (N, d) -> (N, d) CSR float64"""
    from scipy.sparse import csr_array, diags_array

    return csr_array(diags_array(1 / np.maximum(lengths(z), 1e-12)) @ csr_array(z))


def products(q: Any, b: Any) -> Callable[[Any], torch.Tensor]:
    """What gives the dense products of some rows of ``q``, a slice or indices, with all of ``b``. -> (rows, N)"""
    if is_sparse(q):
        columns = b.T.tocsc()  # (d, N)
        return lambda rows: torch.from_numpy((q[rows] @ columns).toarray())
    q, b = torch.from_numpy(q), torch.from_numpy(b)
    return lambda rows: q[rows] @ b.T


def scaler(train: Any) -> Callable[[Any], Any]:
    """Sparse features by one number, that of a mean variance of 1 over the columns of the training part.

    Each by its own deviation would make a word the louder the rarer it is. Nothing is taken off them, as that would
    make them dense, and a probe's intercept does as much. (N, d) -> (N, d) CSR float64
    """
    from scipy.sparse import csr_array

    mean = np.asarray(train.mean(0), np.float64).ravel()  # (d,)
    variance = float((lengths(train) ** 2).mean() - (mean**2).sum()) / train.shape[1]
    scale = variance**-0.5 if variance > 1e-16 else 0.0
    return lambda z: csr_array(z, dtype=np.float64) * scale
