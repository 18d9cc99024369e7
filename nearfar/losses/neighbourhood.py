"""Losses on an anchor's whole neighbourhood: its pairs weigh on each other through one log-sum-exp."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nearfar import dist
from nearfar.errors import UserError, nearest
from nearfar.losses.pairs import FLOOR, beside
from nearfar.losses.panels import Panel, by_panels, masked_lse, masked_mean
from nearfar.losses.rows import Rows, check_setting, check_temperature, check_unlearnt, reduced, rows, scalar

_UNIT = {"squared": False, "euclidean": False, "cosine-distance": True}


def multi_similarity(
    z: Tensor, groups: Tensor, keys: Tensor | None = None, key_groups: Tensor | None = None, *,
    alpha: float = 2.0, beta: float = 50.0, base: float = 0.5, epsilon: float | None = 0.1, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""Multi-similarity: pairs mined against the anchor's hardest, then softly weighted among themselves.

    .. math:: \ell_i = \frac1\alpha\log\Big[1+\sum_{p\in P_i} e^{-\alpha(s_{ip}-\lambda)}\Big]
              + \frac1\beta\log\Big[1+\sum_{n\in N_i} e^{\beta(s_{in}-\lambda)}\Big]

    over the positives with :math:`s_{ip} < \max_n s_{in} + \epsilon` and the negatives with
    :math:`s_{in} > \min_p s_{ip} - \epsilon`. Wang et al. 2019 (arXiv:1904.06627); s is the cosine. The
    default λ is that of the authors' code, the paper's is 1; the code also drops positives of a cosine above
    1 - 10⁻⁵, which is not done here.

    Args:
        z: (n, d) embeddings; normalised here. groups: (n,) ids. keys: (m, d), key_groups: (m,) the candidates.
        alpha: α > 0. beta: β > 0. base: λ. epsilon: ε of the mining; None takes all pairs.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (n,).

    Anchors without a positive are left out of the mean. One whose pairs are all mined away counts, with 0: the mean
    then falls as pairs become easy, as in the paper. Raises ``UserError``.

    >>> z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1]])
    >>> round(float(multi_similarity(z, torch.tensor([0, 0, 1]))), 4)
    0.9041
    """
    check_setting(alpha, "alpha")
    check_setting(beta, "beta")
    check_unlearnt(base, "base")
    if epsilon is not None:
        check_unlearnt(epsilon, "epsilon")

    def fn(p: Panel) -> Tensor:
        positive, negative = (p.positive, p.negative) if epsilon is None else _mined(p, epsilon)
        pull = masked_lse(-alpha * (p.s - base), positive)  # (b,)
        push = masked_lse(beta * (p.s - base), negative)  # (b,)
        return beside(_softplus(pull) / alpha + _softplus(push) / beta, p.positive.any(1))

    given = rows(z, groups, keys, key_groups)
    return reduced(*by_panels(fn, given, width=6).unbind(1), reduction)


def _mined(p: Panel, epsilon: float) -> tuple[Tensor, Tensor]:
    """The positives farther than the nearest negative, the negatives nearer than the farthest positive, by ε."""
    s = p.s.detach()
    no = s.new_full((len(s), 1), float("inf"))  # a column, so that there is one where nobody is
    farthest = torch.cat([torch.where(p.positive, s, float("inf")), no], 1).amin(1, keepdim=True)  # (b, 1)
    closest = torch.cat([torch.where(p.negative, s, float("-inf")), -no], 1).amax(1, keepdim=True)  # (b, 1)
    return p.positive & (s < closest + epsilon), p.negative & (s > farthest - epsilon)


