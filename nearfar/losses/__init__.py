"""Contrastive losses: pure functions on embeddings and group ids; classes only where there is weight or state."""

from nearfar.losses.assignments import (
    dino,
    prototype_cross_entropy,
    sinkhorn,
    spherical_kmeans,
    swav,
    update_centre,
)
from nearfar.losses.caching import in_chunks
from nearfar.losses.features import barlow_twins, byol, mmcr, simsiam, vicreg, w_mse
from nearfar.losses.memory import CrossBatchMemory
from nearfar.losses.negatives import dcl, dclw, debiased, hard_negative, n_pair, vince
from nearfar.losses.neighbourhood import circle, lifted_structure, multi_similarity, nca, soft_nearest_neighbour
from nearfar.losses.pairs import (
    alignment,
    alignment_uniformity,
    logistic,
    margin_contrastive,
    pair_probability,
    spectral,
    uniformity,
)
from nearfar.losses.proxies import (
    ArcFace,
    CosFace,
    NormalizedSoftmax,
    ProxyAnchor,
    ProxyNCA,
    arcface,
    cosface,
    normalized_softmax,
    proxy_anchor,
    proxy_nca,
)
from nearfar.losses.scored import angle, cosent, matryoshka, pair_logistic, pair_margin, pair_regression
from nearfar.losses.sigreg import sigreg
from nearfar.losses.softmax import clip, cross_entropy, info_nce, nt_xent, sigmoid, sup_con
from nearfar.losses.temperature import (
    LearntTemperature,
    constant_temperature,
    cosine_temperature,
    linear_temperature,
)
from nearfar.losses.triplet import triplet

__all__ = [
    "ArcFace", "CosFace", "CrossBatchMemory", "LearntTemperature", "NormalizedSoftmax", "ProxyAnchor", "ProxyNCA",
    "alignment", "alignment_uniformity", "angle", "arcface", "barlow_twins", "byol", "circle", "clip",
    "constant_temperature", "cosent", "cosface", "cosine_temperature", "cross_entropy", "dcl", "dclw", "debiased",
    "dino", "hard_negative", "in_chunks", "info_nce", "lifted_structure", "linear_temperature", "logistic",
    "margin_contrastive", "matryoshka", "mmcr", "multi_similarity", "n_pair", "nca", "normalized_softmax", "nt_xent",
    "pair_logistic", "pair_margin", "pair_probability", "pair_regression", "prototype_cross_entropy", "proxy_anchor",
    "proxy_nca", "sigmoid", "sigreg", "simsiam", "sinkhorn", "soft_nearest_neighbour", "spectral", "spherical_kmeans",
    "sup_con", "swav", "triplet", "uniformity", "update_centre", "vicreg", "vince", "w_mse",
]  # fmt: skip
