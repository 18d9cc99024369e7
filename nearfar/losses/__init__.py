"""Contrastive losses: pure functions on embeddings and group ids."""

from nearfar.losses.negatives import dcl, dclw, debiased, hard_negative, n_pair, vince
from nearfar.losses.softmax import clip, cross_entropy, info_nce, nt_xent, sigmoid, sup_con

__all__ = [
    "clip", "cross_entropy", "dcl", "dclw", "debiased", "hard_negative", "info_nce", "n_pair", "nt_xent", "sigmoid",
    "sup_con", "vince",
]  # fmt: skip
