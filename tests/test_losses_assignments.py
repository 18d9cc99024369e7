from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import assert_processes_equal_one, split
from torch.autograd import gradcheck

from nearfar import dist
from nearfar.losses import panels
from nearfar.losses.assignments import (
    dino,
    prototype_cross_entropy,
    sinkhorn,
    spherical_kmeans,
    swav,
    update_centre,
)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def same(loss, naive, views):
    """Value, and gradient by autograd of the naive form."""
    ours, theirs = [[v.clone().requires_grad_() for v in views] for _ in range(2)]
    got, want = loss(ours), naive(theirs)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    naives = torch.autograd.grad(want, theirs, allow_unused=True)  # None for a view that predicts nothing
    for a, b in zip(torch.autograd.grad(got, ours), naives):
        torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b, rtol=1e-8, atol=1e-11)


# --- the papers' formulas, in loops ------------------------------------------------------------------------------


def naive_sinkhorn(scores, epsilon, iterations):
    """The appendix's algorithm: Q is (K, B), scaled in place of logarithms."""
    q = torch.exp(scores / epsilon).T
    q = q / q.sum()
    k, b = q.shape
    for _ in range(iterations):
        q = torch.stack([row / row.sum() / k for row in q])
        q = torch.stack([column / column.sum() / b for column in q.T]).T
    return (q * b).T


def naive_pairs(targets, scores, t):
    terms = []
    for i, q in enumerate(targets):
        for v, s in enumerate(scores):
            if v != i:
                p = torch.exp(s / t) / torch.exp(s / t).sum(1, keepdim=True)
                terms.append(sum(-(q[b] * torch.log(p[b])).sum() for b in range(len(s))) / len(s))
    return sum(terms) / len(terms)


def naive_swav(scores, assign, t, epsilon, iterations, queues=None):
    with torch.no_grad():
        targets = [
            naive_sinkhorn(torch.cat([s, queues[i]]) if queues else s, epsilon, iterations)[: len(s)]
            for i, s in enumerate(scores[:assign])
        ]
    return naive_pairs(targets, scores, t)


def naive_dino(student, teacher, centre, ts, tt):
    with torch.no_grad():
        up = [torch.exp((t - centre) / tt) for t in teacher]
        targets = [e / e.sum(1, keepdim=True) for e in up]
    return naive_pairs(targets, student, ts)


# --- Sinkhorn ----------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 7), st.sampled_from([0.05, 0.5, 10.0]),
       st.integers(1, 5))  # fmt: skip
def test_sinkhorn_is_the_papers(seed, b, k, epsilon, iterations):
    s = draw(seed, b, k).clamp(-1, 1)
    want = naive_sinkhorn(s, epsilon, iterations)
    got = sinkhorn(s, epsilon=epsilon, iterations=iterations)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(got.sum(1), torch.ones(b).double())  # rows hold exactly, after any iteration


def test_sinkhorn_ends_doubly_stochastic():
    s = draw(0, 30, 6).clamp(-1, 1)
    q = sinkhorn(s, epsilon=0.3, iterations=500)
    torch.testing.assert_close(q.sum(1), torch.ones(30).double(), rtol=1e-12, atol=0)
    torch.testing.assert_close(q.sum(0), torch.full((6,), 5.0).double(), rtol=1e-10, atol=0)
    # of the form diag(u) exp(S/ε) diag(v): what is left of S has rank one
    left = q.log() - s / 0.3
    torch.testing.assert_close(left - left[:1], (left - left[:1])[:, :1].expand(30, 6), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("epsilon", [0.001, 0.01, 0.05, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sinkhorn_overflows_nowhere(epsilon, dtype):
    s = (draw(1, 16, 5) * 40).clamp(-100, 100).to(dtype)
    s[0], s[1], s[2, 0], s[3, 0] = 100, -100, 100, -100
    q = sinkhorn(s, epsilon=epsilon, iterations=5)
    assert q.dtype == torch.float32
    assert bool(q.isfinite().all())
    torch.testing.assert_close(q.sum(1), torch.ones(16), rtol=1e-5, atol=0)
    want = sinkhorn(s.double(), epsilon=epsilon, iterations=5)
    # s/ε is rounded to float32 at up to 10⁵: 2⁻⁸ of it
    torch.testing.assert_close(q.double(), want, rtol=0, atol=0.03 if epsilon < 0.01 else 2e-3)


def test_sinkhorn_has_no_gradient_and_takes_a_queue():
    s, queue = draw(2, 5, 4), draw(3, 9, 4)
    assert not sinkhorn(s.clone().requires_grad_()).requires_grad
    want = naive_sinkhorn(torch.cat([s, queue]), 0.5, 3)[:5]
    torch.testing.assert_close(sinkhorn(s, epsilon=0.5, queue_scores=queue), want)
    torch.testing.assert_close(sinkhorn(s, epsilon=0.5, queue_scores=queue[:0]), naive_sinkhorn(s, 0.5, 3))
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(sinkhorn(s[order]), sinkhorn(s)[order])
    assert sinkhorn(s[:0]).shape == (0, 4)


# --- SwAV, DINO --------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 7), st.integers(1, 6), st.integers(2, 5), st.integers(1, 2),
       st.sampled_from([0.01, 0.1, 1.0, 10.0]), st.booleans())  # fmt: skip
def test_swav_is_the_papers(seed, b, k, views, assign, t, queued):
    scores = draw(seed, views, b, k).clamp(-1, 1)
    queues = list(draw(seed + 1, assign, 4, k).clamp(-1, 1)) if queued else None
    same(lambda s: swav(s, assign_views=assign, temperature=t, epsilon=0.2, iterations=2, queue_scores=queues),
         lambda s: naive_swav(s, assign, t, 0.2, 2, queues), scores)  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 7), st.integers(1, 6), st.integers(2, 5), st.integers(1, 2),
       st.sampled_from([0.01, 0.1, 1.0, 10.0]))  # fmt: skip
