"""Contrastive losses: pure functions on embeddings and group ids."""

from nearfar.losses.softmax import info_nce, nt_xent

__all__ = ["info_nce", "nt_xent"]
