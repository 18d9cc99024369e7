import copy
import functools
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import spawn, split
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nearfar.losses import info_nce, nt_xent
from nearfar.losses.caching import in_chunks
from nearfar.losses.temperature import LearntTemperature


def net(*between: nn.Module, kind: torch.dtype = torch.float64, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), *between, nn.Tanh(), nn.Linear(8, 3)).to(kind)


def data(n: int, kind: torch.dtype = torch.float64, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 5, generator=g, dtype=torch.float64)
    return x.to(kind), torch.randint(0, max(2, n // 3), (n,), generator=g)


def looped(encoder, x: torch.Tensor, chunk: int) -> torch.Tensor:
    """What in_chunks is to equal: the same chunks, all activations kept."""
    return torch.cat([encoder(part) for part in x.split(chunk)])


def gradients(*modules: nn.Module) -> list[torch.Tensor | None]:
    got = [p.grad for m in modules for p in m.parameters()]
    for m in modules:
        m.zero_grad()
    return got


def close(a: list, b: list, tolerance: float = 1e-12) -> None:
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 50), st.sampled_from([0.01, 0.1, 1.0, 10.0]), st.integers(0, 10**6))
def test_loss_and_every_gradient_are_the_whole_batchs(n, chunk, t, seed):
    """With a learnt temperature, and a batch that wants a gradient itself."""
    encoder, (x, groups) = net(nn.LayerNorm(8), seed=seed), data(n, seed=seed)
    got = []
    for embed in (functools.partial(in_chunks, encoder, chunk=chunk), encoder):
        learnt, given = LearntTemperature(t).double(), x.clone().requires_grad_()
        loss = nt_xent(embed(given), groups, temperature=learnt())
        loss.backward()
        got.append([loss, given.grad, *gradients(encoder, learnt)])
    close(*got, tolerance=1e-9)


def test_no_chunk_is_lost_and_neither_is_the_temperature():
    """Peers have kept the last chunk's gradient alone, or none for the loss's own parameter."""
    encoder, (x, groups) = net(), data(12)
    learnt = LearntTemperature().double()
    z = encoder(x)
    upstream = torch.autograd.grad(nt_xent(z, groups, temperature=learnt()), z)[0]
    each = []
    for part in (slice(0, 4), slice(4, 8), slice(8, 12)):
        (encoder(x[part]) * upstream[part]).sum().backward()
        each.append(torch.cat([g.flatten() for g in gradients(encoder)]))
    assert min(float(e.abs().max()) for e in each) > 1e-3  # every chunk matters
    nt_xent(in_chunks(encoder, x, 4), groups, temperature=learnt()).backward()
    assert learnt.log_scale.grad.abs() > 1e-3
    close([torch.cat([g.flatten() for g in gradients(encoder)])], [sum(each)])


def test_two_towers_several_calls_and_gradients_that_add_up():
    a, b = net(), net(seed=1)
    (x, _), (y, _) = data(10), data(10, seed=1)
    ids, got = torch.arange(10), []
    for embed in (in_chunks, lambda encoder, batch, chunk: encoder(batch)):
        for _ in range(2):  # .grad adds up over two backwards
            u, v, w = embed(a, x, 4), embed(b, y, 3), embed(a, y, 6)  # the tower a twice
            (info_nce(u, ids, v, ids) + info_nce(v, ids, u, ids) + nt_xent(torch.cat([u, w]), ids.repeat(2))).backward()
        got.append(gradients(a, b))
    close(*got)


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = net(), net(seed=1)

    def forward(self, left, right):
        return self.left(left) - self.right(right)


class Mapping(dict):
    """As transformers' encodings are: not a dict of Python's alone."""


@pytest.mark.parametrize("form", ["tuple", "list", "mapping", "tensor", "callable", "callable-mapping"])
def test_forms_of_a_batch(form):
    encoder, (x, groups), (y, _) = Pair(), data(11), data(11, seed=1)
    batch = {
        "tuple": (x, y), "list": [x, y], "mapping": Mapping(right=y, left=x), "tensor": torch.stack([x, y], 1),
        "callable": lambda part: (x[part], y[part]),
        "callable-mapping": lambda part: {"left": x[part], "right": y[part]},
    }[form]  # fmt: skip
    call = (lambda both: encoder(both[:, 0], both[:, 1])) if form == "tensor" else encoder
    z = in_chunks(call, batch, 4, rows=11 if callable(batch) else None)
    nt_xent(z, groups).backward()
    got = [z, *gradients(encoder)]
    z = encoder(x, y)
    nt_xent(z, groups).backward()
    close(got, [z, *gradients(encoder)])


