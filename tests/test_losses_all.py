"""What is true of every loss over groups: one table, a row a loss; and regressions that no loss's own file holds."""

import functools

import pytest
import torch
import torch.nn.functional as F
from processes import spawn

from nearfar import dist, losses
from nearfar.losses import panels, tiles

G = torch.tensor([0, 0, 1, 1, 2, 2, 0, 3, 3, 1])
N, D = len(G), 5
PROXIES = F.normalize(torch.randn(4, D, dtype=torch.float64, generator=torch.Generator().manual_seed(9)), dim=1)


def with_proxies(loss, z, groups, **settings):
    return loss(z, groups, PROXIES.to(z.dtype if z.is_floating_point() else torch.float32), **settings)


def drawn(z, groups, *keys, **settings):
    generator = torch.Generator().manual_seed(3)
    return losses.triplet(z, groups, *keys, mining="distance-weighted", generator=generator, **settings)


def towers(z, groups, *keys, **settings):
    return losses.clip(z, groups, *(keys or (z, groups)), **settings)


def excluding(z, groups, *keys, **settings):
    return losses.info_nce(z, groups, *keys, exclude_above=0.5, **settings)


KEYED = {  # z, groups and, where there are some, keys and key_groups
    **{name: getattr(losses, name) for name in (
        "info_nce", "nt_xent", "sup_con", "sigmoid", "n_pair", "vince", "dcl", "dclw", "debiased", "hard_negative",
        "margin_contrastive", "logistic", "spectral", "alignment", "uniformity", "alignment_uniformity",
        "multi_similarity", "circle", "soft_nearest_neighbour", "nca", "lifted_structure", "triplet")},
    "clip": towers, "sup_con in": functools.partial(losses.sup_con, kind="in"), "excluding": excluding,
    "info_nce dot": functools.partial(losses.info_nce, similarity="dot"),
    "info_nce smoothed": functools.partial(losses.info_nce, label_smoothing=0.1),
    "lifted_structure generalised": functools.partial(losses.lifted_structure, form="generalised"),
    "triplet all": functools.partial(losses.triplet, mining="all"),
    "triplet soft": functools.partial(losses.triplet, mining="all", margin=None),
    "triplet semi-hard": functools.partial(losses.triplet, mining="semi-hard"), "triplet drawn": drawn,
}  # fmt: skip
PROXIED = {name: functools.partial(with_proxies, getattr(losses, name)) for name in
           ("arcface", "cosface", "normalized_softmax", "proxy_anchor", "proxy_nca", "cross_entropy")}  # fmt: skip
EVERY = KEYED | PROXIED
OTHERS = {  # not of one matrix of embeddings and their groups
    "ArcFace", "CosFace", "CrossBatchMemory", "LearntTemperature", "NormalizedSoftmax", "ProxyAnchor", "ProxyNCA",
    "angle", "barlow_twins", "byol", "constant_temperature", "cosent", "cosine_temperature", "dino", "in_chunks",
    "linear_temperature", "matryoshka", "mmcr", "pair_logistic", "pair_margin", "pair_probability", "pair_regression",
    "prototype_cross_entropy", "sigreg", "simsiam", "sinkhorn", "spherical_kmeans", "swav",
    "update_centre", "vicreg", "w_mse",
}  # fmt: skip
every = pytest.mark.parametrize("name", EVERY)
keyed = pytest.mark.parametrize("name", KEYED)


