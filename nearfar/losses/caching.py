"""Gradient caching: the exact gradient of a whole batch in the memory of one chunk of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.module import register_module_forward_pre_hook

from nearfar.errors import UserError

Batch = Tensor | Sequence[Tensor] | Mapping[str, Tensor]


def in_chunks(
    encoder: Callable[..., Tensor], batch: Batch | Callable[[slice], Batch], chunk: int, *, rows: int | None = None,
    generator: torch.Generator | Sequence[torch.Generator] = (),
) -> Tensor:  # fmt: skip
    """``encoder(batch)``, a chunk at a time: activations are forgotten, and computed again backward.

    Gradient caching (GradCache: Gao et al. 2021, arXiv:2101.06983): a contrastive loss needs all embeddings at once,
    but not all activations. The embeddings are computed chunk by chunk without a graph, any loss is taken on them,
    and its backward runs each chunk's forward a second time and that chunk's backward at once. The gradient is the
    whole batch's, for any encoder and any loss, for one extra forward in time; memory is one chunk's activations and
    O(N·d). To autograd it is one function of all the encoder's parameters (and of a batch that wants a gradient), so
    learnt temperatures, several towers, several calls, hooks and
    :class:`~torch.nn.parallel.DistributedDataParallel`, inside whose forward it is to be called, need nothing more.
    It cannot be differentiated twice.

    The second pass repeats the first. *Dropout* draws the same numbers: PyTorch's generators (CPU and CUDA, and those
    in ``generator``) are set back for it, and stand afterwards where one forward would have left them. *Autocast* is
    what it was. *Buffers* that the forward writes to (running statistics, spectral norm's vectors) are moved once a
    chunk, and the second pass sees them as they were in the first. *Batch normalisation* in training normalises each
    chunk by its own statistics (ghost batch normalisation: Hoffer et al. 2017, arXiv:1705.08741): the gradient is the
    exact one of that function, which is not that of the whole batch in one piece; use a norm over features where
    that matters. Other state, such as Python attributes, NumPy's generator or ``eval`` called between forward and
    backward, is not set back.

    Args:
        encoder: gives (n, …) for n rows; called with the tensor, with a sequence's tensors, or with a mapping's by
            keyword. A function, a method or a module.
        batch: (N, …); a sequence or mapping of tensors with one first dimension N; or a callable that takes a slice
            of range(N) and gives these rows, so that the whole input need not be in memory. The callable is asked
            twice for each, and may draw from PyTorch's generators (augmentation), not from others.
        chunk: rows at a time; the last chunk may be smaller.
        rows: N, where ``batch`` is a callable.
        generator: the encoder's own generators, if it draws from any.

    Returns (N, …) the embeddings, in the batch's order.

    Raises ``UserError``: a chunk under 1, an empty batch, first dimensions that differ, an encoder that does not give
    one row a row. Backward raises ``RuntimeError`` where a weight was changed in place since.

    >>> encoder = torch.nn.Linear(3, 2)
    >>> x = torch.randn(10, 3)
    >>> z = in_chunks(encoder, x, 4)
    >>> z.square().sum().backward()
    >>> whole, = torch.autograd.grad(encoder(x).square().sum(), encoder.weight)
    >>> z.shape, torch.allclose(encoder.weight.grad, whole)
    (torch.Size([10, 2]), True)
    """
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise UserError(f"chunk must be a whole number of rows above 0, got {chunk!r}")
    load, n, wanted = _source(batch, rows)
    own = (generator,) if isinstance(generator, torch.Generator) else tuple(generator)
    passes = _Passes(encoder, load, [slice(at, min(at + chunk, n)) for at in range(0, n, chunk)], own)
    z = passes.first()  # (N, …)
    inputs = [*wanted, *passes.leaves]
    return _Again.apply(passes, z, len(wanted), *inputs) if inputs and torch.is_grad_enabled() else z


class _Again(torch.autograd.Function):
    """Embeddings as computed, with a backward that computes them again, one chunk after the other."""

    @staticmethod
    def forward(ctx, passes: _Passes, z: Tensor, wanted: int, *inputs: Tensor) -> Tensor:
        ctx.passes, ctx.wanted, ctx.inputs = passes, wanted, inputs
        ctx.versions = [t._version for t in inputs]
        return z.view_as(z)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        if [t._version for t in ctx.inputs] != ctx.versions:
            raise RuntimeError("in_chunks: a weight was changed in place between forward and backward")
        batch, leaves = ctx.inputs[: ctx.wanted], ctx.inputs[ctx.wanted :]
        sums: list[Tensor | None] = [torch.zeros_like(t) for t in batch] + [None] * len(leaves)
        with _quiet(leaves):
            for i, part in enumerate(ctx.passes.parts):
                out, pieces = ctx.passes.again(i)
                if not out.requires_grad:
                    continue
                # the graph dies with out; what of it was computed outside the encoder must outlive this chunk
                got = torch.autograd.grad(out, [*pieces, *leaves], grad[part], allow_unused=True, retain_graph=True)
                for j, g in enumerate(got):
                    if g is None:
                        continue
                    if j < len(batch):
                        sums[j][part] = g
                    else:
                        sums[j] = g.clone() if sums[j] is None else sums[j].add_(g)
                del out, pieces, got
        return None, None, None, *sums


class _Passes:
    """The chunks' first pass, and the second that repeats it."""

    def __init__(self, encoder: Callable, load: Callable, parts: list[slice], own: tuple[torch.Generator, ...]):
        self.encoder, self.load, self.parts = encoder, load, parts
        self.moving, self.random, self.autocast = _Buffers(), _Random(own), _autocast()
        self.leaves: list[Tensor] = []  # what wants a gradient: parameters, wherever the encoder has them from
        self.before: list[tuple] = []  # a chunk's generators, and the buffers it wrote to, as they were

    def first(self) -> Tensor:
        """Every chunk's rows, without a graph but for the first chunk's, which shows the leaves."""
        record, leaves, z = torch.is_grad_enabled(), {}, None
        for i, part in enumerate(self.parts):
            states = self.random.states()
            with torch.set_grad_enabled(record and i == 0), self.moving.watched() as found:
                out, pieces = self._forward(part)
            if i == 0:
                leaves = {id(t): t for t in _leaves(out)}
                z = out.new_empty(self.parts[-1].stop, *out.shape[1:])  # (N, …)
            if out.shape[1:] != z.shape[1:]:
                raise UserError(f"encoder gave {tuple(out.shape)} after {tuple(z.shape)}: give rows of one shape")
            z[part] = out.detach()
            for piece in pieces:
                leaves.pop(id(piece), None)
            del out, pieces
            self.before.append((states, self.moving.written(found)))
        parameters = (p for m in self.moving.modules for p in m.parameters(recurse=False) if p.requires_grad)
        self.leaves = list((leaves | {id(p): p for p in parameters}).values()) if record else []
        self.known = {id(t) for t in self.leaves}
        return z

    @torch.enable_grad()
    def again(self, i: int) -> tuple[Tensor, list[Tensor]]:
        """A chunk's rows once more, with a graph; and its pieces of the batch that want a gradient."""
        states, written = self.before[i]
        with self.random.again(states), _put(written):
            out, pieces = self._forward(self.parts[i])
        new = {id(t): t for t in _leaves(out)}.keys() - self.known - {id(t) for t in pieces}
        if new:
            raise RuntimeError("in_chunks: a later chunk uses a tensor with gradient that the first did not: "
                               "use it in all chunks, or make it a module's parameter")  # fmt: skip
        return out, pieces

    def _forward(self, part: slice) -> tuple[Tensor, list[Tensor]]:
        n = part.stop - part.start
        with ExitStack() as held:
            for device, dtype, enabled in self.autocast:  # without its cache, which outlives a pass
                held.enter_context(torch.autocast(device, dtype, enabled, cache_enabled=False))
            given, pieces = self.load(part)
            if _rows_of(given) != n:
                raise UserError(f"batch gave {_rows_of(given)} rows for {part}: give {n}")
            if isinstance(given, Tensor):
                out = self.encoder(given)
            else:
                out = self.encoder(**given) if isinstance(given, Mapping) else self.encoder(*given)
        if not isinstance(out, Tensor) or out.ndim == 0 or len(out) != n:
            what = f"a tensor {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
            raise UserError(f"encoder gave {what} for {n} rows: give a tensor with one row for each")
        return out, pieces


def _leaves(out: Tensor) -> Iterator[Tensor]:
    """The tensors in which the graph of ``out`` ends."""
    todo, seen = [out.grad_fn], set()
    if out.requires_grad and out.grad_fn is None:
        yield out
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):  # AccumulateGrad
            yield node.variable
        todo += [following for following, _ in node.next_functions]


