"""DeepCluster-v2, PCL, DenseCL and CPC: facts of clusters, places and patches."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from nearfar import methods
from nearfar.encoders import image_encoder
from nearfar.methods import cpc, densecl, pcl
from nearfar.methods.parts import Progress
from nearfar.views.draw import still
from nearfar.views.geometry import view_map
from nearfar.views.image import ImageViews, View
from nearfar.views.policy import ImagePolicy


def method(name: str, images: int = 64, side: int = 16, **settings):
    torch.manual_seed(0)
    encoder = image_encoder("cnn", (side, side, 3), torch.full((3,), 0.5), torch.full((3,), 0.3), width=4)
    module = methods.module(name)
    return module.Method(encoder, module.Config(dim=8, **{"hidden": 16} | settings), 0, images)


def progress(step: int = 0, epoch: float = 0.0) -> Progress:
    return Progress(step, 0.5, epoch, torch.Generator().manual_seed(step))


def blobs(n: int, k: int, width: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """n directions about k of them, and whose each is."""
    g = torch.Generator().manual_seed(0)
    y = torch.arange(n) % k
    return torch.eye(width)[y] + 0.1 * torch.randn(n, width, generator=g), y


def fill(banks, z: torch.Tensor, index: torch.Tensor) -> None:
    for bank in banks:
        bank.write(index, z)


# Clusters -----------------------------------------------------------------------------------------------------------


def test_deepcluster_finds_the_clusters_that_sklearn_finds():
    z, y = blobs(60, 5)
    m = method("deepcluster-v2", images=64, prototypes=5, heads=4)
    fill(m.banks, z, torch.arange(60))  # of 64 pictures
    m._cluster(torch.arange(60), progress())
    names = KMeans(5, n_init=10, random_state=0).fit_predict(torch.nn.functional.normalize(z).numpy())
    assert adjusted_rand_score(names, y) == 1
    agree = [adjusted_rand_score(names, row[:60]) for row in m.assignments]
    assert max(agree) == 1  # k-means of drawn starts: not each of them finds the best
    best = agree.index(1.0)
    torch.testing.assert_close(m.prototypes[best].norm(dim=1), torch.ones(5))
    means = torch.stack([m.banks[0].rows[:60][m.assignments[best, :60] == c].sum(0) for c in range(5)])
    torch.testing.assert_close(m.prototypes[best], torch.nn.functional.normalize(means))
    assert (m.assignments[:, 60:] == -1).all()  # never seen: in no cluster
    assert 0.9 < float(m.used) <= 1


def test_deepcluster_holds_its_prototypes_and_classes_still_between_clusterings():
    m = method("deepcluster-v2", images=64, prototypes=5)
    x = [torch.rand(16, 3, 16, 16), torch.rand(16, 3, 16, 16), torch.rand(16, 3, 8, 8)]
    held = []
    for step in range(10):  # 4 steps an epoch: pictures 0 to 15, 16 to 31 and so on
        out = m(x, torch.arange(16) + step % 4 * 16, None, progress(step, step / 4))
        assert out.loss.requires_grad
        m.after_step(progress(step, step / 4))
        held.append((int(m.clustered), m.prototypes.clone()))
    assert [n for n, _ in held] == [16, 32, 32, 64, 64, 64, 64, 64, 64, 64]  # as the pictures double, then by the epoch
    moved = [not torch.equal(a, b) for (_, a), (_, b) in itertools.pairwise(held)]
    assert moved == [True, False, True, True, False, False, False, True, False]
    assert not {n for n, _ in m.named_parameters() if "prototypes" in n}
    assert {"prototypes", "assignments", "clusters", "due", "banks.0.rows"} <= set(m.state_dict())


def test_deepcluster_counts_a_picture_without_a_cluster_only_in_the_first_epoch():
    m = method("deepcluster-v2", images=64, prototypes=5)
    z, _ = blobs(32, 5)
    fill(m.banks, z, torch.arange(32))
    m._cluster(torch.arange(32), progress())
    x = [torch.rand(16, 3, 16, 16)] * 2
    for index, epoch, counts in ((0, 1.5, True), (32, 0.5, True), (32, 1.5, False)):
        loss = m(x, torch.arange(16) + index, None, progress(1, epoch)).loss
        assert loss.requires_grad
        assert (float(loss.detach()) > 0) == counts


@pytest.mark.parametrize("name", ["deepcluster-v2", "pcl"])
def test_fewer_clusters_where_there_are_few_pictures(name):
    """The paper's thousands of prototypes on 8 pictures: two clusters, and losses that are numbers."""
    m = method(name, images=8, prototypes=3000)
    x = [torch.rand(8, 3, 16, 16), torch.rand(8, 3, 16, 16)]
    for step in range(3):
        out = m(x, torch.arange(8), None, progress(step, float(step)))
        out.loss.backward()
        assert math.isfinite(float(out.loss.detach()))
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in m.parameters() if p.requires_grad)
        m.after_step(progress(step, float(step)))
    assert int(m.clusters if name == "deepcluster-v2" else m.clusterings[2].count) == 2
    with pytest.raises(ValueError, match="give Method the number of images"):
        method(name, images=0)