def test_dino_is_the_papers(seed, b, k, views, teachers, t):
    student = draw(seed, views, b, k).clamp(-1, 1)  # the naive exponentials reach no further
    teacher, centre = draw(seed + 1, teachers, b, k), draw(seed + 2, k)
    same(lambda s: dino(s, teacher, centre, student_temperature=t, teacher_temperature=0.3),
         lambda s: naive_dino(s, teacher, centre, t, 0.3), student)  # fmt: skip


def test_dino_with_sinkhorn_in_the_centres_stead():
    student, teacher = list(draw(4, 3, 5, 4)), list(draw(5, 2, 5, 4))
    targets = naive_sinkhorn(torch.cat(teacher), 0.5, 4).chunk(2)  # both views together
    got = dino(student, teacher, None, student_temperature=0.2, teacher_temperature=0.5, iterations=4)
    torch.testing.assert_close(got, naive_pairs(targets, student, 0.2))


def test_dino_stops_at_the_teacher():
    student, teacher = draw(6, 2, 3, 4).requires_grad_(), draw(7, 2, 3, 4).requires_grad_()
    dino(list(student), list(teacher), draw(8, 4)).backward()
    assert teacher.grad is None
    assert float(student.grad.abs().max()) > 0


def test_centre_moves_and_is_not_written_to():
    c, teacher = draw(9, 4), list(draw(10, 2, 3, 4))
    before = c.clone()
    got = update_centre(c, teacher, momentum=0.7)
    torch.testing.assert_close(got, 0.7 * c + 0.3 * torch.cat(teacher).mean(0))
    assert bool((c == before).all())
    torch.testing.assert_close(update_centre(c, [t[:0] for t in teacher]), c)
    assert update_centre(c.float(), teacher).dtype == torch.float32


def test_gradcheck():
    s = draw(11, 3, 4, 5).requires_grad_()
    q, teacher, c, y = draw(12, 2, 3, 5), draw(13, 2, 4, 5), draw(14, 5), torch.tensor([0, 4, -1, 2])
    fixed = s.detach()
    # the assignments are constants to the gradient and not to a difference: only the small crop may be moved
    assert gradcheck(lambda x: swav([*fixed[:2], x], queue_scores=list(q)), fixed[2].clone().requires_grad_())
    assert gradcheck(lambda x: dino(list(x), list(teacher), c), s)
    assert gradcheck(lambda x: prototype_cross_entropy(x, y), fixed[0].clone().requires_grad_())
    t = torch.tensor(0.3).double().requires_grad_()  # a learnt temperature
    assert gradcheck(lambda t: swav(list(fixed), temperature=t), t)
    assert gradcheck(lambda t: prototype_cross_entropy(fixed[0], y, temperature=t), t)