@contextmanager
def _quiet(leaves: Sequence[Tensor]) -> Iterator[None]:
    """Hooks on the leaves wait for the sum: they would run once a chunk, and again for all."""
    held = [(t._backward_hooks, dict(t._backward_hooks)) for t in leaves if t._backward_hooks]
    for hooks, _ in held:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, kept in held:
            hooks.update(kept)


def _autocast() -> list[tuple[str, torch.dtype, bool]]:
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    return [(d, torch.get_autocast_dtype(d), torch.is_autocast_enabled(d)) for d in devices]


class _Random:
    """PyTorch's generators, and the encoder's own."""

    def __init__(self, own: tuple[torch.Generator, ...]):
        self.own, self.last = own, []

    def all(self) -> list[torch.Generator]:
        on_gpu = torch.cuda.default_generators if torch.cuda.is_initialized() else ()
        return [torch.default_generator, *on_gpu, *self.own]

    def states(self) -> list[tuple[torch.Generator, Tensor]]:
        """Where they stand; a state that has not changed since the last chunk is held once."""
        now = [(g, g.get_state()) for g in self.all()]
        if len(now) == len(self.last):
            now = [(g, old if torch.equal(old, new) else new) for (g, new), (_, old) in zip(now, self.last)]
        self.last = now
        return now

    @contextmanager
    def again(self, before: list[tuple[torch.Generator, Tensor]]) -> Iterator[None]:
        after = [(g, g.get_state()) for g in self.all()]
        for g, state in before:
            g.set_state(state)
        try:
            yield
        finally:
            for g, state in after:
                g.set_state(state)


