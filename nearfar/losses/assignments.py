"""Losses on assignments: scores of embeddings against K prototypes, and who should be assigned to which.

Scores are (B, K), row i of each view being one sample: cosine similarities to the prototypes, or a head's logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nearfar import dist
from nearfar.errors import UserError
from nearfar.losses import panels
from nearfar.losses.features import checked_views, shared_seed
from nearfar.losses.rows import agree, check_temperature, reduced, widened, wrong_embeddings


@torch.no_grad()
def sinkhorn(
    scores: Tensor, *, epsilon: float = 0.05, iterations: int = 3, queue_scores: Tensor | None = None
) -> Tensor:  # fmt: skip
    r"""Soft assignments of my rows that use all prototypes alike over the whole batch; no gradient.

    .. math:: Q^* = \mathrm{diag}(u)\,\exp(S/\varepsilon)\,\mathrm{diag}(v),\qquad
              \sum_k Q_{bk} = 1,\quad \sum_b Q_{bk} \to B/K

    Caron et al. 2020 (arXiv:2006.09882), equations 3-5 and the algorithm of appendix A.1: each iteration scales the
    prototypes' sums, then the rows', which therefore hold exactly. In logarithms, so that no ε overflows. Prototypes'
    sums are over the rows of all processes.

    Args:
        scores: (B, K) of my rows; bfloat16 and float16 are taken to float32.
        epsilon: ε > 0; the smaller, the harder the assignment.
        iterations: at least 1.
        queue_scores: (Q, K) rows that take part and are not returned. Bit for bit the same on all processes they
            count once; else each process's are its own.

    Returns (B, K). Raises ``UserError`` for bad input.

    >>> scores = torch.tensor([[0.9, 0.1], [0.8, 0.1]])  # both like the first prototype best: one must yield
    >>> sinkhorn(scores, epsilon=0.02, iterations=20).round(decimals=2)
    tensor([[0.9200, 0.0800],
            [0.0800, 0.9200]])
    """
    (scores,) = checked_views(("scores",), (scores,))
    _check_sinkhorn(epsilon, iterations)
    logits, once = scores / epsilon, None  # (B, K)
    if queue_scores is not None:
        queue = _queue("queue_scores", queue_scores, scores) / epsilon  # (Q, K)
        if dist.same_everywhere(queue):
            once = queue
        else:
            logits = torch.cat([logits, queue])  # (B + Q, K)
    if sum(n for (n,) in dist.exchange([len(logits)], logits.device)) == 0:
        return scores
    for _ in range(iterations):
        used = dist.gather(logits.logsumexp(0, keepdim=True)).logsumexp(0)  # (K,) each prototype's share, log
        if once is not None:
            used = torch.logaddexp(used, once.logsumexp(0))
            once = (once - used).log_softmax(1)  # (Q, K)
        logits = (logits - used).log_softmax(1)  # (B, K)
    return logits[: len(scores)].exp()


def swav(
    scores: Sequence[Tensor], *, assign_views: int = 2, temperature: float | Tensor = 0.1, epsilon: float = 0.05,
    iterations: int = 3, queue_scores: Sequence[Tensor] | None = None, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""SwAV's swapped prediction: from each view, the assignment of the others.

    .. math:: \ell_b = \frac1{A(V-1)}\sum_{i=1}^{A}\sum_{v\ne i}
              -\sum_k Q^{(i)}_{bk}\log\mathrm{softmax}(S^{(v)}_b/\tau)_k,\qquad Q^{(i)}=\mathrm{sinkhorn}(S^{(i)})

    Caron et al. 2020 (arXiv:2006.09882), equations 1, 2 and 6, averaged over the pairs of views as in the authors'
    code.

    Args:
        scores: V views' (B, K) cosine similarities to the prototypes, the large crops first.
        assign_views: A, how many of them (the large crops) are assigned; all others only predict.
        temperature: τ > 0. epsilon, iterations: of :func:`sinkhorn`.
        queue_scores: A tensors (Q, K), rows that take part in the assignment of the large crops.
        reduction: ``"mean"`` over the rows of all processes (0 where there are none), ``"sum"`` or ``"none"`` (B,).

    Raises ``UserError`` for bad input.

    >>> s = torch.tensor([[0.9, -0.9], [-0.9, 0.9]])
    >>> float(swav([s, s])) < 1e-6 < float(swav([s, s.flip(0)]))
    True
    """
    scores = list(scores)
    scores = checked_views([f"scores[{i}]" for i in range(len(scores))], scores, least=2)
    check_temperature(temperature)
    if isinstance(assign_views, bool) or not isinstance(assign_views, int) or not 1 <= assign_views <= len(scores):
        raise UserError(f"assign_views must be from 1 to the {len(scores)} views, got {assign_views!r}")
    queues = [None] * assign_views if queue_scores is None else list(queue_scores)
    if len(queues) != assign_views:
        raise UserError(f"queue_scores has {len(queues)} tensors: give one for each of the {assign_views} assign_views")
    targets = [
        sinkhorn(s, epsilon=epsilon, iterations=iterations, queue_scores=q) for s, q in zip(scores, queues)
    ]  # A of (B, K)
    return _cross_views(targets, scores, temperature, reduction)