def test_a_callable_batch_is_asked_twice_and_never_for_two_chunks_at_once():
    encoder, asked, alive = net(), [], []

    def load(part: slice) -> torch.Tensor:
        asked.append((part.start, part.stop))
        x = data(10)[0][part].clone()
        alive.append(torch.utils.weak.WeakTensorKeyDictionary({x: None}))
        assert sum(len(a) for a in alive) <= 2  # this one, and one just done with
        return x

    in_chunks(encoder, load, 4, rows=10).sum().backward()
    assert sorted(asked) == sorted([(0, 4), (4, 8), (8, 10)] * 2)
    got = gradients(encoder)
    encoder(data(10)[0]).sum().backward()
    close(got, gradients(encoder))


def test_random_augmentation_in_a_callable_batch_is_drawn_again():
    encoder, (x, groups) = net(), data(10)
    load = lambda part: x[part] + torch.randn(x[part].shape, dtype=x.dtype)  # noqa: E731
    torch.manual_seed(3)
    nt_xent(in_chunks(encoder, load, 4, rows=10), groups).backward()
    got = gradients(encoder)
    torch.manual_seed(3)
    nt_xent(encoder(torch.cat([load(slice(0, 4)), load(slice(4, 8)), load(slice(8, 10))])), groups).backward()
    close(got, gradients(encoder))


def test_dropout_draws_what_it_drew_and_the_generator_stands_where_it_would():
    encoder, (x, groups) = net(nn.Dropout(0.5)), data(12)
    torch.manual_seed(7)
    z = in_chunks(encoder, x, 5)
    after = torch.get_rng_state()
    loss = nt_xent(z, groups)
    torch.randn(3)  # something else draws between
    between = torch.get_rng_state()
    loss.backward()
    assert torch.equal(torch.get_rng_state(), between)
    got = [z, *gradients(encoder)]
    torch.manual_seed(7)
    z = looped(encoder, x, 5)
    assert torch.equal(torch.get_rng_state(), after)
    nt_xent(z, groups).backward()
    close(got, [z, *gradients(encoder)])


def test_the_encoders_own_generator():
    inner, (x, groups) = net(), data(12)
    g = torch.Generator()
    encoder = lambda x: inner(x * (torch.rand(x.shape, generator=g) < 0.5))  # noqa: E731
    got = []
    for embed in (functools.partial(in_chunks, generator=g), looped):
        g.manual_seed(1)
        nt_xent(embed(encoder, x, chunk=5), groups).backward()
        got.append([g.get_state(), *gradients(inner)])
    close(*got)