class _Buffers:
    """Which buffers of the modules that are called get written to, found by comparing them."""

    def __init__(self):
        self.still: set[tuple[nn.Module, str]] = set()  # seen before and not written to
        self.modules: dict[nn.Module, None] = {}  # all that were called, and theirs

    @contextmanager
    def watched(self) -> Iterator[dict[tuple[nn.Module, str], Tensor]]:
        """Copies of the buffers of every module that is called in the meantime, as they are just before."""
        found: dict[tuple[nn.Module, str], Tensor] = {}
        seen: set[nn.Module] = set()
        here = threading.get_ident()

        def look(module: nn.Module, args: Any) -> None:
            if module in seen or threading.get_ident() != here:
                return
            for m in module.modules():
                if m in seen:
                    continue
                seen.add(m)
                self.modules[m] = None
                for name, t in m.named_buffers(recurse=False):
                    if (m, name) not in self.still:
                        found[m, name] = t.detach().clone()

        hook = register_module_forward_pre_hook(look)
        try:
            yield found
        finally:
            hook.remove()

    def written(self, found: dict[tuple[nn.Module, str], Tensor]) -> list[tuple[nn.Module, str, Tensor]]:
        moved = []
        for (module, name), before in found.items():
            now = getattr(module, name)
            if now.shape == before.shape and now.dtype == before.dtype and torch.equal(now, before):
                self.still.add((module, name))
            else:
                moved.append((module, name, before))
        return moved


@contextmanager
def _put(buffers: list[tuple[nn.Module, str, Tensor]]) -> Iterator[None]:
    """Other tensors in the buffers' place for a while; the buffers themselves are not touched."""
    held = [(module, name, getattr(module, name)) for module, name, _ in buffers]
    for module, name, before in buffers:
        setattr(module, name, before.clone())
    try:
        yield
    finally:
        for module, name, now in held:
            setattr(module, name, now)


def _source(batch: Batch | Callable, rows: int | None) -> tuple[Callable[[slice], tuple[Batch, list]], int, list]:
    """What gives a slice's rows and those of their tensors that want a gradient; N; the whole ones that do."""
    if callable(batch) and not isinstance(batch, Tensor | Mapping | Sequence):
        if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
            raise UserError(f"rows must say how many rows a callable batch has, above 0, got {rows!r}")
        return lambda part: (batch(part), []), rows, []
    n = _rows_of(batch)
    if n == 0:
        raise UserError("batch has no rows: give at least one")
    if rows is not None and rows != n:
        raise UserError(f"rows is {rows} and batch has {n}: leave rows out, it is for a callable batch")

    def load(part: slice) -> tuple[Batch, list[Tensor]]:
        pieces = {name: t[part].detach().requires_grad_(t.requires_grad) for name, t in _tensors(batch).items()}
        wanted = [t for t in pieces.values() if t.requires_grad]
        if isinstance(batch, Tensor):
            return pieces[""], wanted
        return pieces if isinstance(batch, Mapping) else tuple(pieces.values()), wanted

    return load, n, [t for t in _tensors(batch).values() if t.requires_grad]


def _tensors(batch: Batch) -> dict[Any, Tensor]:
    if isinstance(batch, Tensor):
        return {"": batch}
    if isinstance(batch, Mapping):
        return dict(batch)
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        return dict(enumerate(batch))
    kind = type(batch).__name__
    raise UserError(f"batch must be a tensor, a sequence or mapping of tensors, or a callable, got {kind}")


def _rows_of(batch: Batch) -> int:
    """The one first dimension of a batch's tensors."""
    tensors = _tensors(batch)
    for name, t in tensors.items():
        if not isinstance(t, Tensor) or t.ndim == 0:
            what = "a number" if isinstance(t, Tensor) else type(t).__name__
            raise UserError(f"batch{[name] if name != '' else ''} must be a tensor with rows, got {what}")
    counts = [len(t) for t in tensors.values()]
    if len(set(counts)) > 1:
        said = ", ".join(f"{name}: {n}" for name, n in zip(tensors, counts))
        raise UserError(f"batch's tensors differ in their first dimension ({said}): give all the same rows")
    return counts[0] if counts else 0
