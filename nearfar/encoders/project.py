"""The one multi-layer perceptron: projectors, predictors and heads."""

from __future__ import annotations

from torch import nn

from nearfar.errors import UserError, nearest

_NORMS = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm, "none": nn.Identity}


def mlp(
    n_in: int, hidden: int, n_out: int, *, depth: int = 2, norm: str = "batch", last_norm: bool = False
) -> nn.Sequential:
    """``depth`` linear layers with normalisation and ReLU between them. (B, n_in) -> (B, n_out)

    Args:
        depth: 0 is the identity (n_out must equal n_in), 1 a single linear layer.
        norm: ``"batch"``, ``"layer"`` or ``"none"`` after each hidden layer (which then has no bias).
        last_norm: also normalise the output, without scale and shift of its own.

    >>> import torch
    >>> mlp(8, 16, 4, depth=3)(torch.zeros(2, 8)).shape
    torch.Size([2, 4])
    """
    if norm not in _NORMS:
        raise UserError(f"unknown normalisation {norm!r}{nearest(norm, _NORMS)}")
    if depth < 0 or (depth == 0 and n_in != n_out):
        raise UserError(f"projector depth {depth} from {n_in} to {n_out}: give a depth of at least 1")
    layers: list[nn.Module] = []
    for i in range(depth):
        last = i == depth - 1
        width = n_out if last else hidden
        normalised = norm != "none" and (not last or last_norm)
        layers.append(nn.Linear(n_in, width, bias=not normalised))
        if normalised:
            affine = {"batch": "affine", "layer": "elementwise_affine"}[norm]
            layers.append(_NORMS[norm](width, **{affine: not last}))
        if not last:
            layers.append(nn.ReLU(inplace=True))
        n_in = width
    return nn.Sequential(*layers)


