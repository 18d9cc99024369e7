"""Methods that tell instances apart: MoCo v3, DCL, NNCLR, PIRL, InstDisc; what their papers say, written out."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nearfar import losses
from nearfar.methods import dcl, inst_disc, moco_v3, nnclr, pirl
from nearfar.methods.parts import Progress

IMAGES = 20


class Flat(nn.Module):
    """The smallest encoder: colours' means and spreads, mixed; any size of picture."""

    features = 6

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix = nn.BatchNorm2d(3), nn.Linear(6, 6)

    def forward(self, x):
        y = self.norm(x)
        return self.mix(torch.cat([y.mean((2, 3)), y.square().mean((2, 3))], 1))


def made(module, seed=0, **settings):
    torch.manual_seed(seed)
    return module.Method(Flat(), module.Config(**settings), images=IMAGES).double()


def pictures(count, n=8, seed=1, side=8):
    g = torch.Generator().manual_seed(seed)
    views = [torch.rand(n, 3, side, side, generator=g).double() for _ in range(count)]
    return views, torch.randperm(IMAGES, generator=g)[:n]


def progress(step=0, share=0.0, seed=5):
    return Progress(step, share, 0.0, torch.Generator().manual_seed(seed))


def unit(x):
    return F.normalize(x, dim=1)


def test_moco_v3_is_its_pseudocode():
    """2τ · cross-entropy of each view's prediction against the twin's rows of the other, both ways, summed."""
    method = made(moco_v3, temperature=0.3, hidden=16, dim=4)
    (a, b), index = pictures(2)
    step = method([a, b], index, None, progress())
    foretell = nn.Sequential(method.encoder, method.projector, method.predictor)
    q, k = ([unit(net(x)) for x in (a, b)] for net in (foretell, method.twin))
    want = [F.cross_entropy(q_v @ k_v.T / 0.3, torch.arange(8)) * 0.6 for q_v, k_v in zip(q, reversed(k))]
    torch.testing.assert_close(step.loss, sum(want))
    assert not any(p.requires_grad for p in method.twin.parameters())


def test_moco_v3s_twin_follows_ever_more_slowly():
    method = made(moco_v3, momentum=0.9, hidden=16, dim=4)
    was, moved = method.twin[0].mix.weight.clone(), {}
    with torch.no_grad():
        method.encoder.mix.weight.add_(1.0)
    for share in (0.0, 0.5, 1.0):
        method.twin[0].mix.weight.copy_(was)
        method.after_step(progress(share=share))
        moved[share] = float((method.twin[0].mix.weight - was).mean())
    assert moved == pytest.approx({0.0: 0.1, 0.5: 0.05, 1.0: 0.0})


def test_moco_v3_leaves_patches_as_they_were_drawn():
    encoder = Flat()
    encoder.patch_embed = nn.Linear(3, 3)
    method = moco_v3.Method(encoder, moco_v3.Config(hidden=8, dim=4, frozen_patches=True))
    assert [n for n, p in method.encoder.named_parameters() if not p.requires_grad] == [
        "patch_embed.weight", "patch_embed.bias"]  # fmt: skip


@pytest.mark.parametrize(("settings", "loss"), [({}, losses.dcl), ({"weighted": True, "sigma": 0.4}, losses.dclw)])
def test_dcl_and_dclw(settings, loss):
    method = made(dcl, hidden=16, dim=4, temperature=0.2, **settings)
    (a, b), index = pictures(2)
    step = method([a, b], index, None, progress())
    given = {"sigma": 0.4} if settings else {}
    torch.testing.assert_close(step.loss, loss(step.projections, index.repeat(2), temperature=0.2, **given))
    assert step.stats["chance"] == pytest.approx(math.log(14))


def test_nnclrs_positives_are_the_nearest_of_the_queue():
    method = made(nnclr, queue=12, hidden=16, dim=4, predictor_hidden=8, temperature=0.3)
    z = unit(torch.randn(5, 4).double())
    assert torch.equal(method.nearest(z), z)  # nothing is held yet
    for seed in range(3):  # 24 rows through a queue of 12
        (a, b), index = pictures(2, seed=seed)
        method([a, b], index, None, progress())
        method.after_step(progress())
    held = method.queue()[0].double()
    assert len(held) == 12
    torch.testing.assert_close(held.norm(dim=1), torch.ones(12).double())
    torch.testing.assert_close(method.nearest(z), held[torch.cdist(z, held).argmin(1)])