def circle(
    z: Tensor, groups: Tensor, keys: Tensor | None = None, key_groups: Tensor | None = None, *,
    margin: float = 0.4, scale: float = 80.0, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""Circle loss: each similarity is pulled the harder, the farther it is from where it should be.

    .. math:: \ell_i = \log\Big[1+\sum_{n\in N_i} e^{\gamma\alpha_n(s_{in}-m)}
              \sum_{p\in P_i} e^{-\gamma\alpha_p(s_{ip}-1+m)}\Big],\quad
              \alpha_n=[s_{in}+m]_+,\ \alpha_p=[1+m-s_{ip}]_+

    Sun et al. 2020 (arXiv:2002.10857): O_p = 1 + m, O_n = -m, Δ_p = 1 - m, Δ_n = m, and no gradient
    through the weights α. s is the cosine. The defaults are the paper's for retrieval; it takes m = 0.25 with
    γ = 256 for faces and γ = 128 for people seen again.

    Args:
        z: (n, d) embeddings; normalised here. groups: (n,) ids. keys: (m, d), key_groups: (m,) the candidates.
        margin: m. scale: γ > 0.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (n,).

    Anchors without a positive or without a negative are left out of the mean. Raises ``UserError``.

    >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.5], [0.0, 1.0]])
    >>> circle(z, torch.tensor([0, 0, 1]), scale=10.0, reduction="none")
    tensor([0.0446, 0.2902, 0.0000])
    """
    check_unlearnt(margin, "margin")
    check_setting(scale, "scale")

    def fn(p: Panel) -> Tensor:
        s = p.s.detach()
        pull = masked_lse(-scale * (1 + margin - s).clamp(min=0) * (p.s - 1 + margin), p.positive)  # (b,)
        push = masked_lse(scale * (s + margin).clamp(min=0) * (p.s - margin), p.negative)  # (b,)
        return beside(_softplus(pull + push), p.positive.any(1) & p.negative.any(1))

    given = rows(z, groups, keys, key_groups)
    return reduced(*by_panels(fn, given, width=6).unbind(1), reduction)


def soft_nearest_neighbour(
    z: Tensor, groups: Tensor, keys: Tensor | None = None, key_groups: Tensor | None = None, *,
    temperature: float | Tensor = 1.0, metric: str = "squared", reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""Soft nearest neighbour: -log of the chance that a neighbour drawn by nearness is of the anchor's group.

    .. math:: \ell_i = -\log\frac{\sum_{p\in P_i} e^{-D_{ip}/T}}{\sum_{j\ne i} e^{-D_{ij}/T}}

    Frosst, Papernot & Hinton 2019 (arXiv:1902.01889). They maximise it in hidden layers, and learn T.

    Args:
        z: (n, d) embeddings. groups: (n,) ids. keys: (m, d), key_groups: (m,) the candidates, else the rows.
        temperature: T > 0, a number or a tensor of one value that learns.
        metric: D: ``"squared"`` (the paper's) or ``"euclidean"`` on the rows as they are, or
            ``"cosine-distance"`` (with which positives stand in one sum where SupCon has a mean of logarithms).
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (n,).

    Anchors without a positive are left out of the mean. Raises ``UserError``.

    >>> z = torch.tensor([[0.0], [1.0], [2.0]])
    >>> soft_nearest_neighbour(z, torch.tensor([0, 0, 1]), reduction="none")
    tensor([0.0486, 0.6931, 0.0000])
    """
    if metric not in _UNIT:
        raise UserError(f"unknown metric {metric!r}{nearest(metric, _UNIT)}")
    check_temperature(temperature)

    def fn(p: Panel, temperature: Tensor) -> Tensor:
        return beside(-_log_chance(p, temperature), p.positive.any(1))

    given = rows(z, groups, keys, key_groups, unit=_UNIT[metric])
    values = by_panels(fn, given, scalar(temperature, given.z), metric=metric, width=5)
    return reduced(*values.unbind(1), reduction)