def test_pcl_is_the_code_it_is_written_after():
    """φ and ProtoNCE in plain NumPy, as main_pcl.py has them, but for the negatives that it draws."""
    z, y = blobs(63, 3)
    z[-1] = -torch.eye(8)[7]  # a cluster of its own
    z = torch.nn.functional.normalize(z)
    m = method("pcl", images=63, prototypes=4, granularities=1, temperature=0.2)
    fill([m.bank], z, torch.arange(63))
    c = m.clusterings[0]
    for seed in range(99):  # until the single row is drawn as a start
        c.find(m.bank, 20, 0.2, torch.Generator().manual_seed(seed))
        sizes = np.bincount(c.assignments, minlength=4)
        if 1 in sizes:
            break
    assert 1 in sizes
    rows, got = z.double().numpy(), c.assignments.numpy()
    density = np.zeros(4)
    for k in range(4):
        d = np.linalg.norm(rows[got == k] - c.prototypes[k].double().numpy(), axis=1)
        density[k] = d.mean() / np.log(len(d) + 10) if len(d) > 1 else 0
    density[sizes <= 1] = density.max()
    density = density.clip(np.percentile(density, 10), np.percentile(density, 90))
    density = 0.2 * density / density.mean()
    np.testing.assert_allclose(c.phi.numpy(), density, rtol=1e-5)
    q = torch.nn.functional.normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(1)))
    index = torch.tensor([3, 0, 62, 17, 8])
    logits = q.double().numpy() @ c.prototypes.double().numpy().T / density
    want = -np.mean([row[got[i]] - np.log(np.exp(row).sum()) for row, i in zip(logits, index)])
    assert float(c.loss(q, index)) == pytest.approx(want, rel=1e-5)


def test_pcl_is_moco_until_its_clusters_are_found():
    m = method("pcl", prototypes=4, alone=0.5, queue=64)
    moco = method("moco", queue=64)
    moco.load_state_dict({k: v for k, v in m.state_dict().items() if not k.startswith(("bank", "clusterings", "due"))})
    x, index = [torch.rand(16, 3, 16, 16), torch.rand(16, 3, 16, 16)], torch.arange(16)
    losses = [[], []]
    for step in range(4):
        for held, one in zip(losses, (m, moco)):
            at = Progress(step, step / 4, 0.0, torch.Generator())
            held.append(float(one(x, index, None, at).loss.detach()))
            one.after_step(at)
    np.testing.assert_allclose(losses[0][:3], losses[1][:3], rtol=1e-6)
    assert losses[0][3] > losses[1][3] + 0.1  # ProtoNCE too: found after the step in which half is done


# Places -------------------------------------------------------------------------------------------------------------


def seen(policy: ImagePolicy, content: np.ndarray, seed: int = 0) -> list[View]:
    return ImageViews(policy, content.shape[1:3], 0, 255).seen(content, torch.Generator().manual_seed(seed))


