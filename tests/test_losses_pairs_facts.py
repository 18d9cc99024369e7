"""What the pair losses' docstrings say of each other and of PyTorch's, the authors' and the peers' losses."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from pair_formulas import Naive, sample, slope
from torch import Tensor

from nearfar.losses.neighbourhood import circle, lifted_structure, multi_similarity, nca, soft_nearest_neighbour
from nearfar.losses.pairs import alignment, logistic, margin_contrastive, pair_probability, spectral, uniformity


@pytest.mark.parametrize("metric", ["euclidean", "cosine-distance"])
def test_margin_and_the_mean_over_labelled_pairs(metric):
    z, _ = sample(19, n=6)
    groups = torch.arange(6) % 3  # for every anchor 1 positive and 4 negatives
    n, terms = Naive(z, groups), []
    for i in range(6):
        for j in range(6):
            d = n.distance(metric, i, j) if i != j else None
            if d is not None:
                terms.append(0.5 * d**2 if groups[i] == groups[j] else 0.5 * (1.5 - d).relu() ** 2)
    split = [margin_contrastive(z, groups, z[js], groups[js], margin=1.5, metric=metric, reduction="none")[i]
             for i in range(6) for js in ([j for j in range(6) if j != i and groups[j] == groups[i]],
                                          [j for j in range(6) if groups[j] != groups[i]])]  # fmt: skip
    near, far = torch.stack(split[::2]).mean(), torch.stack(split[1::2]).mean()
    torch.testing.assert_close(torch.stack(terms).mean(), (1 * near + 4 * far) / 5)
    torch.testing.assert_close(margin_contrastive(z, groups, margin=1.5, metric=metric), near + far)


def test_logistic_is_pytorchs_binary_cross_entropy():
    z, groups = sample(20, n=12)
    unit = F.normalize(z, dim=1)
    away = ~torch.eye(12, dtype=torch.bool)
    logits, same = (unit @ unit.T / 0.2 - 1)[away], (groups[:, None] == groups)[away].double()
    want = F.binary_cross_entropy_with_logits(logits, same, pos_weight=torch.tensor(3.0, dtype=torch.float64))
    torch.testing.assert_close(logistic(z, groups, temperature=0.2, bias=-1.0, positive_weight=3.0), want)


def test_pair_probability():
    a, _ = sample(21, n=5)
    b, _ = sample(22, n=5)
    got = pair_probability(a, b, temperature=0.2, bias=torch.tensor(0.5))
    for i in range(5):
        cosine = float(a[i] @ b[i] / (a[i].norm() * b[i].norm()))
        assert float(got[i]) == pytest.approx(1 / (1 + math.exp(-(cosine / 0.2 + 0.5))))
    one = torch.zeros(1, dtype=torch.int64)
    for i in range(5):  # what logistic is minus the logarithm of
        loss = logistic(a[i : i + 1], one, b[i : i + 1], one, temperature=0.2, bias=0.5)
        torch.testing.assert_close(loss, -got[i].log())
    assert pair_probability(a.bfloat16(), b.bfloat16()).dtype == torch.float32
    with pytest.raises(ValueError, match=r"a is \(5, 4\) and b is \(4, 4\)"):
        pair_probability(a, b[:4])
    with pytest.raises(ValueError, match="b holds NaN"):
        pair_probability(a, b / 0)
    with pytest.raises(ValueError, match="temperature must be"):
        pair_probability(a, b, 0)


def test_spectral_between_views_is_the_authors():
    a, _ = sample(23, n=6)
    b, _ = sample(24, n=6)
    mu, ids = 3.0, torch.arange(6)
    a, b = (x * (mu**0.5 / x.norm(dim=1, keepdim=True)).clamp(max=1) for x in (a, b))
    square = (a @ b.T) ** 2
    want = (-2 * (a * b).sum(1).mean() + (square.sum() - square.trace()) / (6 * 5)) / mu
    torch.testing.assert_close(spectral(a, ids, b, ids) / mu, want)


def test_nca_is_soft_nearest_neighbour_at_one():
    z, groups = sample(25)
    torch.testing.assert_close(nca(z, groups), soft_nearest_neighbour(z, groups))


def test_lifted_towers_may_change_places():
    (z, groups), (k, ids) = sample(26, n=7), sample(27, n=9)
    torch.testing.assert_close(lifted_structure(z, groups, k, ids), lifted_structure(k, ids, z, groups))


# peers


def both_views(seed: int) -> tuple[Tensor, Tensor]:
    z, _ = sample(seed, n=12, d=5)
    return z, torch.arange(12) % 4  # each anchor with 2 positives


PEERS = {
    "MultiSimilarityLoss": (multi_similarity, {"epsilon": None}, {}),
    "MultiSimilarityLoss mined": (multi_similarity, {"epsilon": 0.1}, {}),
    "CircleLoss": (circle, {"scale": 10.0}, {"gamma": 10}),
    "NCALoss": (nca, {}, {"normalize": False}),
    "LiftedStructureLoss": (lifted_structure, {"margin": 1.5}, {"neg_margin": 1.5, "normalize": False}),
    "GeneralizedLiftedStructureLoss": (
        partial(lifted_structure, form="generalised"), {"margin": 1.5}, {"neg_margin": 1.5, "normalize": False},
    ),
}  # fmt: skip


@pytest.mark.parametrize("peer", PEERS)
def test_pytorch_metric_learning_gives_the_same(peer):
    pml = pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning import distances, losses, miners

    assert pml
    loss, how, theirs = PEERS[peer]
    theirs = dict(theirs)
    if "normalize" in theirs:
        power = 2 if peer == "NCALoss" else 1
        theirs["distance"] = distances.LpDistance(normalize_embeddings=theirs.pop("normalize"), power=power)
    z, groups = both_views(28)
    other = getattr(losses, peer.split()[0])(**theirs)
    mine = miners.MultiSimilarityMiner(epsilon=0.1) if "mined" in peer else None

    def ask(x: Tensor) -> Tensor:
        return other(x, groups, mine(x, groups)) if mine else other(x, groups)

    want, (want_grad,) = slope(ask, z)
    value, (grad,) = slope(lambda x: loss(x, groups, **how), z)
    assert float(want) > 0
    torch.testing.assert_close(value, want)
    torch.testing.assert_close(grad, want_grad)


def test_lightlys_hypersphere_loss_is_alignment_and_each_views_uniformity():
    loss = pytest.importorskip("lightly.loss.hypersphere_loss").HypersphereLoss(t=1.5, lam=0.7, alpha=2)
    (a, _), (b, _), ids = sample(29), sample(30), torch.arange(10)
    ours = alignment(a, ids, b, ids) + 0.7 * (uniformity(a, ids, t=1.5) + uniformity(b, ids, t=1.5)) / 2
    torch.testing.assert_close(ours, loss(a, b))