def test_row_order_is_nothing_and_reductions_agree():
    s, teacher, c = draw(15, 3, 7, 5), draw(16, 2, 7, 5), draw(17, 5)
    order = torch.tensor([5, 2, 0, 6, 1, 4, 3])
    for loss in (lambda s, t, **k: swav(list(s), **k), lambda s, t, **k: dino(list(s), list(t), c, **k)):
        torch.testing.assert_close(loss(s[:, order], teacher[:, order]), loss(s, teacher))
        each = loss(s, teacher, reduction="none")
        assert each.shape == (7,)
        torch.testing.assert_close(each.mean(), loss(s, teacher))
        torch.testing.assert_close(each.sum(), loss(s, teacher, reduction="sum"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_huge_scores(dtype):
    for scale in (1, 100):
        s, teacher = (draw(18, 3, 6, 5) * scale).to(dtype), (draw(19, 2, 6, 5) * scale).to(dtype)
        y = torch.tensor([0, 1, 2, 3, 4, -1])
        for loss in (
            partial(swav, temperature=0.01, epsilon=0.001 * scale),
            lambda s: dino(s, list(teacher.to(s[0].dtype)), torch.zeros(5), student_temperature=0.01),  # noqa: B023
            lambda s: dino(s, list(teacher.to(s[0].dtype)), None),  # noqa: B023
            lambda s: prototype_cross_entropy(s[0], y, temperature=0.01),  # noqa: B023
        ):
            x = s.clone().requires_grad_()
            with torch.autocast("cpu", torch.bfloat16):
                got = loss(list(x))
            got.backward()
            assert got.dtype == torch.float32
            assert bool(x.grad.isfinite().all())
            torch.testing.assert_close(got.detach().double(), loss(list(s.double())), rtol=1e-3, atol=1e-4)


# --- DeepCluster-v2 ----------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 6), st.sampled_from([0.01, 0.1, 10.0]))
def test_prototype_cross_entropy_is_the_papers(seed, b, k, t):
    s = draw(seed, b, k).clamp(-1, 1)
    y = torch.randint(-1, k, (b,), generator=torch.Generator().manual_seed(seed))

    def naive(views):
        terms = [-torch.log(torch.exp(views[0][i, y[i]] / t) / torch.exp(views[0][i] / t).sum())
                 for i in range(b) if y[i] >= 0]  # fmt: skip
        return sum(terms) / len(terms) if terms else (views[0] * 0).sum()

    same(lambda v: prototype_cross_entropy(v[0], y, temperature=t), naive, [s])


def test_no_assignment_costs_nothing():
    s = draw(20, 4, 3).requires_grad_()
    got = prototype_cross_entropy(s, torch.full((4,), -7), ignore=-7)
    got.backward()
    assert float(got.detach()) == 0
    assert float(s.grad.abs().max()) == 0


def naive_kmeans(z, centroids, iterations):
    z = [x / x.norm() for x in z]
    centroids = [c / c.norm() for c in centroids]
    nearest = lambda: [max(range(len(centroids)), key=lambda k: float(x @ centroids[k])) for x in z]  # noqa: E731
    for _ in range(iterations):
        y = nearest()
        for k in range(len(centroids)):
            mine = [x for x, i in zip(z, y) if i == k]
            if mine:  # else it keeps its centroid
                centroids[k] = sum(mine) / sum(mine).norm()
    return torch.stack(centroids), torch.tensor(nearest())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(2, 4), st.integers(1, 5), st.integers(0, 4))
def test_spherical_kmeans_is_the_naive_one(seed, n, d, k, iterations):
    z, start = draw(seed, n, d), draw(seed + 1, k, d)
    centroids, y = spherical_kmeans(z, k, iterations=iterations, start=start)
    want, want_y = naive_kmeans(z, start, iterations)
    torch.testing.assert_close(centroids, want)
    assert y.tolist() == want_y.tolist()


def test_spherical_kmeans_finds_clusters_and_keeps_empty_ones(monkeypatch):
    centres = torch.eye(4)[:3]
    z = (centres.repeat(50, 1) + 0.1 * draw(21, 150, 4).float()) * torch.linspace(0.1, 9, 150)[:, None]
    centroids, y = spherical_kmeans(z, 3, start=z[:3])
    assert bool((y == torch.arange(3).repeat(50)).all())
    torch.testing.assert_close(centroids, centres, rtol=0, atol=0.05)
    monkeypatch.setattr(panels, "VALUES", 20)  # panels of 6 rows
    again, y_again = spherical_kmeans(z, 3, start=z[:3])
    assert bool((again == centroids).all())
    assert bool((y_again == y).all())
    with torch.autocast("cpu", torch.bfloat16):
        assert bool((spherical_kmeans(z, 3, start=z[:3])[0] == again).all())
    nobodys = torch.tensor([[0.0, 0.0, 0.0, -2.0]])
    centroids, y = spherical_kmeans(z, 4, start=torch.cat([z[:3], nobodys]))
    torch.testing.assert_close(centroids[3], nobodys[0] / 2)
    assert 3 not in y
    # rows that cancel leave a centroid where it was, and not at 0
    centroids, _ = spherical_kmeans(torch.tensor([[1.0, 0], [-1.0, 0]]), 1, start=torch.tensor([[0.0, 1.0]]))
    assert centroids.tolist() == [[0, 1]]


def test_spherical_kmeans_draws_its_start_from_the_rows():
    z = draw(22, 9, 3)
    unit = z / z.norm(dim=1, keepdim=True)
    starts = set()
    for seed in range(5):
        first, _ = spherical_kmeans(z, 4, iterations=0, generator=torch.Generator().manual_seed(seed))
        which = [int((unit - c).abs().sum(1).argmin()) for c in first]
        torch.testing.assert_close(first, unit[which])
        assert len(set(which)) == 4
        starts.add(tuple(which))
    assert len(starts) > 1
    g = torch.Generator().manual_seed(0)
    assert spherical_kmeans(z.bfloat16(), 9, generator=g)[0].dtype == torch.float32


# --- bad input ---------------------------------------------------------------------------------------------------


def test_bad_input_is_named():
    s, g, c = torch.randn(6, 4), torch.Generator(), torch.zeros(4)
    nan = s.clone()
    nan[2, 0] = float("inf")
    y = torch.zeros(6, dtype=torch.int64)
    for say, call in {
        r"scores must be \(N, d\), got \(4,\)": lambda: sinkhorn(s[0]),
        "epsilon must be a number above 0, got 0": lambda: sinkhorn(s, epsilon=0),
        "iterations must be a whole number above 0, got 0": lambda: sinkhorn(s, iterations=0),
        r"queue_scores is \(6, 3\) and scores \(6, 4\)": lambda: sinkhorn(s, queue_scores=s[:, :3]),
        "queue_scores must be a tensor of floats": lambda: sinkhorn(s, queue_scores=y),
        r"scores\[1\] holds NaN or infinite values in 1 of 6 rows, the first row 2": lambda: swav([s, nan]),
        r"scores\[1\] is \(5, 4\)": lambda: swav([s, s[:5]]),
        "got 1 views: give at least 2": lambda: swav([s]),
        "assign_views must be from 1 to the 2 views, got 3": lambda: swav([s, s], assign_views=3),
        "queue_scores has 1 tensors": lambda: swav([s, s], queue_scores=[s]),
        "temperature must be a number above 0, got -1": lambda: swav([s, s], temperature=-1),
        "1 views of the teacher and 1 of the student": lambda: dino([s], [s], c),
        "3 views of the teacher and 2 of the student": lambda: dino([s, s], [s, s, s], c),
        r"teacher\[0\] is \(6, 3\)": lambda: dino([s, s], [s[:, :3]], c),
        r"centre must be \(4,\) beside a teacher of \(6, 4\), got \(1, 4\)": lambda: dino([s, s], [s], c[None]),
        "teacher_temperature must be a number above 0": lambda: dino([s, s], [s], c, teacher_temperature=0),
        "student_temperature must be a number above 0": lambda: dino([s, s], [s], c, student_temperature=0.0),
        "momentum must be from 0 to 1, got 1.5": lambda: update_centre(c, [s], 1.5),
        "got 0 views: give at least 1": lambda: update_centre(c, []),
        r"assignments are \(5,\) on cpu and scores \(6, 4\)": lambda: prototype_cross_entropy(s, y[:5]),
        "assignments must be a tensor of whole numbers, got torch.float": lambda: prototype_cross_entropy(s, y * 1.0),
        "assignments hold 4: give 0 to 3 for 4 prototypes, or -1": lambda: prototype_cross_entropy(s, y + 4),
        "reduction 'men'": lambda: prototype_cross_entropy(s, y, reduction="men"),
        "k=7 clusters of 6 rows over all processes": lambda: spherical_kmeans(s, 7, generator=g),
        "k must be a whole number of at least 1, got 0": lambda: spherical_kmeans(s, 0, generator=g),
        "give a generator, or start": lambda: spherical_kmeans(s, 2),
        r"start must be \(3, 4\), got \(2, 4\)": lambda: spherical_kmeans(s, 3, start=s[:2]),
    }.items():
        with pytest.raises(ValueError, match=say) as raised:
            call()
        assert "\n" not in str(raised.value)


# --- peers -------------------------------------------------------------------------------------------------------


def test_lightlys_swav():
    peer = pytest.importorskip("lightly.loss.swav_loss")
    s, queues = draw(23, 4, 8, 5).clamp(-1, 1), list(draw(24, 2, 6, 5).clamp(-1, 1))
    torch.testing.assert_close(sinkhorn(s[0]), peer.sinkhorn(s[0]))
    # lightly adds the same sums up in a tensor of one value
    want = peer.SwaVLoss()([*s[:2]], [*s[2:]])
    torch.testing.assert_close(swav(list(s)), want[0])
    torch.testing.assert_close(swav(list(s), queue_scores=queues), peer.SwaVLoss()([*s[:2]], [*s[2:]], queues)[0])


def test_lightlys_dino():
    loss = pytest.importorskip("lightly.loss")
    student, teacher = list(draw(25, 4, 6, 5)), list(draw(26, 2, 6, 5))
    peer = loss.DINOLoss(output_dim=5, center_momentum=0.8).double()
    c = torch.zeros(5).double()
    for _ in range(3):  # lightly moves its centre inside the loss, after it
        want = peer(teacher, student, teacher_temp=0.04)
        torch.testing.assert_close(dino(student, teacher, c), want, rtol=1e-6, atol=0)
        c = update_centre(c, teacher, momentum=0.8)
        torch.testing.assert_close(c, peer.center[0, 0], rtol=1e-6, atol=1e-9)


# --- processes ---------------------------------------------------------------------------------------------------


def three(z: torch.Tensor, turn: torch.Tensor) -> list[torch.Tensor]:
    """Views' scores from one matrix."""
    return [z, z @ turn, z @ turn @ turn]


def of_sinkhorn(z, epsilon, iterations):
    """Linear in the assignments, so that each row's weigh in the gradient."""
    return dist.total((sinkhorn(z, epsilon=epsilon, iterations=iterations) * z).sum())


def of_swav(z, turn, queue=None):
    queues = None if queue is None else [queue, queue + 1]
    return swav(three(z, turn), temperature=0.3, epsilon=0.5, queue_scores=queues)


def of_swav_own_queue(z, old, turn):
    """A queue that is each process's own part of a whole."""
    return swav(three(z, turn), temperature=0.3, epsilon=0.5, queue_scores=[old, -old])


def of_dino(z, turn, centre):
    views = three(z, turn)
    with torch.no_grad():
        moved = update_centre(centre, views[:2])
    return dino(views, views[:2], moved, teacher_temperature=0.5)


def of_dino_sinkhorn(z, turn):
    views = three(z, turn)
    return dino(views, views[:2], None, teacher_temperature=0.5)


def of_prototypes(z, y, rows, k):
    """The loss against centroids that were found on the way, started at random."""
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    generator = torch.Generator().manual_seed(rank)  # the first one's decides
    centroids, found = spherical_kmeans(rows, k, iterations=4, generator=generator)
    return prototype_cross_entropy(z @ centroids.T, torch.where(y < 0, -1, found), temperature=0.5)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_equal_one(world):
    n = 13
    x, w, turn = draw(27, n, 6), draw(28, 6, 4), draw(29, 4, 4)
    y = torch.arange(n) % 4 - 1  # a quarter without
    assert len({s.stop - s.start for s in split(n, world)}) > 1  # unequal parts
    cases = {
        "swav": (of_swav, x, (), (w, turn)),
        "swav queue": (partial(of_swav, queue=draw(30, 9, 4)), x, (), (w, turn)),
        "swav own queue": (of_swav_own_queue, x, (draw(31, n, 4),), (w, turn)),
        "dino": (partial(of_dino, centre=draw(32, 4)), x, (), (w, turn)),
        "dino sinkhorn": (of_dino_sinkhorn, x, (), (w, turn)),
        "prototypes": (partial(of_prototypes, k=3), x, (y, draw(33, n, 4)), (w,)),
        "sinkhorn": (partial(of_sinkhorn, epsilon=0.05, iterations=3), x, (), (w,)),
        "sinkhorn hard": (partial(of_sinkhorn, epsilon=0.001, iterations=3), x, (), (w,)),
        "sinkhorn long": (partial(of_sinkhorn, epsilon=0.5, iterations=100), x, (), (w,)),
        # a process without a row (3 processes, 4 rows)
        "swav of 4": (partial(of_swav, queue=draw(30, 9, 4)), x[:4], (), (w, turn)),
        "swav empty queue of 4": (partial(of_swav, queue=draw(30, 0, 4)), x[:4], (), (w, turn)),
        "dino of 4": (of_dino_sinkhorn, x[:4], (), (w, turn)),
        "prototypes of 4": (partial(of_prototypes, k=3), x[:4], (y[:4], draw(33, 4, 4)), (w,)),
    }
    assert_processes_equal_one(cases, world, tolerance=1e-9)