def nca(
    z: Tensor, groups: Tensor, keys: Tensor | None = None, key_groups: Tensor | None = None, *,
    objective: str = "log", reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""Neighbourhood components analysis: nearest-neighbour classification, left one out and made smooth.

    .. math:: p_i = \frac{\sum_{p\in P_i} e^{-\lVert z_i-z_p\rVert^2}}{\sum_{j\ne i} e^{-\lVert z_i-z_j\rVert^2}},
              \qquad \ell_i = -\log p_i \ \text{ or }\ \ell_i = -p_i

    Goldberger et al. 2004 (Neighbourhood Components Analysis): its two objectives, negated, the mean over anchors
    where it sums. With the logarithm it is :func:`soft_nearest_neighbour` at a temperature of 1.

    Args:
        z: (n, d) embeddings, as they are. groups: (n,) ids. keys: (m, d), key_groups: (m,) the candidates.
        objective: ``"log"``, or ``"expected"``: minus the share of anchors classified right, -1 to 0.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (n,).

    Anchors without a positive are left out of the mean. Raises ``UserError``.

    >>> z = torch.tensor([[0.0], [1.0], [2.0]])
    >>> nca(z, torch.tensor([0, 0, 1]), objective="expected", reduction="none")
    tensor([-0.9526, -0.5000,  0.0000])
    """
    if objective not in _OBJECTIVES:
        raise UserError(f"unknown objective {objective!r}{nearest(objective, _OBJECTIVES)}")
    value = _OBJECTIVES[objective]
    given = rows(z, groups, keys, key_groups, unit=False)
    values = by_panels(lambda p: beside(value(_log_chance(p)), p.positive.any(1)), given, metric="squared", width=5)
    return reduced(*values.unbind(1), reduction)


_OBJECTIVES = {"log": torch.neg, "expected": lambda log_chance: -log_chance.exp()}


def _log_chance(p: Panel, temperature: float | Tensor = 1.0) -> Tensor:
    """log of the softmax over candidates by nearness, summed over positives. (b,)"""
    logits = -p.s / temperature  # (b, M)
    return masked_lse(logits, p.positive).clamp(min=FLOOR) - masked_lse(logits, p.candidates).clamp(min=FLOOR)


def lifted_structure(
    z: Tensor, groups: Tensor, keys: Tensor | None = None, key_groups: Tensor | None = None, *,
    margin: float = 1.0, form: str = "smooth", reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""Lifted structure: a positive pair against all negatives of both its ends.

    .. math:: J_{ij} = \log\Big(\sum_{k\in N_i} e^{m-D_{ik}} + \sum_{l\in N_j} e^{m-D_{jl}}\Big) + D_{ij},\qquad
              L = \frac1{2|P|}\sum_{(i,j)\in P}\max(0, J_{ij})^2

    Oh Song et al. 2016 (arXiv:1511.06452), P all positive pairs: the mean is over pairs, so an anchor
    weighs as much as it has positives. ``form="generalised"`` is equation 7 of Hermans et al. 2017
    (arXiv:1703.07737), over anchors:

    .. math:: \ell_i = \max\Big(0, \log\sum_{p\in P_i} e^{D_{ip}} + \log\sum_{n\in N_i} e^{m-D_{in}}\Big)

    Args:
        z: (n, d) embeddings, as they are; D is the Euclidean distance. groups: (n,) ids.
        keys: (m, d), key_groups: (m,) the candidates, else the rows. With keys, j is one, and its negatives are the
            anchors of other groups, of all processes: z and keys may change places.
        margin: m > 0. form: ``"smooth"`` or ``"generalised"``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (n,); with ``"smooth"`` an anchor's value is its sum over pairs.

    Anchors without a positive are left out of the mean, pairs without a negative count 0. Raises ``UserError``.

    >>> z = torch.tensor([[0.0], [1.0], [2.0]])
    >>> round(float(lifted_structure(z, torch.tensor([0, 0, 1]))), 4)
    0.8623
    """
    if form not in _FORMS:
        raise UserError(f"unknown form {form!r}{nearest(form, _FORMS)}")
    check_setting(margin, "margin")
    given = rows(z, groups, keys, key_groups, unit=False)
    return reduced(*_FORMS[form](given, margin).unbind(1), reduction)


def _smooth(given: Rows, margin: float) -> Tensor:
    """(n, 2): the mean of ½ max(0, J)² over an anchor's positives, how many they are"""

    def repelled(p: Panel) -> Tensor:
        return masked_lse(margin - p.s, p.negative).clamp(min=FLOOR)  # (b,)

    def fn(p: Panel, mine: Tensor, theirs: Tensor) -> Tensor:
        j = torch.logaddexp(mine[p.rows, None], theirs[None, :]) + p.s  # (b, M)
        return beside(masked_mean(0.5 * j.clamp(min=0).square(), p.positive), p.positive.sum(1))

    mine = by_panels(repelled, given, metric="euclidean", width=4)  # (n,)
    if given.first is not None:
        theirs = dist.gather(mine)  # (M,)
    else:
        turned = Rows(given.keys, given.key_groups, dist.gather(given.z), dist.gather(given.groups), None)
        theirs = by_panels(repelled, turned, metric="euclidean", width=4)  # (M,)
    return by_panels(fn, given, mine, theirs, metric="euclidean", width=5)


def _generalised(given: Rows, margin: float) -> Tensor:
    """(n, 2)"""

    def fn(p: Panel) -> Tensor:
        far, near = masked_lse(p.s, p.positive), masked_lse(margin - p.s, p.negative)  # (b,)
        return beside((far.clamp(min=FLOOR) + near.clamp(min=FLOOR)).clamp(min=0), p.positive.any(1))

    return by_panels(fn, given, metric="euclidean", width=5)


_FORMS = {"smooth": _smooth, "generalised": _generalised}


def _softplus(x: Tensor) -> Tensor:
    """log(1 + exp x), to the last digit at any size, 0 at -inf."""
    return -F.logsigmoid(-x)