class Counting(nn.Module):
    """A buffer that is replaced, one of whole numbers, and one that the output depends on."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(8, dtype=torch.float64))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("still", torch.ones(1000))

    def forward(self, x):
        y = x * (1 + self.calls) - self.mean
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        self.calls += 1
        return y


MOVING = {
    "batch norm": lambda: nn.BatchNorm1d(8), "cumulative": lambda: nn.BatchNorm1d(8, momentum=None),
    "instance norm": lambda: nn.Sequential(nn.Unflatten(1, (2, 4)), nn.InstanceNorm1d(2, affine=True,
                                           track_running_stats=True), nn.Flatten()),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)), "own": Counting,
}  # fmt: skip


@pytest.mark.parametrize("name", MOVING)
@pytest.mark.parametrize("wrapped", [False, True])
def test_buffers_are_moved_once_a_chunk_and_seen_as_they_were(name, wrapped):
    ours = net(MOVING[name](), nn.Dropout(0.2))
    theirs, (x, groups) = copy.deepcopy(ours), data(13)
    torch.manual_seed(0)
    for _ in range(3):
        z = in_chunks((lambda x: ours(x)) if wrapped else ours, x, 5)  # whatever way the module is called
        at_once = copy.deepcopy(ours.state_dict())
        nt_xent(z, groups).backward()
        assert all(torch.equal(v, at_once[k]) for k, v in ours.state_dict().items())  # none moved by the second pass
    torch.manual_seed(0)
    for _ in range(3):
        z = looped(theirs, x, 5)
        nt_xent(z, groups).backward()
    for (k, a), b in zip(ours.state_dict().items(), theirs.state_dict().values()):
        assert torch.equal(a, b), k
    close(gradients(ours), gradients(theirs))


def test_buffers_stay_the_same_objects_and_earlier_graphs_valid():
    encoder, (x, groups) = net(nn.BatchNorm1d(8)), data(10)
    buffers = dict(encoder.named_buffers())
    plain = encoder(x)
    nt_xent(in_chunks(encoder, x, 4), groups).backward()
    nt_xent(plain, groups).backward()  # would fail had the running mean been written to by us
    assert all(buffers[k] is b for k, b in encoder.named_buffers())


def test_in_evaluation_and_without_gradients_it_is_a_loop():
    encoder, (x, _) = net(nn.BatchNorm1d(8), nn.Dropout(0.5)).eval(), data(9)
    close([in_chunks(encoder, x, 4)], [encoder(x)])
    with torch.no_grad():
        assert not in_chunks(encoder, x, 4).requires_grad
    with torch.inference_mode():
        close([in_chunks(encoder, x, 4)], [encoder(x)])
    for p in encoder.parameters():
        p.requires_grad_(False)
    assert not in_chunks(encoder, x, 4).requires_grad
    given = x.clone().requires_grad_()
    in_chunks(encoder, given, 4).sum().backward()
    assert float(given.grad.abs().min()) > 0


@pytest.mark.parametrize("ambient", [False, True])
def test_autocast_is_what_it_was(ambient):
    """Backward inside the context, or outside as PyTorch advises; and again in the same context."""
    encoder, (x, groups) = net(kind=torch.float32), data(16, torch.float32)
    kinds, got = [], []
    encoder.register_forward_hook(lambda m, args, out: kinds.append(out.dtype))
    for embed in (in_chunks, looped):
        with torch.autocast("cpu", torch.bfloat16):
            loss = sum(nt_xent(embed(encoder, x + k, 6), groups) for k in range(2))
            if ambient:
                loss.backward()
        if not ambient:
            loss.backward()
        got.append([loss, *gradients(encoder)])
    assert set(kinds) == {torch.bfloat16}
    close(*got, tolerance=2e-2)
    assert torch.equal(got[0][0], got[1][0])
    with torch.autocast("cpu", torch.bfloat16):  # its cache of weights holds none of ours, without gradient
        in_chunks(encoder, x, 6)
        encoder(x).float().sum().backward()
    assert all(g is not None for g in gradients(encoder))


def test_leaves_wherever_they_are():
    """Weights of a closure; one unused; one used outside too; a tensor computed outside."""
    (x, groups), got = data(10), []
    g = torch.Generator().manual_seed(0)
    start = [torch.randn(5, 3, dtype=torch.float64, generator=g) for _ in range(3)]
    for embed in (in_chunks, looped):
        used, both, base = (w.clone().requires_grad_() for w in start)
        computed = base.tanh()
        z = embed(lambda x: x @ used + (x @ both).sin() * (x @ computed), x, 4)  # noqa: B023
        (nt_xent(z, groups) + both.square().sum() + computed.sum()).backward()
        got.append([used.grad, both.grad, base.grad])
    close(*got)


class Either(nn.Module):
    """Another module for every other chunk: not all weights are seen in the first."""

    def __init__(self):
        super().__init__()
        self.nets, self.idle = nn.ModuleList([net(), net(seed=1)]), net(seed=2)

    def forward(self, x):
        return self.nets[int(x[0, 0] > 0)](x)


def test_weights_that_the_first_chunk_does_not_use():
    encoder, (x, groups) = Either(), data(12)
    x[:, 0] = torch.arange(12).remainder(8) - 3.5  # chunks of four: under nought, over, under
    got = []
    for embed in (in_chunks, looped):
        nt_xent(embed(encoder, x, 4), groups).backward()
        got.append(gradients(encoder))
        assert got[-1][-1] is None  # idle
        assert sum(g is not None for g in got[-1]) == 8
    for a, b in zip(*got):
        assert (a is None) == (b is None)
    close(*([g for g in gs if g is not None] for gs in got))
    late = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    z = in_chunks(lambda x: encoder(x) + (x @ late if x[0, 0] > 0 else 0), x, 4)
    with pytest.raises(RuntimeError, match="a later chunk uses a tensor with gradient"):
        z.sum().backward()


def test_hooks_on_a_weight_run_once_on_the_sum():
    encoder, (x, groups) = net(), data(10)
    seen = []
    encoder[0].weight.register_hook(lambda g: seen.append(g) or 2 * g)
    nt_xent(in_chunks(encoder, x, 3), groups).backward()
    got = gradients(encoder)
    nt_xent(encoder(x), groups).backward()
    close(got, gradients(encoder))
    assert len(seen) == 2


def test_autograd_grad_retained_graph_and_changed_weights():
    encoder, (x, groups) = net(), data(10)
    loss = nt_xent(in_chunks(encoder, x, 3), groups)
    some = torch.autograd.grad(loss, [encoder[0].weight], retain_graph=True)
    loss.backward(retain_graph=True)
    first = [g.clone() for g in gradients(encoder)]
    close(some, first[:1])
    loss.backward()
    close(first, gradients(encoder))
    loss = in_chunks(encoder, x, 3).sum()
    torch.optim.SGD(encoder.parameters(), lr=0.1).zero_grad()
    with torch.no_grad():
        encoder[0].weight.mul_(2)
    with pytest.raises(RuntimeError, match="a weight was changed in place between forward and backward"):
        loss.backward()


def test_gradcheck():
    encoder, (x, groups) = net(), data(7)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: nt_xent(in_chunks(encoder, x, 3), groups), x)


@pytest.mark.parametrize(("call", "said"), [
    (lambda e, x: in_chunks(e, x, 0), "chunk must be a whole number of rows above 0, got 0"),
    (lambda e, x: in_chunks(e, x, 2.0), "chunk must be .* got 2.0"),
    (lambda e, x: in_chunks(e, x[:0], 2), "batch has no rows"),
    (lambda e, x: in_chunks(e, (), 2), "batch has no rows"),
    (lambda e, x: in_chunks(e, (x, x[:3]), 2), r"differ in their first dimension \(0: 6, 1: 3\)"),
    (lambda e, x: in_chunks(e, {"a": x, "b": x[:3]}, 2), r"\(a: 6, b: 3\)"),
    (lambda e, x: in_chunks(e, (x, "b"), 2), r"batch\[1\] must be a tensor with rows, got str"),
    (lambda e, x: in_chunks(e, torch.tensor(1.0), 2), "batch must be a tensor with rows, got a number"),
    (lambda e, x: in_chunks(e, 3, 2), "a tensor, a sequence or mapping of tensors, or a callable, got int"),
    (lambda e, x: in_chunks(e, lambda p: x[p], 2), "rows must say how many"),
    (lambda e, x: in_chunks(e, lambda p: x[p], 2, rows=7), r"batch gave 0 rows for slice\(6, 7, None\): give 1"),
    (lambda e, x: in_chunks(e, x, 2, rows=7), "rows is 7 and batch has 6"),
    (lambda e, x: in_chunks(lambda x: (e(x),), x, 2), "encoder gave tuple for 2 rows"),
    (lambda e, x: in_chunks(lambda x: e(x).mean(), x, 2), r"encoder gave a tensor \(\) for 2 rows"),
    (lambda e, x: in_chunks(lambda x: e(x)[:1], x, 2), r"encoder gave a tensor \(1, 3\) for 2 rows"),
    (lambda e, x: in_chunks(lambda x: e(x)[:, : len(x)], x, 4), r"encoder gave \(2, 2\) after \(6, 3\)"),
])  # fmt: skip
def test_bad_input_is_named_in_one_line(call, said):
    e, x = net(), data(6)[0]
    with pytest.raises(ValueError, match=said) as error:
        call(e, x)
    assert "\n" not in str(error.value)


PEAK = """
import os, resource, torch
from torch import nn
from nearfar.losses import nt_xent
from nearfar.losses.caching import in_chunks
torch.set_num_threads(1)
layers = [nn.Linear(8, 2048), nn.BatchNorm1d(2048), nn.Dropout(0.1)] + [nn.Tanh()] * 5 + [nn.Linear(2048, 8)]
encoder = nn.Sequential(*layers)
def step(n, chunk):
    groups = torch.arange(n // 2).repeat(2)
    nt_xent(in_chunks(encoder, torch.randn(n, 8), chunk), groups).backward()
    if not os.path.exists("/proc/self/status"):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    with open("/proc/self/status") as f:  # on Linux the other counts what the parent held when it started this
        return next(int(line.split()[1]) for line in f if line.startswith("VmHWM")) / 1024
before = step(512, 256)
print(step(8192, 256) - before, step(8192, 8192) - before)
"""


def test_memory_is_one_chunks():
    """32 chunks' activations in what two chunks take and a little; one chunk of all rows takes them all."""
    runs = []  # what the allocator keeps beside the tensors comes and goes, 10 to 80 MB: the smallest of three is ours
    for _ in range(3):
        got = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
        runs.append([float(mb) for mb in got.stdout.split()])
    chunked, whole = (min(column) for column in zip(*runs))
    assert whole > 250
    assert chunked < whole / 8


class Model(nn.Module):
    """Encodes in chunks inside its forward, as DDP wants it."""

    def __init__(self, kind: str, chunk: int | None):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.temperature = net(), LearntTemperature().double()
        self.unused = nn.Linear(2, 2).double() if kind == "unused" else None
        self.kind, self.chunk = kind, chunk

    def encode(self, x):
        return self.encoder(x)

    def forward(self, x, y, groups):
        u, v = (in_chunks(self.encode, t, self.chunk) if self.chunk else self.encode(t) for t in (x, y))
        return nt_xent(torch.cat([u, v]), groups.repeat(2), temperature=self.temperature())


def ddp_step(kind: str, chunk: int | None, steps: int = 3) -> list[list]:
    """Steps of training on this process's part: losses, gradients."""
    on = torch.distributed.is_initialized()
    world, rank = (torch.distributed.get_world_size(), torch.distributed.get_rank()) if on else (1, 0)
    model = Model(kind, chunk)
    wrapped = DistributedDataParallel(model, find_unused_parameters=kind == "unused",
                                      static_graph=kind == "static") if on else model  # fmt: skip
    optimiser, out = torch.optim.SGD(model.parameters(), lr=0.1), []
    for i in range(steps):
        (x, groups), (y, _) = data(11, seed=i), data(11, seed=i + 100)
        mine = split(11, world)[rank]
        loss = wrapped(x[mine], y[mine], groups[mine])
        optimiser.zero_grad()
        loss.backward()
        out.append([loss.item(), *(None if p.grad is None else p.grad.tolist() for p in model.parameters())])
        optimiser.step()
    return out


def ddp_steps(kinds: list[str]) -> dict[str, list]:
    return {kind: ddp_step(kind, 2) for kind in kinds}


def assert_steps_close(got: list, want: list, what: str) -> None:
    for a, b in zip(got, want, strict=True):
        for x, y in zip(a, b, strict=True):
            assert (x is None) == (y is None), what
            if x is not None:
                torch.testing.assert_close(torch.tensor(x), torch.tensor(y), rtol=1e-9, atol=1e-11)


def test_under_ddp_two_processes_equal_one():
    """Unequal parts, and as many as three chunks on each process; every gradient reduced once."""
    kinds = ["plain", "static", "unused"]
    want = {kind: ddp_step(kind, None) for kind in kinds}
    for kind in kinds:
        assert_steps_close(ddp_step(kind, 4), want[kind], f"one process, {kind}")
    for rank, got in enumerate(spawn(2, ddp_steps, kinds)):
        for kind in kinds:
            assert_steps_close(got[kind], want[kind], f"process {rank}, {kind}")