def test_densecl_matches_cells_that_show_the_same_place():
    """Pictures whose red and green are where one is: what matched cells show is nearly the same place."""
    at = np.stack([*np.meshgrid(np.arange(64), np.arange(64))[::-1], np.zeros((64, 64))], 2) * 4  # y, x
    content = np.repeat(at[None].astype(np.uint8), 32, 0)
    policy = ImagePolicy(crop_min=0.2, colour=0.0, grey=0.0, rotate=20.0)
    a, b = seen(policy, content)
    which = densecl.same_place(a, b, (4, 4))
    show = [torch.nn.functional.adaptive_avg_pool2d(v.pixels, 4).flatten(2).mT[..., :2] * 64 for v in (a, b)]  # y, x
    picture, cell = (which >= 0).nonzero(as_tuple=True)
    off = (show[0][picture, cell] - show[1][picture, which[picture, cell]]).norm(dim=1)
    assert 0.3 < len(picture) / which.numel() < 1  # not all of a view is in the other
    assert float(off.max()) < 17  # a cell's side is at most 16 pixels of the picture's 64
    shuffled = (show[0][picture, cell] - show[1][picture, torch.randperm(len(cell)) % 16]).norm(dim=1)
    assert float(off.mean()) < float(shuffled.mean()) / 3


def test_densecl_matches_cells_through_a_flip_and_none_where_views_are_apart():
    x = torch.zeros(1, 3, 8, 8)

    def view(**drawn) -> View:
        table = still(1).changed(**drawn)
        return View(x, table, view_map(table, (8, 8), (8, 8)))

    whole = view()
    assert densecl.same_place(whole, whole, (2, 3)).tolist() == [[0, 1, 2, 3, 4, 5]]
    assert densecl.same_place(whole, view(flip_x=1), (2, 3)).tolist() == [[2, 1, 0, 5, 4, 3]]
    left, right = (view(width=0.25, height=0.25, centre_x=c, centre_y=0.25) for c in (0.125, 0.875))
    assert (densecl.same_place(left, right, (2, 2)) == -1).all()
    # a quarter of the picture at its corner lies in the whole's first cell, whose side is half the picture's
    quarter = view(width=0.5, height=0.5, centre_x=0.25, centre_y=0.25)
    assert densecl.same_place(quarter, whole, (2, 2)).tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("match", ["place", "features"])
def test_densecl_of_cells_is_the_plain_formula(match):
    m = method("densecl", match=match, dense=1.0, temperature=0.3, queue=8).double()
    content = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    views = [v.changed(pixels=v.pixels.double()) for v in seen(ImagePolicy(), content)]
    old = torch.nn.functional.normalize(torch.randn(4, 8, dtype=torch.float64), dim=1)
    m.dense_queue.push(old, torch.tensor([2, 20, 21, 22]))  # the first is of a picture of this batch
    m.queue.push(old, torch.tensor([2, 20, 21, 22]))
    index = torch.arange(6)
    out = m(views, index, None, progress())
    with torch.no_grad():
        _, _, q, maps = densecl.encoded([m.encoder, m.projector, m.dense], views[0].pixels)
        _, _, k, others = densecl.encoded(m.twin, views[1].pixels)
        unit = functools.partial(torch.nn.functional.normalize, dim=-1)
        which = densecl.same_place(*views, (4, 4)) if match == "place" else (
            unit(maps.flatten(2).mT) @ unit(others.flatten(2).mT).mT).argmax(2)  # fmt: skip
        pooled, terms = unit(k.mean(1)), []
        for i in range(6):
            held = zip((*range(6), 2, 20, 21, 22), (*pooled, *old))
            negatives = [row for j, row in held if j != i]
            for s in range(16):
                if which[i, s] < 0:
                    continue
                logits = torch.stack([unit(q[i, s]) @ key for key in (unit(k[i, which[i, s]]), *negatives)]) / 0.3
                terms.append(logits.logsumexp(0) - logits[0])
    assert float(out.loss.detach()) == pytest.approx(float(torch.stack(terms).mean()), rel=1e-6)  # the queue is float32
    assert float(out.stats["matched"]) == pytest.approx(len(terms) / 96)
    torch.testing.assert_close(out.features, m.encoder(views[0].pixels).to(out.features), rtol=1e-5, atol=1e-6)


def test_densecl_wants_an_encoder_with_maps():
    encoder = torch.nn.Module()
    encoder.features, encoder.backbone = 8, torch.nn.Identity()
    with pytest.raises(ValueError, match="densecl needs the encoder's feature maps"):
        densecl.Method(encoder, densecl.Config())
    with pytest.raises(ValueError, match="unknown match 'plase'; did you mean 'place'"):
        densecl.Config(match="plase")