def rows(n=N, dtype=torch.float32, seed=0):
    return torch.randn(n, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def run(name, z, groups=G, *keys):
    """The value, and the gradient of z."""
    z = z.detach().requires_grad_()  # the strides stay
    value = EVERY[name](z, groups, *keys)
    value.backward()
    return value.detach(), z.grad


def test_the_table_holds_every_loss():
    assert {name.split()[0] for name in EVERY} - {"excluding"} == set(losses.__all__) - OTHERS


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_any_float_is_taken_and_all_is_finite(name, dtype):
    value, grad = run(name, rows(dtype=dtype))
    assert value.shape == ()
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert bool(value.isfinite())
    assert grad.dtype == dtype
    assert bool(grad.isfinite().all())
    assert float(grad.abs().max()) > 0


@every
def test_a_second_call_gives_the_same_bits_and_nothing_else_is_touched(name):
    z, groups, state = rows(), G.clone(), torch.get_rng_state()
    before = z.clone()
    value, grad = run(name, z, groups)
    torch.manual_seed(1)  # another state of the global generator
    drawn_next = torch.get_rng_state()
    again = run(name, z, groups)
    assert torch.equal(value, again[0])
    assert torch.equal(grad, again[1])
    assert torch.equal(torch.get_rng_state(), drawn_next)
    assert torch.equal(z, before)
    assert torch.equal(groups, G)
    torch.set_rng_state(state)


@every
def test_strides_do_not_matter(name):
    z = rows()
    wide = torch.zeros(N, 2 * D)
    wide[:, ::2] = z
    value, grad = run(name, z)
    for strided in (z.T.contiguous().T, wide[:, ::2]):
        got = run(name, strided, torch.stack([G, G], 1)[:, 0])
        torch.testing.assert_close(got[0], value, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(got[1], grad, rtol=1e-4, atol=1e-5)
    one = z[:1].expand(N, D)
    assert float(EVERY[name](one, G)) == pytest.approx(float(EVERY[name](one.contiguous(), G)), abs=1e-5)


@pytest.mark.parametrize("name", [n for n in EVERY if n != "triplet drawn"])
def test_the_order_of_rows_does_not_matter(name):
    z, order = rows(dtype=torch.float64), torch.randperm(N, generator=torch.Generator().manual_seed(4))
    value, grad = run(name, z)
    got = run(name, z[order], G[order])
    torch.testing.assert_close(got[0], value, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(got[1], grad[order], rtol=1e-7, atol=1e-9)


@every
def test_ids_of_any_whole_kind(name):
    kinds = [torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.uint64]
    value, _ = run(name, rows())
    for kind in kinds if name in KEYED else [torch.int8, torch.int32]:
        assert torch.equal(run(name, rows(), G.to(kind))[0], value), kind
    if name in KEYED:
        far = torch.tensor([2**62, -(2**63), -1, 5])[G]
        torch.testing.assert_close(run(name, rows(), far)[0], value)
        keys = rows(seed=1), G.to(torch.int8)
        want = run(name, rows(), G + 256, keys[0], G)[0]
        assert torch.equal(run(name, rows(), G + 256, *keys)[0], want)  # 256 is not 0


@every
def test_no_gradient_and_autocast_change_nothing(name):
    z = rows()
    value, grad = run(name, z)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(EVERY[name](z, G), value)
    with torch.autocast("cpu", torch.bfloat16):
        got = run(name, z)  # the backward too
    assert torch.equal(got[0], value)
    assert torch.equal(got[1], grad)


@every
def test_backward_may_be_called_again(name, monkeypatch):
    for size in (2**21, 16):
        monkeypatch.setattr(panels, "VALUES", size)
        z = rows().requires_grad_()
        value = EVERY[name](z, G)
        value.backward(retain_graph=True)
        once = z.grad.clone()
        value.backward()
        assert torch.equal(z.grad, 2 * once)


@every
def test_bad_input_is_one_line(name):
    for z, groups, says in ((rows(), G[:3], r"groups is \(3,\)"), (rows(), G.double(), "groups must be"),
                            (rows().long(), G, "z must be a tensor of floats, got torch.int64"),
                            (rows() * torch.nan, G, "z holds NaN"), (rows()[0], G, r"\(5,\)")):  # fmt: skip
        with pytest.raises(ValueError, match=says) as error:
            EVERY[name](z, groups)
        assert "\n" not in str(error.value)


@keyed
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_keys_of_another_precision_and_of_which_either_wants_a_gradient(name, dtype):
    grads = []
    for both in (True, False):
        for z, keys in ((rows(), rows(seed=1, dtype=dtype)), (rows(dtype=dtype), rows(seed=1))):
            z, keys = z.requires_grad_(both), keys.requires_grad_()
            EVERY[name](z, G, keys, G).backward()
            assert keys.grad.dtype == keys.dtype
            assert z.grad is None or z.grad.dtype == z.dtype
            grads.append(keys.grad)
    assert torch.equal(grads[0], grads[2])
    assert torch.equal(grads[1], grads[3])


@keyed
def test_no_rows_no_keys_one_row_equal_rows(name):
    none, ids = rows(0), G[:0]
    for z, groups, *keys in ((none, ids), (none, ids, rows(), G), (none, ids, none, ids), (rows(), G, none, ids),
                             (rows(1), G[:1]), (rows(1).expand(N, D), G), (rows() * 0, G)):  # fmt: skip
        z = z.detach().clone().requires_grad_()
        keys = [keys[0].detach().clone().requires_grad_(), keys[1]] if keys else []
        value = EVERY[name](z, groups, *keys)
        value.backward()
        assert bool(value.isfinite())
        for x in (z, *keys[:1]):  # never None: DDP waits for the gradient of every weight
            assert bool(x.grad.isfinite().all())
        if not len(z):
            assert value.item() == 0


@pytest.mark.parametrize("name", ["info_nce", "sigmoid", "logistic", "clip", "dcl", "soft_nearest_neighbour", "n"])
def test_a_temperature_of_any_kind_and_shape_learns_alone(name, monkeypatch):
    loss = {**EVERY, "n": PROXIED["normalized_softmax"]}[name]
    slopes = []
    for size in (2**21, 16):
        monkeypatch.setattr(panels, "VALUES", size)
        for t in (torch.tensor(0.25), torch.tensor([0.25]), torch.tensor([[0.25]]).double(), torch.tensor(0.25).half()):
            t = t.requires_grad_()
            loss(rows(), G, temperature=t).backward()
            assert t.grad.shape == t.shape
            slopes.append(t.grad.item())
    assert slopes == pytest.approx(slopes[:1] * 8, rel=1e-3)
    assert slopes[0] != 0


def test_a_bias_of_any_shape_learns_alone():
    for loss in (losses.sigmoid, losses.logistic):
        slopes = []
        for b in (torch.tensor(-1.0), torch.tensor([-1.0]), torch.tensor([[-1.0]]).double()):
            b = b.requires_grad_()
            loss(rows(), G, bias=b).backward()
            assert b.grad.shape == b.shape
            slopes.append(b.grad.item())
        assert slopes == pytest.approx(slopes[:1] * 3)


@pytest.mark.parametrize(("loss", "setting"), [
    (losses.margin_contrastive, "margin"), (losses.alignment, "alpha"), (losses.uniformity, "t"),
    (losses.circle, "margin"), (losses.circle, "scale"), (losses.multi_similarity, "base"),
    (losses.logistic, "positive_weight"), (losses.lifted_structure, "margin"), (losses.dclw, "sigma"),
])  # fmt: skip
def test_settings_that_no_gradient_reaches_say_so(loss, setting):
    with pytest.raises(ValueError, match=f"{setting} is a setting and is not learnt"):
        loss(rows(), G, **{setting: torch.tensor(0.5, requires_grad=True)})


@pytest.mark.parametrize(("call", "says"), [
    (lambda z: losses.sigmoid(z, G, bias=float("nan")), "bias must be a finite number, got nan"),
    (lambda z: losses.sigmoid(z, G, bias=torch.zeros(2)), r"bias must be one number, got a tensor of \(2,\)"),
    (lambda z: losses.info_nce(z, G, z, G, key_exclude=G), "exclude needs key_exclude"),
    (lambda z: losses.info_nce(z, G, exclude_above=float("nan")), "exclude_above must be a similarity, got nan"),
    (lambda z: losses.clip(z, G, None, None), "give keys and key_groups"),
    (lambda z: losses.cross_entropy(z, G, [[1.0]]), "weight must be .* got list"),
    (lambda z: losses.cross_entropy(z, G, torch.eye(3)), r"weight must be .* \(10, 5\); got \(3, 3\)"),
])  # fmt: skip
def test_more_bad_input_is_named(call, says):
    with pytest.raises(ValueError, match=says):
        call(rows())


@pytest.mark.parametrize("scale", [1e3, 1e6, 1e9, 1e15])
@pytest.mark.parametrize("keys", [False, True])
def test_dot_products_of_any_size_have_finite_gradients(scale, keys):
    """Logits of 1e12 are rounded to 65,536 in float32: a probability may not come out as exp of that."""
    for seed in range(20):
        z = (rows(seed=seed) * scale).requires_grad_()
        other = (rows(seed=seed + 100) * scale, G) if keys else ()
        value = losses.info_nce(z, G, *other, similarity="dot")
        value.backward()
        assert bool(value.isfinite())
        assert float(z.grad.abs().max()) <= 100 * scale * D  # a mean of differences of keys over τ


def test_decoupled_weights_do_not_underflow():
    z, g = rows(dtype=torch.float64), G
    for sigma in (0.5, 0.01, 0.001):
        cos = F.normalize(z, dim=1) @ F.normalize(z, dim=1).T
        pos = (g[:, None] == g[None, :]) & ~torch.eye(N, dtype=torch.bool)
        logs = torch.where(pos, cos / sigma, -torch.inf)
        weight = 2 - (logs - logs.flatten().logsumexp(0) + pos.sum().log()).exp()
        far = torch.where(g[:, None] != g[None, :], cos / 0.1, -torch.inf).logsumexp(1)
        want = (far - (torch.where(pos, weight * cos / 0.1, 0).sum(1) / pos.sum(1))).mean()
        for dtype in (torch.float64, torch.float32):
            assert float(losses.dclw(z.to(dtype), g, sigma=sigma)) == pytest.approx(float(want), rel=1e-3)


@pytest.mark.filterwarnings("ignore")  # of the compiler, at itself
@pytest.mark.parametrize("name", ["nt_xent", "sigmoid", "clip", "dcl"])
def test_compiled_it_gives_the_same(name, monkeypatch):
    monkeypatch.setattr(tiles, "side", lambda device, longest: 4)
    z, t = rows(), torch.tensor(0.2, requires_grad=True)

    def fn(z, t):
        return EVERY[name](z * 2, G, temperature=t)

    want = torch.autograd.grad(fn(z.requires_grad_(), t), (z, t))
    got = torch.autograd.grad(torch.compile(fn, backend="aot_eager")(z, t), (z, t))
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("call", "passes"), [
    (lambda a, b, g: losses.nt_xent(a, g), 4),
    (lambda a, b, g: losses.info_nce(a, g, b, g), 8), (lambda a, b, g: losses.clip(a, g, b, g), 8),
    (lambda a, b, g: losses.sigmoid(a, g, b, g), 6), (lambda a, b, g: losses.sigmoid(a, g), 3),
])  # fmt: skip
def test_the_work_is_what_the_page_says(call, passes, monkeypatch):
    """Multiply-adds of the matrix products, times two, in units of N²·d; symmetric problems do half."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Products(TorchDispatchMode):
        made = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
                a, b = [x for x in args if isinstance(x, torch.Tensor)][-2:]
                self.made += 2 * a.shape[0] * a.shape[1] * b.shape[1]
            return func(*args, **(kwargs or {}))

    n, d, tiles_a_side = 256, 16, 16
    monkeypatch.setattr(tiles, "side", lambda device, longest: n // tiles_a_side)
    a, b = (torch.randn(n, d, generator=torch.Generator().manual_seed(s)).requires_grad_() for s in (1, 2))
    with Products() as seen:
        call(a, b, torch.arange(n) // 2).backward()
    assert passes <= seen.made / (n * n * d) <= passes * (1 + 1 / tiles_a_side)  # the diagonal's tiles are whole


# several processes
def _said(call):
    try:
        return float(call())
    except ValueError as error:
        return str(error)


def _odd_processes():
    from nearfar.losses import ring

    r = torch.distributed.get_rank()
    parts = [slice(0, 6), slice(6, 6), slice(6, N)]  # the second process has no rows
    z, g = rows()[parts[r]], G[parts[r]]
    out = {f"empty {name}": float(loss(z, g)) for name, loss in KEYED.items()}
    out |= {f"all empty {name}": float(loss(z[:0], g[:0])) for name, loss in KEYED.items()}
    kinds = [torch.int64, torch.int16, torch.int8]
    out["ids of several kinds"] = float(losses.nt_xent(z, g.to(kinds[r])))
    out["exclude of several kinds"] = float(losses.nt_xent(z, g, exclude=g.to(kinds[r])))
    shared = rows(seed=7), G
    out["clip sum"] = float(losses.clip(z, g, *shared, reduction="sum"))
    each = z.clone().requires_grad_()
    losses.nt_xent(each, g, reduction="none").sum().backward()  # each process's own loss
    out["none"] = each.grad
    ring.ABOVE = -1
    strided = z.T.contiguous().T.requires_grad_()  # what travels must be contiguous, forward and backward
    value = losses.info_nce(strided, g, similarity="dot")
    value.backward()
    out["ring"], out["ring gradient"] = value.item(), strided.grad
    out["width"] = _said(lambda: losses.nt_xent(torch.ones(2, 3 + r), G[:2]))
    out["kind"] = _said(lambda: losses.nt_xent(z.double() if r else z, g))
    out["keys"] = _said(lambda: losses.info_nce(z, g, *(shared if r else ())))
    columns = torch.eye(4)[:2] if r == 0 else torch.eye(4)[2:]  # rows of the same values, at other places
    alike = (torch.zeros(0), torch.zeros(0, 3), torch.zeros(3, 0), torch.tensor([True]), torch.ones(2, 2).half())
    out["same"] = [dist.same_everywhere(t) for t in (columns, *alike)]
    out["gathered"] = [tuple(dist.gather(torch.zeros(n, *s)).shape) for n, s in ((0, ()), (0, (3,)), (r, (3,)))]
    return out


def test_processes_without_rows_and_that_differ():
    got = spawn(3, _odd_processes)
    one = rows().requires_grad_()
    losses.nt_xent(one, G, reduction="sum").backward()
    dot = rows().requires_grad_()
    value = losses.info_nce(dot, G, similarity="dot")
    value.backward()
    for r, part in enumerate([slice(0, 6), slice(6, 6), slice(6, N)]):
        for name, loss in KEYED.items():
            assert got[r][f"empty {name}"] == pytest.approx(float(loss(rows(), G)), rel=1e-4, abs=1e-5), name
            assert got[r][f"all empty {name}"] == 0
        assert got[r]["ids of several kinds"] == pytest.approx(float(losses.nt_xent(rows(), G)), rel=1e-5)
        excluded = float(losses.nt_xent(rows(), G, exclude=G))
        assert got[r]["exclude of several kinds"] == pytest.approx(excluded, rel=1e-5)
        clip = float(losses.clip(rows(), G, rows(seed=7), G, reduction="sum"))
        assert got[r]["clip sum"] == pytest.approx(clip, rel=1e-5)
        # the gradient of all processes' losses together, of which DDP's mean is 1/P
        torch.testing.assert_close(got[r]["none"], one.grad[part], rtol=1e-4, atol=1e-5)
        assert got[r]["ring"] == pytest.approx(value.item(), rel=1e-5)
        torch.testing.assert_close(got[r]["ring gradient"] / 3, dot.grad[part], rtol=1e-4, atol=1e-4)
        assert "process 0 was given rows of 3 in float32 without keys and process 1 rows of 4" in got[r]["width"]
        assert "process 1 rows of 5 in float64" in got[r]["kind"]
        assert "process 1 rows of 5 in float32 with keys" in got[r]["keys"]
        assert got[r]["same"] == [False, True, True, True, True, True]
        assert got[r]["gathered"] == [(0,), (0, 3), (3, 3)]