def dino(
    student: Sequence[Tensor], teacher: Sequence[Tensor], centre: Tensor | None, *,
    student_temperature: float | Tensor = 0.1, teacher_temperature: float = 0.04, iterations: int = 3,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""DINO: the student's view is taught the teacher's sharpened, centred assignment of another view.

    .. math:: \ell_b = \frac1{|\{i\ne v\}|}\sum_{i=1}^{T}\sum_{v\ne i}
              -\sum_k P^{(i)}_{bk}\log\mathrm{softmax}(s^{(v)}_b/\tau_s)_k,\quad
              P^{(i)}=\mathrm{softmax}((t^{(i)}-c)/\tau_t)

    Caron et al. 2021 (arXiv:2104.14294), equations 1-3, averaged over the pairs of views as in the authors' code.
    Move the centre with :func:`update_centre`. No gradient goes to the teacher.

    Args:
        student: V views' (B, K) logits, the large crops first, in the teacher's order.
        teacher: T ≤ V views' (B, K) logits; the student's view with the same number is skipped.
        centre: (K,), or None for the assignment of :func:`sinkhorn` with ε = τ_t over all the teacher's views
            together in the centre's stead (DINOv2, Oquab et al. 2023, arXiv:2304.07193).
        student_temperature, teacher_temperature: τ_s, τ_t > 0.
        iterations: of :func:`sinkhorn`.
        reduction: ``"mean"`` over the rows of all processes (0 where there are none), ``"sum"`` or ``"none"`` (B,).

    Raises ``UserError`` for bad input, or where no two different views are left.

    >>> t = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    >>> float(dino([t, t], [t, t], torch.zeros(2))) < 1e-6
    True
    """
    student, teacher = list(student), list(teacher)
    names = [f"{name}[{i}]" for name, views in (("student", student), ("teacher", teacher)) for i in range(len(views))]
    v, held = len(student), checked_views(names, student + teacher)
    student, teacher = held[:v], [t.detach() for t in held[v:]]
    if not teacher or len(teacher) > v or v < 2:
        raise UserError(f"{len(teacher)} views of the teacher and {v} of the student leave no pair of different ones: "
                        "give at least 2 of the student, and from 1 to as many of the teacher")  # fmt: skip
    check_temperature(student_temperature, "student_temperature")
    check_temperature(teacher_temperature, "teacher_temperature")
    if centre is None:
        together = sinkhorn(torch.cat(teacher), epsilon=float(teacher_temperature), iterations=iterations)  # (T·B, K)
        targets = list(together.chunk(len(teacher)))
    else:
        c = _centre(centre, teacher[0])
        targets = [((t - c) / teacher_temperature).softmax(1).detach() for t in teacher]  # T of (B, K)
    return _cross_views(targets, student, student_temperature, reduction)


@torch.no_grad()
def update_centre(centre: Tensor, teacher: Sequence[Tensor], momentum: float = 0.9) -> Tensor:
    r"""DINO's next centre, a moving mean of the teacher's logits.

    .. math:: c \leftarrow m\,c + (1-m)\,\frac1{TB}\sum_{i,b} t^{(i)}_b

    Caron et al. 2021 (arXiv:2104.14294), equation 4; the mean is over the rows of all processes, so the centre is
    the same on each. Where there are none the centre stays.

    Args:
        centre: (K,). It is not written to.
        teacher: T views' (B, K) logits.
        momentum: m from 0 to 1.

    Returns a new (K,). Raises ``UserError`` for bad input.

    >>> update_centre(torch.zeros(2), [torch.tensor([[1.0, 3.0]])], momentum=0.5)
    tensor([0.5000, 1.5000])
    """
    teacher = list(teacher)
    teacher = checked_views([f"teacher[{i}]" for i in range(len(teacher))], teacher)
    if isinstance(momentum, bool) or not isinstance(momentum, int | float) or not 0 <= momentum <= 1:
        raise UserError(f"momentum must be from 0 to 1, got {momentum!r}")
    c, rows = _centre(centre, teacher[0]), torch.cat(teacher)  # (K,), (T·B, K)
    count = sum(n for (n,) in dist.exchange([len(rows)], rows.device))
    if count == 0:
        return centre.clone()
    return (momentum * c + (1 - momentum) * dist.total(rows.sum(0)) / count).to(centre.dtype)


def prototype_cross_entropy(
    scores: Tensor, assignments: Tensor, *, temperature: float | Tensor = 0.1, ignore: int = -1,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    r"""DeepCluster-v2: which prototype a sample was assigned to, as a class.

    .. math:: \ell_b = -\log\mathrm{softmax}(S_b/\tau)_{y_b}

    Caron et al. 2020 (arXiv:2006.09882), section 5.1; the prototypes are
    :func:`spherical_kmeans`' centroids. Cross-entropy is InfoNCE with the prototypes as keys.

    Args:
        scores: (B, K) cosine similarities to the prototypes.
        assignments: (B,) whole numbers from 0 to K - 1; ``ignore`` for a row that has none, which is left out.
        temperature: τ > 0.
        reduction: ``"mean"`` over the assigned rows of all processes (0 with a zero gradient where there are none),
            ``"sum"`` or ``"none"`` (B,).

    Raises ``UserError`` for bad input.

    >>> scores = torch.tensor([[1.0, -1.0], [0.0, 0.0]])
    >>> round(float(prototype_cross_entropy(scores, torch.tensor([0, 1]), temperature=1.0)), 4)
    0.41
    """
    error = wrong_embeddings("scores", scores) or _wrong_assignments(assignments, scores, ignore)
    agree(error, scores)
    check_temperature(temperature)
    scores, counted = widened(scores, unit=False), assignments != ignore  # (B, K), (B,)
    with torch.autocast(scores.device.type, enabled=False):
        log_p = (scores / temperature).log_softmax(1)  # (B, K)
        picked = log_p.gather(1, torch.where(counted, assignments, 0).long()[:, None])[:, 0]  # (B,)
        return reduced(-picked, counted, reduction)


@torch.no_grad()
def spherical_kmeans(
    z: Tensor, k: int, *, iterations: int = 10, generator: torch.Generator | None = None,
    start: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    r"""K-means by the cosine, over the rows of all processes: DeepCluster-v2's prototypes.

    .. math:: y_n = \arg\max_k\cos(z_n,c_k),\qquad c_k \leftarrow \frac{\sum_{y_n=k}z_n}{\lVert\sum_{y_n=k}z_n\rVert}

    Caron et al. 2020 (arXiv:2006.09882), the authors' DeepCluster-v2 code. It starts from k rows drawn from those of
    all processes; a cluster that no row is nearest to keeps its centroid, as there. Sums are in float64, and rows
    are taken a panel at a time, so no (N, k) matrix is held.

    Args:
        z: (N, d) my rows; normalised here.
        k: how many clusters.
        iterations: rounds; 0 only assigns.
        generator: draws the start; the first process's decides.
        start: (k, d) centroids to start from in its stead, the same on all processes.

    Returns centroids (k, d) of length one, the same on all processes, and my rows' assignments (N,) to them.
    Raises ``UserError`` for fewer rows than clusters (without ``start``), or bad input.

    >>> z = torch.tensor([[1.0, 0.1], [1.0, -0.1], [-0.1, 1.0], [0.1, 1.0]])
    >>> centroids, y = spherical_kmeans(z, 2, start=z[1:3])
    >>> y.tolist(), [[round(v, 4) for v in row] for row in centroids.tolist()]
    ([0, 0, 1, 1], [[1.0, 0.0], [0.0, 1.0]])
    """
    (z,) = checked_views(("z",), (z,))
    for name, value, least in (("k", k, 1), ("iterations", iterations, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UserError(f"{name} must be a whole number of at least {least}, got {value!r}")
    with torch.autocast(z.device.type, enabled=False):
        z = F.normalize(z, dim=1)  # (N, d)
        centroids = _drawn(z, k, generator) if start is None else _given(start, z, k)  # (k, d)
        for _ in range(iterations):
            nearest = _nearest(z, centroids)  # (N,)
            sums = torch.zeros(k, z.shape[1], dtype=torch.float64, device=z.device)
            sums = dist.total(sums.index_add_(0, nearest, z.double()))  # (k, d)
            some = sums.norm(dim=1, keepdim=True) > 1e-12
            centroids = torch.where(some, F.normalize(sums, dim=1).to(z.dtype), centroids)
        return centroids, _nearest(z, centroids)


def _cross_views(targets: list[Tensor], scores: list[Tensor], temperature: float | Tensor, reduction: str) -> Tensor:
    """Cross-entropy of every target i with every other view v ≠ i, averaged over the pairs. (B, K) each"""
    with torch.autocast(scores[0].device.type, enabled=False):
        values = 0
        for v, s in enumerate(scores):
            wanted = sum(t for i, t in enumerate(targets) if i != v)  # (B, K), or 0
            values = values - (wanted * (s / temperature).log_softmax(1)).sum(1)  # (B,)
        values = values / (len(targets) * (len(scores) - 1))
        return reduced(values, torch.ones_like(values), reduction)


def _check_sinkhorn(epsilon: float, iterations: int) -> None:
    check_temperature(epsilon, "epsilon")
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        raise UserError(f"iterations must be a whole number above 0, got {iterations!r}")


def _queue(name: str, queue: Tensor, scores: Tensor) -> Tensor:
    error = wrong_embeddings(name, queue)
    if error is None and queue.shape[1] != scores.shape[1]:
        error = f"{name} is {tuple(queue.shape)} and scores {tuple(scores.shape)}: give both the same K"
    agree(error, scores)
    return queue.to(scores)


def _centre(centre: Tensor, teacher: Tensor) -> Tensor:
    """(K,) checked, in the wider of its type and the teacher's."""
    if not isinstance(centre, Tensor) or centre.shape != teacher.shape[1:]:
        told = tuple(centre.shape) if isinstance(centre, Tensor) else type(centre).__name__
        raise UserError(f"centre must be ({teacher.shape[1]},) beside a teacher of {tuple(teacher.shape)}, got {told}")
    return centre.detach().to(torch.promote_types(centre.dtype, teacher.dtype))


def _wrong_assignments(y: Tensor, scores: Tensor, ignore: int) -> str | None:
    if not isinstance(y, Tensor) or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        kind = y.dtype if isinstance(y, Tensor) else type(y).__name__
        return f"assignments must be a tensor of whole numbers, got {kind}"
    if y.shape != scores.shape[:1] or y.device != scores.device:
        return (f"assignments are {tuple(y.shape)} on {y.device} and scores {tuple(scores.shape)} on {scores.device}: "
                "give one a row")  # fmt: skip
    if torch.compiler.is_compiling():
        return None
    outside = ((y < 0) | (y >= scores.shape[1])) & (y != ignore)
    if bool(outside.any()):
        return (f"assignments hold {int(y[outside][0])}: give 0 to {scores.shape[1] - 1} for {scores.shape[1]} "
                f"prototypes, or {ignore} for a row without")  # fmt: skip
    return None


def _nearest(z: Tensor, centroids: Tensor) -> Tensor:
    """The centroid of the largest dot product, a panel of rows at a time. (N, d), (k, d) -> (N,)"""
    height = max(1, panels.VALUES // len(centroids))
    return torch.cat([(part @ centroids.T).argmax(1) for part in z.split(height)])


def _drawn(z: Tensor, k: int, generator: torch.Generator | None) -> Tensor:
    """k different rows of all processes. (N, d) -> (k, d)"""
    counts = [n for (n,) in dist.exchange([len(z)], z.device)]
    if sum(counts) < k:
        raise UserError(f"k={k} clusters of {sum(counts)} rows over all processes: give fewer clusters or more rows")
    if generator is None:
        raise UserError("the first centroids are drawn at random: give a generator, or start")
    seeded = torch.Generator().manual_seed(shared_seed(generator, z.device))
    mine = torch.randperm(sum(counts), generator=seeded)[:k] - sum(counts[: dist.rank()])  # (k,)
    here = (mine >= 0) & (mine < len(z))
    held = z.new_zeros(k, z.shape[1])
    held[here.to(z.device)] = z[mine[here].to(z.device)]
    return dist.total(held)


def _given(start: Tensor, z: Tensor, k: int) -> Tensor:
    error = wrong_embeddings("start", start)
    if error is None and start.shape != (k, z.shape[1]):
        error = f"start must be ({k}, {z.shape[1]}), got {tuple(start.shape)}"
    agree(error, z)
    if not dist.same_everywhere(start):
        raise UserError("start differs between processes: give all of them the same centroids")
    return F.normalize(start.to(z), dim=1)