def test_nnclr_is_its_formula():
    """-log softmax of NN(z_i)·p⁺ over the batch's p, and over its neighbours, for both views; no gradient to NN."""
    method = made(nnclr, queue=12, hidden=16, dim=4, predictor_hidden=8, temperature=0.3)
    method.queue.push(unit(torch.randn(12, 4)), torch.arange(12))
    (a, b), index = pictures(2)
    step = method([a, b], index, None, progress())
    z = method.project(method.encoder(torch.cat([a, b])))
    p, friends = unit(method.predictor(z)), method.nearest(unit(z))
    assert not friends.requires_grad
    s = [friends[:8] @ p[8:].T / 0.3, friends[8:] @ p[:8].T / 0.3]
    want = [F.cross_entropy(side, torch.arange(8)) for t in s for side in (t, t.T)]
    torch.testing.assert_close(step.loss, torch.stack(want).mean())


@pytest.mark.parametrize("grid", [1, 2, 3])
def test_patches_put_back_give_the_picture(grid):
    x = torch.rand(4, 3, 6 * grid, 12 * grid)
    draws = torch.rand(4, grid**2, 3)
    got = pirl.cut(x, grid, 1.0, draws).unflatten(0, (4, grid**2))  # (B, grid², C, 6, 12)
    back = torch.empty_like(got)
    for i, order in enumerate(draws[..., 0].argsort(1)):
        back[i, order] = got[i]
    rows = [torch.cat(list(back[:, r * grid : (r + 1) * grid].unbind(1)), -1) for r in range(grid)]
    assert torch.equal(torch.cat(rows, -2), x)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (28, 28), (8, 8), (3, 5), (2, 2), (17, 40)])