# Patches ------------------------------------------------------------------------------------------------------------


def test_cpc_cuts_patches_that_overlap_by_half():
    x = torch.arange(2 * 34 * 34.0).view(2, 1, 34, 34)
    got = cpc.patches(x, 3).view(3, 3, 2, 1, 16, 16)
    for i in range(3):
        for j in range(3):
            assert torch.equal(got[i, j], x[:, :, 1 + 8 * i : 17 + 8 * i, 1 + 8 * j : 17 + 8 * j])
    assert cpc.patches(torch.rand(1, 3, 256, 256), 7).shape == (49, 3, 64, 64)  # the paper's
    assert cpc.patches(torch.rand(1, 3, 16, 32), 3).shape == (9, 3, 8, 16)


def test_cpc_sees_only_rows_above_what_it_foretells():
    torch.manual_seed(0)
    context, z = cpc.Context(4, 8, 3).double(), torch.randn(1, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    context(z)[0, :, 2, 1].sum().backward()
    reached = z.grad[0].abs().sum(0) > 0  # (y, x)
    assert reached[2, 1]
    assert reached[1, 1]
    assert not reached[3:].any()


def test_cpc_foretells_what_lies_further_on_in_each_direction():
    """With contexts and predictors that pass on a cell's own number, it meets the cell ``nearest`` rows on and more."""
    m = cpc.Method(image_encoder("cnn", (32, 32, 3), torch.zeros(3), torch.ones(3), width=4),
                   cpc.Config(grid=4, dim=1, directions=4, layers=1))  # fmt: skip
    for way in range(4):
        m.contexts[way], m.predictors[way] = torch.nn.Identity(), torch.nn.Linear(1, 2, bias=False)
        torch.nn.init.ones_(m.predictors[way].weight)
    ids = torch.arange(4 * 4 * 3).view(4, 4, 3)  # 3 pictures
    said, wanted = m._foretold(ids[..., None].float(), ids)
    from_, to = [], []
    for turned in (ids, ids.transpose(0, 1).flip(0), ids.flip(0, 1), ids.transpose(0, 1).flip(1)):
        from_ += [turned[:2].flatten(), turned[:1].flatten()]  # to rows 2 on, and 3 on
        to += [turned[2:].flatten(), turned[3:].flatten()]
    assert said[:, 0].long().tolist() == torch.cat(from_).tolist()
    assert wanted.tolist() == torch.cat(to).tolist()


def test_cpc_measures_batchnorm_on_whole_pictures():
    m = method("cpc", side=32, grid=5).train()
    x = torch.rand(8, 3, 32, 32)
    alone = method("cpc", side=32, grid=5).train()
    alone.encoder(x)
    m([x], torch.arange(8), None, progress())
    for (name, a), b in zip(m.encoder.named_buffers(), alone.encoder.buffers()):
        if "running" in name:
            torch.testing.assert_close(a, b, msg=name)
    assert all(b.momentum == 0.1 for b in m.modules() if isinstance(b, torch.nn.BatchNorm2d))


def test_cpc_says_where_pictures_are_too_small():
    m = method("cpc", side=8)
    assert m([torch.rand(4, 3, 8, 8)], torch.arange(4), None, progress()).loss.isfinite()  # a grid of 3
    with pytest.raises(ValueError, match="cpc needs a grid of at least 3 patches of 4 pixels: images of 6×6 have 2"):
        m([torch.rand(4, 3, 6, 6)], torch.arange(4), None, progress())


def test_settings_are_checked():
    for make, said in (
        (lambda: cpc.Config(grid=2), "grid 2 above nearest 2"),
        (lambda: cpc.Config(directions=5), "directions 5 must be 1 to 4"),
        (lambda: cpc.Config(similarity="cosin"), "give 'dot' or 'cosine'"),
        (lambda: pcl.Config(alone=1.5), "alone 1.5 must lie between 0 and 1"),
        (lambda: methods.module("deepcluster-v2").Config(every=0.0), "every 0.0 must be above 0"),
    ):
        with pytest.raises(ValueError, match=said):
            make()