def test_each_patch_lies_in_a_cell_of_its_own(height, width):
    """Any size: unbroken blocks of pixels, one a cell, not always at the same place in it."""
    x = torch.arange(height * width).view(1, 1, height, width).expand(64, 1, -1, -1)
    got = pirl.cut(x, 3, 0.75, torch.rand(64, 9, 3)).unflatten(0, (64, 9))[:, :, 0]  # (64, 9, h, w)
    y, x_at = got[..., 0, 0] // width, got[..., 0, 0] % width  # (64, 9)
    rows, columns = torch.arange(got.shape[2]), torch.arange(got.shape[3])
    block = (y[..., None, None] + rows[:, None]) * width + x_at[..., None, None] + columns
    assert torch.equal(got, block)
    if min(height, width) >= 3:
        cells = [torch.searchsorted(torch.arange(3) * n // 3, at.contiguous(), right=True) - 1
                 for n, at in ((height, y), (width, x_at))]  # fmt: skip
        assert torch.equal((cells[0] * 3 + cells[1]).sort(1).values, torch.arange(9).expand(64, 9))
        ends = [torch.tensor([(i + 1) * n // 3 for i in range(3)]) for n in (height, width)]
        assert bool((y + len(rows) <= ends[0][cells[0]]).all() & (x_at + len(columns) <= ends[1][cells[1]]).all())
    if min(height, width) >= 17:
        assert len(y.unique()) > 3


def test_pirl_is_its_formula_and_its_pictures_alone_are_remembered():
    """λ · InfoNCE of the patches + (1 - λ) · InfoNCE of the picture, both against the bank."""
    method = made(pirl, weight=0.3, negatives=0, dim=4, temperature=0.2)
    (a, b), index = pictures(2, side=12)
    step = method([a, b], index, None, progress())
    mean = method.encoder.norm.running_mean.clone()
    torch.testing.assert_close(mean, 0.1 * a.mean((0, 2, 3)))  # the patches left no trace
    rows = method.memory.bank.rows.clone()
    f = method.project(method.encoder(a))
    parts = method.encoder(method.patches(b, progress().generator))
    g = method.together(method.patch_projector(parts).view(8, -1))
    of_patches, of_picture = (F.cross_entropy(unit(z) @ rows.T / 0.2, index) for z in (g, f))
    torch.testing.assert_close(step.loss, 0.3 * of_patches + 0.7 * of_picture)
    method.after_step(progress())
    torch.testing.assert_close(method.memory.bank.rows[index], unit(0.5 * rows[index] + 0.5 * unit(f)))
    others = torch.ones(IMAGES, dtype=torch.bool).index_fill(0, index, False)
    assert torch.equal(method.memory.bank.rows[others], rows[others])


def test_zoomed_patches_are_larger():
    method = made(pirl, dim=4, zoom=2.0)
    assert method.patches(torch.rand(2, 3, 24, 30), progress().generator).shape == (18, 3, 12, 16)


def test_inst_disc_is_a_softmax_over_all_pictures():
    method = made(inst_disc, nce=False, negatives=0, dim=4, temperature=0.2)
    (a,), index = pictures(1)
    step = method([a], index, None, progress())
    want = F.cross_entropy(unit(step.projections[:8]) @ method.memory.bank.rows.T / 0.2, index)
    torch.testing.assert_close(step.loss, want)
    assert step.stats["chance"] == pytest.approx(math.log(IMAGES))


def test_inst_discs_estimation_is_the_authors():
    """lib/NCECriterion.py: -log P/(P + m/n) - Σ log (m/n)/(P + m/n), with Z of the first batch ever after."""
    method = made(inst_disc, negatives=6, dim=4, temperature=0.2)
    partition = None
    for seed in range(3):
        (a,), index = pictures(1, seed=seed)
        z = unit(method.project(method.encoder(a)))
        keys, numbers = method.memory(z.detach(), index, progress(seed=seed).generator)
        s, mine = (z @ keys.T / 0.2).exp(), index[:, None] == numbers
        partition = IMAGES * s.mean() if partition is None else partition
        m, p = len(keys) - 1, s / partition
        noise = m / IMAGES
        want = -(torch.where(mine, p, noise) / (p + noise)).log().sum(1).mean()
        step = method([a], index, None, progress(seed=seed))
        torch.testing.assert_close(step.loss, want)
        method.after_step(progress())
        torch.testing.assert_close(method.log_partition, partition.detach().log())


def test_drawn_keys_hold_the_batch_and_nobody_twice():
    memory = inst_disc.Memory(IMAGES, 4, negatives=6, momentum=0.5, random_start=True)
    index = torch.tensor([3, 19, 0])
    keys, numbers = memory(torch.randn(3, 4), index, torch.Generator().manual_seed(0))
    assert set(index.tolist()) <= set(numbers.tolist())
    assert len(numbers.unique()) == len(numbers) <= 9
    assert torch.equal(keys, memory.bank.rows[numbers])


@pytest.mark.parametrize("negatives", [0, 6])
def test_without_a_random_start_the_first_row_is_the_first_embedding(negatives):
    memory = inst_disc.Memory(IMAGES, 4, negatives=negatives, momentum=0.5, random_start=False)
    first, again = torch.randn(3, 4), torch.randn(3, 4)
    index = torch.tensor([3, 19, 0])
    keys, numbers = memory(first, index, torch.Generator().manual_seed(0))
    assert numbers.tolist() == [0, 3, 19]  # nobody else has been seen
    torch.testing.assert_close(keys, unit(first)[[2, 0, 1]])
    assert not bool(memory.bank.seen.any())  # rows move after the step
    memory.write()
    torch.testing.assert_close(memory.bank.rows[index], unit(first))
    keys, numbers = memory(again, torch.tensor([3, 19, 7]), torch.Generator().manual_seed(0))
    assert numbers.tolist() == [*([0] if not negatives or 0 in numbers else []), 3, 7, 19]
    torch.testing.assert_close(keys[-2:], torch.stack([unit(again)[2], unit(first)[1]]))
    memory.write()
    moved = unit(0.5 * unit(first)[:2] + 0.5 * unit(again)[:2])
    torch.testing.assert_close(memory.bank.rows[[3, 19, 7]], torch.cat([moved, unit(again)[2:]]))


def test_a_bank_needs_to_know_how_many_pictures_there_are():
    for module in (inst_disc, pirl):
        with pytest.raises(ValueError, match="give Method the number of images"):
            module.Method(Flat(), module.Config())
